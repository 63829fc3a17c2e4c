"""Predictions as polygons with holes (GeoJSON) and as objects (COCO).

An object is what hangs together by its sides. Outlines run half-way between the
centres of pixels inside and outside: drawn again, by which centres they hold, they give
the mask. The pixel in the corner reaches from (0, 0) to (1, 1), x to the right, y down.
"""

import json
from collections import namedtuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.measure import find_contours
from skimage.measure import label as connected_components

WORLD = (".wld", ".pgw", ".jgw", ".tfw", ".bpw", ".gfw")
SCALE, TIE, KEYS = 33550, 33922, 34735  # tags of a GeoTIFF
CODES = 3072, 2048  # its keys for a projected system and for degrees

Thing = namedtuple("Thing", "number mask place")  # class; (h, w) bool; (rows, columns)


def outlined(classes, without=None):
    """Numbers of the classes that have outlines. Unknown names: ValueError."""
    if without is None:
        first = classes[:1] if len(classes) == 2 else ()
        without = ("background",) if "background" in classes else first
    without = (without,) if isinstance(without, str) else without
    unknown = [name for name in without if name not in classes]
    if unknown:
        raise ValueError(f"no class {unknown[0]!r}; there are: {', '.join(classes)}")
    return tuple(k for k, name in enumerate(classes) if name not in without)


def things(labels, kept):
    """Yields the objects (`Thing`) of some classes in labels (H, W)."""
    for number in kept:
        parts = connected_components(labels == number, connectivity=1)
        for part, place in enumerate(ndimage.find_objects(parts), start=1):
            yield Thing(number, parts[place] == part, place)


def rings(thing):
    """The outline of an object, and then its holes: arrays (N, 2) of x, y, closed."""
    padded = np.pad(thing.mask, 1).astype(float)
    corner = [one.start - 0.5 for one in thing.place]
    found = [(c + corner)[:, ::-1] for c in find_contours(padded, 0.5)]
    found = [without_middles(ring) for ring in found]
    return sorted(found, key=lambda ring: -abs(area(ring)))


def without_middles(ring):
    """A closed ring without the points that lie between two others on a line."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    points = points[turns]
    return np.concatenate([points, points[:1]])


def area(ring):
    """Area of a closed ring (N, 2), positive if it runs counter-clockwise where y
    points up."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def turned(ring, way):
    """The ring, counter-clockwise (1) or clockwise (-1): outlines are the one, holes
    the other (RFC 7946)."""
    return ring if area(ring) * way > 0 else ring[::-1]


def geojson(labels, classes, kept, file=None):
    """Labels (H, W) as a FeatureCollection of polygons with holes, one for each object.

    file: the picture, whose place on the map is used where it is told.
    """
    place, system = placed(file)
    features = []
    for thing in things(labels, kept):
        outline, *holes = (on_map(ring, place) for ring in rings(thing))
        lines = [turned(outline, 1), *(turned(hole, -1) for hole in holes)]
        features.append(
            {
                "type": "Feature",
                "properties": {
                    "class": classes[thing.number],
                    "number": thing.number,
                    "pixels": int(thing.mask.sum()),
                },
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [ring.tolist() for ring in lines],
                },
            }
        )
    whole = {"type": "FeatureCollection", "features": features}
    if system:
        name = f"urn:ogc:def:crs:EPSG::{system}"
        whole["crs"] = {"type": "name", "properties": {"name": name}}
    return whole | {"coordinates": "pixels" if place is None else "map"}


def on_map(ring, place):
    """Points (N, 2) of pixels, in the coordinates of a map."""
    return ring if place is None else ring @ place[:, :2].T + place[:, 2]


def placed(file):
    """Where a picture lies: a matrix (2, 3) from pixels to the map, and the number of
    its coordinate system (EPSG); None each where it is not told."""
    if file is None:
        return None, None
    for suffix in WORLD:
        world = file.with_suffix(suffix)
        if world.is_file():
            a, d, b, e, c, f = map(float, world.read_text().split()[:6])
            # A world file tells where the centre of the first pixel lies.
            return np.array([[a, b, c - (a + b) / 2], [d, e, f - (d + e) / 2]]), None
    with Image.open(file) as picture:
        tags = getattr(picture, "tag_v2", {})
        if SCALE not in tags or TIE not in tags:
            return None, None
        (across, down, *_), tie = tags[SCALE], tags[TIE]
        keys = tags.get(KEYS, ())
    left, top = tie[3] - tie[0] * across, tie[4] + tie[1] * down
    codes = {keys[k]: keys[k + 3] for k in range(4, len(keys) - 3, 4)}
    system = next((codes[key] for key in CODES if key in codes), None)
    return np.array([[across, 0, left], [0, -down, top]]), system


class Coco:
    """The predictions of some pictures as COCO has them, `content`."""

    def __init__(self, classes, kept):
        self.kept = kept
        categories = [{"id": k, "name": classes[k]} for k in kept]
        self.content = {"images": [], "categories": categories, "annotations": []}

    def add(self, name, labels, probability):
        """Adds labels (H, W); an object's score is its mean probability (K, H, W)."""
        masks = coder()
        image = len(self.content["images"]) + 1
        height, width = labels.shape
        self.content["images"].append(
            {"id": image, "file_name": name, "height": height, "width": width}
        )
        for thing in things(labels, self.kept):
            whole = np.zeros(labels.shape, np.uint8, order="F")
            whole[thing.place] = thing.mask
            code = masks.encode(whole)
            sure = probability[thing.number][thing.place][thing.mask].mean()
            box = masks.toBbox(code).tolist()
            self.content["annotations"].append(
                {
                    "id": len(self.content["annotations"]) + 1,
                    "image_id": image,
                    "category_id": thing.number,
                    "segmentation": code | {"counts": code["counts"].decode()},
                    "bbox": box,
                    "area": int(masks.area(code)),
                    "iscrowd": 0,
                    "score": round(float(sure), 4),
                }
            )


def coder():
    """pycocotools; ImportError says what to do."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError("COCO needs a package: pip install pycocotools") from error
    return mask


def as_bytes(content):
    return json.dumps(content, separators=(",", ":")).encode()
