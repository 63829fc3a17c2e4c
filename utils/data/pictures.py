"""One picture of a reader's, as it lies in its file: an image, or a mask.

Whatever Pillow reads is taken: grey levels of 1 to 32 bits, colours, palettes, layers
that let light through, photographs that a camera marked as turned.
"""

import contextlib
import hashlib
import os
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils.data.download import DataError

# Formats that change values a little, unless told not to, and how they are called.
LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP", "AVIF": "AVIF",
         "JPEG2000": "JPEG 2000"}  # fmt: skip
SIDE = 16  # pixels of a thumbnail
PAGE_KIND = 254  # the tag of TIFF that says what a page is: 1 a smaller copy, 4 a mask
ORIENTATION = 0x0112  # the tag of EXIF that says how a photograph is turned
# What each value of it asks for, as a function of an array (H, W, ...).
TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


class Unusable(DataError):
    """A file that cannot be used: a kind of fault, and a sentence."""

    def __init__(self, kind, sentence):
        super().__init__(sentence)
        self.kind = kind


@dataclass
class Photo:
    """An image, turned as its camera says."""

    pixels: np.ndarray  # (H, W, 3) uint8; (H, W) float32 where it is deep
    turn: int  # the value of ORIENTATION; 1 is upright
    deep: bool  # grey levels of more than 8 bits, or in floating point
    clear: bool  # parts of it let light through

    @property
    def size(self):
        return self.pixels.shape[:2]

    @property
    def range(self):
        """The lowest and the highest level, those that are numbers."""
        levels = self.pixels[np.isfinite(self.pixels)]
        return (float(levels.min()), float(levels.max())) if levels.size else (0.0, 0.0)

    def rgb(self, low=0.0, high=255.0):
        """(H, W, 3) uint8; grey levels of a deep image from low (0) to high (255)."""
        if not self.deep:
            return self.pixels
        levels = np.nan_to_num(self.pixels, nan=low, posinf=high, neginf=low)
        levels = (levels - low) * (255 / max(high - low, 1e-12))
        return np.repeat(levels.round().clip(0, 255).astype(np.uint8)[..., None], 3, 2)

    def digest(self):
        """A hash of the pixels: the same for one image in two files."""
        return digest(self.pixels)

    def thumbnail(self):
        """(SIDE, SIDE, 3) float32, each pixel the mean of what it stands for."""
        pixels = self.pixels
        if self.deep:
            pixels = np.where(np.isfinite(pixels), pixels, self.range[0])[..., None]
        small = [
            np.asarray(Image.fromarray(pixels[..., k]).resize((SIDE, SIDE), Image.BOX))
            for k in range(pixels.shape[2])
        ]
        small = np.stack(small, 2).astype(np.float32)
        return np.broadcast_to(small, (SIDE, SIDE, 3))


@dataclass
class Mask:
    """A mask: values, and what kind of values they are."""

    values: np.ndarray  # (H, W) int32: see kind
    kind: str  # "bit" (0, 255), "grey", "palette" (its numbers), "colour" (0xRRGGBB)
    palette: tuple[int, ...] = ()  # 0xRRGGBB of each number
    lossy: str = ""  # the name of a format that blurs values

    @property
    def size(self):
        return self.values.shape

    def digest(self):
        return digest(self.values)

    def turned(self, turn):
        """The mask, turned as an image with this value of ORIENTATION is."""
        values = np.ascontiguousarray(TURNS[turn](self.values))
        return Mask(values, self.kind, self.palette, self.lossy)


def digest(array):
    told = f"{array.shape}{array.dtype}".encode()
    return hashlib.sha1(told + array.tobytes()).hexdigest()


@contextlib.contextmanager
def opened(path):
    """The one picture in a file, its pixels read; raises Unusable, naming the file."""
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large images are no attack here
            # Not by its path: Pillow garbles a TIFF on its side that it maps to memory.
            with open(path, "rb") as file, Image.open(file) as image:
                pages = pages_of(image)
                if pages > 1:
                    raise Unusable(
                        "pages",
                        f"{path} holds {pages} pictures: save each as a file of its "
                        "own",
                    )
                image.load()
                yield image
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(
            "huge",
            f"{path} has over {2 * Image.MAX_IMAGE_PIXELS:,} pixels: cut it into "
            "smaller files first (an image and its mask alike), or set "
            "PIL.Image.MAX_IMAGE_PIXELS = None",
        ) from error
    except Exception as error:  # Pillow has many ways to fail on a broken file
        kind = "breaks off" if "truncated" in str(error) else "cannot be read"
        raise Unusable(
            "broken",
            f"{path} {kind} ({reason(error)}): copy it again, or take it out (an image "
            "together with its mask)",
        ) from error


def pages_of(image):
    """How many pictures a file holds; a photograph's preview, and the smaller copies
    and masks in a GeoTIFF, do not count."""
    if image.format == "MPO":
        return 1
    count = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return count
    kinds = []
    for page in range(count):
        image.seek(page)
        kinds.append(image.tag_v2.get(PAGE_KIND, 0))
    image.seek(0)
    return 1 + sum(not kind & 0b101 for kind in kinds[1:])


def reason(error):
    return "not a picture" if "cannot identify" in str(error) else str(error)


def check_file(path):
    """Raises Unusable for what is no file with something in it."""
    if path.is_symlink() and not path.exists():
        raise Unusable(
            "link",
            f"{path} is a link to nowhere ({os.readlink(path)}): put the file itself "
            "there, or remove the link",
        )
    if not os.access(path, os.R_OK):
        raise Unusable(
            "closed",
            f"{path} may not be read: give yourself permission (chmod u+r), or ask its "
            "owner",
        )
    if path.stat().st_size == 0:
        raise Unusable("empty", f"{path} is empty: copy it again, or remove it")


def read_photo(path):
    """The image in a file as a `Photo`; raises Unusable."""
    with opened(path) as image:
        turn = image.getexif().get(ORIENTATION, 1)
        turn = turn if turn in TURNS else 1
        deep = image.mode[0] in "IF"
        clear = False
        if not deep:
            image, clear = flat(image)
        pixels = np.array(image, np.float32 if deep else np.uint8)
        pixels = TURNS[turn](pixels) if turn != 1 else pixels
        return Photo(np.ascontiguousarray(pixels), turn, deep, clear)


def read_pixels(path, levels=None, channels=3):
    """The image in a file as a network takes it: (C, H, W) uint8, C 3, or 1 for grey.

    levels: of a deep image, what is black and what is white. Raises Unusable, also for
    a deep image without levels.
    """
    photo = read_photo(path)
    if photo.deep and levels is None:
        raise Unusable(
            "deep",
            f"{path} has over 8 bits a pixel: say what is black and what is white, as "
            "levels=sets.levels or levels=(0, 65535)",
        )
    pixels = photo.rgb(*(levels or ()))
    if channels == 1:
        pixels = np.array(Image.fromarray(pixels).convert("L"))[..., None]
    return pixels.transpose(2, 0, 1)


def flat(image):
    """A picture in RGB, what lets light through laid over black; and whether it did."""
    if not (
        image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or image.has_transparency_data
    ):
        return image.convert("RGB"), False
    layered = image.convert("RGBA")
    clear = layered.getextrema()[3][0] < 255
    black = Image.new("RGBA", layered.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered).convert("RGB"), clear


def read_mask(path):
    """The mask in a file as a `Mask`, turned as the file says; raises Unusable."""
    with opened(path) as image:
        turn = image.getexif().get(ORIENTATION, 1)
        mask = decoded(image, path)
        mask.lossy = LOSSY.get(image.format, "")
    return mask.turned(turn) if turn in TURNS else mask


def decoded(image, path):
    """A picture's values as a `Mask`, the simplest kind that holds them."""
    if image.mode == "1":
        return Mask(255 * np.asarray(image).astype(np.int32), "bit")
    if image.mode == "L":
        return Mask(np.asarray(image).astype(np.int32), "grey")
    if image.mode[0] in "IF":
        return Mask(whole_numbers(np.asarray(image), path), "grey")
    if image.mode == "P":
        colours = np.array(image.getpalette("RGB"), np.int32).reshape(-1, 3)
        palette = tuple((colours @ (1 << 16, 1 << 8, 1)).tolist())
        return Mask(np.asarray(image).astype(np.int32), "palette", palette)
    if image.format in LOSSY and is_greyish(flat(image)[0]):
        return Mask(np.asarray(flat(image)[0].convert("L")).astype(np.int32), "grey")
    red, green, blue = np.moveaxis(np.asarray(flat(image)[0]).astype(np.int32), 2, 0)
    if (red == green).all() and (green == blue).all():
        return Mask(red, "grey")
    return Mask((red << 16) + (green << 8) + blue, "colour")


def is_greyish(image):
    """Whether a picture in RGB has no more colour than blurring gives to grey."""
    pixels = np.asarray(image).astype(np.int16)
    return (pixels.max(2) - pixels.min(2)).max() < 24


def whole_numbers(levels, path):
    """Levels (H, W) as int32; raises Unusable for fractions and what is below 0."""
    with np.errstate(invalid="ignore"):
        found = levels.astype(np.int32)
    if (found != levels).any() or found.min() < 0:
        raise Unusable(
            "fractions",
            f"{path} holds fractions or numbers below 0, as probabilities are: a mask "
            "holds whole numbers, one for each class; save it so",
        )
    return found


def histogram(values):
    """The values in an array (H, W) and how often each occurs, the values sorted."""
    # A value that occurs begins a run somewhere: few pixels need sorting.
    starts = values[:, 1:][values[:, 1:] != values[:, :-1]]
    known = np.unique(np.concatenate([values[:, 0], starts]))
    return known, np.bincount(
        np.searchsorted(known, values).ravel(), minlength=len(known)
    )


def smeared(mask, known, counts):
    """The values of a mask that lie between those beside them, as smoothing leaves it.

    known, counts: its `histogram`. A set of values of which at least a third of the
    pixels have a darker and a lighter neighbour, left and right or above and below.
    """
    values = mask.values
    planes = [values >> 16, values >> 8 & 255, values & 255]
    planes = planes if mask.kind == "colour" else [values]
    between = np.zeros(values.shape, bool)
    for plane in planes:
        for view, out in ((plane, between), (plane.T, between.T)):
            before, here, after = view[:-2], view[1:-1], view[2:]
            out[1:-1] |= (before < here) & (here < after)
            out[1:-1] |= (before > here) & (here > after)
    places = np.searchsorted(known, values[between])
    share = np.bincount(places, minlength=len(known)) / counts
    return set(known[share >= 1 / 3].tolist())
