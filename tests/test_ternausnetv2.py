"""TernausNetV2: against a second writing of the reference code, counted by hand; from
outlines to numbers, to borders, to instances, and back to outlines."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_inplace_abn import Reference as Blocks
from test_inplace_abn import stir
from test_pspnet import assert_equal, count
from torch import nn

from utils import chapters, data, encoders
from utils.data import buildings
from utils.data.buildings import Tile, rasterise, to_degrees, to_pixels


@pytest.fixture(scope="module")
def book():
    return chapters.load("ternausnetv2")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def squares(side, number, gap=0):
    """A grid of number x number instances, `side` pixels each, `gap` apart."""
    step = side + gap
    numbers = np.zeros((number * step, number * step), np.int32)
    for k in range(number**2):
        y, x = step * (k // number), step * (k % number)
        numbers[y : y + side, x : x + side] = k + 1
    return numbers


# Against a second writing


class Reference(Blocks):
    """The reference code, by what its layers do."""

    def padded(self, x):
        weight, bias = self.take(2)
        return F.relu(F.conv2d(x, weight, bias, padding=1))

    def up(self, x):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return self.padded(self.padded(x))

    def maps(self, images):
        maps = [self.conv(images)]
        for blocks in (3, 3, 6, 3):
            x = F.max_pool2d(maps[-1], 2)
            for k in range(blocks):
                # The last stage widens from 512 to 1024 in its first block only.
                x = self.block(x, 2, short_cut=k == 0)
            maps.append(x)
        return maps

    def network(self, images):
        maps = self.maps(images)
        x = self.up(F.max_pool2d(maps[4], 2))
        for skip in maps[4:0:-1]:
            x = self.up(torch.cat([x, skip], 1))
        x = self.padded(torch.cat([x, maps[0]], 1))
        x = self.classifier(x)
        assert not self.tensors  # the network has nothing else
        return x


class Plainly(Reference):
    """With the plain norms of the released class."""

    def norm(self, x):
        scale, shift, mean, variance = self.take(4)
        return F.leaky_relu(F.batch_norm(x, mean, variance, scale, shift), 0.01)


def shaken(network):
    """Stirred norms, some scales negative, and decoder weights that keep the scale."""
    stir(network).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.mark.parametrize("bands, batch, size", [(11, 1, (64, 96)), (3, 2, (64, 64))])
def test_it_equals_the_reference_at_full_width(book, bands, batch, size):
    network = shaken(book.TernausNetV2(in_channels=bands))
    images = torch.randn(batch, bands, *size)
    with torch.inference_mode():
        expected = Reference(network).network(images)
        assert expected.shape == (batch, 2, *size)
        assert expected.std() > 1e-3
        assert_equal(network(images.clone()), expected)


def test_with_plain_norms_scales_keep_their_sign(book):
    encoder = shaken(book.WideResNet(3, slim=16, norm=book.PlainABN))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = Plainly(encoder).maps(images)
        found = encoder(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal(ours, theirs)
    own = book.WideResNet(3, slim=16)
    own.load_state_dict(encoder.state_dict(), strict=False)  # but for the counters
    with torch.inference_mode():
        assert (own.eval()(images)[-1] - found[-1]).abs().max() > 1e-3


def test_gradients_equal_those_of_the_reference(book):
    encoder = book.WideResNet(3, slim=16)
    network = shaken(book.TernausNetV2(encoder, filters=2)).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    network(ours * 1).square().sum().backward()
    Reference(network).network(theirs).square().sum().backward()
    assert (ours.grad - theirs.grad).abs().max() < 1e-9 * theirs.grad.abs().max()


def test_parameters_by_hand(book):
    def block(entering, first, second):
        short_cut = entering * second if entering != second else 0
        norms = 2 * entering + 2 * first
        return norms + 9 * entering * first + 9 * first * second + short_cut

    encoder = 9 * 11 * 64
    for blocks, entering, first, second in (
        (3, 64, 128, 128), (3, 128, 256, 256), (6, 256, 512, 512), (3, 512, 512, 1024)
    ):  # fmt: skip
        encoder += block(entering, first, second)
        encoder += (blocks - 1) * block(second, first, second)

    def conv(entering, leaving):
        return 9 * entering * leaving + leaving

    decoder = sum(
        conv(entering, middle) + conv(middle, leaving)
        for entering, middle, leaving in (
            (1024, 256, 256), (1024 + 256, 256, 256), (512 + 256, 256, 256),
            (256 + 256, 64, 64), (128 + 64, 64, 32),
        )
    )  # fmt: skip
    decoder += conv(64 + 32, 32) + 2 * 32 + 2
    with torch.device("meta"):
        network = book.TernausNetV2()
    assert count(network.encoder) == encoder
    assert count(network) == encoder + decoder


# Sizes


@pytest.fixture(scope="module")
def small(book):
    torch.manual_seed(1)
    encoder = book.WideResNet(3, slim=16)
    return shaken(book.TernausNetV2(encoder, filters=2))


@pytest.mark.parametrize("size", [(64, 80), (33, 64), (650, 672)])
def test_sides_must_be_multiples(small, size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]}.*multiples of 32"):
        small(torch.zeros(1, 3, *size))


def test_behind_lite0_sides_are_multiples_of_64(book):
    network = book.TernausNetV2(encoders.build("lite0"), filters=2).eval()
    assert network.multiple == 64
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 128)).shape == (1, 2, 64, 128)
    with pytest.raises(ValueError, match="96 x 64.*multiples of 64"):
        network(torch.zeros(1, 3, 96, 64))


def test_the_smallest_size_of_the_reference_is_taken(small):
    with torch.inference_mode():
        assert small(torch.zeros(1, 3, 32, 64)).shape == (1, 2, 32, 64)


def test_other_bands_are_refused(small):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        small(torch.zeros(1, 11, 64, 64))


@pytest.mark.parametrize("size", [(64, 64), (50, 61), (33, 95), (5, 17), (2, 1)])
def test_pad_mirrors_and_its_window_is_the_image(book, size):
    images = torch.rand(2, 3, *size)
    larger, window = book.pad(images, 32)
    assert all(side % 32 == 0 for side in larger.shape[-2:])
    assert all(b - a < 32 for a, b in zip(size, larger.shape[-2:]))
    assert torch.equal(larger[..., *window], images)
    top, left = window[0].start, window[1].start
    assert top == (larger.shape[2] - size[0]) // 2
    if top:  # the pixel beside the edge is the one inside it, mirrored at the edge
        assert torch.equal(larger[:, :, top - 1], larger[:, :, top + 1])
    if left:
        assert torch.equal(larger[..., left - 1], larger[..., left + 1])


def test_pad_is_torch_s_reflection_where_that_reaches(book):
    images = torch.rand(1, 3, 50, 61)
    expected = F.pad(images, (1, 2, 7, 7), mode="reflect")
    assert torch.equal(book.pad(images, 64)[0], expected)


def test_pad_goes_to_and_fro_over_a_small_image(book):
    row = torch.tensor([0.0, 1, 2]).view(1, 1, 1, 3)
    assert book.pad(row, 8)[0][0, 0, 0].tolist() == [2, 1, 0, 1, 2, 1, 0, 1]


@pytest.mark.parametrize("size", [(64, 96), (70, 33), (101, 64)])
def test_predict_takes_any_size(book, small, size):
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    found = book.predict(small, image)
    assert found.shape == (2, *size) and found.dtype == torch.float32
    assert 0 <= found.min() < found.max() <= 1
    if size == (64, 96):
        pixels = small.encoder.normalise(image[None] / 255)
        with torch.inference_mode():
            expected = small(pixels)[0].sigmoid()
        assert (found - expected).abs().max() < 1e-3  # in another memory format


@pytest.mark.parametrize("size", [(5, 17), (1, 1), (63, 130)])
def test_predict_takes_the_smallest_images(book, small, size):
    behind = book.TernausNetV2(encoders.build("lite0", pretrained=False), filters=2)
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    for network in (behind, small):
        found = book.predict(network, image)
        assert found.shape == (2, *size) and found.isfinite().all()


class Pixelwise(nn.Module):
    """Looks at a pixel only, or also at the one to its left."""

    multiple = 1

    def __init__(self, left=0.0):
        super().__init__()
        self.left = nn.Parameter(torch.tensor(left))
        self.encoder = SimpleNamespace(in_channels=3, normalise=lambda x: x)

    def forward(self, images):
        grey = images.mean(1, keepdim=True)
        grey = grey + self.left * grey.roll(1, 3)
        return torch.cat([grey, -grey], 1)


def test_eight_views_agree_where_no_neighbour_counts(book):
    image = torch.randint(256, (3, 12, 20), dtype=torch.uint8)
    model = Pixelwise()
    assert_equal(book.predict_eight(model, image), book.predict(model, image))


def test_eight_views_are_as_symmetric_as_the_square(book):
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    model = Pixelwise(0.7)
    found = book.predict_eight(model, image)
    mirrored = book.predict_eight(model, image.flip(2)).flip(2)
    turned = book.predict_eight(model, torch.rot90(image, 1, (1, 2)))
    assert_equal(mirrored, found)
    assert_equal(torch.rot90(turned, -1, (1, 2)), found)
    assert (book.predict(model, image) - found).abs().max() > 0.01


# More bands


def test_the_fourth_band_is_greenness(book):
    pixels = torch.tensor([[0.2, 0.6, 0.2], [0.5, 0.5, 0.5]])[..., None, None]
    pixels = pixels.expand(2, 3, 4, 5)
    green = book.greenness(pixels)
    assert green.shape == (2, 1, 4, 5)
    assert green[0, 0, 0, 0].item() == pytest.approx(0.8 / 1.001)
    assert green[1].abs().max() < 1e-6
    colour, four = encoders.build("lite0"), encoders.build("lite0", 4)
    assert torch.equal(book.prepare(colour, pixels), colour.normalise(pixels))
    images = book.prepare(four, pixels)
    assert torch.equal(images[:, :3], colour.normalise(pixels))
    assert torch.equal(images[:, 3:], green)


def test_a_widened_network_starts_as_the_old_one(book):
    old = shaken(book.TernausNetV2(book.WideResNet(3, slim=16), filters=2))
    new = book.TernausNetV2(book.WideResNet(4, slim=16), filters=2).eval()
    state = old.state_dict()
    state["encoder.stem.weight"] = encoders.widen(state["encoder.stem.weight"], 4)
    new.load_state_dict(state)
    images = torch.randn(1, 4, 64, 64)
    with torch.inference_mode():
        assert_equal(new(images.clone()), old(images[:, :3].clone()))


# From outlines to numbers


def box(left, right, top, bottom, tile):
    """The GeoJSON feature of a rectangle in the pixels of a tile."""
    ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    coordinates = [to_degrees(np.array(ring, float), tile).tolist()]
    geometry = {"type": "Polygon", "coordinates": coordinates}
    return {"type": "Feature", "properties": {}, "geometry": geometry}


def tiles(places, features, side):
    """A fake data set: grey tiles of `side` pixels, with the features of all."""
    names = [Tile(100 + x, 200 + y, 19) for x, y in places]
    outlines = tuple(
        {"type": "FeatureCollection", "name": tile.name, "features": features}
        for tile in names
    )
    images = torch.stack([
        torch.full((3, side, side), 10 + k, dtype=torch.uint8)
        for k in range(len(places))
    ])  # fmt: skip
    return SimpleNamespace(images=images, outlines=outlines)


@pytest.mark.parametrize("side", [512, 64])
def test_mosaic_puts_tiles_side_by_side_and_keeps_buildings_whole(book, side):
    first = Tile(100, 200, 19)
    across = box(448, 576, 64, 128, first)  # over the seam of the first two tiles
    beyond = box(128, 256, 704, 768, first)  # below the first, where no tile is
    dataset = tiles([(1, 0), (0, 0), (1, 1)], [across, beyond], side)
    image, found, corner = book.mosaic(dataset)
    assert corner == first
    assert image.shape == (3, 2 * side, 2 * side) and found.shape == (2 * side,) * 2
    greys = image[0, side // 2 :: side, side // 2 :: side].tolist()
    assert greys == [[11, 10], [0, 12]]
    assert np.unique(found).tolist() == [0, 1]
    scale = side / 512
    rows, columns = np.nonzero(found)
    assert (rows.min(), rows.max() + 1) == (64 * scale, 128 * scale)
    assert (columns.min(), columns.max() + 1) == (448 * scale, 576 * scale)


def test_mosaic_of_drawn_tiles_agrees_with_their_labels(book, monkeypatch):
    monkeypatch.setitem(buildings.SCENES, "val", 2)
    dataset = data.load("buildings", "val", size=128, source="sample")
    image, found, _ = book.mosaic(dataset)
    assert image.shape == (3, 128, 3 * 128)  # drawn tiles lie apart
    assert (found[:, 128:256] == 0).all() and (image[:, :, 128:256] == 0).all()
    for k, labels in enumerate(dataset.labels):
        here = found[:, 256 * k : 256 * k + 128] > 0
        assert (here != (labels.numpy() > 0)).mean() < 0.03


# Touching borders


def brute_force(instances, radius):
    found = np.zeros(instances.shape, bool)
    for y, x in np.ndindex(*instances.shape):
        near = {
            instances[b, a]
            for b in range(len(instances))
            for a in range(instances.shape[1])
            if (b - y) ** 2 + (a - x) ** 2 <= radius**2
        }
        found[y, x] = len(near - {0}) > 1
    return found


@pytest.mark.parametrize("radius", [1, 1.5, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_borders_are_where_two_instances_are_near(book, radius, seed):
    rng = np.random.default_rng(seed)
    instances = np.kron(rng.integers(0, 4, (4, 5)), np.ones((3, 3), int))
    found = book.touching_borders(instances, radius)
    assert found.dtype == bool and found.any()
    assert (found == brute_force(instances, radius)).all()


@pytest.mark.parametrize("gap, radius, wide", [(0, 2, 4), (2, 2, 2), (4, 2, 0)])
def test_width_of_a_border(book, gap, radius, wide):
    """Wide by both radii, less the gap between two walls."""
    instances = np.zeros((9, 30), np.int32)
    instances[:, :10], instances[:, 10 + gap : 20 + gap] = 7, 9
    found = book.touching_borders(instances, radius)
    assert (found.sum(1) == wide).all()
    assert not book.touching_borders(instances * 0, radius).any()
    assert not book.touching_borders((instances == 7) * 1, radius).any()


# Instances


@pytest.fixture
def pair():
    """The mask of two touching squares, their border, and their numbers."""
    numbers = np.zeros((24, 44), np.int32)
    numbers[2:22, 2:22], numbers[2:22, 22:42] = 1, 2
    border = np.zeros(numbers.shape, np.float32)
    border[2:22, 21:23] = 1
    return (numbers > 0).astype(np.float32), border, numbers


def test_watershed_splits_two_touching_squares(book, pair):
    building, border, numbers = pair
    found = book.separate(building, border)
    assert book.scores(found, numbers) == {"f1": 1.0, "ap": 1.0, "found": 2}
    assert ((found > 0) == (building > 0)).all()
    assert book.separate(building, 0 * border).max() == 1
    assert book.components(building > 0.5).max() == 1


def test_a_gap_in_the_border_leaks(book, pair):
    building, border, _ = pair
    border[10:12] = 0
    assert book.separate(building, border).max() == 1
    border[10:12, 21:23] = 0.3  # unsure: cut by a high threshold of the seeds only
    assert book.separate(building, border, seed=0.5).max() == 1
    assert book.separate(building, border, seed=0.8).max() == 2


def test_small_seeds_do_not_count(book, pair):
    building, border, _ = pair
    building[:, 25:42] = 0  # of the second square a strip is left
    assert book.separate(building, border).max() == 2
    assert len(np.unique(book.separate(building, border, smallest=50))) == 2


def test_nothing_found_is_no_error(book):
    page = book.separate(np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32))
    assert page.shape == (8, 8) and page.max() == 0


def test_more_than_255_instances_survive(book):
    numbers = squares(6, 20)
    borders = book.touching_borders(numbers, 1)
    found = book.separate((numbers > 0).astype(np.float32), borders)
    assert found.dtype.itemsize >= 4
    assert len(np.unique(found)) == 400  # no ground is left between them
    assert book.scores(found, numbers)["f1"] == 1


def test_diagonals_do_not_connect(book):
    mask = np.eye(4, dtype=bool)
    assert book.components(mask).max() == 4
    assert book.components(mask, smallest=2).max() == 0


def test_without_small_keeps_the_numbers_of_the_rest(book):
    page = np.array([[0, 1, 1], [5, 1, 0], [9, 9, 0]])
    kept = book.without_small(page, 2)
    assert kept.tolist() == [[0, 1, 1], [0, 1, 0], [9, 9, 0]]


# Scores


def test_overlaps_by_hand_and_by_brute_force(book):
    rng = np.random.default_rng(0)
    found = np.array([0, 3, 70000, 4])[rng.integers(0, 4, (9, 11))]
    truth = np.array([0, 2, 900])[rng.integers(0, 3, (9, 11))]
    table = book.overlaps(found, truth)
    assert table.shape == (3, 2)
    for i, a in enumerate((3, 4, 70000)):
        for j, b in enumerate((2, 900)):
            common = ((found == a) & (truth == b)).sum()
            union = ((found == a) | (truth == b)).sum()
            assert table[i, j] == pytest.approx(common / union)


def test_maps_without_ground_are_fine(book):
    numbers = squares(3, 2)
    assert numbers.min() == 1
    assert (book.overlaps(numbers, numbers) == np.eye(4)).all()


def test_scores_by_hand(book):
    truth = squares(10, 2, gap=2)  # four instances
    found = truth.copy()
    found[truth == 2] = 1  # two in one: an IoU of a half is no match
    found[truth == 3] = 0  # missed
    found[-1, -1] = 77  # one that is none
    scores = book.scores(found, truth)
    assert scores["found"] == 3
    assert scores["f1"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 3))
    assert scores["ap"] == pytest.approx(1 / 6)
    assert book.count_matches(book.overlaps(found, truth)) == (1, 2, 3)


def test_average_precision_counts_from_a_half_to_095(book):
    truth, found = np.zeros((10, 100), int), np.zeros((10, 100), int)
    truth[:, :], found[:, :72] = 1, 1  # an IoU of 0.72: five of ten thresholds
    assert book.scores(found, truth)["ap"] == pytest.approx(0.5)


def test_scores_of_nothing(book):
    nothing, one = np.zeros((4, 4), int), np.ones((4, 4), int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(book.scores(nothing, nothing)["f1"])
        assert book.scores(nothing, one)["f1"] == 0
        assert book.scores(one, nothing) == {"f1": 0, "ap": 0, "found": 1}


# Back to outlines


TILE = Tile(386690, 220241, 19)


def blobs():
    """Instances of several shapes: a square, an L, one with a hole, discs."""
    page = np.zeros((120, 140), np.int32)
    page[5:25, 5:25] = 1
    page[5:40, 30:40], page[30:40, 30:60] = 2, 2
    page[50:90, 5:45] = 3
    page[60:75, 15:30] = 0
    y, x = np.mgrid[:120, :140]
    page[(y - 70) ** 2 + (x - 90) ** 2 < 20**2] = 7
    page[(y - 70) ** 2 + (x - 110) ** 2 < 12**2] = 300
    return page


def back(collection, shape, side):
    """The polygons of a collection, read as GeoJSON and rasterised."""
    collection = json.loads(json.dumps(collection))
    polygons = [
        [to_pixels(ring, TILE) * side / 512 for ring in rings]
        for feature in collection["features"]
        for rings in buildings.polygons_of(feature)
    ]
    return rasterise(polygons, shape)


@pytest.mark.parametrize("side", [512, 256])
@pytest.mark.parametrize("tolerance", [0, 0.5, 1])
def test_polygons_come_back_within_a_pixel(book, side, tolerance):
    page = blobs()
    found = back(book.to_geojson(page, TILE, side, tolerance), page.shape, side)
    assert len(np.unique(found)) == len(np.unique(page))
    for k, number in enumerate(np.unique(page)[1:], start=1):
        here, again = page == number, found == k
        y, x = np.nonzero(here != again)
        for row, column in zip(y, x):  # next to each there is a pixel of both kinds
            near = here[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            assert near.any() and not near.all()
    if tolerance == 0:
        assert ((found > 0) == (page > 0)).mean() > 0.999


def area(ring):
    x, y = np.array(ring).T
    return ((x[:-1] * y[1:] - x[1:] * y[:-1]) / 2).sum()


def test_rings_are_as_the_standard_wants_them(book):
    page = blobs()
    collection = book.to_geojson(page, TILE, 512)
    assert collection["type"] == "FeatureCollection"
    numbers = [f["properties"]["number"] for f in collection["features"]]
    assert numbers == np.unique(page)[1:].tolist()
    south_west, north_east = to_degrees(np.array([[0.0, 120], [140, 0]]), TILE)
    for feature in collection["features"]:
        rings = feature["geometry"]["coordinates"]
        assert len(rings) == 1 + (feature["properties"]["number"] == 3)
        assert area(rings[0]) > 0  # counter-clockwise: north is up
        assert all(area(ring) < 0 for ring in rings[1:])
        for ring in rings:
            assert ring[0] == ring[-1] and len(ring) > 3
            assert (np.min(ring, 0) > south_west).all()
            assert (np.max(ring, 0) < north_east).all()


def test_an_instance_at_the_edge_of_the_image(book):
    page = np.ones((16, 16), np.int32)
    collection = book.to_geojson(page, TILE, 512)
    ring = to_pixels(collection["features"][0]["geometry"]["coordinates"][0], TILE)
    assert ring.min() == pytest.approx(0, abs=0.01)
    assert ring.max() == pytest.approx(16, abs=0.01)
    assert book.to_geojson(0 * page, TILE, 512)["features"] == []


def test_a_simpler_outline_has_fewer_points(book):
    def points(tolerance):
        collection = book.to_geojson(blobs(), TILE, 512, tolerance)
        shapes = [f["geometry"]["coordinates"] for f in collection["features"]]
        return sum(len(ring) for rings in shapes for ring in rings)

    assert points(1) < points(0.5) < points(0)


# Learning


def test_a_slim_network_learns_a_drawn_tile(book, monkeypatch):
    monkeypatch.setitem(buildings.SCENES, "train", 1)
    dataset = data.load("buildings", "train", size=64, source="sample")
    network = book.TernausNetV2(book.WideResNet(3, slim=8), classes=1, filters=8)
    images = network.encoder.normalise(dataset.images / 255)
    target = dataset.labels[:, None].float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        value = F.binary_cross_entropy_with_logits(network(images), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]
