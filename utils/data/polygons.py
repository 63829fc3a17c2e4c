"""Masks drawn as outlines: COCO's one file, or LabelMe's file beside each image.

pycocotools turns outlines into pixels. Where outlines of two classes overlap, the
smaller one lies on top, whatever their order: a window is seen on its house. A value
of such a mask is 0 for the background, else the number of its class, from 1; CROWD
marks what is not scored.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from utils.data.naming import like
from utils.data.pairing import natural, plain
from utils.data.pictures import Mask, Unusable, check_file
from utils.data.report import counted, some

CROWD = 1 << 16  # beyond every class's number
BACKGROUND = ("background", "_background_", "__background__")
IGNORED = "__ignore__"
WIDEST = 1 << 16  # pixels of a side of an image
FAR = 8  # times the size of an image, beyond which no outline of it lies
CORNERS = 64  # of the polygon that stands for a circle


@dataclass
class Outlines:
    """The outlines of one image: (value, pycocotools' RLE) each."""

    path: Path  # of the file they stand in
    size: tuple[int, int]  # height and width of the image they were drawn on
    shapes: list = field(default_factory=list)

    def mask(self):
        """The outlines as a `Mask` of the size they were drawn on."""
        from pycocotools import mask as rle

        values = np.zeros(self.size, np.int32)
        for number, shape in by_size(self.shapes):
            values[rle.decode(shape).astype(bool)] = number
        return Mask(values, "grey")

    def overlaps(self):
        """Whether outlines of two classes cover a pixel together."""
        from pycocotools import mask as rle

        numbers = {number for number, _ in self.shapes} - {CROWD}
        whole = [rle.merge([s for n, s in self.shapes if n == k]) for k in numbers]
        apart = sum(float(rle.area(one)) for one in whole)
        return bool(whole) and apart > float(rle.area(rle.merge(whole)))


def by_size(shapes):
    """Shapes from the largest to the smallest; what is not scored comes first."""
    from pycocotools import mask as rle

    sizes = [(number != CROWD, -float(rle.area(shape))) for number, shape in shapes]
    return [shapes[k] for k in sorted(range(len(shapes)), key=lambda k: sizes[k])]


def read_json(path):
    """What a JSON file holds; raises Unusable, naming the file."""
    check_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise Unusable(
            "json", f"{path} is no whole JSON file ({error}): export it again"
        ) from error


def is_coco(told):
    return isinstance(told, dict) and {"images", "annotations"} <= told.keys()


def is_labelme(told):
    return isinstance(told, dict) and isinstance(told.get("shapes"), list)


def encoded(polygons, size):
    """Polygons, flat lists of x and y, as one RLE of the pixels in any of them."""
    from pycocotools import mask as rle

    return rle.merge(rle.frPyObjects(polygons, *size))


def check_near(rings, size, name):
    """Raises Unusable for outlines far outside an image of this size (H, W)."""
    flat = np.array([x for ring in rings for x in ring])
    if not (abs(flat) <= FAR * max(size)).all():  # so for NaN
        raise Unusable(
            "far",
            f"{name} lies far outside its image of {size[0]}x{size[1]}: points are "
            "pixels, x before y; draw it again",
        )


# --- COCO


def coco(path, told, images, report):
    """COCO's annotations of a reader's images: (list of (image, Outlines), names,
    numbers).

    images: paths as seen from their folder. names: of the classes, the background
    first; a shape's value is its place in them. numbers: of a category -> that value.
    An image without annotations is all background. Faults and warnings go into the
    report.
    """
    try:
        names, numbers = categories(told["categories"])
        entries = {e["id"]: e for e in told["images"]}
        sizes = {k: (side(e["height"]), side(e["width"])) for k, e in entries.items()}
        files = {k: e["file_name"] for k, e in entries.items()}
        owners = [(a["image_id"], a["category_id"], a) for a in told["annotations"]]
        hash(tuple((image, category) for image, category, _ in owners))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        report.fault(
            "json",
            f"{path} lacks what COCO files have ({type(error).__name__}: {error}): "
            "export it again as COCO",
        )
        return [], ("background",), {}
    own = {k: Outlines(path, sizes[k]) for k in entries}
    for image, category, annotation in owners:
        try:
            if image not in own or category not in numbers:
                what = "image" if image not in own else "category"
                raise Unusable(
                    "unknown",
                    f"{path}: annotation {annotation.get('id')} belongs to the {what} "
                    f"{annotation[f'{what}_id']}, which the file does not list: export "
                    "it again, or remove it",
                )
            shape = coco_shape(annotation, sizes[image], path)
            crowd = annotation.get("iscrowd")
            own[image].shapes.append((CROWD if crowd else numbers[category], shape))
        except Unusable as error:
            report.fault(error.kind, error)
    return matched(path, files, own, images, report), names, numbers


def side(told):
    """A height or a width in pixels; ValueError for what cannot be one."""
    if not 0 < int(told) <= WIDEST:
        raise ValueError(f"an image of {told} pixels a side")
    return int(told)


def categories(told):
    """(names, the background first; category id -> number of its name)."""
    names, numbers = ["background"], {}
    for category in sorted(told, key=lambda c: c["id"]):
        name = str(category["name"])
        if name in BACKGROUND:
            numbers[category["id"]] = 0
            continue
        if name not in names:
            names.append(name)
        numbers[category["id"]] = names.index(name)
    return tuple(names), numbers


def checked_rle(told, size):
    """COCO's counts, packed or not, as an RLE that has been unpacked once; ValueError
    for counts that do not fill the image."""
    from pycocotools import mask as rle

    if not isinstance(told["counts"], (str, bytes)):
        if sum(told["counts"]) != size[0] * size[1]:
            raise ValueError("its counts do not fill the image")
        told = rle.frPyObjects(told, *size)
    rle.decode(told)
    return told


def coco_shape(annotation, size, path):
    """The pixels of an annotation as RLE: polygons, counts, or packed counts."""
    told, number = annotation.get("segmentation"), annotation.get("id")
    try:
        if isinstance(told, dict) and told:
            if tuple(told["size"]) != size:
                raise Unusable(
                    "drawn",
                    f"{path}: annotation {number} was drawn on {told['size']}, its "
                    f"image is {list(size)} (height, width): export it again",
                )
            return checked_rle(told, size)
        if told and all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in told):
            rings = [[float(x) for x in ring] for ring in told]
            check_near(rings, size, f"{path}: annotation {number}")
            return encoded(rings, size)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise Unusable(
            "outline",
            f"{path}: annotation {number} has a segmentation that cannot be read "
            f"({error}): draw it again",
        ) from error
    raise Unusable(
        "outline",
        f"{path}: annotation {number} has "
        + ("an outline of fewer than three points" if told else "a box and no outline")
        + ": draw its outline, or remove it",
    )


def matched(path, files, own, images, report):
    """Pairs (image, Outlines): entries of the file and images by their names."""
    whole = {plain(image.as_posix()): image for image in images}
    ends = {}
    for image in images:
        ends.setdefault(plain(image.name), []).append(image)
    found, lost = {}, []
    for k, name in files.items():
        parts = PurePosixPath(plain(str(name)).replace("\\", "/"))
        alike = [whole[str(parts)]] if str(parts) in whole else ends.get(parts.name, [])
        if len(alike) > 1:
            report.fault(
                "ambiguous",
                f"{path} names {name}, and there are {some(alike)}: write the path, as "
                "seen from the folder of images, into the file",
            )
        elif not alike:
            lost.append(str(name))
        elif alike[0] in found:
            found[alike[0]].shapes += own[k].shapes
        else:
            found[alike[0]] = own[k]
    if lost:
        report.warn(
            "missing",
            f"{path} names {counted(len(lost), 'image')} that the folder does not hold "
            f"({some(lost)}): put {'it' if len(lost) == 1 else 'them'} there; left out",
        )
    return sorted(found.items(), key=lambda pair: natural(pair[0]))


# --- LabelMe


def labelme(pairs, report):
    """LabelMe's files of images: (list of (image, Outlines), names of the classes).

    pairs: (image, path of its file, what it holds).
    """
    labels = {
        str(shape.get("label"))
        for _, _, told in pairs
        for shape in told["shapes"]
        if isinstance(shape, dict)
    }
    labels -= {*BACKGROUND, IGNORED}
    names = ("background", *sorted(labels, key=natural))
    numbers = {name: k for k, name in enumerate(names)}
    numbers |= {name: 0 for name in BACKGROUND} | {IGNORED: CROWD}
    found = []
    for image, path, told in pairs:
        try:
            size = side(told["imageHeight"]), side(told["imageWidth"])
        except (KeyError, TypeError, ValueError, OverflowError):
            report.fault(
                "json",
                f"{path} does not say how large its image is (imageHeight, "
                "imageWidth): save it again in LabelMe",
            )
            continue
        own = Outlines(path, size)
        for number, shape in enumerate(told["shapes"], start=1):
            try:
                ring = corners(shape, number, path)
                check_near([ring], size, f"{path}: shape {number}")
                rle = encoded([ring], size)
                own.shapes.append((numbers[str(shape.get("label"))], rle))
            except Unusable as error:
                report.fault(error.kind, error)
        found.append((image, own))
    return found, names


def corners(shape, number, path):
    """The outline of one of LabelMe's shapes as a flat list of x and y."""
    if not isinstance(shape, dict):
        raise Unusable("shape", f"{path}: shape {number} is none: draw it again")
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        points = []
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius, step = math.dist((x, y), edge), 2 * math.pi / CORNERS
        points = [(x + radius * math.cos(k * step), y + radius * math.sin(k * step))
                  for k in range(CORNERS)]  # fmt: skip
    elif kind not in ("polygon", "rectangle", "circle"):
        raise Unusable(
            "shape",
            f"{path}: shape {number} ({shape.get('label')}) is a {kind}, which covers "
            "no area that is known here: draw a polygon, a rectangle or a circle "
            "instead",
        )
    if len(points) < 3:
        raise Unusable(
            "outline",
            f"{path}: shape {number} ({shape.get('label')}) has too few points for a "
            f"{kind}: draw it again",
        )
    return [x for point in points for x in point]


# --- the reader's names for classes that have names already


def renamed(classes, names, numbers=None):
    """A reader's `classes` for named outlines, as name -> value of `Outlines.mask`.

    None: as they are named. A name of the file's is that class, whatever its value; a
    name of the reader's own takes its value as the number in the file (numbers: that
    number -> value). Raises Unusable for a name that is neither.
    """
    if classes is None:
        return {name: value for value, name in enumerate(names)}
    numbers = numbers or {value: value for value in range(len(names))}
    told = classes if isinstance(classes, dict) else dict.fromkeys(classes)
    found = {}
    for name, value in told.items():
        if name in names:
            found[name] = names.index(name)
        elif value == "others" or value == 0:
            found[name] = value
        elif isinstance(value, str) and value in names:
            found[name] = names.index(value)
        elif value in numbers:
            found[name] = numbers[value]
        else:
            raise Unusable(
                "classes",
                f"no class {name!r} in the outlines{like(name, names)}: take their "
                "names",
            )
    named = {0, "others"} & set(found.values())
    return found if named else {"background": 0, **found}
