"""What is told of a `Survey`: its tables, and what makes its scores doubtful."""

import numpy as np

from utils.data import splitting
from utils.data.report import counted, some


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
            f"{len(pairs)} of {held} images held out are nearly the same as one that "
            f"is learnt from ({splitting.told(pairs, names)}): scores would be too "
            f"good; keep what belongs together in one part, {advice(found)}",
        )
        return
    near = splitting.nearness(thumbs)
    if found.wish.groups is None and near > splitting.CLOSE:
        report.warn(
            "leak",
            f"neighbours by name, such as {names[0]} and {names[1]}, are much more "
            "alike than other images, as frames of a video are: a random split would "
            f"score too well; keep what belongs together in one part, {advice(found)}",
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
    counts = found.label_counts()
    sizes = sorted({item.size for item in items})
    told = " to ".join(f"{h}x{w}" for h, w in sorted({sizes[0], sizes[-1]}))
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
