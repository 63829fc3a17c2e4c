"""Instruments of robotic surgery: frames of the EndoVis challenge of 2018.

A frame is the file foreground/<k>-<Type>/image_3/seq_<n>_frame<m>.png, 1280 x 1024
colour, and its truth the file of the same name in mask/ beside image_3/, a grey picture
with the number of each pixel's type. A frame may lie under several types: its mask
holds all of them. background/ has one frame without instruments. Frames of a sequence
resemble each other, so sequences, never frames, are held out.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from utils.data import DataError, read_image, shape
from utils.data.download import Archive

classes = (
    "background", "bipolar forceps", "prograsp forceps", "large needle driver",
    "monopolar curved scissors", "ultrasound probe", "suction instrument",
    "clip applier",
)  # fmt: skip
palette = (
    (116, 106, 102), (48, 104, 232), (240, 204, 40), (64, 178, 72), (70, 214, 230),
    (244, 130, 24), (190, 160, 250), (112, 52, 190),
)  # fmt: skip
ignore = None
licence = (
    "EndoVis 2018 challenge terms: for research, cite the source; the frames must not "
    "be redistributed"
)
citation = (
    "M. Allan et al., 2018 Robotic Scene Segmentation Challenge, arXiv 2001.11190, "
    "2020; the choice of frames: A. Wang et al., Rethinking Surgical Instrument "
    "Segmentation: A Background Image Can Be All You Need, MICCAI 2022"
)
# The numbers of the sequences; the split "background" is the frame without
# instruments. Held out are at most a third of the frames, with no type that is not in
# the others too: of such sets those with the most types, and of these the one whose
# shares of classes come closest to those of all frames together.
splits = {"train": (1, 4, 11, 14), "val": (6, 7, 10, 12, 13), "background": ()}
archive = Archive(
    repository="lofrienger/Single_SurgicalScene_For_Segmentation",
    commit="a28e1d5374e4bf0e365d1db01c2ffb0a378512bc",
    folder="data_gen",
    keep=("foreground", "background"),
    sha256="1797cf12462fbcd01537ac76df3a625c641c1c2807add9ededc042254cc3b8fe",
    ending=".png",  # there are notebooks among the frames
)
kaggle = None
BACKGROUND = "background/raw/3-frame020.png"
SEQUENCES = sorted(sum(splits.values(), ()))
BESIDE = {"image_3": "mask", "mask": "image_3"}  # where a file's other half lies


def missing(folder):
    """What folder lacks, as a list: masks, images, the background, whole sequences.

    Raises DataError for a file whose name is not that of a frame.
    """
    found = frames(folder, "image_3") | frames(folder, "mask")
    wanted = {other_half(path) for path in found} | {folder / BACKGROUND}
    lacking = sorted(path for path in wanted if not path.is_file())
    there = {sequence for sequence, _ in found.values()}
    return [path.relative_to(folder).as_posix() for path in lacking] + [
        f"foreground/*/image_3/seq_{k}_frame*.png" for k in SEQUENCES if k not in there
    ]


def frames(folder, kind):
    """Path -> (sequence, frame) of all files foreground/*/<kind>/*.png.

    Raises DataError for a name, or a sequence, that the data set does not have.
    """
    found = {}
    for path in folder.glob(f"foreground/*/{kind}/[!.]*.png"):
        name = re.fullmatch(r"seq_(\d+)_frame(\d+)", path.stem)
        if not name or int(name[1]) not in SEQUENCES:
            raise DataError(
                f"{path} is no frame of this data set, which has seq_<n>_frame<m>.png "
                f"with n one of {', '.join(map(str, SEQUENCES))}: remove the file"
            )
        found[path] = int(name[1]), int(name[2])
    return found


def other_half(path):
    """The mask of an image, the image of a mask."""
    return path.parents[1] / BESIDE[path.parent.name] / path.name


def read(folder, split):
    """Yields (image (3, 1024, 1280), label (1024, 1280)), both uint8.

    They come by the numbers of sequence and frame, each once, however many types it
    lies under. Raises DataError for a mask with a number that is no type, for an image
    and a mask of two sizes, and for files of one frame that differ.
    """
    if split == "background":
        image = read_image(folder / BACKGROUND, "RGB")
        yield image, torch.zeros(image.shape[1:], dtype=torch.uint8)
    masks = frames(folder, "mask")
    for place in sorted(set(masks.values())):
        if place[0] in splits[split]:
            yield once(sorted(path for path in masks if masks[path] == place))


def once(masks):
    """Image and label of one frame from all of its masks, which must agree."""
    first, *others = map(pair, masks)
    for path, other in zip(masks[1:], others):
        if not all(map(torch.equal, first, other)):
            raise DataError(
                f"{masks[0]} and {path} are of one frame, but they or their images "
                "differ: put them in as they were published"
            )
    return first


def pair(path):
    """Image (3, H, W) and label (H, W) of the mask in a file."""
    image, label = read_image(other_half(path), "RGB"), read_image(path, "L")[0]
    if label.max() >= len(classes):
        raise DataError(
            f"{path} holds the value {label.max()}: a mask of instruments holds the "
            "numbers 0 to 7 as grey levels, no colours and no palette; put it in as it "
            "was published"
        )
    if image.shape[1:] != label.shape:
        raise DataError(
            f"{path} is {shape(label)}, its image {shape(image)}; they must have one "
            "size: put both in as they were published"
        )
    return image, label


# The stand-in: frames drawn by a program, for those without the real ones. They are
# drawn at half size and enlarged. A point (u, v) of an instrument lies u along its axis
# and v across it, in radii of its shaft, which ends where u is 0; the tip has u > 0.

HEIGHT, WIDTH = 512, 640  # of a drawing; a frame has twice as many pixels a side
SCENES = {"train": (8, 2), "val": (4, 2), "background": (1, 1)}  # sequences, frames
SEED = 2018
DRIFT = 40  # pixels that the camera may move within a sequence
RIM = 4  # pixels around the picture that stay black
SIDES = (  # where instruments come from: shares of width and height
    (-0.1, 0.5), (1.1, 0.5), (-0.05, 1), (1.05, 1), (-0.05, 0.05), (1.05, 0.1),
)  # fmt: skip

SHAFT, WRIST, CLASPERS = 1, 2, 3  # the classes of `instrument_parts`
GREY, DARK, PALE, BLACK = (104, 100, 102), (60, 57, 57), (164, 152, 155), (34, 32, 34)
METAL, GOLD, SLEEVE = (148, 142, 146), (196, 152, 70), (92, 108, 130)
TISSUES = (  # two colours of organs, and how much blood runs in them
    ((206, 122, 142), (160, 78, 98), 0.9),
    ((190, 104, 118), (198, 132, 138), 0.8),
    ((200, 172, 184), (172, 138, 152), 0.4),
    ((170, 80, 94), (116, 50, 66), 0.7),
    ((192, 112, 122), (200, 148, 132), 0.6),
    ((168, 112, 132), (132, 102, 130), 0.5),
)


class Piece(NamedTuple):
    """A piece of an instrument: a band along a line, or a pair of bands.

    It runs from u = start to end, and half its width goes from `wide` to `narrow`; it
    ends round, or flat where `blunt` is large. The bands of a pair leave the axis with
    the slope of the instrument's opening; `bend` turns them out (> 0) or back (< 0).
    """

    part: int
    colour: tuple[int, int, int]
    start: float
    end: float
    wide: float
    narrow: float
    gloss: float  # of machined metal above 0.5
    blunt: float = 40
    pair: bool = False
    bend: float = 0
    slot: bool = False  # a long hole, through which one sees the tissue


def shaft(colour, half, gloss):
    """Long enough to reach beyond the picture."""
    return Piece(SHAFT, colour, -40, 0, half, half, gloss, 1000)


def jaws(colour, start, end, wide, narrow, blunt, **more):
    return Piece(CLASPERS, colour, start, end, wide, narrow, 0.6, blunt, True, **more)


TOOLS = {  # type -> its pieces, from the shaft to the tip
    1: (
        shaft(DARK, 1, 0.25),
        Piece(WRIST, METAL, 0, 1.3, 0.95, 0.75, 0.9),
        Piece(WRIST, GOLD, 1.2, 2.5, 0.85, 0.6, 0.2),
        jaws(METAL, 2.4, 4.8, 0.36, 0.22, 4, bend=-0.25, slot=True),
    ),
    2: (
        shaft(GREY, 1, 0.25),
        Piece(WRIST, METAL, 0, 2.2, 0.95, 0.6, 0.9),
        jaws(METAL, 2.1, 5.8, 0.42, 0.36, 8, slot=True),
    ),
    3: (
        shaft(PALE, 1, 0.25),
        Piece(WRIST, METAL, 0, 2.4, 1, 0.42, 1.0),
        jaws(PALE, 2.3, 3.7, 0.36, 0.2, 6),
    ),
    4: (
        shaft(GREY, 1, 0.25),
        Piece(WRIST, SLEEVE, 0, 3, 1.05, 0.7, 0.2),
        jaws(GOLD, 2.9, 4.9, 0.3, 0.06, 6, bend=0.3),
    ),
    5: (
        shaft(BLACK, 0.6, 0.15),
        Piece(WRIST, GREY, 0, 0.7, 0.8, 0.95, 0.4),
        Piece(CLASPERS, BLACK, 0.6, 5, 1, 0.95, 0.35, 6),
    ),
    6: (
        shaft(PALE, 0.6, 0.5),
        Piece(WRIST, METAL, 0, 0.5, 0.66, 0.66, 0.5),
        Piece(CLASPERS, PALE, 0.4, 2.4, 0.64, 0.56, 0.6, 12),
    ),
    7: (
        shaft(GREY, 1.1, 0.3),
        Piece(WRIST, DARK, 0, 1.2, 1.1, 1.0, 0.6),
        jaws(GREY, 1.1, 4.2, 0.4, 0.26, 5, bend=-0.5),
    ),
}


def sample(split):
    """Yields drawn frames, as `read` does the real ones; the same ones every time."""
    for image, types, _ in scenes(split):
        yield image, types


def scenes(split):
    """Yields (image (3, 1024, 1280), types (1024, 1280), parts (1024, 1280)), uint8.

    A sequence has its own tissue and light, and its instruments come from the same
    sides; the types take turns.
    """
    sequences, length = SCENES[split]
    for k in range(sequences):
        rng = np.random.default_rng([SEED, list(splits).index(split), k])
        view, light = tissue(rng), rng.uniform(0.85, 1.5)
        sides = rng.permutation(SIDES)
        for frame in range(length):
            number = 0 if split == "background" else rng.integers(1, 4)
            scene = Scene(rng, view, light)
            for place in range(number):
                tool = 1 + (3 * k + frame + place) % len(TOOLS)
                paint(scene, Instrument(rng, tool, sides[place]))
            yield develop(scene)


class Scene:
    """A view of tissue, and the layers in which instruments lie over it."""

    def __init__(self, rng, view, light):
        self.rng, self.light = rng, light
        y, x = rng.integers(2 * DRIFT, size=2)
        self.tissue = view[y : y + HEIGHT, x : x + WIDTH]  # (512, 640, 3)
        self.ink = np.zeros_like(self.tissue)
        self.types = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.parts = np.zeros((HEIGHT, WIDTH), np.uint8)


def noise(rng, period):
    """A smooth random field (592, 720), bumps of about `period` pixels, deviation 1."""
    size = WIDTH + 2 * DRIFT, HEIGHT + 2 * DRIFT
    wide, high = (side / period for side in size)
    knots = rng.standard_normal((int(high) + 5, int(wide) + 5), np.float32)
    inner = (2, 2, 2 + wide, 2 + high)  # at its border the field would have creases
    field = np.asarray(Image.fromarray(knots).resize(size, Image.BICUBIC, inner))
    return field / field[::8, ::8].std()


def tissue(rng):
    """Organs with folds and vessels, wet: (592, 720, 3) float32, 0 to 255 and above."""
    one, other, blood = TISSUES[rng.integers(len(TISSUES))]
    organ = noise(rng, 170)  # above 0 the one, below it the other
    share = 1 / (1 + np.exp(-6 * organ - noise(rng, 30)))
    folds = noise(rng, 100) + 0.3 * noise(rng, 36) - organ**2
    down, right = np.gradient(folds + 0.01 * noise(rng, 6))
    turn = rng.uniform(0, 2 * math.pi)
    slope = math.cos(turn) * right + math.sin(turn) * down
    slope /= slope.std()
    light = 1 + 0.12 * slope + 0.12 * noise(rng, 160)
    light -= 0.3 * line(organ, 0.12) * noise(rng, 120).clip(0, 1)

    one, other = np.add((one, other), rng.normal(0, 8, 3)).astype(np.float32)
    image = (one + share[..., None] * (other - one)) * light[..., None]
    vessels = line(noise(rng, 90), 0.05) * noise(rng, 110).clip(0, 1)
    vessels += line(noise(rng, 40), 0.07) * noise(rng, 80).clip(0, 0.6)
    image *= 1 - blood * vessels[..., None] * np.float32((0.35, 0.6, 0.5))
    wet = slope + 0.8 * noise(rng, 10) + 0.8 * noise(rng, 60) - 3.2
    return image + 400 * wet.clip(0, 0.5)[..., None]


def line(field, width):
    """1 where a field is 0, falling to 0 beside: lines that wind and meet."""
    return np.exp(-((field / width) ** 2))


class Instrument:
    """An instrument from beyond a side of the picture to somewhere in its middle."""

    def __init__(self, rng, tool, side):
        self.tool, radius = tool, rng.uniform(28, 63)
        x0, y0 = side[0] * WIDTH, (side[1] + rng.normal(0, 0.08)) * HEIGHT
        x1 = (0.46 + 0.08 * side[0] + rng.normal(0, 0.1)) * WIDTH
        y1 = (0.43 + 0.14 * side[1] + rng.normal(0, 0.1)) * HEIGHT
        turn, reach = math.atan2(y1 - y0, x1 - x0), TOOLS[tool][-1].end * radius
        cos, sin = math.cos(turn) / radius, math.sin(turn) / radius
        x = np.arange(WIDTH, dtype=np.float32) - x1 + reach * math.cos(turn)
        y = np.arange(HEIGHT, dtype=np.float32)[:, None] - y1 + reach * math.sin(turn)
        self.u, self.v = cos * x + sin * y, cos * y - sin * x  # (512, 640)
        self.v /= 1 - 0.04 * np.minimum(self.u, 0)  # the shaft comes from near the eye
        self.opening, self.glow = rng.uniform(0.1, 0.4), rng.normal(0, 0.3)

    def band(self, piece, hand):
        """Where a piece lies, (512, 640) bool, and where in it its pixels are.

        That is how far from its start, in radii, and how far across it, from -1 to 1.
        hand: 0 for a single piece, -1 and 1 for the two of a pair.
        """
        inside = (piece.start <= self.u) & (self.u < piece.end) & (abs(self.v) < 4)
        far = self.u[inside] - piece.start
        share = far / (piece.end - piece.start)
        half = piece.wide + (piece.narrow - piece.wide) * share
        half *= np.sqrt(1.001 - share**piece.blunt)
        bow = piece.wide + (self.opening + piece.bend * share) * far
        across = (self.v[inside] - hand * bow) / half
        hit = abs(across) < 1
        if piece.slot:
            hit &= (abs(across) > 0.4) | (abs(share - 0.5) > 0.3)
        inside[inside] = hit
        return inside, far[hit], across[hit]


def paint(scene, instrument):
    """Lays an instrument over the scene: rounded, with a gleam along each piece."""
    for piece in TOOLS[instrument.tool]:
        for hand in (-1, 1) if piece.pair else (0,):
            inside, far, across = instrument.band(piece, hand)
            body = 0.3 + 0.7 * np.sqrt(1 - across**2)
            body *= 1 - 0.5 * np.exp(-((far / 0.1) ** 2))  # the joint
            gleam = np.exp(-(((across - instrument.glow) / 0.2) ** 2))
            gleam += (piece.gloss > 0.5) * (0.4 * np.sin(6 * far + 3 * across)).clip(0)
            ink = np.outer(body, np.float32(piece.colour))
            ink += 150 * piece.gloss * gleam[:, None]
            scene.ink[inside] = scene.light * ink
            scene.types[inside] = instrument.tool
            scene.parts[inside] = piece.part


def develop(scene):
    """What light and camera make of it: shadows, dark corners, blur, noise."""
    rng, over = scene.rng, scene.types > 0
    shadow = np.zeros((HEIGHT, WIDTH), np.uint8)
    shadow[24:, 12:] = 255 * over[:-24, :-12]
    shadow = Image.fromarray(shadow).filter(ImageFilter.BoxBlur(12))
    image = scene.tissue * (1 - np.asarray(shadow)[..., None] / np.float32(400))
    image[over] = 0.85 * scene.ink[over] + 0.15 * image[::8, ::8].mean(axis=(0, 1))

    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None] + rng.normal(0, 0.15)
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32) + rng.normal(0, 0.15)
    image *= (rng.uniform(0.9, 1.1) - 0.35 * (x**2 + y**2))[..., None]
    image += 3 * rng.standard_normal(image.shape, np.float32)
    image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1)))
    image = np.array(image.resize((2 * WIDTH, 2 * HEIGHT), Image.BICUBIC))
    image[:RIM] = image[-RIM:] = image[:, :RIM] = image[:, -RIM:] = 0
    labels = (
        torch.from_numpy(label.repeat(2, axis=0).repeat(2, axis=1))
        for label in (scene.types, scene.parts)
    )
    return torch.from_numpy(image).permute(2, 0, 1), *labels
