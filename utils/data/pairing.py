"""A reader's files: what lies in folders, and which mask belongs to which image.

Masks are found by their names: as their image is called, perhaps with a word in front
or behind (`tile7_mask.png`), in a folder of the same name below another one.
"""

import difflib
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from utils.data.report import some

# Words that a folder or a file is called by when it holds masks, and when images.
MASKS = (
    "mask", "masks", "label", "labels", "labelids", "gt", "gtfine", "groundtruth",
    "ground_truth", "truth", "target", "targets", "seg", "segmentation",
    "segmentations", "segmentationclass", "annotation", "annotations",
)  # fmt: skip
IMAGES = (
    "image", "images", "img", "imgs", "im", "photo", "photos", "picture", "pictures",
    "input", "inputs", "rgb", "sat", "leftimg8bit", "jpegimages",
)  # fmt: skip
JUNK = ("thumbs.db", "desktop.ini", "__macosx", "ehthumbs.db", "@eadir")
# What Pillow only recognises, or what is not one picture of pixels.
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "PDF"}
OTHER_PICTURES = {
    ".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".npy", ".npz", ".mat",
    ".nii", ".dcm", ".svg", ".pdf", ".svs", ".czi", ".nd2", ".lif",
}  # fmt: skip


@dataclass
class Listing:
    """The files below a folder, as paths seen from it, in natural order."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    notes: list[Path] = field(default_factory=list)  # .json
    foreign: list[Path] = field(default_factory=list)  # pictures Pillow does not read
    others: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)  # folders that may not be read


def listing(folder, beside=None):
    """All files below a folder; hidden ones, and those of file managers, left out.

    beside: a folder below it whose files do not count.
    """
    found, kinds = Listing(Path(folder)), picture_endings()
    for path in walk(Path(folder), beside, found.closed):
        ending = path.suffix.lower()
        if ending in kinds:
            found.pictures.append(path)
        elif ending == ".json":
            found.notes.append(path)
        else:
            (found.foreign if ending in OTHER_PICTURES else found.others).append(path)
    return found


def walk(folder, beside, closed):
    """The files below a folder, seen from it; links are followed, each folder once.
    Folders that may not be read are added to `closed`."""
    files, seen = [], set()
    beside = beside and os.path.realpath(beside)
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen or real == beside:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_junk(name)]
        inside = Path(here).relative_to(folder)
        closed += [inside / n for n in folders if not is_open(Path(here, n))]
        files += [inside / name for name in names if not is_junk(name)]
    return sorted(files, key=natural)


def is_open(folder):
    return os.access(folder, os.R_OK | os.X_OK)


def is_junk(name):
    return name.startswith(".") or name.lower() in JUNK


def natural(path):
    """A key by which image2 comes before image10."""
    parts = re.split(r"(\d+)", plain(str(path)))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def picture_endings():
    """The endings of files that Pillow reads: ".png", ".jpg" and so on."""
    known = Image.registered_extensions()
    readable = {e for e, kind in known.items() if kind in Image.OPEN}
    return {e for e in readable if known[e] not in NO_PICTURES}


def check_folder(path):
    """Why a path is no folder to read from, as a sentence; None if it is one."""
    if path.is_dir():
        return (
            None
            if is_open(path)
            else (
                f"{path} may not be read: give yourself permission (chmod -R u+rX), or "
                "ask its owner"
            )
        )
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".7z", ".rar") and path.exists():
        return f"{path} is packed: unpack it, and name the folder"
    if path.exists():
        return f"{path} is a file: name the folder that holds it, {path.parent}"
    if path.is_symlink():
        return f"{path} is a link to nowhere: name the folder itself"
    near = like(path)
    return f"there is no folder {path}: " + (
        f"did you mean {near}?" if near else f"give its path, seen from {Path.cwd()}"
    )


def like(path):
    """What lies where a path's first missing part should, and is named much like it."""
    parts = [path, *path.parents]
    missing = max(k for k, part in enumerate(parts) if not part.exists())
    place, name = parts[missing].parent, parts[missing].name
    if not place.is_dir() or not os.access(place, os.R_OK):
        return None
    there = {plain(p.name): p for p in place.iterdir() if not is_junk(p.name)}
    near = difflib.get_close_matches(plain(name), there, 1)
    return there[near[0]] if near else None


def plain(text):
    """Lower case, letters with their accents in one sign: as names are compared."""
    return unicodedata.normalize("NFC", text).lower()


# --- roles, where one folder holds both


def roles(files):
    """Images and masks among the pictures of one folder: by the names of folders inside
    it, by words in the files' names, else by endings (a.jpg is the image of a.png)."""
    masks = [p for p in files if any(plain(part) in MASKS for part in p.parts[:-1])]
    masks = masks or [p for p in files if core(p.stem, MASKS) != plain(p.stem)]
    if not masks:
        photos = {bare(p) for p in files if p.suffix.lower() in (".jpg", ".jpeg")}
        masks = [
            p for p in files
            if bare(p) in photos and p.suffix.lower() not in (".jpg", ".jpeg")
        ]  # fmt: skip
    chosen = set(masks)
    return [p for p in files if p not in chosen], masks


def bare(path):
    return plain(str(path.with_suffix("")))


def core(stem, words):
    """A name without such words at its ends: "mask_a7" and "a7-mask" are "a7"."""
    stem, either = plain(stem), "|".join(words)
    while True:
        shorter = re.sub(rf"[ _.-]+(?:{either})$|^(?:{either})[ _.-]+", "", stem)
        if shorter in ("", stem):
            return stem
        stem = shorter


def place(path):
    """The folders above a file, without those that say what kind of files it holds."""
    parts = map(plain, path.parts[:-1])
    return tuple(part for part in parts if part not in (*MASKS, *IMAGES))


# --- pairs

# How names are compared, the strictest first: words that are taken off the image's name
# and off the mask's, and whether their folders must have the same names.
LEVELS = [
    (off_image, off_mask, deep)
    for deep in (True, False)
    for off_image, off_mask in (((), ()), ((), MASKS), (IMAGES, (*MASKS, *IMAGES)))
]


def key(path, words, deep):
    return (place(path) if deep else ()), core(path.stem, words) if words else (
        plain(path.stem)
    )


def pairs(images, masks, report, shown_image=str, shown_mask=str):
    """Pairs (image, mask) of paths by name, and what is left: (pairs, images, masks).

    Ambiguous names are faults in the report, and so are folders without any pair. The
    functions give paths as a reader should see them.
    """
    images, masks, found = list(images), list(masks), []
    for off_image, off_mask, deep in LEVELS:
        mine = by_key(images, off_image, deep)
        theirs = by_key(masks, off_mask, deep)
        both = [name for name in mine if name in theirs and (
            deep or are_loose(mine[name], theirs[name])
        )]  # fmt: skip
        for name in both:
            ours = [shown_image(p) for p in mine[name]]
            gone = [shown_mask(p) for p in theirs[name]]
            if len(ours) == len(gone) == 1:
                found += [(mine[name][0], theirs[name][0])]
            elif len(ours) > 1:
                report.fault(
                    "ambiguous",
                    f"{some(ours)} have one name, and {some(gone)} fits each: keep "
                    "one, or rename them",
                )
            else:
                report.fault(
                    "ambiguous",
                    f"{ours[0]} has {len(gone)} masks, {some(gone)}: keep one, or put "
                    "the others elsewhere",
                )
        done = {p for name in both for p in mine[name]}
        images = [p for p in images if p not in done]
        done = {p for name in both for p in theirs[name]}
        masks = [p for p in masks if p not in done]
    masks = doubled(found, masks, report, shown_image, shown_mask)
    return sorted(found, key=lambda pair: natural(pair[0])), images, masks


def are_loose(images, masks):
    """Whether images or masks lie in no folder that could set them apart."""
    return all(not place(p) for p in images) or all(not place(p) for p in masks)


def by_key(paths, words, deep):
    table = {}
    for path in paths:
        table.setdefault(key(path, words, deep), []).append(path)
    return table


def doubled(found, masks, report, shown_image, shown_mask):
    """The masks that are left, without those that would fit an image that has one."""
    words, rest = (*MASKS, *IMAGES), []
    taken = {key(m, words, True): (i, m) for i, m in found}
    for mask in masks:
        if key(mask, words, True) in taken:
            image, first = taken[key(mask, words, True)]
            report.fault(
                "ambiguous",
                f"{shown_image(image)} has 2 masks, {shown_mask(first)}, "
                f"{shown_mask(mask)}: keep one, or put the other elsewhere",
            )
        else:
            rest.append(mask)
    return rest
