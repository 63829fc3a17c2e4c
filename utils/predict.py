"""A network on images of any size: tiles without seams, and folders of pictures.

Tiles overlap, and their probabilities are averaged with weights that fall to zero
before a tile's edge is reached: what lies at an edge, where a network sees least, never
counts where another tile sees more.
"""

import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from utils import outlines
from utils.checkpoints import replacing
from utils.data import finding, pairing
from utils.data.pictures import Unusable, read_pixels
from utils.data.report import Report
from utils.export import preparation

GRID = 32  # pixels; tiles start at multiples of it, as the strides of networks do
SUFFIX = re.compile(r"\.\w+(?=@|$)")
FORMS = "mask", "probability", "geojson", "coco"


# --- one image


def fitting(net, side, down=False):
    """The next side that a network is made for: the multiples that it asks for, or
    32 n + 1 of those with corners on corners; the next smaller one with `down`."""
    multiple = getattr(net, "multiple", None)
    extra = 0 if multiple else 1
    if not multiple and not hasattr(net, "encoder"):
        return side
    multiple = multiple or GRID
    turned = math.floor if down else math.ceil
    return max(1, turned((side - extra) / multiple)) * multiple + extra


@torch.inference_mode()
def probabilities(net, image, tile=1024, overlap=128):
    """Probabilities (K, H, W) float32 of an image (C, H, W) uint8, on the CPU.

    tile: pixels a side; a smaller image is one tile. overlap: pixels that neighbouring
    tiles share; the outer quarter of it has no weight. The image is mirrored at the
    right and at the bottom up to the size that the network takes.

    One class means "or not": probabilities are sigmoids then. A tile that is not larger
    than its overlap by at least 63 pixels: ValueError.
    """
    if tile - overlap < 2 * GRID - 1 or overlap < 0:
        raise ValueError(
            f"tiles of {tile} with an overlap of {overlap}: a tile must be larger by "
            f"at least {2 * GRID - 1} pixels"
        )
    net.eval()
    sides = image.shape[-2:]
    rows, columns = (spans(side, tile, overlap) for side in sides)
    if len(rows) == len(columns) == 1:
        return answer(net, image)
    total, weights = None, torch.zeros(sides)
    for top, bottom in rows:
        for left, right in columns:
            part = answer(net, image[:, top:bottom, left:right])
            weight = window(top, bottom, sides[0], overlap)[:, None]
            weight = weight * window(left, right, sides[1], overlap)  # (h, w)
            if total is None:
                total = torch.zeros(len(part), *sides)
            total[:, top:bottom, left:right] += weight * part
            weights[top:bottom, left:right] += weight
    return total / weights


def answer(net, image):
    """Probabilities (K, H, W) of one tile (C, H, W) uint8."""
    device = next((p.device for p in net.parameters()), "cpu")
    height, width = image.shape[-2:]
    rows, columns = (mirrored(s, fitting(net, s)) for s in (height, width))
    pixels = image[:, rows[:, None], columns][None].to(device).float() / 255
    logits = net(preparation(net)(pixels))[0, :, :height, :width].float()
    return (logits.softmax(0) if len(logits) > 1 else logits.sigmoid()).cpu()


def mirrored(side, wanted):
    """Indices of a side, continued by reflection up to the wanted length."""
    period = max(2 * side - 2, 1)
    places = torch.arange(wanted) % period
    return torch.minimum(places, period - places)


def spans(side, tile, overlap):
    """Where tiles begin and end that cover a side; the last ends with it."""
    if side <= tile:
        return [(0, side)]
    step = tile - overlap - (GRID - 1)  # rounding takes up to 31 pixels
    count = math.ceil((side - tile) / step) + 1
    begins = [(side - tile) * k // (count - 1) // GRID * GRID for k in range(count)]
    return [(b, b + tile) for b in begins[:-1]] + [(begins[-1], side)]


def window(begin, end, side, overlap):
    """The weight of each pixel of a tile's side (end - begin,): 1, but towards other
    tiles it falls linearly and is 0 in the outer quarter of the overlap."""
    place, margin = torch.arange(begin, end), overlap // 4
    weight = torch.ones(end - begin)
    for near, distance in ((begin > 0, place - begin), (end < side, end - 1 - place)):
        if near:
            ramp = (distance + 1 - margin) / max(1, overlap // 2)
            weight = weight.minimum(ramp.clamp(0, 1))
    return weight


def labels_of(probability, threshold=None, thing=1):
    """The most probable class (H, W) uint8 of (K, H, W); of two, with a threshold,
    `thing` where its probability is above. A threshold with other than two classes:
    ValueError."""
    if threshold is None:
        return probability.argmax(0).to(torch.uint8)
    if len(probability) != 2:
        raise ValueError(f"a threshold is for two classes, not {len(probability)}")
    above = probability[thing] > threshold
    return torch.where(above, thing, 1 - thing).to(torch.uint8)


# --- a folder


def predict_folder(
    net, images, out, as_=("mask",), tile=512, overlap=128, threshold=None,
    without=None, levels=None, only=None,
):  # fmt: skip
    """Predicts all pictures of a folder and of those in it; returns the files written.

    as_: any of
        "mask"         out/masks/<name>.png: numbers of classes, with their colours
        "probability"  out/probabilities/<name>.png, 16 bits, of the second of two
                       classes; <name>.npz with float16 (K, H, W) of more
        "geojson"      out/geojson/<name>.geojson: polygons with holes, in pixels, or
                       in map coordinates where the picture has a world file beside it
                       or the plain tags of a GeoTIFF
        "coco"         out/coco.json: all pictures; masks as RLE, boxes, areas

    All have the size of the picture, turned as its EXIF says. tile, overlap: as in
    `probabilities`. threshold: as `own.threshold` gives it. without: the classes that
    make no polygons, by default "background" or, of two, the first one. levels: of
    pictures of over 8 bits, what is black and what is white; by default `sets.levels`
    of the sets that the network was made for. only: names of pictures, seen from the
    folder; by default all of them.

    Nothing is written into the folder of the pictures: ValueError for an `out` there,
    for a form that there is not, for a folder without pictures, for levels the wrong
    way round. Pictures that cannot be read are named and left out.
    """
    images, out = Path(images).expanduser(), Path(out).expanduser()
    as_, levels = several(as_), levels or getattr(net, "levels", None)
    check_folders(images, out, as_)
    if levels and levels[0] > levels[1]:
        raise ValueError(f"levels={levels}: give black first, then white")
    files = pictures(images)
    if only is not None:
        files = [f for f in files if f.relative_to(images).as_posix() in only]
    if not files:
        raise ValueError(f"{images} holds no picture that can be read: name another")
    writer = Writer(net, out, as_, threshold, without)
    for name, file in named(files, images).items():
        try:
            pixels = read_pixels(file, levels, net.built.channels)
        except Unusable as error:
            print(f"{error}; left out")
            continue
        found = probabilities(net, torch.from_numpy(pixels), tile, overlap)
        writer.write(name, found, file.relative_to(images).as_posix(), file)
    return writer.finish()


def predict_set(net, dataset, out, as_=("mask",), threshold=None, without=None):
    """Predicts the images of a data set as `predict_folder` does those of a folder."""
    writer = Writer(net, Path(out), several(as_), threshold, without)
    names = names_of(dataset)
    for name, told, image in zip(names, dataset.names or names, dataset.images):
        writer.write(name, probabilities(net, image), told)
    return writer.finish()


def names_of(dataset):
    """Of each image a name for its outputs: "a.jpg@256,0", a tile, becomes "a@256,0",
    unless two would be the same."""
    if not dataset.names:
        return [f"{number:04}" for number in range(len(dataset))]
    short = [SUFFIX.sub("", name) for name in dataset.names]
    return short if len(set(short)) == len(short) else list(dataset.names)


def several(as_):
    return (as_,) if isinstance(as_, str) else tuple(as_)


def check_folders(images, out, as_):
    unknown = sorted(set(as_) - set(FORMS))
    if unknown or not as_:
        raise ValueError(f"no form {unknown}; there are: {', '.join(FORMS)}")
    wrong = pairing.check_folder(images)
    if wrong:
        raise ValueError(wrong)
    places = [out, *(out / folder for folder in ("masks", "probabilities", "geojson"))]
    inside = out.resolve().is_relative_to(images.resolve())
    if inside or images.resolve() in [place.resolve() for place in places]:
        raise ValueError(
            f"{out} would put predictions among the pictures of {images}: give a "
            "folder beside it"
        )


def pictures(folder):
    """The files of a folder and below that Pillow may read, as `data.folder` finds
    them; what it does not read is printed."""
    found, report = pairing.listing(folder), Report()
    finding.leave_aside([found], report)
    for sentence in (*report.faults, *report.warnings):
        print(sentence)
    return [folder / path for path in found.pictures]


def named(files, folder):
    """{name of the outputs: file}: without suffix, unless two would be the same."""
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    return {
        stem if stems.count(stem) == 1 else file.relative_to(folder).as_posix(): file
        for stem, file in zip(stems, files)
    }


class Writer:
    """Writes predictions in the forms that were asked for, all below one folder."""

    def __init__(self, net, out, as_, threshold, without):
        self.classes, self.palette = net.built.classes, net.built.palette
        self.out, self.as_, self.threshold = out, as_, threshold
        self.kept = outlines.outlined(self.classes, without)
        self.files, self.coco = [], outlines.Coco(self.classes, self.kept)

    def write(self, name, probability, told, file=None):
        """name: of the outputs; told: of the picture; file: the picture itself."""
        labels = labels_of(probability, self.threshold).numpy()
        if "mask" in self.as_:
            self.save(f"masks/{name}.png", as_palette(labels, self.palette))
        if "probability" in self.as_:
            self.keep(f"probabilities/{name}", probability.numpy())
        if "geojson" in self.as_:
            found = outlines.geojson(labels, self.classes, self.kept, file)
            self.put(f"geojson/{name}.geojson", outlines.as_bytes(found))
        if "coco" in self.as_:
            self.coco.add(told, labels, probability.numpy())

    def keep(self, name, probability):
        if len(probability) > 2:
            with self.new(f"{name}.npz") as file:
                np.savez_compressed(file, probability=probability.astype(np.float16))
        else:
            grey = (probability[-1] * 65535).round().astype(np.uint16)
            self.save(f"{name}.png", Image.fromarray(grey))

    def save(self, name, picture):
        with self.new(name) as file:
            picture.save(file, "png")

    def put(self, name, content):
        with self.new(name) as file:
            file.write(content)

    def new(self, name):
        self.files.append(self.out / name)
        return replacing(self.out / name)

    def finish(self):
        if "coco" in self.as_:
            self.put("coco.json", outlines.as_bytes(self.coco.content))
        return self.files


def as_palette(labels, palette):
    """Numbers (H, W) uint8 as a picture with a palette."""
    picture = Image.frombytes("P", labels.shape[::-1], labels.tobytes())
    picture.putpalette([part for colour in palette for part in colour])
    return picture
