"""Three of the book's data sets as a stranger would have them: plain folders.

Map tiles with black-and-white masks of buildings, satellite images of many sizes with
masks of land cover in colour, slices with black-and-white masks of membranes. Without
the published files they are made from the embedded samples.
"""

import functools
import shutil
import tempfile
import warnings
from pathlib import Path

from PIL import Image

from utils import data, runtime

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
        "tile": runtime.choose(gpu=256, cpu=256, smoke=64),
    },
    "membranes": {
        "images": "slices",
        "masks": "slices",
        "classes": {"membrane": 0, "cell": 255},
        "groups": 5,  # neighbours in the stack
    },
}  # fmt: skip
COLOURS = [*ASKED["landcover"]["classes"].values(), "#9B9B9B"]


def example(folder):
    """The buildings below a folder: (photos, masks), laid out unless they are there.

    Published files and the embedded sample, in each profile, have places of their own.
    """
    source = load("buildings", "train").source
    origin = "sample" if source == "sample" else "real"
    place = Path(folder, f"example-{origin}-{runtime.profile()}")
    if not place.is_dir():
        new = Path(folder, f"{place.name}.new")
        shutil.rmtree(new, ignore_errors=True)  # of a run that was interrupted
        lay_out("buildings", new)
        new.rename(place)
    return place / "photos", place / "masks"


@functools.lru_cache(maxsize=1)
def sets(name):
    """One of ASKED, laid out and read as a stranger would: `data.folder`'s `Sets`."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they stand in the report
        return data.folder(**lay_out(name, place))


def image_of(name):
    """The image that a tile was cut from: "a.jpg" of "a.jpg@256,0"."""
    return name.partition("@")[0]


def lay_out(name, folder):
    """Writes a data set into a folder, as plain files; returns the arguments of
    `data.folder` that load it."""
    folder = Path(folder)
    {"buildings": buildings, "landcover": landcover, "membranes": membranes}[name](folder)
    places = {k: folder / ASKED[name][k] for k in ("images", "masks") if k in ASKED[name]}
    return ASKED[name] | places


def load(name, split):
    """The data set; in the profile smoke small enough for a test."""
    return data.load(name, split, size=runtime.choose(gpu=None, cpu=None, smoke=96))


def loaded(name, *splits):
    """All images of some splits, numbered: (number, (image, label))."""
    parts = (load(name, split) for split in splits)
    pairs = (pair for part in parts for pair in zip(part.images, part.labels))
    return enumerate(pairs)


def buildings(folder):
    for split in ("train", "val"):
        found = load("buildings", split)
        for image, label, outlines in zip(found.images, found.labels, found.outlines):
            stem = outlines["name"].rpartition("-")[0]  # column-row
            save(folder / f"photos/{stem}.jpg", image.permute(1, 2, 0), quality=95)
            save(folder / f"masks/{stem}_mask.png", 255 * label)


def landcover(folder):
    """The published files as they are; or squares of the stand-in, two an area."""
    if load("landcover", "val").source != "sample":
        for area in sorted((data.data_root() / "landcover").glob("Tile *")):
            shutil.copytree(area, folder / area.name)
        return
    for number, (image, label) in loaded("landcover", "train", "val"):
        area = folder / f"Tile {number // 2}"
        save(area / f"images/part {number}.jpg", image.permute(1, 2, 0), quality=95)
        mask = Image.fromarray(label.clamp(max=len(COLOURS) - 1).numpy(), "P")
        mask.putpalette(bytes.fromhex("".join(COLOURS).replace("#", "")))
        (area / "masks").mkdir(exist_ok=True)
        mask.save(area / f"masks/part {number}.png")


def membranes(folder):
    for number, (image, label) in loaded("membranes", "train", "val", "test"):
        save(folder / f"slices/slice {number:02}.tif", image[0])
        save(folder / f"slices/slice {number:02}_mask.png", 255 * label)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path, **how)
