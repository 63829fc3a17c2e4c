"""The classes of a reader's masks: which value, or colour, means which class.

The reader says it by a dictionary or by a file that a labelling tool wrote; otherwise
the values found are the classes.
"""

import csv
import difflib
import json
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import ImageColor

from utils.data.pictures import Unusable
from utils.data.report import counted, some

OTHERS = "others"  # every value that is not named
IGNORE = 255  # the label of what is not scored
MOST = 255  # classes that labels of 8 bits have room for, beside IGNORE
MANY = 32  # more values than this, unnamed, are hardly classes
# Where nothing tells colours: Okabe and Ito's, told apart by every eye, grey first.
READABLE = (
    (150, 150, 150), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value of a mask: a number, or a colour 0xRRGGBB."""

    code: int
    colour: bool = False

    @property
    def as_colour(self):
        return self.code if self.colour else self.code * 0x010101

    def __str__(self):
        return f"#{self.code:06X}" if self.colour else str(self.code)


def value(told):
    """What a reader gave for a value, as a `Value` or OTHERS; ValueError if neither."""
    if (
        isinstance(told, Integral)
        and not isinstance(told, bool)
        and 0 <= told < 1 << 31
    ):
        return Value(int(told))
    if isinstance(told, str):
        if told == OTHERS:
            return OTHERS
        if told.isdecimal():
            return Value(int(told))
        try:
            red, green, blue = ImageColor.getrgb(told)[:3]
            return Value((red << 16) + (green << 8) + blue, True)
        except ValueError:
            pass
    if isinstance(told, tuple) and len(told) == 3:
        if all(isinstance(part, Integral) and 0 <= part < 256 for part in told):
            red, green, blue = map(int, told)
            return Value((red << 16) + (green << 8) + blue, True)
    raise ValueError(
        f"{told!r} is no value of a mask: give a number (255), a colour ((60, 16, 152) "
        f'or "#3C1098"), a list of them, or "{OTHERS}"'
    )


def values(told):
    """One value or a list of them as a tuple; none for None."""
    if told is None:
        return ()
    return tuple(value(one) for one in (told if isinstance(told, list) else [told]))


@dataclass(frozen=True)
class Naming:
    """What a reader calls the values: names, the values of each, and those ignored."""

    names: tuple[str, ...]
    values: tuple[tuple, ...]
    ignored: tuple = ()

    @property
    def colours(self):
        """Whether any value is a colour; numbers are levels of grey then."""
        said = [v for group in (*self.values, self.ignored) for v in group]
        return any(v.colour for v in said if v != OTHERS)


def naming(classes, ignore=None):
    """A dictionary, a list of names or a labelling tool's file as a `Naming`.

    classes: name -> value or list of values; names alone count 0, 1, 2 ...; a path is
    read by `from_file`. Raises ValueError for values that are none, or stand twice,
    and what `from_file` raises.
    """
    path, more = classes if isinstance(classes, (str, Path)) else None, ()
    if path:
        classes, more = from_file(Path(path))
    if not isinstance(classes, dict):
        classes = {name: number for number, name in enumerate(classes)}
    told = [values(one) for one in classes.values()]
    ignored = (*values(ignore), *more)
    if OTHERS in ignored and any(OTHERS in group for group in told):
        raise ValueError(f'"{OTHERS}" can be a class or ignored, not both')
    # A file may list what is ignored among its classes: what the reader says counts.
    kept = [tuple(v for v in group if v not in ignored) for group in told]
    both = [(str(n), g) for n, g, had in zip(classes, kept, told) if g or not had]
    found = Naming(tuple(n for n, _ in both), tuple(g for _, g in both), ignored)
    try:
        check(found)
    except ValueError as error:
        if path:
            raise Unusable("classes", f"{path}: {error}") from error
        raise
    return found


def check(naming):
    seen = {}
    for name, group in zip(naming.names, naming.values):
        for one in group:
            colour = one != OTHERS and naming.colours
            code = one.as_colour if colour else getattr(one, "code", one)
            if code in seen:
                raise ValueError(f"{seen[code]} and {name} have one value, {one}")
            seen[code] = name
    if len(set(naming.names)) < 2:
        raise ValueError(
            "classes names fewer than two classes: name the background too"
        )


# --- what labelling tools write


def from_file(path):
    """The classes in a file, as (dictionary of name -> value, ignored values).

    COCO's categories, Supervisely's classes, a JSON dictionary or list; CVAT's
    labelmap.txt; a CSV table of names and colours; a text with one name a line, where
    LabelMe's `__ignore__` is not scored. Raises Unusable, naming the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise Unusable(
            "classes", f"{path} cannot be read as a list of classes: {why}"
        ) from error
    try:
        if path.suffix.lower() == ".json":
            found = from_json(json.loads(text)), ()
        elif path.suffix.lower() == ".csv":
            found = from_csv(text), ()
        else:
            lines = [line.strip() for line in text.splitlines()]
            found = from_lines([line for line in lines if line])
        for one in found[0].values():
            values(one)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Unusable(
            "classes",
            f"{path} is no list of classes that is known here ({error}): give a "
            "dictionary, {name: value}",
        ) from error
    if not found[0]:
        raise Unusable(
            "classes", f"{path} names no class: give a dictionary, {{name: value}}"
        )
    return found


def from_json(told):
    if isinstance(told, dict) and "categories" in told:
        found = {c["name"]: c["id"] for c in told["categories"]}
        return found if 0 in found.values() else {"background": 0, **found}
    if isinstance(told, dict) and isinstance(told.get("classes"), list):
        return {c.get("title") or c["name"]: c["color"] for c in told["classes"]}
    if isinstance(told, dict):
        swapped = all(
            str(k).isdecimal() and isinstance(v, str) for k, v in told.items()
        )
        told = {v: int(k) for k, v in told.items()} if swapped else told
        return {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return {str(name): number for number, name in enumerate(told)}


def from_csv(text):
    """Rows of a name and three colours, or of a name and a number, with a headline."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    rows = [row for row in rows if len(row) > 1]
    rows = rows[1:] if not rows[0][1].isdecimal() else rows
    return {row[0]: tuple(map(int, row[1:4])) if len(row) > 3 else int(row[1])
            for row in rows}  # fmt: skip


def from_lines(lines):
    if any(line.startswith("# label:color_rgb") for line in lines):
        rows = [line.split(":") for line in lines if not line.startswith("#")]
        return {row[0]: tuple(map(int, row[1].split(","))) for row in rows}, ()
    names = [line for line in lines if line != "__ignore__"]
    ignored = (Value(IGNORE),) if len(names) < len(lines) else ()
    return {name: number for number, name in enumerate(names)}, ignored


# --- from values to labels


@dataclass(frozen=True)
class Coding:
    """A `Naming` as it is applied: each value of a mask becomes a label."""

    naming: Naming
    by: str  # what counts of a mask: "number", "level" (of a palette) or "colour"
    palette: tuple[tuple[int, int, int], ...]
    called: tuple[str, ...] = ()  # what outlines call each number

    @property
    def names(self):
        return self.naming.names

    def table(self, known, kind, palette=()):
        """The label of each value in `known` (n,): int16, -1 for one not named."""
        codes = self.codes(known, kind, palette)
        rest = OTHERS in self.naming.ignored
        labels = np.full(len(known), IGNORE if rest else -1, np.int16)
        groups = [*enumerate(self.naming.values), (IGNORE, self.naming.ignored)]
        for label, group in groups:
            for one in group:
                if one == OTHERS:
                    labels[labels == -1] = label
                    continue
                code = one.as_colour if self.by == "colour" else one.code
                labels[codes == code] = label
                if kind == "bit" and code == 1 and not self.has(255):
                    labels[codes == 255] = label
        return labels

    def has(self, code):
        groups = (*self.naming.values, self.naming.ignored)
        return any(
            one != OTHERS and one.code == code for group in groups for one in group
        )

    def codes(self, known, kind, palette):
        return codes(known, kind, palette, self.by)

    def labels(self, mask, known):
        """A mask as labels (H, W) uint8; its values are all `known` and named."""
        table = self.table(known, mask.kind, mask.palette).astype(np.uint8)
        return table[np.searchsorted(known, mask.values)]

    def text(self, code):
        if code < len(self.called):
            return self.called[code]
        return f"#{code:06X}" if self.by == "colour" else str(code)


def codes(known, kind, palette, by):
    """Values of a mask as what counts of them: numbers, levels of grey or colours.

    A colour where numbers count is -1 - its code: nothing is called so.
    """
    known = np.asarray(known, np.int64)
    if kind == "palette" and by != "number":
        known = np.array(
            [palette[k] if k < len(palette) else 0 for k in known], np.int64
        )
        return known if by == "colour" else known & 255
    if kind == "colour":
        return known if by == "colour" else -1 - known
    return known * 0x010101 if by == "colour" else known


def coding(naming, facts, called=()):
    """How a reader's names apply to masks, as a `Coding`.

    facts: of each mask (known values, kind, palette). called: see `Coding`.
    """
    by = "colour" if naming.colours else "number"
    palettes = [(k, palette) for k, kind, palette in facts if kind == "palette"]
    if palettes and by == "number":
        grey = all(is_grey(palette[k]) for ks, palette in palettes for k in ks)
        said = {v.code for group in naming.values for v in group if v != OTHERS}
        said |= {v.code for v in naming.ignored if v != OTHERS}
        if grey and not all(k in said for ks, _ in palettes for k in ks):
            by = "level"
    return Coding(naming, by, colours(naming, by, palettes), called)


def is_grey(code):
    return code == (code & 255) * 0x010101


def colours(naming, by, palettes):
    """A colour for each class: the reader's, that of the masks, or a readable one."""
    found = []
    for group in naming.values:
        one = next((v for v in group if v != OTHERS), None)
        code = None
        if one is not None and by == "colour":
            code = one.as_colour
        elif one is not None and by == "number" and palettes:
            palette = max((p for _, p in palettes), key=len)
            code = palette[one.code] if one.code < len(palette) else None
        found.append(code)
    if len(set(found)) < len(found) or None in found:
        return tuple(readable(k) for k in range(len(found)))
    return tuple((code >> 16, code >> 8 & 255, code & 255) for code in found)


def readable(label):
    """The colour of a class that has none; different for every one."""
    if label < len(READABLE):
        return READABLE[label]
    hue = 137.508 * label % 360  # the golden angle: no two hues come close soon
    return ImageColor.getrgb(f"hsl({hue:.0f}, 65%, {35 + 30 * (label % 2)}%)")


def found(facts, ignore=None):
    """The values in the masks as classes, where the reader named none: a `Naming`.

    facts: as in `coding`. One called "#E2A929" or "255".
    """
    palettes = {palette for _, kind, palette in facts if kind == "palette"}
    coloured = any(kind == "colour" for _, kind, _ in facts) or (
        bool(palettes)
        and (len(palettes) > 1 or any(k != "palette" for _, k, _ in facts))
    )
    ignored = values(ignore)
    coloured = coloured or any(v != OTHERS and v.colour for v in ignored)
    by = "colour" if coloured else "number"
    known = np.unique(np.concatenate([codes(*fact, by) for fact in facts]))
    made = [Value(int(code), coloured) for code in known]
    gone = {v.as_colour if coloured else v.code for v in ignored if v != OTHERS}
    made = [v for v in made if v.code not in gone]
    return Naming(tuple(map(str, made)), tuple((v,) for v in made), ignored)


# --- what is wrong with values


def unnamed(path, lost, odd, lossy, coding):
    """The sentence on values of a mask that no class is called by: (kind, sentence).

    lost: the values, as the coding counts them; odd: whether most of them lie between
    those beside them.
    """
    if min(lost) < 0:
        lost = sorted(-1 - code for code in lost if code < 0)
        return "colours", (
            f"{path} holds colours ({some(f'#{code:06X}' for code in lost)}), where "
            'classes has numbers: give each class its colour, such as "#3C1098"'
        )
    shown = some(coding.text(code) for code in lost)
    if lossy:
        return "jpeg", (
            f"{path} is a {lossy}, which blurs the values of a mask ({shown}): export "
            "the "
            f'masks as PNG, or leave its fringes unscored with ignore="{OTHERS}"'
        )
    if odd:
        return "smooth", (
            f"{path} has values between those of the classes ({shown}), from smoothed "
            "edges: export it without smoothing (resize by the nearest pixel), or "
            "leave "
            f'them unscored with ignore="{OTHERS}"'
        )
    if len(lost) > MANY:
        return "instances", (
            f"{path} has {len(lost)} values that classes does not name ({shown}): if "
            "each "
            f'is an object with a number, say classes={{"background": 0, "object": '
            f'"{OTHERS}"}}'
        )
    return "unnamed", (
        f"{path} holds {shown}, which classes does not name: name "
        f"{'it' if len(lost) == 1 else 'them'}, or leave out what is not named with "
        f'ignore="{OTHERS}"'
    )


def like(name, names):
    """A hint at a name much like one that is not there; "" without any."""
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {near[0]}?)" if near else f" (there are {some(names, 6)})"


def too_many(count):
    return (
        f"there are {counted(count, 'class')}, and labels have room for {MOST}: join "
        "some, by lists of values in classes"
    )
