"""What is held out of a reader's images: whole groups, never parts of one.

Images of one group (a place, a patient, a video) resemble each other: a network that
learnt on one of them is judged too well on the next.
"""

import re
from pathlib import PurePosixPath

import numpy as np

from utils.data.pairing import IMAGES, MASKS, natural, plain
from utils.data.report import counted, some

PARTS = ("train", "val", "test")
TRIES = 300  # random splits, of which the best is taken
ALIKE = 0.92  # correlation of thumbnails of what is nearly the same picture
# Of neighbours by name, at the median: 0.75 for CamVid's frames, a second apart, 0.6
# for slices of membranes, 0 for map tiles and satellite images.
CLOSE = 0.3
FEWEST = 8  # images, of which neighbours tell something
# How folders are called that hold parts already.
GIVEN = {
    "train": "train", "training": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip


class Ungrouped(ValueError):
    """An image that a pattern gives no group."""


def group_of(name, groups):
    """The group of an image, by its path as a text, seen from its folder.

    None or a number: the image itself. "folder": the folder it lies in, but for such as
    "images". "prefix": its name up to the last of "_", "-", "." and blank, or without
    the number at its end. Else a regular expression, whose first group is the group.
    """
    path = PurePosixPath(name)
    if groups is None or isinstance(groups, int):
        return name
    if groups == "folder":
        kept = [p for p in path.parts[:-1] if plain(p) not in (*MASKS, *IMAGES)]
        return "/".join(kept) or "."
    if groups == "prefix":
        shorter = re.sub(r"[ _.-]+[^ _.-]*$", "", path.stem)
        return (
            shorter
            if shorter not in ("", path.stem)
            else re.sub(r"\d+$", "", path.stem)
        )
    found = re.search(groups, name)
    if not found or found[1] is None:
        raise Ungrouped(
            f"{name} has no group by the pattern {groups!r}: change the pattern so "
            "that it fits every path, seen from the folder of images"
        )
    return found[1]


def check_groups(groups):
    """Raises ValueError for what is neither a word nor a pattern with a group."""
    if groups in (None, "folder", "prefix"):
        return
    if isinstance(groups, int) and not isinstance(groups, bool) and groups > 0:
        return
    try:
        if re.compile(groups).groups > 0:
            return
        why = "it has no group in brackets"
    except (re.error, TypeError) as error:
        why = str(error)
    raise ValueError(
        f'groups is {groups!r} ({why}): give None, "folder", "prefix", a number of '
        r'neighbours or a regular expression with one, such as r"area(\d+)"'
    )


def blocks(count, length):
    """Groups of neighbours: the first `length` images, the next ones, and so on."""
    return [f"block {k // length}" for k in range(count)]


def given(groups):
    """The part of each image where its folder is called so ("train/a", "val"); None
    unless there are all three and nothing else."""
    parts = [GIVEN.get(plain(group).split("/")[0]) for group in groups]
    return parts if set(parts) == set(PARTS) else None


def joined(groups, digests):
    """Groups (list of names) in which one image under two names is in one group."""
    first = {}
    return [first.setdefault(digest, group) for group, digest in zip(groups, digests)]


def split(groups, sizes, counts, held_out, seed):
    """The part of each image: a list of "train", "val", "test".

    groups: of each image; sizes: (N,) how much each counts; counts: (N, K) pixels of
    each class in it. Of many random splits by whole groups the one is
    taken that comes closest to the shares `held_out` (of val and of test) and to the
    whole's shares of classes in each part, and that leaves no class out of training.
    The same for the same seed.
    """
    names = sorted(set(groups), key=natural)
    places = {name: k for k, name in enumerate(names)}
    of = np.array([places[group] for group in groups])
    weights = np.bincount(of, sizes, len(names)) / sum(sizes)
    pixels = np.zeros((len(names), counts.shape[1]))
    np.add.at(pixels, of, counts)
    rng = np.random.default_rng(seed)
    tries = np.stack([
        cut(rng.permutation(len(names)), weights, held_out) for _ in range(TRIES)
    ])  # fmt: skip
    best = distance(tries, weights, pixels, held_out).argmin()
    return [PARTS[k] for k in tries[best][of]]


def cut(order, weights, held_out):
    """The part (0, 1, 2) of each group: in this order, test and val until they have
    their shares, the rest for training; each has at least one."""
    parts, at = np.zeros(len(order), int), 0
    for part in (2, 1):
        wanted, had = held_out[part - 1], 0
        room = len(order) - part  # what comes after needs a group each
        while at < room and (had == 0 or had + weights[order[at]] / 2 <= wanted):
            had += weights[order[at]]
            parts[order[at]] = part
            at += 1
    return parts


def distance(tries, weights, pixels, held_out):
    """How far each of many splits (T, G) is from what is wanted: (T,); 1 more for each
    class that is not to be learnt."""
    whole = pixels.sum(0) / max(pixels.sum(), 1)
    cost = np.zeros(len(tries))
    for part, share in enumerate((1 - sum(held_out), *held_out)):
        here = (tries == part).astype(float)  # (T, G)
        own = here @ pixels  # (T, K)
        shares = own / own.sum(1, keepdims=True).clip(1)
        cost += abs(here @ weights - share) + abs(shares - whole).sum(1) / 2
        if part == 0:
            cost += ((own == 0) & (whole > 0)).sum(1)
    return cost


# --- is a random split safe?


def features(thumbnails):
    """Thumbnails (N, S, S, 3) as rows (N, 3 S S) whose products are correlations.

    What all pictures share (a frame, a sky above) is taken off first. Rows of zeros
    stand for pictures without anything of their own.
    """
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    flat = flat - flat.mean(0)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(norm > 1e-6, flat / np.maximum(norm, 1e-6), 0)


def leaks(parts, thumbnails):
    """Pairs (held out, trained on) of nearly the same picture, as indices.

    thumbnails: (N, S, S, 3).
    """
    rows = features(thumbnails)
    learnt = np.flatnonzero([part == "train" for part in parts])
    found = []
    for k in np.flatnonzero([part != "train" for part in parts]):
        likeness = rows[learnt] @ rows[k]
        if likeness.max() > ALIKE:
            found.append((int(k), int(learnt[likeness.argmax()])))
    return found


def nearness(thumbnails):
    """How alike neighbours are: the median correlation of each with the next one.

    thumbnails: (N, S, S, 3), in the order of the images' names. Near 0 where the order
    says nothing; 0 for fewer than FEWEST images.
    """
    rows = features(thumbnails)
    if len(rows) < FEWEST:
        return 0.0
    return float(np.median((rows[1:] * rows[:-1]).sum(1)))


def few(count, groups):
    """The sentence for images that cannot be split in three."""
    if groups is None:
        return (
            f"there {'is' if count == 1 else 'are'} "
            f"{counted(count, 'different image')} with a mask, and three parts (train, "
            "val, test) need three at least: label more, or cut large ones into "
            "several files"
        )
    return (
        f"groups={groups!r} gives {counted(count, 'group')}, and three parts (train, "
        "val, test) need three at least: choose smaller groups"
    )


def told(pairs, names):
    return some([f"{names[a]} and {names[b]}" for a, b in pairs])
