"""Land cover: what is read and cut, what is refused, the drawn and the real squares."""

import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data, runtime
from utils.data import DataError, download, landcover

REAL = os.environ.get("SEGBOOK_DATA")
VOID = landcover.ignore
WATER, LAND, ROAD, BUILDING, VEGETATION = range(5)
COLOURS = {  # as the masks have them
    WATER: (226, 169, 41), LAND: (132, 41, 246), ROAD: (110, 193, 228),
    BUILDING: (60, 16, 152), VEGETATION: (254, 221, 58), VOID: (155, 155, 155),
}  # fmt: skip
MASK = "Tile {}/masks/image_part_{:03}.png"
IMAGE = "Tile {}/images/image_part_{:03}.jpg"


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    return tmp_path


def save(folder, area, part, colours, shape=None):
    """A mask of colours (H, W, 3), and its image (shape): grey 10 * area + part."""
    mask, image = folder / MASK.format(area, part), folder / IMAGE.format(area, part)
    for path in (mask, image):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(colours, np.uint8)).save(mask)
    height, width = shape or np.shape(colours)[:2]
    Image.new("RGB", (width, height), 3 * (10 * area + part,)).save(image, quality=100)


@pytest.fixture
def local(reader, monkeypatch):
    """A whole local folder: two images of 8 x 10 in each area, for squares of 8.

    The masks are land with one pixel of each kind on their diagonal.
    """
    monkeypatch.setattr(landcover, "SIDE", 8)
    monkeypatch.setattr(landcover, "PARTS", range(1, 3))
    mask = np.full((8, 10, 3), COLOURS[LAND])
    for k, colour in enumerate(COLOURS.values()):
        mask[k, k] = colour
    for area in range(1, 9):
        for part in (1, 2):
            save(reader / "landcover", area, part, mask)
    return reader / "landcover"


@pytest.fixture(scope="module")
def drawn():
    """All drawn squares: images (48, 3, 480, 480) and labels (48, 480, 480)."""
    squares = [pair for split in landcover.splits for pair in landcover.sample(split)]
    images, labels = zip(*squares)
    return torch.stack(images), torch.stack(labels)


def share(labels):
    """The share of each class and, last, of void: (6,)."""
    counts = np.bincount(np.ravel(labels), minlength=256)
    return counts[[*range(5), VOID]] / counts.sum()


# What the data set says of itself


def test_every_class_has_a_colour_of_its_own():
    assert len(landcover.classes) == len(landcover.palette) == 5
    colours = np.array([*landcover.palette, (214, 39, 116)], float)  # errors: magenta
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[~np.eye(6, dtype=bool)].min() > 55


def test_no_area_is_in_both_splits():
    train, val = (set(areas) for areas in landcover.splits.values())
    assert not train & val and train | val == set(range(1, 9))


# Reading


def test_squares_come_by_area_and_part(local):
    """Two squares of an image; the images' grey tells area and part."""
    train, val = data.load("landcover"), data.load("landcover", "val")
    assert train.source == "local" and train.ignore == VOID
    assert train.images.shape == (24, 3, 8, 8) and train.images.dtype == torch.uint8
    assert train.labels.shape == (24, 8, 8) and train.labels.dtype == torch.uint8
    assert val.images[:, 0, 0, 0].tolist() == [31, 31, 32, 32, 81, 81, 82, 82]
    areas = (train.images // 10).unique().tolist()
    assert areas == [1, 2, 4, 5, 6, 7]


def test_what_an_area_held_out_holds_never_comes_into_train(local):
    save(local, 3, 2, np.full((8, 10, 3), COLOURS[WATER]))
    whole = (data.load("landcover", split).labels for split in ("train", "val"))
    train, val = ((labels == WATER).sum().item() for labels in whole)
    assert train == 12 and val == 80 + 3  # else one pixel in each image


def test_each_colour_is_its_class(local):
    label = data.load("landcover").labels[0]
    assert label.diagonal()[:6].tolist() == [*range(5), VOID]
    assert (label == LAND).sum() == 64 - 5


def test_black_is_void(local):
    mask = np.full((8, 8, 3), COLOURS[ROAD])
    mask[0] = 0
    save(local, 3, 1, mask)
    label = data.load("landcover", "val").labels[0]
    assert (label[0] == VOID).all() and (label[1:] == ROAD).all()


def test_masks_with_a_palette_are_the_same(local):
    before = data.load("landcover", "val").labels
    for path in local.glob("Tile [38]/masks/*.png"):
        with Image.open(path) as mask:
            mask = mask.convert("P", palette=Image.Palette.ADAPTIVE)
        mask.save(path)
        with Image.open(path) as saved:
            assert saved.mode == "P"
    assert torch.equal(data.load("landcover", "val").labels, before)


@pytest.mark.parametrize("rows, columns", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_mask_and_image_may_differ_by_a_pixel(local, rows, columns):
    """What both have is used, to its last row and column."""
    mask = np.full((9, 11, 3), COLOURS[ROAD])
    save(local, 3, 1, mask, shape=(9 - rows, 11 - columns))
    found = data.load("landcover", "val")
    first = found.labels[found.images[:, 0, 0, 0] == 31]
    assert (first == ROAD).sum() == min(9, 9 - rows) * min(11, 11 - columns)


@pytest.mark.parametrize("shape", [(10, 10), (8, 12), (20, 10)])
def test_mask_of_another_size_is_named(local, shape):
    save(local, 8, 2, np.full((*shape, 3), COLOURS[ROAD]), shape=(8, 10))
    words = rf"Tile 8/masks/image_part_002.png is {shape[0]}x{shape[1]}, its image 8x10"
    with pytest.raises(DataError, match=words):
        data.load("landcover", "val")


@pytest.mark.parametrize("shape", [(7, 10), (8, 7), (1, 1)])
def test_image_smaller_than_a_square_is_named(local, shape):
    save(local, 3, 2, np.full((*shape, 3), COLOURS[ROAD]))
    words = rf"Tile 3/masks/image_part_002.png .* {shape[0]}x{shape[1]}.* need 8 pixels"
    with pytest.raises(DataError, match=words):
        data.load("landcover", "val")


@pytest.mark.parametrize(
    "colour",
    [(80, 227, 194), (255, 0, 0), (226, 169, 40)],
    ids=["of classes.json", "red", "nearly water"],
)
def test_unknown_colour_is_named(local, colour):
    mask = np.full((8, 10, 3), COLOURS[LAND])
    mask[-1, -1] = colour
    save(local, 7, 2, mask)
    code = "#{:02X}{:02X}{:02X}".format(*colour)
    words = rf"Tile 7/masks/image_part_002.png holds the colour {code}: .*#E2A929"
    with pytest.raises(DataError, match=words):
        data.load("landcover")


def test_missing_files_are_listed(local):
    (local / MASK.format(2, 1)).unlink()
    with pytest.raises(DataError, match=r"lacks Tile 2/masks/image_part_001.png\. C"):
        data.load("landcover", "val")
    (local / IMAGE.format(8, 2)).unlink()
    assert landcover.missing(local) == [MASK.format(2, 1), IMAGE.format(8, 2)]
    assert len(landcover.missing(local / "nowhere")) == 2 * 8 * 2


@pytest.mark.parametrize("name", [IMAGE.format(8, 1), MASK.format(8, 1)])
def test_broken_file_is_named(local, name):
    whole = (local / name).read_bytes()
    (local / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        data.load("landcover", "val")


# Squares


@pytest.mark.parametrize("side", [480, 481, 544, 959, 960, 961, 1480, 2149])
def test_starts_cover_the_side(side):
    starts = landcover.starts(side)
    assert starts[0] == 0 and starts[-1] == side - 480
    steps = np.diff(starts)
    assert (steps > 0).all() and (steps <= 480).all()
    assert len(starts) == -(-side // 480)  # no more than it takes


@pytest.mark.parametrize("shape", [(8, 8), (8, 9), (15, 16), (17, 30)])
def test_each_pixel_counts_once(monkeypatch, shape):
    """Image and label hold the number of each pixel, which must come up once."""
    monkeypatch.setattr(landcover, "SIDE", 8)
    numbers = torch.arange(shape[0] * shape[1]).view(shape)
    image = torch.stack([numbers, numbers, numbers])
    label = torch.zeros(shape, dtype=torch.uint8)
    label[3, 5] = VOID
    seen = []
    for part, truth in landcover.squares(image, label):
        assert part.shape == (3, 8, 8) and truth.shape == (8, 8)
        seen += part[1][truth != VOID].tolist()
    assert sorted(seen) == [k for k in range(numbers.numel()) if k != numbers[3, 5]]
    assert (label == VOID).sum() == 1  # the caller's own stays as it is


def test_labels_stay_on_their_pixels():
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 5, (600, 700), np.uint8))
    for part, truth in landcover.squares(label.repeat(3, 1, 1), label):
        assert torch.equal(part[0][truth != VOID], truth[truth != VOID])


# The drawn squares


def test_sample_has_the_size_of_a_square_and_all_classes(drawn):
    images, labels = drawn
    assert images.shape == (48, 3, 480, 480) and images.dtype == torch.uint8
    assert labels.shape == (48, 480, 480) and labels.dtype == torch.uint8
    assert labels.unique().tolist() == [*range(5), VOID]


def test_sample_is_the_same_every_time(drawn):
    for split, first in (("train", 0), ("val", landcover.SCENES["train"])):
        image, label = next(landcover.sample(split))
        assert torch.equal(image, drawn[0][first])
        assert torch.equal(label, drawn[1][first])


def test_sample_squares_differ_within_and_between_the_splits(drawn):
    for pictures in drawn:
        assert len({picture.numpy().tobytes() for picture in pictures}) == 48


def test_sample_classes_are_as_frequent_as_the_real_ones(drawn):
    """Shares of each split within a factor of two of those of all areas together."""
    real = np.array([0.136, 0.524, 0.094, 0.133, 0.103, 0.011])
    train = landcover.SCENES["train"]
    for labels in (drawn[1][:train], drawn[1][train:]):
        assert (abs(np.log2(share(labels) / real)) < 1).all()
    shares = np.stack([share(label) for label in drawn[1]])
    often = (shares > 0.001).mean(axis=0)
    assert 0.3 < often[WATER] < 0.8  # not everywhere
    assert (often[[LAND, ROAD, BUILDING, VEGETATION]] > 0.6).all()


def test_sample_looks_like_the_real_squares(drawn):
    """Mean colours near the real ones; classes overlap, but not much."""
    images, labels = drawn[0].float().movedim(1, -1), drawn[1]  # (48, 480, 480, 3)
    colour = torch.stack([images[labels == k].mean(dim=0) for k in range(5)])
    real = torch.tensor(
        [[27, 30, 24], [179, 183, 190], [106, 100, 102], [128, 127, 130], [76, 79, 76]]
    )
    assert (colour - real).abs().max() < 30
    assert colour[VEGETATION][1] > colour[VEGETATION][[0, 2]].max()  # greenish
    grey = images.mean(dim=-1)
    roofs, sand = grey[labels == BUILDING], grey[labels == LAND]
    assert 0.02 < (roofs > sand.mean()).float().mean() < 0.5


def test_sample_labels_lie_on_their_pixels(drawn):
    """Where water meets land the image has its edge there, not beside."""
    grey, labels = drawn[0].float().mean(dim=1), drawn[1]
    shore = (labels[:, :-1] == WATER) & (labels[:, 1:] == LAND)  # (48, 479, 480)
    step = (grey[:, 1:] - grey[:, :-1]).abs()
    at = step[shore].mean()
    for shift in (-4, 4):
        assert at > 2 * step[shore.roll(shift, dims=1)].mean()


def test_smoke_takes_the_sample(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    monkeypatch.setattr(landcover, "SCENES", {"train": 2, "val": 1})
    found = data.load("landcover", size=(120, 160))
    assert found.source == "sample"
    assert found.images.shape == (2, 3, 120, 160)
    assert set(found.labels.unique().tolist()) <= {*range(5), VOID}


# The real squares


@pytest.fixture
def real(monkeypatch):
    if not REAL or not (runtime.root() / REAL / "landcover").is_dir():
        pytest.skip("SEGBOOK_DATA names no folder with the real land cover")
    monkeypatch.setenv("SEGBOOK_DATA", REAL)
    return data.data_root() / "landcover"


def test_real_folder_has_the_pinned_hash(real):
    assert download.folder_hash(real) == landcover.kaggle.sha256


SHARES = {  # of the classes in each real area, void left out
    1: (0.1413, 0.6291, 0.1287, 0.0536, 0.0474),
    2: (0.0743, 0.6107, 0.1301, 0.1258, 0.0591),
    3: (0.3758, 0.4733, 0.0760, 0.0303, 0.0446),
    4: (0.1088, 0.2892, 0.1317, 0.4028, 0.0674),
    5: (0.5256, 0.3820, 0.0432, 0.0195, 0.0296),
    6: (0.3988, 0.2504, 0.0077, 0.0179, 0.3252),
    7: (0.0154, 0.7294, 0.0928, 0.0887, 0.0736),
    8: (0.0556, 0.4649, 0.1191, 0.2091, 0.1512),
}
MEGAPIXELS = {  # with a class
    1: 4.58, 2: 2.44, 3: 3.93, 4: 8.37, 5: 10.70, 6: 6.46, 7: 33.65, 8: 27.86
}  # fmt: skip
SQUARES = {1: 4, 2: 4, 3: 4, 4: 6, 5: 9, 6: 4, 7: 20, 8: 20}  # of one image


def test_the_areas_held_out_are_most_like_the_whole():
    def shares(areas):
        pixels = [MEGAPIXELS[a] for a in areas]
        return np.average([SHARES[a] for a in areas], axis=0, weights=pixels)

    third = sum(MEGAPIXELS.values()) / 3
    pairs = [
        pair
        for pair in itertools.combinations(SHARES, 2)
        if sum(MEGAPIXELS[a] for a in pair) <= third
    ]
    apart = {pair: abs(shares(pair) - shares(SHARES)).sum() for pair in pairs}
    assert min(apart, key=apart.get) == landcover.splits["val"]


@pytest.mark.parametrize("area", SHARES)
def test_real_area(real, area, monkeypatch):
    """All nine images are read; with a pixel twice the shares would be others."""
    monkeypatch.setitem(landcover.splits, "val", (area,))
    labels = [label for _, label in landcover.read(real, "val")]
    assert len(labels) == 9 * SQUARES[area]
    labels = torch.stack(labels)
    assert abs((labels != VOID).sum() / 1e6 - MEGAPIXELS[area]) < 0.01
    found = share(labels)[:5]
    assert abs(found / found.sum() - SHARES[area]).max() < 0.0002


def test_real_squares_load(real, monkeypatch):
    monkeypatch.setitem(landcover.splits, "val", (2,))
    found = data.load("landcover", "val", size=60, source="local")
    assert found.images.shape == (36, 3, 60, 60)
    assert found.labels.unique().tolist() == [*range(5), VOID]
