"""What a reader's files hold, found out before anything is loaded: a `Survey`.

Stages, each with its own findings in the report: which files belong together, what
each holds, what its values mean, whether sizes fit, and which part it falls to.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.data import naming, polygons, splitting
from utils.data.doubts import tell_classes, tell_doubles, tell_leaks
from utils.data.finding import Item, Wish, find
from utils.data.naming import OTHERS, Naming, Value
from utils.data.pictures import Unusable, histogram, read_photo, smeared
from utils.data.report import Report, counted, some

SMALL = 32  # pixels of a side: below, a network that halves five times sees nothing
DARK = 24  # of 255: an image without a lighter pixel was hardly meant so
LARGE = 1024  # pixels of a side: above, tiles are advised
HEAVY = 4 << 30  # bytes of all images and labels: above, it is told
FRINGE = 4  # values between others in one mask, from which on it was smoothed


@dataclass(eq=False)
class Survey:
    """The images that can be used, how their masks are read, and the report."""

    wish: Wish
    report: Report = field(default_factory=Report)
    items: list[Item] = field(default_factory=list)
    coding: naming.Coding | None = None
    levels: tuple[float, float] | None = None  # black and white of deep images, if any

    def label_counts(self):
        """Pixels of each class in each mask (N, K); one column where classes are
        unknown."""
        if self.coding is None:
            return np.array([[item.counts.sum()] for item in self.items])
        counts = np.zeros((len(self.items), naming.IGNORE + 1), np.int64)
        for row, item in zip(counts, self.items):
            labels = self.coding.table(item.known, item.kind, item.palette)
            np.add.at(row, labels[labels >= 0], item.counts[labels >= 0])
        return counts[:, : len(self.coding.names)]


def survey(wish):
    """Looks at all files; what is wrong with them is in the report, never raised."""
    found = Survey(wish)
    items, named = find(wish, found.report)
    found.items = [item for item in items if scan(item, found.report)]
    if not found.items:
        return found  # the report says why
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
    elif photo.pixels.max() < DARK:
        report.warn(
            "dark",
            f"{item.image} is almost black, no level above {photo.pixels.max()} of 255 "
            "(were its colours of 16 bits?): scale its levels",
        )
    if photo.clear:
        report.note("clear", f"{item.image} lets light through: laid over black")
    item.kind, item.palette, item.lossy = mask.kind, mask.palette, mask.lossy
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
                f"{item.truth} fits both ways: taken as drawn on the turned image; "
                "look at it",
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
            f"{counted(len(deep), 'image')} of {len(found.items)} have more than 8 "
            f"bits ({some(item.image for item in deep)}): scaled by themselves, they "
            "may look unlike the others",
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
            report.fault(*naming.unnamed(item.truth, codes, odd, item.lossy, coding))
    if wish.classes is None and not named:
        told = ", ".join(
            f'"{n}": {shown(v[0])}' for n, v in zip(said.names, said.values)
        )
        report.note("found", f"the classes were found: name them, classes={{{told}}}")
        if said.names[-1:] == ("255",) and len(said.names) > 2:
            report.warn(
                "255",
                f"255 occurs beside {some(said.names[:-1])}: often it marks what is "
                "not to be scored; if so, say ignore=255",
            )
    return coding


def tell_strange(found, coding):
    """A fault where most of the classes' values never occur: another set's list."""
    met = {
        int(k) for i in found.items for k in coding.codes(i.known, i.kind, i.palette)
    }
    said = [v for v in coding.naming.values if v[0] != OTHERS]
    absent = [one for group in said for one in group if not is_met(one, coding, met)]
    if min(met) >= 0 and len(absent) > sum(len(group) for group in said) / 2:
        found.report.fault(
            "strange",
            f"most values of classes occur in no mask ({some(absent)}): they are not "
            "those of these masks; look at the values found, data.look(..., "
            "classes=None)",
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
    blurred = [item for item in items if item.lossy and len(item.known) > FRINGE]
    smooth = [item for item in items if len(item.odd) >= FRINGE and item not in blurred]
    for item in blurred:
        report.fault(
            "jpeg",
            f"{item.truth} is a {item.lossy}, which blurs the values of a mask "
            f"({len(item.known)} of them): export the masks as PNG, or name the "
            "classes and leave the fringes "
            f'unscored, ignore="{OTHERS}"',
        )
    for item in smooth:
        report.fault(
            "smooth",
            f"{item.truth} has {len(item.odd)} values between others, from smoothed "
            "edges: export it without smoothing (resize by the nearest pixel), or name "
            "the "
            f'classes and leave the rest unscored, ignore="{OTHERS}"',
        )
    if blurred or smooth:
        return False
    if len(said.names) > naming.MANY:
        most = max(items, key=lambda item: len(item.known))
        report.fault(
            "instances",
            f"the masks hold {len(said.names)} values ({some(said.names)}), "
            f"{most.truth} most, {len(most.known)}: if each is an object with a "
            "number, say "
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
    """A fault for sizes that differ, warnings for those that are hard to learn from."""
    wish, report, items = found.wish, found.report, found.items
    sizes = {}
    for item in items:
        sizes.setdefault(item.size, item)
    small, large = (sizes[pick(sizes)] for pick in (min, max))
    told = f"{small.image} {by(small.size)}, {large.image} {by(large.size)}"
    if wish.size:
        tell_resized(found)
    elif not wish.tile and len(sizes) > 1:
        report.fault(
            "sizes",
            f"images have {len(sizes)} sizes ({told}, height x width): cut them into "
            "squares, tile=256, or resize them, size=256",
        )
    elif not wish.tile and max(large.size) > LARGE:
        report.warn(
            "large",
            f"{large.image} is {by(large.size)}: whole, it needs much memory and time; "
            "cut into squares, tile=512, or resize, size=512",
        )
    sides = (
        wish.size or (wish.tile, wish.tile) if wish.tile or wish.size else small.size
    )
    if min(sides) < SMALL:
        name = f"{small.image} is" if sides == small.size else "images become"
        report.warn(
            "tiny",
            f"{name} {by(sides)}: networks that halve five times need {SMALL} pixels a "
            f"side; resize, size={4 * SMALL}",
        )
    heavy = sum(4 * np.prod(wish.size or item.size) for item in items)
    if heavy > HEAVY:
        report.warn(
            "heavy",
            f"all images together take {heavy / 2**30:.1f} GiB of memory: resize them, "
            "size=512, or take fewer",
        )


def tell_resized(found):
    """A note on images that resizing stretches."""
    size, ratio = found.wish.size, found.wish.size[0] / found.wish.size[1]
    bent = [i for i in found.items if not 0.9 < i.size[0] / i.size[1] / ratio < 1.1]
    if bent:
        found.report.note(
            "bent",
            f"resizing to {by(size)} stretches {counted(len(bent), 'image')} "
            f"({some(i.image for i in bent)})",
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
        if not report.faults:  # files at fault may be the others
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
        counts = found.label_counts()
        parts = splitting.split(groups, sizes, counts, wish.held_out, wish.seed)
    for item, part in zip(items, parts):
        item.part = part
    tell_doubles(found)
    tell_leaks(found)
