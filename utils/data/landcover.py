"""Land cover from above: satellite images of Dubai, by Humans in the Loop.

Eight areas ("Tile 1" to "Tile 8") of nine images each. An image is the file
Tile <k>/images/image_part_<n>.jpg and its truth Tile <k>/masks/image_part_<n>.png, a
picture in which each class has a colour. Images have many sizes, so they are cut into
squares; areas, never images, are held out.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from utils.data import DataError, read_image, shape
from utils.data.download import Kaggle

classes = ("water", "land", "road", "building", "vegetation")
palette = (
    (52, 130, 214), (226, 196, 146), (96, 96, 108), (176, 58, 46), (66, 148, 62),
)  # fmt: skip
ignore = 255
licence = "CC0 1.0 (imagery of the Mohammed Bin Rashid Space Centre)"
citation = (
    "Humans in the Loop, Semantic segmentation of aerial imagery, 2020, data set on "
    "Kaggle"
)
# The numbers of the areas. Held out are the two, with at most a third of all pixels,
# whose shares of classes come closest to those of all areas together. The first choice,
# (4, 5), was harder (README.md beside this file).
splits = {"train": (1, 2, 4, 5, 6, 7), "val": (3, 8)}
archive = None
kaggle = Kaggle(
    dataset="humansintheloop/semantic-segmentation-of-aerial-imagery",
    folder="Semantic segmentation dataset",
    keep=("classes.json", *(f"Tile {k}" for k in range(1, 9))),
    sha256="aed0ab9d29db043edb82086d671df190b9fc25a388913e1928a8f9eec79cb162",
)
# The colours that the masks have; classes.json lists others. Black, which it does not
# name, borders some masks.
COLOURS = {
    0xE2A929: 0, 0x8429F6: 1, 0x6EC1E4: 2, 0x3C1098: 3, 0xFEDD3A: 4,
    0x9B9B9B: ignore, 0x000000: ignore,
}  # fmt: skip
PARTS = range(1, 10)  # the numbers of an area's images
SIDE = 480  # pixels of a square


def missing(folder):
    """The files that folder lacks, as a list of relative names."""
    names = [
        f"Tile {k}/{kind}/image_part_{n:03}.{ending}"
        for k in range(1, 9)
        for n in PARTS
        for kind, ending in (("images", "jpg"), ("masks", "png"))
    ]
    return [name for name in names if not (folder / name).is_file()]


def read(folder, split):
    """Yields (image (3, 480, 480), label (480, 480)), both uint8: squares of the areas.

    Raises DataError for a mask with a colour of no class, for an image and a mask that
    do not fit each other and for images smaller than a square.
    """
    for area in splits[split]:
        for part in PARTS:
            path = folder / f"Tile {area}/masks/image_part_{part:03}.png"
            image = path.parents[1] / f"images/{path.stem}.jpg"
            yield from squares(*crop(read_image(image, "RGB"), decode(path), path))


def decode(path):
    """The truth (H, W) in a file whose colours must be those of the classes."""
    red, green, blue = read_image(path, "RGB").numpy().astype(np.int32)
    codes = (red << 16) + (green << 8) + blue
    label = np.full(codes.shape, -1, np.int16)
    for code, number in COLOURS.items():
        label[codes == code] = number
    if label.min() < 0:
        raise DataError(
            f"{path} holds the colour #{codes[label < 0][0]:06X}: a mask of land cover "
            f"holds {', '.join(f'#{code:06X}' for code in COLOURS)}"
        )
    return torch.from_numpy(label.astype(np.uint8))


def crop(image, label, path):
    """Image and label in the smaller size of the two, which may differ by a pixel."""
    (height, width), (rows, columns) = image.shape[1:], label.shape
    if max(abs(height - rows), abs(width - columns)) > 1:
        raise DataError(
            f"{path} is {shape(label)}, its image {shape(image)}; they may differ by "
            "one pixel: put both in as they were published"
        )
    height, width = min(height, rows), min(width, columns)
    if min(height, width) < SIDE:
        raise DataError(
            f"{path} and its image are {height}x{width}; the squares cut from them "
            f"need {SIDE} pixels a side: put both in as they were published"
        )
    return image[:, :height, :width], label[:height, :width]


def squares(image, label):
    """Cuts an image (3, H, W) and its label (H, W) into squares of SIDE pixels.

    Squares at the far sides overlap those before them; what was in an earlier one is
    void there, so that each pixel counts once.
    """
    fresh = label.numpy().copy()
    for y in starts(label.shape[0]):
        for x in starts(label.shape[1]):
            part = ..., slice(y, y + SIDE), slice(x, x + SIDE)
            yield image[part], torch.from_numpy(fresh[part].copy())
            fresh[part] = ignore


def starts(side):
    """Where squares start that cover `side` pixels, the last flush with the end."""
    return [*range(0, side - SIDE, SIDE), side - SIDE]


# The stand-in: squares drawn by a program, for those without the real ones. A point
# (u, v) of a town lies u pixels along its streets and v across them, from the middle
# of the square; the town is turned, and its streets bend.

SCENES = {"train": 36, "val": 12}
SEED = 2020
REACH = 430  # pixels from the middle to where streets end, outside the square

WATER, LAND, ROAD, BUILDING, VEGETATION = range(len(classes))
GRAIN = np.array((5, 3, 4, 5, 13, 5), np.float32) / 100  # by class, void last
SANDS = (208, 210, 220), (202, 196, 194), (184, 192, 204), (162, 158, 160)
SEAS = (12, 14, 12), (20, 52, 36), (38, 44, 32)
TARS = (72, 64, 66), (96, 86, 86), (120, 114, 116), (160, 154, 154)
ROOFS = (
    (236, 232, 226), (206, 196, 186), (178, 160, 148), (150, 144, 148), (112, 108, 112),
    (124, 112, 140), (84, 78, 78), (152, 108, 92),
)  # fmt: skip
LEAVES = (48, 54, 46), (66, 76, 58), (80, 88, 70), (96, 104, 84)
SHADOW, LINE = (36, 34, 36), (196, 194, 192)


def sample(split):
    """Yields drawn squares, as `read` does the real ones; the same ones every time."""
    for k in range(SCENES[split]):
        yield draw(np.random.default_rng([SEED, list(splits).index(split), k]))


def draw(rng):
    """One drawn square: (image (3, 480, 480), label (480, 480)), both uint8 tensors."""
    scene = Scene(rng)
    scrub(scene)
    if rng.random() < 0.75:
        town(scene)
    tracks(scene)
    flood(scene)
    return develop(scene)


class Scene:
    """Sand and what lies on it: paints an image and its label together."""

    def __init__(self, rng):
        self.rng = rng
        turn = rng.uniform(0, 2 * math.pi)
        self.cos, self.sin = math.cos(turn), math.sin(turn)
        self.bend = rng.normal(0, 0.0007)  # 1/pixel
        self.shadow = rng.choice((-1, 1), 2) * rng.uniform(2, 5, 2)  # along u, v
        self.image = Image.new("RGB", (SIDE, SIDE), self.pick(SANDS))
        self.label = Image.new("L", (SIDE, SIDE), LAND)
        self.pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)

    def see(self, u, v):
        """The pixel (column, row) of a point."""
        v += self.bend * u**2
        right, down = self.cos * u - self.sin * v, self.sin * u + self.cos * v
        return SIDE / 2 + right, SIDE / 2 + down

    def paint(self, what, colour, points, width=None):
        """A polygon; with a width a line, or the disc around a single point.

        Where what is None, as for a shadow, the label stays as it is.
        """
        pixels = [self.see(*point) for point in points]
        for pen, ink in zip(self.pens, (colour, what)):
            if ink is None:
                continue
            if width is None:
                pen.polygon(pixels, ink)
            elif len(pixels) > 1:
                pen.line(pixels, ink, round(width), "curve")
            else:
                pen.circle(pixels[0], width / 2, ink)

    def area(self, what, colour, u0, u1, v0, v1):
        """What lies between two lines along the streets, which bend with them."""
        parts = 1 + int(u1 - u0) // 30
        at = [u0 + k / parts * (u1 - u0) for k in range(parts + 1)]
        self.paint(what, colour, [(u, v0) for u in at] + [(u, v1) for u in at[::-1]])

    def cover(self, what, colour, where):
        """Paints what a mask (480, 480) shows, or what it shows in part: 0 to 1."""
        mask = Image.fromarray((255 * where).astype(np.uint8))
        self.image.paste(colour, mask=mask)
        self.label.paste(what, mask=mask.point(lambda value: 255 * (value > 127)))

    def pick(self, colours):
        """One of some colours, a little lighter or darker."""
        colour = colours[self.rng.integers(len(colours))]
        return lit(colour, self.rng.uniform(0.88, 1.12))


def lit(colour, light):
    return tuple(min(255, int(light * value)) for value in colour)


def noise(rng, period):
    """A smooth random field (480, 480), bumps of about `period` pixels, deviation 1."""
    knots = rng.standard_normal(2 * [SIDE // period + 3], np.float32)
    field = np.asarray(Image.fromarray(knots).resize((SIDE, SIDE), Image.BICUBIC))
    return field / field.std()


def raised(field, share):
    """A field (480, 480), shifted so that the given share of it is above zero."""
    return field - np.quantile(field[::8, ::8], 1 - share)


def scrub(scene):
    """Wild plants: a few tufts, or all that some part of the square holds."""
    rng = scene.rng
    share = rng.choice((0.01, rng.uniform(0.1, 0.4)), p=(0.65, 0.35))
    wild = raised(noise(rng, 120) + 0.35 * noise(rng, 9), share)
    scene.cover(VEGETATION, scene.pick(LEAVES), wild > 0)


def town(scene):
    """Blocks of many kinds, then the streets between them."""
    rng = scene.rng
    us = (np.cumsum(rng.uniform(80, 200, 9)) - REACH - 60).tolist()
    vs = (np.cumsum(rng.uniform(56, 110, 15)) - REACH - 60).tolist()
    crowd = rng.uniform(0.25, 0.75)  # the share of the blocks with houses
    kinds = (houses, hall, park, site, None)
    shares = (0.72 * crowd, 0.28 * crowd, 0.07, 0.02, 0.91 - crowd)
    for u0, u1 in zip(us, us[1:]):
        for v0, v1 in zip(vs, vs[1:]):
            kind, spot = rng.choice(kinds, p=shares), scene.see((u0 + u1) / 2, v0)
            if kind and -80 < min(spot) and max(spot) < SIDE + 80:
                kind(scene, u0 + 9, u1 - 9, v0 + 9, v1 - 9)
    tar = scene.pick(TARS)
    for u in us:
        street(scene, tar, [(u, -REACH), (u, REACH)])
    for v in vs:
        street(scene, tar, [(u, v) for u in range(-REACH, REACH + 1, 40)])


def street(scene, tar, points):
    """One street, the wide ones with a line, some in a strip of green."""
    width = scene.rng.choice((4, 6, 8, 14), p=(0.3, 0.4, 0.2, 0.1))
    if scene.rng.random() < 0.2:
        green = width + scene.rng.integers(6, 12)
        scene.paint(VEGETATION, scene.pick(LEAVES), points, green)
    scene.paint(ROAD, tar, points, width)
    if width > 8:
        scene.paint(None, LINE, points, 1)


def tree(scene, u, v):
    size, leaves = scene.rng.uniform(4, 9), scene.pick(LEAVES)
    scene.paint(VEGETATION, leaves, [(u, v)], size)
    scene.paint(None, lit(leaves, 1.3), [(u, v)], size / 3)


def houses(scene, u0, u1, v0, v1):
    """Two rows of houses back to back, trees between them."""
    rng, middle = scene.rng, (v0 + v1) / 2
    pitch, gap = rng.uniform(14, 26), rng.uniform(1.5, 4)
    for u in np.arange(u0, u1 - pitch, pitch).tolist():
        for low, high in ((v0, middle - 3), (middle + 3, v1)):
            if rng.random() < 0.92:
                front, back = rng.uniform(0, 3, 2)
                house(scene, u, u + pitch - gap, low + front, high - back)
        if rng.random() < 0.6:
            tree(scene, u + rng.uniform(0, pitch), middle)


def house(scene, u0, u1, v0, v1):
    """A shadow, a roof of two slopes and what stands on it."""
    rng, roof, (du, dv) = scene.rng, scene.pick(ROOFS), scene.shadow
    scene.area(None, SHADOW, u0 + du, u1 + du, v0 + dv, v1 + dv)
    scene.area(BUILDING, roof, u0, u1, v0, v1)
    scene.area(None, lit(roof, rng.uniform(0.6, 1)), u0, u1, v0, (v0 + v1) / 2)
    u, v = rng.uniform(u0, u1 - 4), rng.uniform(v0, v1 - 4)
    scene.area(None, scene.pick(ROOFS), u, u + 4, v, v + 4)


def hall(scene, u0, u1, v0, v1):
    """A large hall with a ribbed roof, beside a yard."""
    u1, rib = u1 - scene.rng.uniform(0, 50), scene.pick(ROOFS)
    house(scene, u0, u1, v0, v1)
    for u in np.arange(u0 + 4, u1, scene.rng.uniform(6, 16)).tolist():
        scene.area(None, rib, u, u + 1, v0, v1)


def park(scene, u0, u1, v0, v1):
    """A lawn with trees."""
    rng = scene.rng
    scene.area(VEGETATION, scene.pick(LEAVES[1:]), u0, u1, v0, v1)
    for _ in range(rng.integers(5, 40)):
        tree(scene, rng.uniform(u0, u1), rng.uniform(v0, v1))


def site(scene, u0, u1, v0, v1):
    """A building site: void, as what nobody could tell."""
    scene.area(ignore, scene.pick(SANDS), u0, u1, v0, v1)
    for u in np.arange(u0, u1, 12).tolist():
        scene.area(None, scene.pick(ROOFS), u, u + 8, v0, scene.rng.uniform(v0, v1))


def tracks(scene):
    """Winding ways through all, from a path in the sand to a wide road."""
    rng = scene.rng
    for _ in range(rng.integers(1, 3)):
        at = np.linspace(-REACH, REACH, 40)
        bends = rng.uniform(-90, 90) * np.sin(at / rng.uniform(70, 160))
        points = np.stack([at, rng.uniform(-240, 240) + bends], axis=1).tolist()
        if rng.random() < 0.5:
            points = [(v, u) for u, v in points]
        scene.paint(ROAD, scene.pick(TARS), points, rng.uniform(4, 16))


def flood(scene):
    """In half of the squares lakes, a coast or a creek, behind a beach."""
    rng = scene.rng
    kind = rng.choice(("lakes", "creek", "coast", "coast", None, None, None, None))
    if kind is None:
        return
    field, share = noise(rng, 150), rng.uniform(0.04, 0.22)
    if kind != "lakes":
        at = np.linspace(-3, 3, SIDE, dtype=np.float32)
        field = 0.6 * field + scene.cos * at + scene.sin * at[:, None]
    if kind == "coast":
        share = rng.uniform(0.2, 0.65)
    elif kind == "creek":
        field = -abs(field)
    depth = raised(field + 0.03 * noise(rng, 12), share)
    scene.cover(LAND, scene.pick(SANDS), depth > -0.1)
    scene.cover(WATER, scene.pick(SEAS), (0.7 + depth).clip(0, 1) * (depth > 0))


def develop(scene):
    """What camera and light make of it: blur, texture, noise; void along an edge."""
    rng, label = scene.rng, np.array(scene.label)
    image = np.asarray(scene.image.filter(ImageFilter.SMOOTH))
    light = rng.uniform(0.92, 1.14) + 0.06 * noise(rng, 70)
    light += GRAIN[np.minimum(label, len(classes))] * (noise(rng, 2) + noise(rng, 7))
    light += 0.03 * rng.standard_normal(light.shape, np.float32)
    image = (image * light[..., None]).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        np.rot90(label, rng.integers(4))[: rng.integers(3, 12)] = ignore
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)
