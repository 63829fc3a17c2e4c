"""Three of the book's data sets as a stranger would have them: plain folders.

Lays them out below a folder, then loads each by `data.folder` and prints its report:
map tiles with black-and-white masks of buildings, satellite images with colour masks of
land cover in folders of areas, slices with black-and-white masks of membranes.

    SEGBOOK_DATA=... python -m benchmarks.strangers [--into FOLDER] [NAME ...]
"""

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path

from PIL import Image

from utils import data

# What a stranger would write, for folders seen from the one that was laid out.
ASKED = {
    "buildings": {
        "images": "photos",
        "masks": "masks",
        "classes": {"ground": 0, "building": 255},
        "groups": r"^(\d+)-",  # columns of the map
    },
    "landcover": {
        "images": ".",
        "classes": {
            "water": "#E2A929", "land": "#8429F6", "road": "#6EC1E4",
            "building": "#3C1098", "vegetation": "#FEDD3A",
        },
        "ignore": ["#9B9B9B", "#000000"],
        "groups": "folder",  # areas
        "tile": 256,
    },
    "membranes": {
        "images": "slices",
        "masks": "slices",
        "classes": {"membrane": 0, "cell": 255},
        "groups": 5,  # neighbours in the stack
    },
}  # fmt: skip


def lay_out(name, folder):
    """Writes a data set into a folder, as plain files; returns the arguments of
    `data.folder` that load it. Needs the real data in the data root."""
    folder = Path(folder)
    {"buildings": buildings, "landcover": landcover, "membranes": membranes}[name](
        folder
    )
    places = {
        k: folder / ASKED[name][k] for k in ("images", "masks") if k in ASKED[name]
    }
    return ASKED[name] | places


def buildings(folder):
    for split in ("train", "val"):
        found = data.load("buildings", split, source="local")
        for image, label, outlines in zip(found.images, found.labels, found.outlines):
            stem = outlines["name"].rpartition("-")[0]  # column-row
            save(folder / f"photos/{stem}.jpg", image.permute(1, 2, 0), quality=95)
            save(folder / f"masks/{stem}_mask.png", 255 * label)


def landcover(folder):
    origin = data.data_root() / "landcover"
    for area in sorted(origin.glob("Tile *")):
        shutil.copytree(area, folder / area.name)


def membranes(folder):
    for split in ("train", "val", "test"):
        found = data.load("membranes", split, source="local")
        numbers = data.membranes.splits[split]
        for number, image, label in zip(numbers, found.images, found.labels):
            save(folder / f"slices/slice {number:02}.tif", image[0])
            save(folder / f"slices/slice {number:02}_mask.png", 255 * label)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path, **how)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ASKED), metavar="NAME")
    parser.add_argument("--into", help="a folder that is kept; else a temporary one")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # they stand in the report
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            asked = lay_out(name, Path(options.into or scratch) / name)
            start = time.perf_counter()
            sets = data.folder(**asked)
            seconds = time.perf_counter() - start
            print(
                f"\n# {name}: {sets}, {tuple(sets.train.images.shape)}, {seconds:.1f} s"
            )
            print(f"\n{sets.report}")


if __name__ == "__main__":
    main()
