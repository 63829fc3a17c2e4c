"""The book's data sets: `load(name, split)` gives images and labels as tensors.

A data set comes from the first of these sources that has it:

    local    the folder <data root>/<name>; the data root is SEGBOOK_DATA, else data/
    archive  a pinned public archive, downloaded into the data root and verified
    kaggle   the same from Kaggle, for the data sets that lie there
    sample   the embedded stand-in, drawn by a program: nothing to download

Each module of this package that is named in NAMES describes one data set. `folder` and
`look` do the same for a reader's own images and masks.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from utils import runtime
from utils.data.download import DataError, Unavailable, fetch, verify

NAMES = (
    "buildings", "camvid", "instrument_parts", "instruments", "landcover", "membranes",
)  # fmt: skip
SOURCES = {
    "local": "the local folder",
    "archive": "the public archive",
    "kaggle": "Kaggle",
    "sample": "the embedded sample",
}
CHANGED = "local files, not as published"  # what sources_used says of such a folder
_used = {}  # name of a data set -> the sources it came from in this process


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, whole in memory."""

    name: str
    split: str
    images: torch.Tensor  # (N, C, H, W) uint8
    # (N, H, W) uint8: numbers of classes, or ignore. With `keep_labels` their height
    # and width are those of the files, whatever the images were resized to.
    labels: torch.Tensor
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # red, green, blue of each class
    ignore: int | None  # the label that is neither learnt nor scored
    licence: str
    citation: str
    source: str  # "local", "archive", "kaggle" or "sample"
    # Of each image what its labels were drawn from, a FeatureCollection of GeoJSON in
    # degrees; empty where the data set has no such outlines.
    outlines: tuple[dict, ...] = ()
    # Of each image the name of its file, or "drawn-000" and so on; empty where an image
    # is not one file of the data set.
    names: tuple[str, ...] = ()

    def __len__(self):
        return len(self.images)


def load(name, split="train", size=None, source=None, keep_labels=False):
    """Loads one split of a data set.

    size: None (as the files are), a side or (height, width): images are resized
    bilinearly, labels by the nearest pixel; with `keep_labels` labels stay as they are,
    to score predictions against. source: one of SOURCES to take that one and no other,
    also set by SEGBOOK_SOURCE; the profile "smoke" takes "sample" by itself.

    Raises ValueError for an unknown name, split, size or source, and DataError, with
    what to do, for data that are missing or broken.
    """
    module = described(name, split)
    size = height_and_width(size)
    source, pairs = find(name, module, split, forced_source(source))
    images, labels, outlines = stack(name, pairs, size, keep_labels)
    names = item_names(name, module, split, source, len(images))
    _used.setdefault(name, set()).add(checked(name, module, source))
    return Dataset(
        name, split, images, labels, module.classes, module.palette, module.ignore,
        module.licence, module.citation, source, outlines, names,
    )  # fmt: skip


def identity(name, split="train", size=None, keep_labels=False):
    """Which data `load` gives for these arguments, told without them: a record of it.

    A dict of plain values (it survives JSON) with the arguments, the origin of the
    published files (the repository or Kaggle data set, its commit, the hash of the
    files; None where the data are drawn) and `items`: which of them make up the split,
    as its module numbers them, or how many they are.

    Raises ValueError for an unknown name, split or size.
    """
    module = described(name, split)
    size, items = height_and_width(size), module.splits[split]
    origin = module.archive or module.kaggle
    told = "repository", "dataset", "commit", "sha256"
    return {
        "name": name,
        "split": split,
        "size": size and list(size),
        "keep_labels": bool(keep_labels),
        "origin": origin and {k: v for k, v in vars(origin).items() if k in told},
        "items": items if isinstance(items, int) else list(items),
    }


def described(name, split):
    """The module of a data set; ValueError if there is none, or no such split."""
    if name not in NAMES:
        raise ValueError(f"no data set {name!r}; there are: {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{name}")
    if split not in module.splits:
        splits = ", ".join(module.splits)
        raise ValueError(f"{name} has no split {split!r}; it has: {splits}")
    return module


def reader(name):
    """The function that reads a data set's files; the drawing one where there are none.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    return getattr(module, "read", module.sample)


def sources_used():
    """Name -> source of all that was loaded in this process; "a + b" where two were.

    It is CHANGED for a local folder whose files do not have the published hash.
    """
    return {name: " + ".join(sorted(found)) for name, found in _used.items()}


def data_root():
    """The folder of the data sets: SEGBOOK_DATA (seen from the book), else data/."""
    return runtime.root() / Path(os.environ.get("SEGBOOK_DATA") or "data").expanduser()


def forced_source(source):
    """The one source to take, or None for the first that has the data."""
    source = source or os.environ.get("SEGBOOK_SOURCE")
    if source and source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are: {', '.join(SOURCES)}")
    return source or ("sample" if runtime.profile() == "smoke" else None)


def find(name, module, split, forced):
    """Returns the source taken and the iterator over its (image, label) pairs."""
    folder = data_root() / name
    origins = {"archive": module.archive, "kaggle": module.kaggle}
    here = [s for s in SOURCES if s not in origins or origins[s]]
    if not hasattr(module, "read"):
        here = ["sample"]  # it exists as a drawing only
    if forced and forced not in here:
        raise DataError(f"{name} does not lie on {SOURCES[forced]}; force another")
    sources = [forced] if forced else here
    for source, following in zip(sources, [*sources[1:], None]):
        if source == "sample":
            return source, module.sample(split)
        try:
            if source == "local":
                check_local(name, module, folder)
            else:
                fetch(origins[source], folder)
            return source, module.read(folder, split)
        except Unavailable as error:
            if forced:
                raise DataError(advice(name, source, error)) from error
            print(f"{name}: {error}; trying {SOURCES[following]}")


def item_names(name, module, split, source, count):
    """The names of the images loaded; () for files of a module that gives none."""
    if source == "sample":
        return tuple(f"drawn-{k:03}" for k in range(count))
    return module.names(data_root() / name, split) if hasattr(module, "names") else ()


def check_local(name, module, folder):
    """Raises Unavailable without the folder, DataError when it is not whole and open.
    """
    if not os.path.exists(folder):
        raise Unavailable(f"there is no folder {shown(folder)}")
    closed = first_closed(folder)
    if closed:
        raise DataError(
            f"{shown(closed)} may not be read: give yourself permission to read all of "
            f"{shown(folder)} (chmod -R u+rwX), or ask its owner"
        )
    lacking = module.missing(folder)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{shown(folder)} is incomplete: it lacks {lacking[0]}{more}. Complete it, "
            f"or remove it so that {name} is fetched again"
        )


def first_closed(folder):
    """A folder, or what in it comes first, that may not be read; None without any."""
    enter = os.R_OK | os.X_OK
    places = [(folder, enter)]
    for here, folders, files in os.walk(folder):
        places += [(Path(here, name), enter) for name in folders]
        places += [(Path(here, name), os.R_OK) for name in files]
    for place, needed in places:
        if os.path.exists(place) and not os.access(place, needed):
            return place
    return None


def checked(name, module, source):
    """The source, or CHANGED, and a line that says so, for files not as published."""
    if source == "local":
        try:
            verify(data_root() / name, (module.archive or module.kaggle).sha256)
        except Unavailable as error:
            if CHANGED not in _used.get(name, ()):
                print(f"{name}: {error}; taken as they are")
            return CHANGED
    return source


def advice(name, source, error):
    """The message for a forced source that failed."""
    return (
        f"{name} cannot be had from {SOURCES[source]}: {error}. Mend that, put the "
        f"files into {shown(data_root() / name)}, or let SEGBOOK_SOURCE and `source` "
        "unset to take what there is"
    )


def shown(path):
    """A path for a message: as seen from the book, where it lies inside."""
    book = runtime.root()
    return path.relative_to(book) if path.is_relative_to(book) else path


def height_and_width(size):
    """None, a side or (height, width), as None or (height, width)."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"size is {size!r}; give None, a side or (height, width)")
    return pair


def stack(name, pairs, size, keep_labels=False):
    """Resizes pairs and stacks them: (N, C, H, W), (N, H, W), both uint8.

    With keep_labels only images are resized, and the two may differ in H and W. A pair
    may be followed by the outlines of its label, which come third, as a tuple.
    """
    images, labels, outlines = [], [], []
    for number, (image, label, *more) in enumerate(pairs):
        if image.shape[1:] != label.shape:
            raise DataError(
                f"{name}: image {number} is {shape(image)}, its label {shape(label)}; "
                "they must have one size"
            )
        images.append(resize_image(image, size) if size else image)
        labels.append(label if keep_labels or not size else resize_label(label, size))
        outlines += more
    check_one_size(f"{name}: images", images, "load with size=")
    check_one_size(f"{name}: labels", labels, "load without keep_labels")
    return torch.stack(images), torch.stack(labels), tuple(outlines)


def check_one_size(what, found, advice):
    shapes = sorted({shape(image) for image in found})
    if len(shapes) > 1:
        raise DataError(f"{what} of sizes {', '.join(shapes)}; {advice}")


def shape(image):
    return f"{image.shape[-2]}x{image.shape[-1]}"


def resize_image(image, size):
    """(C, H, W) uint8 to size, bilinear, without aliasing."""
    fine = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)
    return fine[0].round().clamp(0, 255).to(torch.uint8)


def resize_label(label, size):
    """(H, W) uint8 to size, each pixel the nearest one: no new values."""
    return F.interpolate(label[None, None], size, mode="nearest-exact")[0, 0]


def read_image(path, mode):
    """Reads an image file as (C, H, W) uint8; mode "L" is one channel, "RGB" three.

    Whatever the file holds (grey, colour, palette, transparency) is converted. Raises
    DataError, naming the file, when it cannot be read, and for grey levels of 16 bits,
    of 32 or in floating point: nothing says where their black and white lie.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode[0] in "IF"  # Pillow would cut them off at 0 and 255
            pixels = np.array(image.convert(mode))
    except Exception as error:  # Pillow has many ways to fail on a broken file
        raise DataError(
            f"{path} cannot be read as an image ({error}): replace it, or remove its "
            "data set's folder so that it is fetched again"
        ) from error
    if deep:
        raise DataError(f"{path} has over 8 bits a pixel: save it again, scaled to 8")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)


# Last, as they need what stands above: a reader's own files.
from utils.data.folders import Sets, folder, look  # noqa: E402, F401
