"""Membranes of brain cells: the electron microscopy of the ISBI 2012 challenge.

Thirty consecutive slices of the nerve cord of a fruit-fly larva, 512 x 512 grey
levels of about 4 x 4 nm. A slice is the file image/<number>.png and its truth
label/<number>.png, where 0 is membrane and 255 is cell.
"""

import math

import numpy as np
import torch
from scipy import ndimage

from utils.data import DataError, read_image
from utils.data.download import Archive

classes = ("membrane", "cell")
palette = ((214, 72, 28), (64, 150, 214))  # vermilion, blue: far apart for every eye
ignore = None
licence = "ISBI 2012 challenge data, for research and teaching: cite the source"
citation = (
    "A. Cardona et al., An integrated micro- and macroarchitectural analysis of the "
    "Drosophila brain by computer-assisted serial section electron microscopy, "
    "PLoS Biology 8(10), e1000502, 2010"
)
# The numbers of the slices: blocks, because a slice resembles its neighbours.
splits = {"train": range(20), "val": range(20, 24), "test": range(24, 30)}
archive = Archive(
    repository="zhixuhao/unet",
    commit="b45af4d458437d8281cc218a07fd4380818ece4a",
    folder="data/membrane/train",
    keep=("image", "label"),
    sha256="00ec4b51a57979b4d37a91d174e619d8972738e0ceff222addb5eaf904c47dd0",
)
kaggle = None


def missing(folder):
    """The files that folder lacks, as a list of relative names."""
    slices = [k for part in splits.values() for k in part]
    names = [f"{kind}/{k}.png" for kind in ("image", "label") for k in slices]
    return [name for name in names if not (folder / name).is_file()]


def read(folder, split):
    """Yields (image (1, H, W), label (H, W)), both uint8, in the order of slices."""
    for k in splits[split]:
        image = read_image(folder / f"image/{k}.png", "L")
        label = read_image(folder / f"label/{k}.png", "L")
        yield image, decode(label[0], folder / f"label/{k}.png")


def decode(label, path):
    """Grey values 0 and 255 to the classes 0 (membrane) and 1 (cell)."""
    values = set(label.unique().tolist())
    if not values <= {0, 255}:
        some = ", ".join(map(str, sorted(values)[:5]))
        raise DataError(
            f"{path} holds the values {some}...: a label map of membranes is black "
            "(0, membrane) and white (255, cell)"
        )
    return label // 255


# The stand-in: slices drawn by a program, for those without the real ones. Lengths
# are pixels of a 512 x 512 slice, grey levels those of the real slices.

SIDE = 512
SEED = 2012


def sample(split):
    """Yields drawn slices, as `read` does the real ones; the same ones every time."""
    for k in splits[split]:
        yield draw(np.random.default_rng([SEED, k]))


def draw(rng):
    """One drawn slice: (image (1, 512, 512), label (512, 512)), both uint8 tensors."""
    owner, distance = tissue(rng)
    aslant = np.maximum(noise(rng, 26) - 1.4, 0)  # where membranes are cut aslant
    half = np.maximum(1.95 + 0.35 * noise(rng, 50), 1.4) + 3 * aslant  # half the width
    label = distance > half

    image = cytoplasm(rng, owner)
    image += mitochondria(rng, distance) + vesicles(rng, distance)
    image -= 40 * aslant * np.exp(-((distance / 18) ** 2))
    depth = (88 + 14 * noise(rng, 40)) / (1 + aslant)
    image -= depth * np.exp(-((distance / half) ** 2))
    image = micrograph(rng, image).round().clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image)[None], torch.from_numpy(label.astype(np.uint8))


def noise(rng, period):
    """A smooth random field (512, 512), bumps of about `period`, deviation 1."""
    knots = rng.standard_normal(2 * [SIDE // period + 5], np.float32)
    at = np.arange(SIDE)[:, None] / period - np.arange(-2, len(knots) - 2)
    weights = np.exp(-2 * at**2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights = weights.astype(np.float32)
    return weights @ knots @ weights.T


def tissue(rng):
    """Cells and their borders.

    A cell is what lies nearest to its disc: the discs have very different sizes, and
    the plane is warped and stretched, so that borders curve.

    Returns owner (512, 512), the number of each pixel's cell, and distance (512, 512)
    in pixels to the next border.
    """
    margin, stretch = 50, rng.uniform(1, 1.5)
    shape = round(stretch * SIDE) + 2 * margin, SIDE + 2 * margin
    plane = np.zeros(shape, np.int16)
    nearest = np.full(shape, np.inf, np.float32)
    for number, (row, column, radius) in enumerate(discs(rng, shape)):
        part, rows, columns = window(row, column, radius + 35, shape)
        away = np.sqrt(rows**2 + columns**2) - radius
        np.copyto(plane[part], number, where=away < nearest[part])
        np.minimum(nearest[part], away, out=nearest[part])

    at = np.arange(SIDE, dtype=np.float32)
    rows = at[:, None] + 15 * noise(rng, 68) + 3 * noise(rng, 18)
    columns = at + 15 * noise(rng, 68) + 3 * noise(rng, 18)
    rows = (margin + stretch * rows).clip(0, shape[0] - 1).astype(int)
    columns = (margin + columns).clip(0, shape[1] - 1).astype(int)
    owner = plane[rows, columns]

    border = np.zeros((SIDE, SIDE), bool)
    border[1:] |= owner[1:] != owner[:-1]
    border[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    distance = ndimage.distance_transform_edt(~border).astype(np.float32)
    return owner, np.maximum(ndimage.gaussian_filter(distance, 1.2) - 0.8, 0)


def discs(rng, shape):
    """Discs (row, column, radius) that hardly overlap: few large ones, many small."""
    radii = np.minimum(9 * rng.uniform(0.002, 1, 260) ** -0.55, 80).astype(int)
    rows, columns = rng.integers(np.array(shape)[:, None, None], size=(2, 260, 8))
    placed = []
    room = np.full(rows.shape, np.inf)  # of each spot, to the discs placed so far
    for k, radius in enumerate(-np.sort(-radii)):  # the large ones first
        best = room[k].argmax()
        if room[k, best] > 0.75 * radius:
            row, column = rows[k, best], columns[k, best]
            placed.append((row, column, radius))
            away = np.sqrt((rows[k:] - row) ** 2 + (columns[k:] - column) ** 2)
            np.minimum(room[k:], away - radius, out=room[k:])
    return placed


def cytoplasm(rng, owner):
    """Grey of the cells' insides (512, 512): every cell its own, some dark."""
    count = owner.max() + 1
    shade = 11 * rng.standard_normal(count) - 24 * (rng.random(count) < 0.12)
    grains = 9 * noise(rng, 11) + 11 * noise(rng, 4)
    return 152 + shade.astype(np.float32)[owner] + grains


def mitochondria(rng, distance):
    """What mitochondria in the large cells add: dark, striped, with an outline."""
    layer = np.zeros_like(distance)
    wobble = 0.14 * noise(rng, 22)
    for _ in range(rng.integers(4, 9)):
        row, column, room = find_room(rng, distance, 17)
        long = min(0.75 * room, rng.uniform(14, 34))
        short, angle = long * rng.uniform(0.6, 0.95), rng.uniform(0, math.pi)
        part, rows, columns = window(row, column, int(long) + 9)
        along = math.cos(angle) * rows + math.sin(angle) * columns
        across = math.cos(angle) * columns - math.sin(angle) * rows
        reach = np.hypot(along / long, across / short) + wobble[part]
        inside = 1 / (1 + np.exp((reach - 1) * long / 1.2))
        stripes = 15 * np.sin(0.9 * along + 16 * wobble[part])
        outline = 34 * np.exp(-(((reach - 1) * long / 2) ** 2))
        layer[part] = np.minimum(layer[part], inside * (stripes - 52) - outline)
    return layer


def vesicles(rng, distance):
    """What bunches of small vesicles add: dark rings, a few with a dark core."""
    layer = np.zeros_like(distance)
    side = np.arange(-8.0, 9)
    reach = np.hypot(side[:, None], side)  # from the centre of a vesicle
    for _ in range(34):
        row, column, room = find_room(rng, distance, 9)
        spread = rng.uniform(0.5, 1.2) * min(room, 45)
        spots = rng.normal((row, column), spread, (rng.integers(2, 16), 2)).astype(int)
        for (y, x), radius in zip(spots, rng.uniform(2.5, 5.2, len(spots))):
            inside = 8 <= min(y, x) and max(y, x) < SIDE - 8
            if not inside or distance[y, x] < radius + 3:
                continue
            away = reach - radius
            if radius > 4.9:
                away = np.maximum(away, 0)
            part = layer[y - 8 : y + 9, x - 8 : x + 9]
            np.minimum(part, -64 * np.exp(-(away**2) / 2), out=part)
    return layer


def find_room(rng, distance, room):
    """A spot (row, column, distance to the border), `room` from the border or most."""
    spots = rng.integers(SIDE, size=(60, 2))
    free = distance[*spots.T]
    best = np.minimum(free, room).argmax()
    return *spots[best], free[best]


def window(row, column, reach, shape=(SIDE, SIDE)):
    """A part of a plane around a spot and, seen from there, its rows and columns."""
    top, left = max(row - reach, 0), max(column - reach, 0)
    bottom, right = min(row + reach + 1, shape[0]), min(column + reach + 1, shape[1])
    rows = np.arange(top - row, bottom - row, dtype=np.float32)[:, None]
    columns = np.arange(left - column, right - column, dtype=np.float32)
    return (slice(top, bottom), slice(left, right)), rows, columns


def micrograph(rng, image):
    """What the microscope adds to (512, 512): uneven light, shot noise, blur."""
    light = 1 + 0.07 * noise(rng, 150) + rng.uniform(-0.2, 0.14)
    shots = np.sqrt(image.clip(20)) * rng.standard_normal(image.shape, np.float32)
    return ndimage.gaussian_filter(image * light + 4.3 * shots, 0.8, truncate=3)
