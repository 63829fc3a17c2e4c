"""Buildings of Banepa, Nepal: drone images and the outlines that people drew of them.

A block of 6 x 8 map tiles at zoom 19, about 0.13 m a pixel. The image of a tile is the
file oam/OAM-<x>-<y>-19.tif; the outlines of all buildings of the block lie in the one
GeoJSON file of osm/, in degrees. Outlines become a label in two steps: `to_pixels`,
then `rasterise`. Many buildings touch; whole columns of tiles are held out.
"""

import json
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from skimage.draw import polygon

from utils.data import DataError, read_image, shape
from utils.data.download import Archive

classes = ("ground", "building")
palette = (148, 156, 132), (232, 128, 36)
ignore = None
licence = (
    "CC BY 4.0 (imagery, OpenAerialMap); ODbL (outlines, OpenStreetMap contributors)"
)
citation = (
    "OpenAerialMap and OpenStreetMap contributors, tiles and outlines of Banepa, as "
    "the Humanitarian OpenStreetMap Team published them with fAIr-models"
)
# The columns of the block. Held out are two at an end of it, so that only one seam
# touches tiles of training: of both ends the one whose share of building pixels and
# number of buildings come closer to those of the rest.
splits = {"train": (386690, 386691, 386692, 386693), "val": (386694, 386695)}
archive = Archive(
    repository="hotosm/fAIr-models",
    commit="95f0727e8fb05816c1544766e8039f5237c3867d",
    folder="data/sample/train",
    keep=("oam", "osm"),
    sha256="0ee942268f0a987e032369ddddfaeec9d4a7b5cf53492334d1e24b8fc7482d38",
)
kaggle = None
ROWS, ZOOM = range(220241, 220249), 19  # of the block, each column of it
SIDE = 512  # pixels of a tile
NEAR = 100 * SIDE  # pixels from a tile, in which all outlines lie; about 7 km


class Tile(NamedTuple):
    """A square of the Web Mercator map: column x, row y from the north-west corner.

    At a zoom the map has 2^zoom x 2^zoom tiles.
    """

    x: int
    y: int
    zoom: int

    @property
    def name(self):
        return f"{self.x}-{self.y}-{self.zoom}"


def to_pixels(degrees, tile):
    """Longitudes and latitudes (..., 2) as columns and rows (..., 2) of a tile's image.

    Both float64. A tile is SIDE pixels wide and high; (0, 0) is the outer corner of its
    first pixel, (0.5, 0.5) that pixel's centre. Points beside the tile lie beside the
    image. The equations are those of Web Mercator (EPSG:3857) as tiled maps use it.
    """
    longitude, latitude = np.moveaxis(np.asarray(degrees, np.float64), -1, 0)
    x = (longitude + 180) / 360  # 0 to 1, from west to east
    y = (1 - np.arcsinh(np.tan(np.radians(latitude))) / np.pi) / 2  # north to south
    return SIDE * (np.stack([x, y], axis=-1) * 2**tile.zoom - (tile.x, tile.y))


def to_degrees(pixels, tile):
    """The inverse of `to_pixels`: (..., 2) columns, rows as longitudes, latitudes."""
    tiles = np.asarray(pixels, np.float64) / SIDE + (tile.x, tile.y)
    x, y = np.moveaxis(tiles / 2**tile.zoom, -1, 0)
    longitude = 360 * x - 180
    latitude = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * y))))
    return np.stack([longitude, latitude], axis=-1)


def rasterise(polygons, size=SIDE):
    """Numbers the pixels whose centres polygons cover: int32 (H, W).

    0 is ground, k + 1 is polygon k; where two overlap it is the later one. A polygon is
    a list of rings (N, 2) of columns and rows: its outline, then its holes. size: a
    side or (H, W).
    """
    size = size if isinstance(size, tuple) else (size, size)
    numbers = np.zeros(size, np.int32)
    for number, rings in enumerate(polygons, start=1):
        inside = np.zeros(size, bool)
        for ring in rings:
            # Pixel (0, 0) of an array has its centre at (0.5, 0.5) of the image.
            inside[polygon(ring[:, 1] - 0.5, ring[:, 0] - 0.5, size)] ^= True
        numbers[inside] = number
    return numbers


def polygons_of(feature):
    """The polygons of a GeoJSON feature, each a list of rings (N, 2) in degrees.

    Raises DataError for a geometry other than a Polygon or a MultiPolygon.
    """
    geometry = feature["geometry"] or {"type": None}
    kind = geometry["type"]
    if kind not in ("Polygon", "MultiPolygon"):
        number = feature["properties"].get("osm_id")
        raise DataError(
            f"the outline {number} is a {kind}: it must be a Polygon or a MultiPolygon"
        )
    parts = geometry["coordinates"]
    parts = [parts] if kind == "Polygon" else parts
    return [[np.array(ring, np.float64)[:, :2] for ring in part] for part in parts]


def tile_of(outlines):
    """The Tile to which a FeatureCollection of outlines belongs, from its name."""
    return Tile(*map(int, outlines["name"].split("-")))


def polygons_in(outlines):
    """All polygons of a FeatureCollection, in pixels of its tile, for `rasterise`."""
    tile = tile_of(outlines)
    return [
        [to_pixels(ring, tile) for ring in rings]
        for feature in outlines["features"]
        for rings in polygons_of(feature)
    ]


def missing(folder):
    """The files that folder lacks, as a list of relative names."""
    tiles = sorted(tile for split in splits for tile in block(split))
    names = [name for name in map(image_name, tiles) if not (folder / name).is_file()]
    return names if geojson_files(folder) else [*names, "osm/*.geojson"]


def block(split):
    """The tiles of a split, column by column from the west, each from the north."""
    return [Tile(x, y, ZOOM) for x in splits[split] for y in ROWS]


def image_name(tile):
    return f"oam/OAM-{tile.name}.tif"


def geojson_files(folder):
    return sorted(folder.glob("osm/[!.]*.geojson"))


def read(folder, split):
    """Yields (image (3, 512, 512), label (512, 512), outlines) of each tile.

    Image and label are uint8, outlines a GeoJSON FeatureCollection, in degrees, of all
    buildings on the image, whole also where they reach beyond it.

    Raises DataError for an image of another size and for outlines that cannot be used.
    """
    features, boxes = read_features(folder)
    for tile in block(split):
        image = read_image(folder / image_name(tile), "RGB")
        if image.shape[1:] != (SIDE, SIDE):
            raise DataError(
                f"{folder / image_name(tile)} is {shape(image)}, a tile {SIDE}x{SIDE}: "
                "put it in as it was published"
            )
        outlines = outlines_on(tile, features, boxes)
        yield image, mask(outlines), outlines


def read_features(folder):
    """The outlines of the whole block, and their `bounds`."""
    files = geojson_files(folder)
    if len(files) > 1:
        names = " and ".join(path.name for path in files)
        raise DataError(f"{folder / 'osm'} holds {names}: leave the published one only")
    try:
        found = json.loads(files[0].read_text(encoding="utf-8"))["features"]
        features = [
            outline(feature["properties"]["osm_id"], feature["geometry"])
            for feature in found
        ]
        boxes = bounds(features)
        check_place(features, boxes)
        return features, boxes
    except Exception as error:  # a broken file has many ways to fail
        raise DataError(
            f"{files[0]} cannot be read as GeoJSON outlines ({error}): replace it, or "
            "remove its data set's folder so that it is fetched again"
        ) from error


def outline(number, geometry):
    """The GeoJSON feature of a building, with nothing that is not used."""
    return {"type": "Feature", "properties": {"osm_id": number}, "geometry": geometry}


def bounds(features):
    """South-west and north-east corners (N, 2, 2) of features, in degrees."""
    if not features:
        raise DataError("it has no features")
    corners = []
    for feature in features:
        points = np.concatenate(sum(polygons_of(feature), []))
        corners.append((points.min(axis=0), points.max(axis=0)))
    return np.array(corners)


def check_place(features, boxes):
    """Raises DataError for an outline elsewhere: in metres, for instance, or swapped.
    """
    near = abs(to_pixels(boxes, block("train")[0])) < NEAR  # False for NaN
    if not near.all():
        first = np.flatnonzero(~near.all(axis=(1, 2)))[0]
        raise DataError(
            f"the outline {features[first]['properties']['osm_id']} is far away, at "
            f"{boxes[first, 0].tolist()}: points are longitude, latitude, in degrees"
        )


def outlines_on(tile, features, boxes):
    """A FeatureCollection of those features whose `bounds` touch the tile's image."""
    (left, right), (bottom, top) = to_pixels(boxes, tile).T  # (N,) each
    touch = (left < SIDE) & (right > 0) & (top < SIDE) & (bottom > 0)
    kept = [features[k] for k in np.flatnonzero(touch)]
    return {"type": "FeatureCollection", "name": tile.name, "features": kept}


def mask(outlines):
    """The label (512, 512) uint8 of a tile: 1 where a building is, else 0."""
    covered = rasterise(polygons_in(outlines)) > 0
    return torch.from_numpy(covered.astype(np.uint8))


# The stand-in: tiles drawn by a program, for those without the real ones. A point
# (u, v) of a town lies u pixels along its streets and v across them, from the middle
# of the tile; the town is turned, and its streets bend. What is painted is painted
# FINE times as large and reduced in the end.

SCENES = {"train": 16, "val": 6}
SEED = 2015
REACH = 420  # pixels from the middle to where streets end, outside the tile
FINE = 2
LIT, DARK = 255, 110  # light of what lies in the sun and in the shade

EARTHS = (116, 108, 96), (132, 124, 110), (104, 102, 98), (122, 108, 94)
TARS = (112, 106, 100), (126, 118, 106), (98, 96, 94)
LEAVES = (62, 82, 40), (78, 96, 52), (52, 70, 40), (90, 96, 58)
CONCRETES = (
    (146, 142, 136), (124, 122, 118), (164, 160, 152), (108, 108, 108), (138, 130, 118),
    (178, 176, 172), (120, 114, 106),
)  # fmt: skip
SHEETS = (
    (46, 104, 158), (56, 120, 176), (112, 82, 68), (128, 96, 80), (140, 142, 142),
    (118, 124, 130), (158, 66, 62),
)  # fmt: skip
TANKS = (36, 36, 38), (44, 120, 104), (190, 192, 190)
CARS = (190, 190, 188), (60, 64, 72), (150, 48, 44), (212, 212, 206)


def sample(split):
    """Yields drawn tiles, as `read` does the real ones; the same ones every time.

    They lie in the sea, where the equator meets the meridian of Greenwich, each apart
    from all others.
    """
    part, origin = list(splits).index(split), 2 ** (ZOOM - 1)
    for k in range(SCENES[split]):
        tile = Tile(origin + 2 * k, origin + 2 * part, ZOOM)
        yield draw(tile, np.random.default_rng([SEED, part, k]))


def draw(tile, rng):
    """One drawn tile: image (3, 512, 512), label (512, 512) and outlines."""
    scene = Scene(rng)
    town(scene)
    for house in sorted(scene.houses, key=lambda house: house.height):
        build(scene, house)
    features = [
        outline(-number, scene.geometry(house, tile))  # no real one is negative
        for number, house in enumerate(scene.houses, start=1)
    ]
    outlines = outlines_on(tile, features, bounds(features))
    return develop(scene), mask(outlines), outlines


class House(NamedTuple):
    rings: list  # each of points (u, v), closed: the outline, then a courtyard
    height: float  # pixels, the length of its shadow


class Scene:
    """A piece of ground: what is painted on it, where light falls, which houses."""

    def __init__(self, rng):
        self.rng = rng
        turn, sun = rng.uniform(0, 2 * math.pi, 2)
        cos, sin = math.cos(turn), math.sin(turn)
        self.axes = np.array([(cos, sin), (-sin, cos)])  # of u and v in the image
        self.bend = rng.normal(0, 0.0003)  # 1/pixel
        self.shade = np.array((math.cos(sun), math.sin(sun)))  # where shadows fall
        self.image = Image.new("RGB", 2 * (FINE * SIDE,), self.pick(EARTHS))
        self.light = Image.new("L", self.image.size, LIT)
        self.pen, self.lamp = ImageDraw.Draw(self.image), ImageDraw.Draw(self.light)
        self.houses = []

    def see(self, points):
        """Points (N, 2) of the town as columns and rows (N, 2) of the image."""
        points = np.array(points, np.float64)
        points[:, 1] += self.bend * points[:, 0] ** 2
        return SIDE / 2 + points @ self.axes

    def geometry(self, house, tile):
        rings = [to_degrees(self.see(ring), tile).tolist() for ring in house.rings]
        return {"type": "Polygon", "coordinates": rings}

    def shows(self, points):
        """Whether the box around points touches the image."""
        pixels = self.see(points)
        return (pixels.max(axis=0) > 0).all() and (pixels.min(axis=0) < SIDE).all()

    def paint(self, colour, points):
        self.pen.polygon(fine(self.see(points)), colour)

    def line(self, colour, points, width):
        self.pen.line(fine(self.see(points)), colour, round(FINE * width), "curve")

    def disc(self, colour, u, v, radius, down=0):
        """A disc, some pixels down in the direction of the shadows."""
        centre = self.see([(u, v)]) + down * self.shade
        self.pen.circle(fine(centre), FINE * radius, colour)

    def shadow(self, points, height):
        """What a closed ring of points leaves dark; the ring itself is lit."""
        here = self.see(points)
        there = here + height * self.shade
        walls = np.stack([here[:-1], here[1:], there[1:], there[:-1]], axis=1)
        for wall in walls:
            self.lamp.polygon(fine(wall), DARK)
        self.lamp.polygon(fine(there), DARK)
        self.lamp.polygon(fine(here), LIT)

    def pick(self, colours):
        """One of some colours, a little lighter or darker."""
        colour = colours[self.rng.integers(len(colours))]
        return lit(colour, self.rng.uniform(0.85, 1.15))


def fine(pixels):
    """Columns and rows (N, 2) as a pen takes them: pixels have whole-number centres."""
    return (FINE * pixels - 0.5).ravel().tolist()


def lit(colour, light):
    return tuple(min(255, int(light * value)) for value in colour)


def box(u0, u1, v0, v1):
    """A rectangle as a closed ring of points."""
    return [(u0, v0), (u1, v0), (u1, v1), (u0, v1), (u0, v0)]


def noise(rng, period):
    """A smooth random field (512, 512), bumps of about `period` pixels, deviation 1."""
    knots = rng.standard_normal(2 * [SIDE // period + 3], np.float32)
    field = np.asarray(Image.fromarray(knots).resize((SIDE, SIDE), Image.BICUBIC))
    return field / field.std()


def town(scene):
    """Blocks of many kinds, and the streets between them."""
    rng = scene.rng
    us = (np.cumsum(rng.uniform(190, 360, 7)) - REACH - 200).tolist()
    vs = (np.cumsum(rng.uniform(130, 210, 8)) - REACH - 130).tolist()
    kinds, shares = (rows, hall, court, field, yard), (0.82, 0.05, 0.04, 0.06, 0.03)
    for u0, u1 in zip(us, us[1:]):
        for v0, v1 in zip(vs, vs[1:]):
            kind, corners = rng.choice(kinds, p=shares), box(u0, u1, v0, v1)
            if scene.shows(corners):
                kind(scene, u0 + 10, u1 - 10, v0 + 10, v1 - 10)
    for v in vs:
        street(scene, [(u, v) for u in range(-REACH, REACH + 1, 40)])
    for u in us:
        street(scene, [(u, -REACH), (u, REACH)])


def street(scene, points):
    """A street or an alley, and the cars on it."""
    rng, width = scene.rng, scene.rng.choice((10, 16, 22, 30), p=(0.4, 0.3, 0.2, 0.1))
    scene.line(scene.pick(TARS), points, width)
    if width > 20:
        for _ in range(rng.integers(0, 8)):
            u, v = points[rng.integers(len(points))] + rng.uniform(-6, 6, 2)
            scene.paint(scene.pick(CARS), box(u - 8, u + 8, v - 4, v + 4))


def rows(scene, u0, u1, v0, v1):
    """Two rows of houses, back to back; half share a wall with the next one."""
    rng, middle = scene.rng, (v0 + v1) / 2
    garden(scene, u0, u1, middle - 20, middle + 20)
    for front in (v0, v1):
        u = u0 + rng.uniform(0, 15)
        while (end := u + rng.uniform(36, 86)) < u1:
            back = front + rng.uniform(0.65, 1) * (middle - front)
            house(scene, u, end, *sorted((front, back)))
            if abs(middle - back) > 20 and rng.random() < 0.5:  # a shed behind it
                house(scene, u, rng.uniform(u + 20, end), *sorted((back, middle)))
            u = end + rng.choice((0, rng.uniform(6, 24)), p=(0.5, 0.5))


def garden(scene, u0, u1, v0, v1):
    """Green between houses: bushes and trees."""
    rng = scene.rng
    for u, v in rng.uniform((u0, v0), (u1, v1), (rng.integers(10, 40), 2)):
        tree(scene, u, v)


def tree(scene, u, v):
    radius, leaves = scene.rng.uniform(5, 14), scene.pick(LEAVES)
    scene.disc(lit(leaves, 0.5), u, v, radius, down=5)
    scene.disc(leaves, u, v, radius)


def hall(scene, u0, u1, v0, v1):
    """A large hall beside a yard."""
    yard(scene, u0, u1, v0, v1)
    house(scene, u0, u0 + scene.rng.uniform(0.4, 0.8) * (u1 - u0), v0, v1 - 20)


def court(scene, u0, u1, v0, v1):
    """A building around a courtyard, beside a yard."""
    u1, wing = u0 + scene.rng.uniform(0.5, 0.9) * (u1 - u0), scene.rng.uniform(24, 36)
    hole = box(u0 + wing, u1 - wing, v0 + wing, v1 - wing)
    scene.houses.append(House([box(u0, u1, v0, v1), hole], 12))


def field(scene, u0, u1, v0, v1):
    """A green field in furrows."""
    scene.paint(scene.pick(LEAVES), box(u0, u1, v0, v1))
    furrow = scene.pick(LEAVES)
    for v in np.arange(v0, v1, scene.rng.uniform(5, 14)).tolist():
        scene.line(furrow, [(u0, v), (u1, v)], 2)
    garden(scene, u0, u1, v0, v1)


def yard(scene, u0, u1, v0, v1):
    """Bare earth with a few trees."""
    scene.paint(lit(scene.pick(EARTHS), 1.3), box(u0, u1, v0, v1))
    for _ in range(scene.rng.integers(2, 8)):
        tree(scene, scene.rng.uniform(u0, u1), scene.rng.uniform(v0, v1))


def house(scene, u0, u1, v0, v1):
    """A house, some of them without a corner."""
    rng, ring = scene.rng, box(u0, u1, v0, v1)
    if rng.random() < 0.25:
        u, v = rng.uniform(u0 + 8, u1 - 8), rng.uniform(v0 + 8, v1 - 8)
        ring[2:3] = [(u1, v), (u, v), (u, v1)]
    scene.houses.append(House([ring], rng.uniform(4, 34)))


def build(scene, house):
    """Paints a house: its shadow, its roof and, lower than that, its courtyard."""
    ring, *holes = house.rings
    scene.shadow(ring, house.height)
    scene.rng.choice((terrace, sheets), p=(0.68, 0.32))(scene, ring)
    for hole in holes:
        scene.paint(scene.pick(EARTHS), hole)


def terrace(scene, ring):
    """A flat roof of concrete: a parapet, a room above the stairs, tanks and things."""
    rng, colour = scene.rng, scene.pick(CONCRETES)
    (u0, v0), (u1, v1) = ring[0], ring[-3]  # of a rectangle within
    scene.paint(colour, ring)
    scene.line(lit(colour, rng.choice((0.5, 1.3))), ring, 2)
    for _ in range(rng.integers(1, 4)):
        (left, right), (low, high) = rng.uniform((u0, v0), (u1, v1), (2, 2)).T
        room = box(*sorted((left, right)), *sorted((low, high)))
        scene.shadow(room, rng.uniform(0, 9))
        scene.paint(scene.pick((*CONCRETES, *SHEETS)), room)
    for u, v in rng.uniform((u0 + 3, v0 + 3), (u1 - 3, v1 - 3), (rng.integers(6), 2)):
        scene.disc(scene.pick(TANKS), u, v, rng.uniform(1.5, 4))


def sheets(scene, ring):
    """A roof of ribbed metal sheets in two slopes."""
    colour, (u0, v0), (u1, v1) = scene.pick(SHEETS), ring[0], ring[-3]
    dark = lit(colour, scene.rng.uniform(0.7, 1))
    scene.paint(colour, ring)
    scene.paint(dark, box(u0, u1, v0, (v0 + v1) / 2))
    for u in np.arange(u0 + 3, u1, 4).tolist():
        scene.line(lit(colour, 0.85), [(u, v0), (u, v1)], 1)


def develop(scene):
    """What camera and light make of it (3, 512, 512): shadows, texture, noise."""
    rng = scene.rng
    image = np.asarray(scene.image.reduce(FINE).filter(ImageFilter.SMOOTH))
    light = np.asarray(scene.light.reduce(FINE)) / np.float32(255)
    light = light * (1 + 0.06 * (noise(rng, 60) + noise(rng, 9)))
    light += 0.05 * rng.standard_normal(light.shape, np.float32)
    image = (image * light[..., None]).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1)
