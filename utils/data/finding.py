"""Which of a reader's files belong together: each image with its truth, an `Item`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from utils.data import pairing, polygons
from utils.data.pictures import Unusable, read_mask
from utils.data.report import counted, some


@dataclass(frozen=True)
class Wish:
    """The arguments of `data.folder`, paths as `Path`, size as (height, width)."""

    images: Path
    masks: Path | None
    classes: object
    groups: str | int | None
    tile: int | None
    size: tuple[int, int] | None
    ignore: object
    held_out: tuple[float, float]
    seed: int


@dataclass(eq=False)
class Item:
    """An image, its truth, and what was found in them."""

    name: str  # the image's path, seen from the folder of images
    image: Path
    truth: str  # where it stands: a file, for COCO's with the image
    read: Callable  # gives the `Mask`
    size: tuple[int, int] = (0, 0)  # height and width, upright
    turn: int = 1  # of the mask, as EXIF tells it of the image
    kind: str = ""  # of the mask, as its palette and lossy
    palette: tuple[int, ...] = ()
    lossy: str = ""  # the name of a format that blurs values
    known: np.ndarray | None = None  # the mask's values, and
    counts: np.ndarray | None = None  # how often each occurs
    odd: set = field(default_factory=set)  # values that smoothing leaves
    digest: str = ""  # of the image, and
    drawn: str = ""  # of the mask
    thumbnail: np.ndarray | None = None  # (S, S, 3) float32
    levels: tuple[float, float] | None = None  # the range of a deep image
    group: str = ""
    part: str = ""
    names: list[str] = field(default_factory=list)  # of what is made of it

    def mask(self):
        """The mask, turned as its image."""
        mask = self.read()
        return mask if self.turn == 1 else mask.turned(self.turn)


@dataclass(frozen=True)
class Named:
    """The names that outlines bring: by value, and number in the file -> value."""

    names: tuple[str, ...]
    numbers: dict | None = None


def find(wish, report):
    """The items, unread, and what outlines call their classes (None for pictures).

    What keeps files from being found is in the report.
    """
    sentences = list(filter(None, closed(wish)))
    for sentence in sentences:
        report.fault("folder", sentence)
    if sentences:
        return [], None
    inside = wish.masks if wish.masks and wish.masks.is_dir() else None
    images = pairing.listing(wish.images, beside=inside)
    if not has_pictures(images, report):
        return [], None
    if inside:
        masks = pairing.listing(inside, beside=wish.images)
        leave_aside([images, masks], report)
        return truths(wish, images.pictures, masks.pictures, masks.notes, report)
    leave_aside([images], report)
    if wish.masks:
        return outlined(wish, images.pictures, [wish.masks], report)
    photos, drawn = pairing.roles(images.pictures)
    return truths(wish, photos, drawn, images.notes, report)


def closed(wish):
    """Sentences on why the places that a reader named cannot be read; or None each."""
    yield pairing.check_folder(wish.images)
    if wish.masks and not wish.masks.is_file():
        yield pairing.check_folder(wish.masks)
    elif wish.masks and wish.masks.suffix.lower() != ".json":
        yield (
            f"{wish.masks} is no folder of masks, and outlines are read from COCO's or "
            "LabelMe's .json: export them as one of these"
        )


def truths(wish, photos, drawn, notes, report):
    """Items of images and of what lies with them: pictures, else outlines."""
    root = wish.masks or wish.images
    if drawn and not photos:
        report.fault(
            "no images",
            f"all pictures in {root} are named as masks are ({some(drawn)}): put "
            "images and masks into two folders",
        )
        return [], None
    if drawn:
        return painted(wish, root, photos, drawn, report), None
    if notes:
        return outlined(wish, photos, [root / note for note in notes], report)
    if wish.masks:
        advice = "no mask: name the folder that does, or a COCO file"
    else:
        advice = (
            "no masks beside its images: name the folder of the masks, or call each "
            "like its image, with _mask behind"
        )
    report.fault("no masks", f"{root} holds {advice}")
    return [], None


def has_pictures(found, report):
    """Whether a listing has a picture; a fault in the report if not."""
    if found.pictures:
        return True
    others = [*found.foreign, *found.notes, *found.others]
    advice = (
        "save them as PNG or JPEG" if found.foreign else "name the folder that does"
    )
    report.fault(
        "nothing",
        f"{found.folder} holds no picture that Pillow reads, but {some(others)}: "
        f"{advice}"
        if others
        else f"{found.folder} is empty: put the images there",
    )
    return False


def leave_aside(listings, report):
    for found in listings:
        for path in found.closed:
            report.fault(
                "closed",
                f"{found.folder / path} may not be read: give yourself permission "
                "(chmod -R u+rX), or ask its owner",
            )
        for path in found.foreign:
            report.warn(
                "format",
                f"{found.folder / path} is in a format that Pillow does not read: save "
                "it as PNG or JPEG; left out",
            )
    others = [found.folder / path for found in listings for path in found.others]
    if others:
        report.note(
            "aside",
            f"{counted(len(others), 'file')} that are no pictures were "
            f"left aside: {some(others)}",
        )


def painted(wish, root, photos, drawn, report):
    """Items of images and the pictures of their masks."""
    image_at, mask_at = partial(shown, wish.images), partial(shown, root)
    before = len(report.faults)
    found, lone, unused = pairing.pairs(photos, drawn, report, image_at, mask_at)
    if not found and len(report.faults) == before:
        report.fault(
            "no pairs",
            f"no mask is named like an image: {wish.images} has "
            f"{some(p.name for p in photos)}, {root} has "
            f"{some(p.name for p in drawn)}; name them alike, as a7.jpg and "
            "a7_mask.png",
        )
        return []
    alone(lone, unused, image_at, mask_at, report)
    return [
        Item(
            name=i.as_posix(),
            image=wish.images / i,
            truth=str(root / m),
            read=partial(read_mask, root / m),
        )
        for i, m in found
    ]


def shown(folder, path):
    """A path below a folder, as its reader should see it."""
    return str(folder / path)


def alone(images, masks, image_at, mask_at, report):
    """Warnings for images without a mask, and for the reverse."""
    for path in images:
        report.warn(
            "no mask",
            f"{image_at(path)} has no mask: left out; a mask is called "
            "as its image is, perhaps with _mask behind",
        )
    for path in masks:
        report.warn(
            "no image",
            f"{mask_at(path)} has no image: left out; put its image "
            "there, or remove it",
        )


def outlined(wish, photos, files, report):
    """Items of images and outlines, and what these call their classes."""
    faults = len(report.faults)
    coco, labelme = read_outlines(files, report)
    image_at = partial(shown, wish.images)
    if len(coco) > 1 or coco and labelme:
        report.fault(
            "outlines",
            f"there are several files of outlines, {some([*coco, *labelme])}: name the "
            "one "
            'to take, as in masks="annotations.json"',
        )
        return [], None
    if coco:
        ((path, told),) = coco.items()
        found, *named = polygons.coco(path, told, photos, report)
        taken = {image for image, _ in found}
        alone([p for p in photos if p not in taken], [], image_at, str, report)
    elif labelme:
        places = {seen_from(wish, path): path for path in labelme}
        both, lone, unused = pairing.pairs(
            photos, places, report, image_at, lambda p: str(places[p])
        )
        alone(lone, unused, image_at, lambda p: str(places[p]), report)
        trios = [(i, places[p], labelme[places[p]]) for i, p in both]
        found, *named = polygons.labelme(trios, report)
    elif len(report.faults) == faults:
        report.fault(
            "outlines",
            f"{some(files)} holds neither COCO's images and annotations nor LabelMe's "
            "shapes: export the outlines as one of these",
        )
    if len(report.faults) == faults and not found:
        report.fault(
            "no pairs",
            f"no outlines in {some(files)} belong to an image in {wish.images}: name "
            "the folder of their images",
        )
    if not coco and not labelme:
        return [], None
    tell_overlaps(found, report)
    items = [
        Item(
            name=i.as_posix(),
            image=wish.images / i,
            truth=f"{o.path} ({i})" if coco else str(o.path),
            read=o.mask,
        )
        for i, o in found
    ]
    return items, Named(*named)


def read_outlines(files, report):
    """COCO's and LabelMe's among JSON files: two dicts, path -> what it holds."""
    coco, labelme = {}, {}
    for path in files:
        try:
            told = polygons.read_json(path)
        except Unusable as error:
            report.fault(error.kind, error)
            continue
        if polygons.is_coco(told):
            coco[path] = told
        elif polygons.is_labelme(told):
            labelme[path] = told
    return coco, labelme


def seen_from(wish, path):
    """A file of LabelMe's, seen from the folder in which it was found."""
    if wish.masks and wish.masks.is_file():
        return Path(path.name)
    return path.relative_to(wish.masks or wish.images)


def tell_overlaps(found, report):
    crossed = [image for image, own in found if own.overlaps()]
    if crossed:
        report.note(
            "overlap",
            "outlines of different classes overlap in "
            f"{counted(len(crossed), 'image')} ({some(crossed)}): the smaller one lies "
            "on top",
        )
