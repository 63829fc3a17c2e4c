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
from PIL import Image, ImageOps

from utils import outlines
from utils.checkpoints import replacing
from utils.data.download import DataError
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
    pictures of over 8 bits, what is black and what is white, as in training. only:
    names of pictures, seen from the folder; by default all of them.

    Nothing is written into the folder of the pictures: ValueError for an `out` there,
    for a form that there is not, for a folder without pictures. Pictures that cannot be
    read are named and left out.
    """
    images, out, as_ = Path(images), Path(out), several(as_)
    check_folders(images, out, as_)
    files = pictures(images)
    if only is not None:
        files = [f for f in files if f.relative_to(images).as_posix() in only]
    if not files:
        raise ValueError(f"{images} holds no picture that can be read: name another")
    writer = Writer(net, out, as_, threshold, without)
    for name, file in named(files, images).items():
        try:
            image = read_picture(file, net.built.channels, levels)
        except DataError as error:
            print(error)
            continue
        found = probabilities(net, image, tile, overlap)
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
    if not images.is_dir():
        raise ValueError(f"there is no folder {images}: name the one with the pictures")
    places = [out, *(out / folder for folder in ("masks", "probabilities", "geojson"))]
    inside = out.resolve().is_relative_to(images.resolve())
    if inside or images.resolve() in [place.resolve() for place in places]:
        raise ValueError(
            f"{out} would put predictions among the pictures of {images}: give a "
            "folder beside it"
        )


def pictures(folder):
    """The files of a folder and below that Pillow may read, but for hidden ones."""
    Image.init()
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in Image.EXTENSION and file.is_file()
        and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )  # fmt: skip


def named(files, folder):
    """{name of the outputs: file}: without suffix, unless two would be the same."""
    stems = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    return {
        stem if stems.count(stem) == 1 else file.relative_to(folder).as_posix(): file
        for stem, file in zip(stems, files)
    }


def read_picture(path, channels, levels=None):
    """A picture (C, H, W) uint8, turned as its EXIF says, over black where it lets
    light through. DataError names a file that cannot be read, or has over 8 bits a
    pixel and no levels (black, white) are given."""
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode[0] in "IF" and levels:
                picture = scaled(picture, *levels)
            deep = picture.mode[0] in "IF"
            if picture.has_transparency_data:
                black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
                picture = Image.alpha_composite(black, picture.convert("RGBA"))
            pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # Pillow has many ways to fail on a broken file
        raise DataError(f"{path} cannot be read ({error}): it is left out") from error
    if deep:
        raise DataError(
            f"{path} has over 8 bits a pixel: it is left out; levels=(black, white) "
            "says what they mean"
        )
    pixels = torch.from_numpy(pixels)
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def scaled(picture, black, white):
    """A picture of over 8 bits in 8, grey."""
    grey = (np.asarray(picture, np.float32) - black) * (255 / (white - black))
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


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
