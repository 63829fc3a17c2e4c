"""A reader's own folder of images and masks as the book's data sets.

`folder` pairs, checks, splits and loads them; `look` only reports. Nothing is written.
"""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch

from utils.data import (
    DataError,
    Dataset,
    height_and_width,
    resize_image,
    resize_label,
    splitting,
)
from utils.data.finding import Wish
from utils.data.naming import IGNORE
from utils.data.pairing import IMAGES, plain
from utils.data.pictures import read_pixels
from utils.data.report import Report
from utils.data.survey import survey


@dataclass(frozen=True, eq=False, repr=False)
class Sets:
    """A reader's images in three parts, each a `Dataset`, and the report on them."""

    train: Dataset
    val: Dataset
    test: Dataset
    report: Report
    groups: dict[str, str]  # the group of each image, by its name in `names`
    # What became black (0) and white (255), of images of over 8 bits; None without any.
    levels: tuple[float, float] | None = None

    def __repr__(self):
        parts = self.train, self.val, self.test
        return f"Sets({', '.join(f'{part.split}: {len(part)}' for part in parts)})"

    def _repr_markdown_(self):
        return str(self.report)


def folder(
    images, masks=None, classes=None, groups=None, tile=None, size=None, ignore=None,
    held_out=(0.2, 0.2), seed=0,
):  # fmt: skip
    """A folder of images and masks as train, val and test: `Sets`.

    images, masks: two folders; one that holds both; or images, and a COCO file or a
    folder of LabelMe's. LabelMe's files may also lie beside the images.
    classes: name -> value of the masks (a number, "#3C1098", (r, g, b), a list of
    these, or "others" for all the rest), a list of names (0, 1, 2 ...), a file that a
    labelling tool wrote, or None: the values found. For outlines: their names.
    groups: what must not be parted: None (single images), "folder" (those called train,
    val and test are the parts), "prefix", a number (so many neighbours by name), or a
    regular expression, its first group searched for in the path seen from `images`.
    tile: side of squares, in pixels, into which all is cut; size: a side or (height,
    width) to which all is resized. One of them is needed where sizes differ.
    ignore: a value, a list of values or "others": neither learnt nor scored.
    held_out: shares of val and test, of images and of pixels alike; seed: of the split.

    The data sets hold images (N, 3, H, W) and labels (N, H, W), both uint8; a tile is
    called after its image, "a.jpg@256,0" for the one from row 256 and column 0. Images
    of over 8 bits are scaled by the range of the whole folder, `levels`. Raises
    DataError with all that is wrong with the files, a line each, and ValueError for
    arguments that make no sense. Doubts come as a warning; the report has all.
    """
    found = survey(wish(images, masks, classes, groups, tile, size, ignore, held_out,
                        seed))  # fmt: skip
    if found.report.faults:
        raise DataError("\n".join(found.report.brief("fault")))
    if found.report.warnings:
        warnings.warn("\n".join(found.report.brief("warning")), stacklevel=2)
    return load(found)


def look(
    images, masks=None, classes=None, groups=None, tile=None, size=None, ignore=None,
    held_out=(0.2, 0.2), seed=0,
):  # fmt: skip
    """The report alone, for the arguments of `folder`; no file at fault stops it."""
    return survey(wish(images, masks, classes, groups, tile, size, ignore, held_out,
                       seed)).report  # fmt: skip


def wish(images, masks, classes, groups, tile, size, ignore, held_out, seed):
    """The arguments as a `Wish`; ValueError for those that make no sense."""
    splitting.check_groups(groups)
    if tile is not None and size is not None:
        raise ValueError("give tile or size, not both: resize the files first")
    if tile is not None and not (isinstance(tile, Integral) and tile >= 1):
        raise ValueError(f"tile is {tile!r}; give the side of a square in pixels")
    good = isinstance(held_out, (tuple, list)) and len(held_out) == 2 and all(
        isinstance(share, Real) and share > 0 for share in held_out
    )  # fmt: skip
    if not good or sum(held_out) >= 1:
        raise ValueError(
            f"held_out is {held_out!r}; give the shares of val and test, "
            "such as (0.2, 0.2)"
        )
    images = Path(images).expanduser()
    masks = None if masks is None else Path(masks).expanduser()
    if masks and masks.is_dir() and images.is_dir() and masks.samefile(images):
        masks = None
    return Wish(images, masks, classes, groups, tile, height_and_width(size), ignore,
                tuple(held_out), seed)  # fmt: skip


# --- loading


def load(found):
    """The `Sets` of a `Survey` without faults."""
    sets, parts = {}, {part: [] for part in splitting.PARTS}
    for item in found.items:
        parts[item.part] += pieces(found, item)
    void = bool(found.coding.naming.ignored) or any(
        bool((label == IGNORE).any()) for own in parts.values() for _, _, label in own
    )
    for part, own in parts.items():
        names, images, labels = zip(*own)
        sets[part] = Dataset(
            name=title(found.wish.images),
            split=part,
            images=torch.stack(images),
            labels=torch.stack(labels),
            classes=found.coding.names,
            palette=found.coding.palette,
            ignore=IGNORE if void else None,
            licence="yours",
            citation="yours",
            source="local",
            names=names,
        )
    groups = {name: item.group for item in found.items for name in item.names}
    return Sets(**sets, report=found.report, groups=groups, levels=found.levels)


def title(folder):
    """A name for the data set: its folder's, or that of what holds "images"."""
    folder = folder.resolve()
    return folder.parent.name if plain(folder.name) in IMAGES else folder.name


def pieces(found, item):
    """An image and its labels as they go into a data set: a list of (name, image
    (3, H, W), label (H, W)), both uint8; one, or one for each tile."""
    image = torch.from_numpy(read_pixels(item.image, found.levels))
    label = torch.from_numpy(found.coding.labels(item.mask(), item.known))
    size, side = found.wish.size, found.wish.tile
    if side:
        own = [
            (f"{item.name}@{y},{x}", *pair) for y, x, *pair in tiles(image, label, side)
        ]
    elif size:
        own = [(item.name, resize_image(image, size), resize_label(label, size))]
    else:
        own = [(item.name, image.contiguous(), label)]
    item.names = [name for name, *_ in own]
    return own


def tiles(image, label, side):
    """Cuts an image (3, H, W) and its label (H, W) into squares: yields (y, x, image
    (3, side, side), label (side, side)).

    Squares at the far sides are moved inward, so that they hold image to their edges;
    what an earlier one held is not scored there again. What is smaller than a square is
    filled up with its last pixels, not scored. Squares without a scored pixel are left
    out, but for the first of an image.
    """
    height, width = label.shape
    wide, deep = max(side - width, 0), max(side - height, 0)
    image = torch.from_numpy(
        np.pad(image.numpy(), ((0, 0), (0, deep), (0, wide)), "edge")
    )
    fresh = np.pad(label.numpy(), ((0, deep), (0, wide)), constant_values=IGNORE)
    for y in starts(fresh.shape[0], side):
        for x in starts(fresh.shape[1], side):
            rows, columns = slice(y, y + side), slice(x, x + side)
            own = torch.from_numpy(fresh[rows, columns].copy())
            fresh[rows, columns] = IGNORE
            if (own != IGNORE).any() or (x == 0 and y == 0):
                yield y, x, image[:, rows, columns].clone(), own


def starts(length, side):
    """Where squares start that cover a length, the last flush with its end."""
    return [*range(0, length - side, side), length - side]
