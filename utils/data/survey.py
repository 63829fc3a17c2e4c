"""What a reader's files hold, found out before anything is loaded: a `Survey`.

Stages, each with its own findings in the report: which files belong together, what
each holds, what its values mean, whether sizes fit, and which part it falls to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data import naming, pairing, polygons, splitting
from utils.data.naming import IGNORE, OTHERS, Naming, Value
from utils.data.pictures import Unusable, histogram, read_mask, read_photo, smeared
from utils.data.report import Report, counted, some

SMALL = 32  # pixels of a side: below, a network that halves five times sees nothing
LARGE = 1024  # pixels of a side: above, tiles are advised
HEAVY = 4 << 30  # bytes of all images and labels: above, it is told
FRINGE = 4  # values between others in one mask, from which on it was smoothed


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
    kind: str = ""  # of the mask, as its palette and jpeg
    palette: tuple[int, ...] = ()
    jpeg: bool = False
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


@dataclass(eq=False)
class Survey:
    """The images that can be used, how their masks are read, and the report."""

    wish: Wish
    report: Report = field(default_factory=Report)
    items: list[Item] = field(default_factory=list)
    coding: naming.Coding | None = None
    levels: tuple[float, float] = (0.0, 255.0)  # black and white of deep images


def survey(wish):
    """Looks at all files; what is wrong with them is in the report, never raised."""
    found = Survey(wish)
    items, named = find(wish, found.report)
    found.items = [item for item in items if scan(item, found.report)]
    if items and not found.report.faults or found.items:
        tell_pictures(found)
        try:
            found.coding = meaning(found, named)
        except Unusable as error:
            found.report.fault(error.kind, error)
        check_sizes(found)
        divide(found)
        if found.coding:
            tell_classes(found)
    return found


# --- which files belong together


@dataclass(frozen=True)
class Named:
    """The names that outlines bring: by value, and number in the file -> value."""

    names: tuple[str, ...]
    numbers: dict | None = None


def find(wish, report):
    """The items, unread, and what outlines call their classes (None for pictures)."""
    files = wish.masks is not None and wish.masks.is_file()
    sentences = [pairing.check_folder(wish.images)]
    if files and wish.masks.suffix.lower() != ".json":
        sentences.append(
            f"{wish.masks} is no folder of masks, and outlines are read from COCO's or "
            "LabelMe's .json: export them as one of these"
        )
    elif wish.masks and not files:
        sentences.append(pairing.check_folder(wish.masks))
    sentences = list(filter(None, sentences))
    for sentence in sentences:
        report.fault("folder", sentence)
    if sentences:
        return [], None
    images = pairing.listing(wish.images, beside=None if files else wish.masks)
    if not has_pictures(images, report):
        return [], None
    if files:
        leave_aside([images], report)
        return outlined(wish, images.pictures, [wish.masks], report)
    if wish.masks:
        masks = pairing.listing(wish.masks)
        root, photos, drawn, notes = (
            wish.masks,
            images.pictures,
            masks.pictures,
            masks.notes,
        )
        leave_aside([images, masks], report)
    else:
        photos, drawn = pairing.roles(images.pictures)
        root, notes = wish.images, images.notes
        leave_aside([images], report)
    if not drawn and notes:
        return outlined(wish, photos, [root / note for note in notes], report)
    if not drawn:
        lack = f"{root} holds no mask" if wish.masks else (
            f"{root} holds no masks beside its images: name the folder of the masks, or "
            "call each like its image, with _mask behind"
        )  # fmt: skip
        report.fault(
            "no masks",
            lack
            if not wish.masks
            else f"{lack}: name the folder that does, or a COCO file",
        )
        return [], None
    return painted(wish, root, photos, drawn, report), None


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
        f"{found.folder} holds no picture that Pillow reads, but {some(others)}: {advice}"
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
                f"{found.folder / path} is in a format that Pillow does not read: save it "
                "as PNG or JPEG; left out",
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
    image_at, mask_at = (lambda p: str(wish.images / p)), (lambda p: str(root / p))
    before = len(report.faults)
    found, lone, unused = pairing.pairs(photos, drawn, report, image_at, mask_at)
    if not found and len(report.faults) == before:
        report.fault(
            "no pairs",
            f"no mask is named like an image: {wish.images} has "
            f"{some(p.name for p in photos)}, {root} has {some(p.name for p in drawn)}; "
            "name them alike, as a7.jpg and a7_mask.png",
        )
        return []
    alone(lone, unused, image_at, mask_at, report)
    return [
        Item(
            i.as_posix(),
            wish.images / i,
            str(root / m),
            lambda m=m: read_mask(root / m),
        )
        for i, m in found
    ]


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
    coco, labelme = [], []
    for path in files:
        try:
            told = polygons.read_json(path)
        except Unusable as error:
            report.fault(error.kind, error)
            continue
        if polygons.is_coco(told):
            coco.append((path, told))
        elif polygons.is_labelme(told):
            labelme.append((path, told))
    image_at, numbers = (lambda p: str(wish.images / p)), None
    if len(coco) > 1 or coco and labelme:
        report.fault(
            "outlines",
            f"there are several files of outlines, {some(p for p, _ in coco + labelme)}: "
            'name the one to take, as in masks="annotations.json"',
        )
        return [], None
    if coco:
        (path, told), before = coco[0], len(report.faults)
        found, names, numbers = polygons.coco(path, told, photos, report)
        taken = {image for image, _ in found}
        alone([p for p in photos if p not in taken], [], image_at, str, report)
    elif labelme:
        told, before = dict(labelme), len(report.faults)
        root = wish.masks if wish.masks and wish.masks.is_dir() else wish.images
        inside = {path.relative_to(root): path for path in told} if (
            wish.masks is None or wish.masks.is_dir()
        ) else {Path(path.name): path for path in told}  # fmt: skip
        both, lone, unused = pairing.pairs(
            photos, inside, report, image_at, lambda p: str(inside[p])
        )
        alone(lone, unused, image_at, lambda p: str(inside[p]), report)
        trios = [(i, inside[n], told[inside[n]]) for i, n in both]
        found, names = polygons.labelme(trios, report)
        path = root
    else:
        if not report.faults:
            report.fault(
                "outlines",
                f"{some(files)} holds neither COCO's images and annotations nor LabelMe's "
                "shapes: export the outlines as one of these",
            )
        return [], None
    if not found and len(report.faults) == before:
        report.fault(
            "no pairs",
            f"no outlines in {path} belong to an image in "
            f"{wish.images}: name the folder of their images",
        )
    crossed = [image for image, own in found if own.overlaps()]
    if crossed:
        report.note(
            "overlap",
            f"outlines of different classes overlap in {counted(len(crossed), 'image')} "
            f"({some(crossed)}): the smaller one lies on top",
        )
    items = [
        Item(
            i.as_posix(),
            wish.images / i,
            f"{o.path} ({i})" if coco else str(o.path),
            o.mask,
        )
        for i, o in found
    ]
    return items, Named(names, numbers)


# --- what each file holds


def scan(item, report):
    """Reads an image and its mask and notes what they hold; False for a fault."""
    photo = mask = None
    try:
        photo = read_photo(item.image)
    except Unusable as error:
        report.fault(error.kind, error)
    try:
        mask = item.read()
    except Unusable as error:
        report.fault(error.kind, error)
    if photo is None or mask is None or not fits(item, photo, mask, report):
        return False
    item.size, item.digest = photo.size, photo.digest()
    item.thumbnail = photo.thumbnail()
    if photo.deep:
        item.levels = photo.range
    elif photo.pixels.min() == photo.pixels.max():
        report.warn(
            "one colour",
            f"{item.image} is of one colour all over: look at it, "
            "and remove it if it is spoilt",
        )
    if photo.clear:
        report.note("clear", f"{item.image} lets light through: laid over black")
    item.kind, item.palette, item.jpeg = mask.kind, mask.palette, mask.jpeg
    item.drawn = mask.digest()
    item.known, item.counts = histogram(mask.values)
    if len(item.known) > 2:
        item.odd = smeared(mask, item.known, item.counts)
    return True


def fits(item, photo, mask, report):
    """Whether a mask covers its image; sets how it is to be turned."""
    size, swapped = photo.size, photo.size[::-1]
    if photo.turn != 1:
        square = size == swapped
        if mask.size == size and (photo.turn < 5 or square):
            report.warn(
                "turned",
                f"{item.image} is turned by its camera's note (EXIF), and "
                f"{item.truth} fits both ways: taken as drawn on the turned image; look "
                "at it",
            )
        elif mask.size == size:
            report.note(
                "turned",
                f"{item.image} was turned as its camera noted (EXIF); "
                "its mask was so already",
            )
        elif mask.size == swapped:
            item.turn = photo.turn
            report.note(
                "turned",
                f"{item.image} was turned as its camera noted (EXIF), "
                "and its mask, drawn on the unturned image, with it",
            )
    if mask.size == size or item.turn != 1:
        return True
    told = f"{item.truth} is {by(mask.size)}, its image {by(size)} (height x width)"
    if mask.size == swapped:
        report.fault(
            "turned",
            f"{told}: one of them lies on its side; turn it (a camera's EXIF note may "
            "have been lost on the way)",
        )
    else:
        report.fault(
            "size", f"{told}: export it at the size of the image, by the nearest pixel"
        )
    return False


def by(size):
    return f"{size[0]}x{size[1]}"


def tell_pictures(found):
    """The range of deep images, and what follows from it for the thumbnails."""
    deep = [item for item in found.items if item.levels]
    if not deep:
        return
    low = min(item.levels[0] for item in deep)
    high = max(item.levels[1] for item in deep)
    found.levels = low, high
    for item in deep:
        item.thumbnail = (item.thumbnail - low) * (255 / max(high - low, 1e-12))
    found.report.note(
        "deep",
        f"{counted(len(deep), 'image')} of more than 8 bits: {low:g}, the least in the "
        f"whole folder, became 0 and {high:g}, the most, 255",
    )
    if len(deep) < len(found.items):
        found.report.warn(
            "mixed",
            f"{counted(len(deep), 'image')} of {len(found.items)} have more than 8 bits "
            f"({some(item.image for item in deep)}): scaled by themselves, they may look "
            "unlike the others",
        )


# --- what its values mean


def meaning(found, named):
    """The `Coding` of the masks; values that no class is called by are faults."""
    wish, report, items = found.wish, found.report, found.items
    facts = [(item.known, item.kind, item.palette) for item in items]
    if named:
        said = by_name(wish, named, items)
    elif wish.classes is not None:
        said = naming.naming(wish.classes, wish.ignore)
    else:
        said = naming.found(facts, wish.ignore)
        if not plausible(said, items, report):
            return None
    if len(said.names) > naming.MOST:
        raise Unusable("many", naming.too_many(len(said.names)))
    coding = naming.coding(said, facts, named.names if named else ())
    lost = [item.known[coding.table(item.known, item.kind, item.palette) < 0]
            for item in items]  # fmt: skip
    if any(map(len, lost)):
        tell_strange(found, coding)  # before the lines on each mask
    for item, own in zip(items, lost):
        if len(own):
            codes = sorted(set(coding.codes(own, item.kind, item.palette).tolist()))
            odd = len(item.odd & set(own.tolist())) > len(own) / 2
            report.fault(*naming.unnamed(item.truth, codes, odd, item.jpeg, coding))
    if wish.classes is None and not named:
        told = ", ".join(
            f'"{n}": {shown(v[0])}' for n, v in zip(said.names, said.values)
        )
        report.note("found", f"the classes were found: name them, classes={{{told}}}")
        if said.names[-1:] == ("255",) and len(said.names) > 2:
            report.warn(
                "255",
                f"255 occurs beside {some(said.names[:-1])}: often it marks what is not "
                "to be scored; if so, say ignore=255",
            )
    return coding


def tell_strange(found, coding):
    """A fault where none of the classes' values occurs: the list of another data set."""
    met = {
        int(k) for i in found.items for k in coding.codes(i.known, i.kind, i.palette)
    }
    said = [v for v in coding.naming.values if v[0] != OTHERS]
    absent = [one for group in said for one in group if not is_met(one, coding, met)]
    if min(met) >= 0 and len(absent) > sum(len(group) for group in said) / 2:
        found.report.fault(
            "strange",
            f"most values of classes occur in no mask ({some(absent)}): they are not "
            "those of these masks; look at the values found, data.look(..., classes=None)",
        )


def is_met(value, coding, met):
    return (value.as_colour if coding.by == "colour" else value.code) in met


def shown(value):
    return f'"{value}"' if value.colour else str(value)


def by_name(wish, named, items):
    """The `Naming` of outlines."""
    told, more = wish.classes, ()
    if isinstance(told, (str, Path)):
        told, more = naming.from_file(Path(told))
    names = polygons.renamed(told, named.names, named.numbers)
    ignored = wish.ignore if isinstance(wish.ignore, list) else [wish.ignore]
    ignored = [named.names.index(i) if i in named.names else i for i in ignored]
    said = naming.naming(names, [i for i in ignored if i is not None])
    crowded = any(polygons.CROWD in item.known for item in items)
    more = (Value(polygons.CROWD),) if crowded else ()
    return Naming(said.names, said.values, (*said.ignored, *more))


def plausible(said, items, report):
    """Whether values that were found can be classes; faults in the report if not."""
    blurred = [item for item in items if item.jpeg and len(item.known) > FRINGE]
    smooth = [item for item in items if len(item.odd) >= FRINGE and item not in blurred]
    for item in blurred:
        report.fault(
            "jpeg",
            f"{item.truth} is a JPEG, which blurs the values of a mask ({len(item.known)} "
            "of them): export the masks as PNG, or name the classes and leave the fringes "
            f'unscored, ignore="{OTHERS}"',
        )
    for item in smooth:
        report.fault(
            "smooth",
            f"{item.truth} has {len(item.odd)} values between others, from smoothed edges: "
            "export it without smoothing (resize by the nearest pixel), or name the "
            f'classes and leave the rest unscored, ignore="{OTHERS}"',
        )
    if blurred or smooth:
        return False
    if len(said.names) > naming.MANY:
        most = max(items, key=lambda item: len(item.known))
        report.fault(
            "instances",
            f"the masks hold {len(said.names)} values ({some(said.names)}), {most.truth} "
            f"most, {len(most.known)}: if each is an object with a number, say "
            f'classes={{"background": 0, "object": "{OTHERS}"}}; if they are classes, '
            "name them",
        )
        return False
    if len(said.names) < 2:
        report.fault(
            "one class",
            f"all masks hold one value, {said.names[0] if said.names else 'none'}, as "
            f"{items[0].truth} does: there is nothing to tell apart; look at the masks",
        )
        return False
    return True


# --- whether sizes fit


def check_sizes(found):
    wish, report = found.wish, found.report
    sizes = {}
    for item in found.items:
        sizes.setdefault(item.size, item)
    if len(sizes) > 1 and not wish.tile and not wish.size:
        (small, one), *_, (large, two) = sorted(sizes.items())
        report.fault(
            "sizes",
            f"images have {len(sizes)} sizes ({one.image} {by(small)}, {two.image} "
            f"{by(large)}, height x width): cut them into squares, tile=256, or resize "
            "them, size=256",
        )
    for item in found.items:
        if min(wish.size or item.size) < SMALL:
            report.warn(
                "tiny",
                f"{item.image} is {by(wish.size or item.size)}: networks that halve five "
                f"times need {SMALL} pixels a side; resize, size={4 * SMALL}",
            )
    largest = max(found.items, key=lambda item: min(item.size))
    if max(largest.size) > LARGE and not wish.tile and not wish.size:
        report.warn(
            "large",
            f"{largest.image} is {by(largest.size)}: whole, it needs much memory and "
            "time; cut into squares, tile=512, or resize, size=512",
        )
    if wish.size:
        ratio = wish.size[0] / wish.size[1]
        bent = [i for i in found.items if not 0.9 < i.size[0] / i.size[1] / ratio < 1.1]
        if bent:
            report.note(
                "bent",
                f"resizing to {by(wish.size)} stretches "
                f"{counted(len(bent), 'image')} ({some(i.image for i in bent)})",
            )
    heavy = sum(4 * np.prod(wish.size or item.size) for item in found.items)
    if heavy > HEAVY:
        report.warn(
            "heavy",
            f"all images together take {heavy / 2**30:.1f} GiB of memory: "
            "resize them, size=512, or take fewer",
        )


# --- which part each falls to


def divide(found):
    """Gives each item its group and its part."""
    wish, report, items = found.wish, found.report, found.items
    try:
        own = [splitting.group_of(item.name, wish.groups) for item in items]
    except splitting.Ungrouped as error:
        report.fault("group", error)
        return
    if isinstance(wish.groups, int):
        own = splitting.blocks(len(items), wish.groups)
    elif wish.groups is None:
        own = splitting.joined(own, [item.digest for item in items])
    for item, group in zip(items, own):
        item.group = group
    groups = [item.group for item in items]
    if len(set(groups)) < 3:
        report.fault("few", splitting.few(len(set(groups)), wish.groups))
        tell_doubles(found)
        return
    parts = splitting.given(groups) if wish.groups == "folder" else None
    if parts:
        report.note("given", "the folders named train, val and test are the parts")
    else:
        # Half by its pixels, half as one image: many small ones show more than a large.
        pixels = np.array([item.size[0] * item.size[1] for item in items])
        sizes = pixels / pixels.mean() + 1
        counts = label_counts(found)
        parts = splitting.split(groups, sizes, counts, wish.held_out, wish.seed)
    for item, part in zip(items, parts):
        item.part = part
    tell_doubles(found)
    tell_leaks(found)


def label_counts(found):
    """Pixels of each class in each mask (N, K); one column where classes are unknown."""
    if found.coding is None:
        return np.array([[item.counts.sum()] for item in found.items])
    counts = np.zeros((len(found.items), IGNORE + 1), np.int64)
    for row, item in zip(counts, found.items):
        labels = found.coding.table(item.known, item.kind, item.palette)
        np.add.at(row, labels[labels >= 0], item.counts[labels >= 0])
    return counts[:, : len(found.coding.names)]


def tell_doubles(found):
    """Warnings for one image under two names."""
    first = {}
    for item in found.items:
        other = first.setdefault(item.digest, item)
        if other is item:
            continue
        found.report.warn(
            "double",
            f"{other.image} and {item.image} are one image under two names"
            + ("" if other.drawn == item.drawn else ", with different masks")
            + (
                f", in {other.part} and in {item.part}"
                if other.part != item.part
                else f", both kept in {item.part}"
                if item.part
                else ""
            )
            + ": remove one",
        )


def tell_leaks(found):
    """A warning where images held out are much like some that are learnt from."""
    items, report = found.items, found.report
    digests = [item.digest for item in items]
    thumbs = np.stack([item.thumbnail for item in items])
    parts, names = [item.part for item in items], [str(item.image) for item in items]
    pairs = splitting.leaks(parts, thumbs)
    pairs = [(a, b) for a, b in pairs if digests[a] != digests[b]]
    if pairs:
        held = sum(part != "train" for part in parts)
        report.warn(
            "leak",
            f"{len(pairs)} of {held} images held out are nearly the same as one that is "
            f"learnt from ({splitting.told(pairs, names)}): scores would be too good; "
            f"keep what belongs together in one part, {advice(found)}",
        )
        return
    near = splitting.nearness(thumbs)
    if found.wish.groups is None and near > splitting.CLOSE:
        report.warn(
            "leak",
            f"neighbours by name, such as {names[0]} and {names[1]}, are much more alike "
            "than other images, as frames of a video are: a random split would score too "
            f"well; keep what belongs together in one part, {advice(found)}",
        )
    elif found.wish.groups is None:
        report.note(
            "random",
            "the parts were drawn at random, image by image; if some belong together "
            '(a place, a patient, a video), say so by groups="folder", "prefix" or a '
            "pattern",
        )


def advice(found):
    """Which `groups` would keep more together than now."""
    for groups in ("folder", "prefix"):
        own = {splitting.group_of(item.name, groups) for item in found.items}
        if groups != found.wish.groups and 3 <= len(own) < len(found.items):
            return f'such as groups="{groups}" ({len(own)} groups)'
    block = max(2, len(found.items) // 10)
    return f"such as groups={block} (blocks of {block} neighbours)"


# --- the report


def tell_classes(found):
    """Title and tables, and warnings about classes and masks."""
    report, items, names = found.report, found.items, found.coding.names
    counts = label_counts(found)
    sizes = sorted({item.size for item in items})
    told = by(sizes[0]) if len(sizes) == 1 else f"{by(sizes[0])} to {by(sizes[-1])}"
    report.title = (
        f"**{counted(len(items), 'image')} with masks**, {told} pixels (height x width)"
    )
    parts = [part for part in splitting.PARTS if any(i.part == part for i in items)]
    whole = {"all": np.ones(len(items), bool)}
    whole |= {part: np.array([i.part == part for i in items]) for part in parts}
    if parts:
        report.table(["part", "images", "groups", "pixels"], [
            of_part(part, [i for i, o in zip(items, own) if o], items)
            for part, own in whole.items()
        ])  # fmt: skip
    rows = []
    for k, name in enumerate(names):
        said = ", ".join(map(str, found.coding.naming.values[k]))
        shares = [share(counts[own], k) for own in whole.values()]
        rows.append([name, said, str((counts[:, k] > 0).sum()), *shares])
    report.table(["class", "value", "images with it", *whole], rows)
    if not report.faults:
        tell_absent(report, names, counts, whole)
    tell_plain(found, counts)


def of_part(part, own, items):
    """A row of the table of parts."""
    pixels, everything = (sum(i.size[0] * i.size[1] for i in of) for of in (own, items))
    groups = len({i.group for i in own})
    return [part, str(len(own)), str(groups), f"{100 * pixels / everything:.1f} %"]


def share(counts, k):
    return f"{100 * counts[:, k].sum() / max(counts.sum(), 1):.2f} %"


def tell_absent(report, names, counts, whole):
    """Warnings for classes that never occur, or not in every part."""
    for k, name in enumerate(names):
        if not counts[:, k].any():
            report.warn(
                "absent",
                f"the class {name} occurs in no mask: leave it out of "
                "classes, or look whether its value is right",
            )
            continue
        lacking = [p for p, own in whole.items() if not counts[own, k].any()]
        if "train" in lacking:
            report.warn(
                "absent",
                f"the class {name} occurs only in images held out, so it "
                "is never learnt: label more of it, or take another seed or other "
                "groups",
            )
        elif lacking:
            report.warn(
                "absent",
                f"the class {name} does not occur in "
                f"{' and '.join(lacking)}, where it is not scored: label more of "
                "it",
            )


def tell_plain(found, counts):
    """What is told of masks of one class, and of those where nothing is scored."""
    report, names = found.report, found.coding.names
    single = (counts > 0).sum(1) == 1
    for k, name in enumerate(names):
        own = [i.truth for i, s, c in zip(found.items, single, counts) if s and c[k]]
        if report.faults:
            continue
        if own and len(own) == len(found.items):
            report.fault(
                "one class",
                f"all masks hold {name} alone, as {own[0]} does: "
                "there is nothing to tell apart; look at the masks",
            )
        elif own:
            report.note(
                "one class", f"{counted(len(own), 'mask')} of {name} alone: {some(own)}"
            )
    for item, empty in zip(found.items, counts.sum(1) == 0):
        if empty and not report.faults:
            report.warn(
                "unscored",
                f"{item.truth} has no pixel that is scored: look at it, or remove it",
            )
