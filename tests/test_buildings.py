"""Buildings: projection, rasterising, what is read, the drawn and the real tiles."""

import json
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_gradient_magnitude

from utils import data, runtime
from utils.data import DataError, buildings, download
from utils.data.buildings import Tile, rasterise, tile_of, to_degrees, to_pixels

REAL = os.environ.get("SEGBOOK_DATA")
CORNER = Tile(386690, 220241, 19)  # the north-west tile of the real block
GEOJSON = "osm/outlines.geojson"
IMAGE = "oam/OAM-{}-{}-19.tif"
EAST, SOUTH = (1, 0), (0, 1)


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    return tmp_path


def box(left, right, top, bottom):
    """A closed ring (5, 2) of columns and rows."""
    return np.array(
        [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], float
    )


def feature(number, *rings, tile=CORNER, kind="Polygon"):
    """A GeoJSON feature with a property too many, of rings in pixels of a tile."""
    coordinates = [to_degrees(ring, tile).tolist() for ring in rings]
    if kind == "MultiPolygon":
        coordinates = [[ring] for ring in coordinates]
    return {
        "type": "Feature",
        "properties": {"building": "yes", "osm_id": number},
        "geometry": {"type": kind, "coordinates": coordinates},
    }


def save(folder, features):
    (folder / GEOJSON).write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )


@pytest.fixture
def local(reader, monkeypatch):
    """A whole local folder: two rows of tiles; their grey is 10 * column + row.

    Each tile has one building in its first pixels, as wide as the grey.
    """
    monkeypatch.setattr(buildings, "ROWS", range(220241, 220243))
    folder, features = reader / "buildings", []
    for name in ("oam", "osm"):
        (folder / name).mkdir(parents=True)
    for column in range(6):
        for row in range(2):
            tile, grey = Tile(386690 + column, 220241 + row, 19), 10 * column + row + 1
            image = Image.new("RGB", (512, 512), 3 * (grey,))
            image.save(folder / IMAGE.format(tile.x, tile.y), "JPEG", quality=100)
            features.append(feature(grey, box(1, 1 + grey, 2, 4), tile=tile))
    save(folder, features)
    return folder


@pytest.fixture(scope="module")
def drawn():
    """All drawn tiles: images, labels (22, 512, 512) and outlines."""
    tiles = [tile for split in buildings.splits for tile in buildings.sample(split)]
    images, labels, outlines = zip(*tiles)
    return torch.stack(images), torch.stack(labels), outlines


def numbers(outlines):
    return [feature["properties"]["osm_id"] for feature in outlines["features"]]


def instances(outlines):
    return rasterise(buildings.polygons_in(outlines))


def touching(numbered):
    """How many numbered regions lie within two pixels of another, and how many are."""
    near, inner = set(), np.s_[2:-2, 2:-2]
    for shift in ((0, 1), (0, 2), (1, -1), (1, 0), (1, 1), (2, 0)):
        here, there = numbered[inner], np.roll(numbered, shift, (0, 1))[inner]
        both = (here != there) & (here > 0) & (there > 0)
        near |= {*here[both].tolist(), *there[both].tolist()}
    return len(near), len(np.unique(numbered[numbered > 0]))


# What the data set says of itself


def test_every_class_has_a_colour_of_its_own():
    assert len(buildings.classes) == len(buildings.palette) == 2
    # Apart from each other, from the magenta of errors and from both pages.
    others = (214, 39, 116), (255, 255, 255), (18, 18, 18)
    colours = np.array([*buildings.palette, *others], float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[~np.eye(5, dtype=bool)].min() > 90


def test_columns_held_out_are_a_pair_at_an_end():
    train, val = buildings.splits["train"], buildings.splits["val"]
    assert sorted(train + val) == list(range(386690, 386696))
    assert val in ((386690, 386691), (386694, 386695))


# Degrees and pixels


@pytest.mark.parametrize("tile, pixel", [
    ((0, 0), (512, 512)), ((1, 0), (0, 512)), ((0, 1), (512, 0)), ((1, 1), (0, 0)),
])  # fmt: skip
def test_four_tiles_meet_at_zero_degrees(tile, pixel):
    assert np.allclose(to_pixels([(0, 0)], Tile(*tile, 1)), [pixel], atol=1e-9)


def test_the_whole_map_is_one_tile_at_zoom_zero():
    """Its top is where the map is as high as wide: 85.0511 degrees north."""
    north = math.degrees(2 * math.atan(math.exp(math.pi)) - math.pi / 2)
    assert abs(north - 85.0511) < 1e-4
    found = to_pixels([(-180, north), (180, -north), (90, 0)], Tile(0, 0, 0))
    assert np.allclose(found, [(0, 0), (512, 512), (384, 256)], atol=1e-9)


def test_a_latitude_by_the_logarithm():
    """60 degrees north: ln(tan 60 + 1 / cos 60) of pi above the equator."""
    row = 256 * (1 - math.log(math.sqrt(3) + 2) / math.pi)
    assert np.allclose(to_pixels([(0, 60)], Tile(0, 0, 0)), [(256, row)], atol=1e-9)


def test_corner_and_pixel_of_a_real_tile():
    """Against the GeoTransform of the file OAM-386690-220241-19.tif.aux.xml."""
    west, north, wide = 85.51895141601563, 27.634265475685620, 1.3411045074462891e-06
    assert np.allclose(to_pixels([(west, north)], CORNER), 0, atol=1e-3)
    assert np.allclose(to_degrees([(0, 0)], CORNER), [(west, north)], atol=1e-9)
    (left, top), (right, bottom) = to_degrees([(0, 0), (1, 1)], CORNER)
    assert abs(right - left - wide) < 1e-12
    assert abs(top - bottom - 1.1881231216440136e-06) < 1e-11


def test_there_and_back():
    pixels = np.random.default_rng(0).uniform(-600, 1100, (200, 2))
    for tile in (CORNER, Tile(0, 3, 2), Tile(2**18, 2**18, 19)):
        degrees = to_degrees(pixels, tile)
        assert degrees.shape == (200, 2) and degrees.dtype == np.float64
        assert abs(to_pixels(degrees, tile) - pixels).max() < 1e-3


def test_neighbours_are_a_tile_apart():
    degrees = to_degrees([(100, 200)], CORNER)
    for dx, dy in (EAST, SOUTH):
        there = to_pixels(degrees, Tile(CORNER.x + dx, CORNER.y + dy, 19))
        assert np.allclose(there, [(100 - 512 * dx, 200 - 512 * dy)], atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 2), (3, 2), (4, 5, 2)])
def test_points_keep_their_shape(shape):
    assert to_pixels(np.zeros(shape), CORNER).shape == shape
    assert to_degrees(np.zeros(shape), CORNER).shape == shape


# Rasterising


def test_a_pixel_belongs_to_what_covers_its_centre():
    found = rasterise([[box(1.4, 3.6, 2.6, 4.4)]], size=6)
    expected = np.zeros((6, 6))
    expected[3:4, 1:4] = 1  # rows 3.5, columns 1.5 to 3.5
    assert found.dtype == np.int32 and (found == expected).all()


def test_whole_pixels_are_covered_whole():
    found = rasterise([[box(2, 5, 1, 3)]], size=8)
    assert (found > 0).sum() == 6 and (found[1:3, 2:5] == 1).all()


def test_slanted_area_is_its_pixels():
    triangle = np.array([(10, 10), (110, 30), (40, 90), (10, 10)], float)
    area = 0.5 * abs(100 * 80 - 20 * 30)
    assert abs((rasterise([[triangle]]) > 0).sum() / area - 1) < 0.01


def test_holes_are_no_part_and_leave_what_lies_in_them():
    ring = [box(0, 10, 0, 10), box(2, 8, 2, 8), box(8.4, 9.4, 8.4, 9.4)]
    found = rasterise([[box(4, 6, 4, 6)], ring], size=10)
    assert (found[4:6, 4:6] == 1).all() and (found == 1).sum() == 4
    assert (found == 0).sum() == 36 - 4 + 1 and found[8, 8] == 0


def test_a_hole_does_not_depend_on_which_way_its_ring_runs():
    outer, hole = box(0, 10, 0, 10), box(2, 8, 2, 8)
    there, back = rasterise([[outer, hole]], 10), rasterise([[outer, hole[::-1]]], 10)
    assert (there == back).all() and (there == 1).sum() == 64


def test_later_polygons_lie_above():
    found = rasterise([[box(0, 4, 0, 4)], [box(2, 6, 0, 4)]], size=6)
    assert found[0].tolist() == [1, 1, 2, 2, 2, 2]


def test_more_than_255_polygons():
    boxes = [[box(x, x + 1, y, y + 1)] for y in range(20) for x in range(20)]
    found = rasterise(boxes, size=20)
    assert (found == np.arange(1, 401).reshape(20, 20)).all()


def test_polygons_outside_keep_their_number():
    boxes = [[box(-9, -3, 0, 4)], [box(-2, 2, -2, 2)], [box(5, 9, 0, 4)]]
    found = rasterise(boxes, size=4)
    assert (found[:2, :2] == 2).all() and (found > 0).sum() == 4


def test_nothing_is_ground():
    assert (rasterise([], size=3) == np.zeros((3, 3))).all()


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_leave_no_gap_and_do_not_overlap(seed):
    """A turned house, cut by a shared wall: both parts are the whole."""
    rng = np.random.default_rng(seed)
    a, b, c, d = box(20, 90, 30, 80)[:4] + rng.uniform(-9, 9, (4, 2))
    share = rng.uniform(0.3, 0.7)
    top, bottom = a + share * (b - a), d + share * (c - d)
    parts = [[np.array([a, top, bottom, d, a])], [np.array([top, b, c, bottom, top])]]
    whole = rasterise([[np.array([a, b, c, d, a])]], size=128) > 0
    found = rasterise(parts, size=128)
    assert ((found > 0) == whole).all()
    one, two = ((rasterise([part], size=128) > 0) for part in parts)
    assert not (one & two).any()


def test_each_seam_of_four_tiles_is_closed():
    """A building over four tiles is on them as on one large image."""
    ring = np.array([(400.3, 480.1), (700.2, 390.7), (600.9, 600.4), (400.3, 480.1)])
    found = np.zeros((1024, 1024), np.int32)
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        tile = Tile(CORNER.x + x, CORNER.y + y, 19)
        part = rasterise([[to_pixels(to_degrees(ring, CORNER), tile)]])
        assert part.any()
        found[512 * y : 512 * (y + 1), 512 * x : 512 * (x + 1)] = part
    assert (found == rasterise([[ring]], size=1024)).all()


# GeoJSON


def test_polygons_of_a_feature():
    rings = box(1, 9, 1, 9), box(2, 3, 2, 3)
    (polygon,) = buildings.polygons_of(feature(1, *rings))
    assert [ring.shape for ring in polygon] == [(5, 2), (5, 2)]
    parts = buildings.polygons_of(feature(1, *rings, kind="MultiPolygon"))
    assert [len(part) for part in parts] == [1, 1]
    for found, (part,) in zip(polygon, parts):
        assert (found == part).all() and found.dtype == np.float64


def test_heights_of_points_are_left_out():
    found = feature(1, box(1, 9, 1, 9))
    for point in found["geometry"]["coordinates"][0]:
        point.append(1500)
    assert buildings.polygons_of(found)[0][0].shape == (5, 2)


@pytest.mark.parametrize("geometry, kind", [
    ({"type": "Point", "coordinates": [85, 27]}, "Point"),
    ({"type": "LineString", "coordinates": [[85, 27], [85, 28]]}, "LineString"),
    (None, "None"),
])  # fmt: skip
def test_other_geometries_are_named(local, geometry, kind):
    wrong = feature(77, box(1, 2, 1, 2)) | {"geometry": geometry}
    with pytest.raises(DataError, match=f"outline 77 is a {kind}: "):
        buildings.polygons_of(wrong)
    save(local, [feature(1, box(1, 2, 1, 2)), wrong])
    with pytest.raises(DataError, match=rf"{GEOJSON} cannot be .* 77 is a {kind}"):
        data.load("buildings")


# Reading


def test_tiles_come_by_column_and_row(local):
    train, val = data.load("buildings"), data.load("buildings", "val")
    assert train.source == "local" and train.ignore is None
    assert train.images.shape == (8, 3, 512, 512) and train.images.dtype == torch.uint8
    assert train.labels.shape == (8, 512, 512) and train.labels.dtype == torch.uint8
    for found in (train, val):
        columns = [x - 386690 for x in buildings.splits[found.split]]
        greys = [10 * column + row + 1 for column in columns for row in range(2)]
        assert found.images[:, 1, 100, 100].tolist() == greys
        assert [tile_of(outlines) for outlines in found.outlines] == [
            (386690 + column, 220241 + row, 19) for column in columns for row in (0, 1)
        ]
        assert [numbers(outlines) for outlines in found.outlines] == [
            [grey] for grey in greys
        ]
        assert found.labels.sum(dim=(1, 2)).tolist() == [2 * grey for grey in greys]
        for label, grey in zip(found.labels, greys):
            assert (label[2:4, 1 : 1 + grey] == 1).all()


def test_outlines_are_geojson_with_only_what_is_used(local):
    val = data.load("buildings", "val")
    outlines = val.outlines[0]
    assert sorted(outlines) == ["features", "name", "type"]
    assert outlines["type"] == "FeatureCollection"
    assert outlines["name"] == f"{buildings.splits['val'][0]}-220241-19"
    (found,) = outlines["features"]
    assert found["type"] == "Feature" and list(found["properties"]) == ["osm_id"]
    assert json.loads(json.dumps(outlines)) == outlines
    assert data.load("buildings", "val", size=64).outlines == val.outlines


@pytest.mark.parametrize("ring, where", [
    (box(500, 530, 10, 20), [(0, 0), EAST]),
    (box(10, 20, 500, 530), [(0, 0), SOUTH]),
    (box(-30, 5, -30, 5), [(0, 0)]),
    (box(500, 530, 500, 530), [(0, 0), EAST, SOUTH, (1, 1)]),
    (box(513, 530, 10, 20), [EAST]),
    (box(10, 20, 513, 530), [SOUTH]),
    (box(-300, 900, -300, 900), [(0, 0), EAST, SOUTH, (1, 1)]),
])  # fmt: skip
def test_outlines_are_on_each_tile_that_they_touch(ring, where):
    features = [feature(1, box(-99, -90, -99, -90)), feature(2, ring)]
    boxes = buildings.bounds(features)
    for at in ((0, 0), EAST, SOUTH, (1, 1)):
        tile = Tile(CORNER.x + at[0], CORNER.y + at[1], 19)
        outlines = buildings.outlines_on(tile, features, boxes)
        assert numbers(outlines) == ([2] if at in where else [])
        assert tile_of(outlines) == tile
        assert buildings.mask(outlines).any() == (at in where)


def test_all_parts_of_a_building_count(local):
    """Whichever of its parts lies on a tile, and in whatever order."""
    parts = [box(100, 120, 100, 110), box(600, 620, 100, 110)]
    for rings in (parts, parts[::-1]):
        save(local, [feature(5, *rings, kind="MultiPolygon")])
        train = data.load("buildings", "train")
        labels = {tile_of(o)[:2]: m for o, m in zip(train.outlines, train.labels)}
        for x in (386690, 386691):
            label = labels.get((x, 220241))
            if label is not None:
                assert label.sum() == 200


def test_missing_files_are_listed(local):
    assert buildings.missing(local) == []
    (local / IMAGE.format(386693, 220242)).unlink()
    with pytest.raises(DataError, match=r"lacks oam/OAM-386693-220242-19.tif\. Comp"):
        data.load("buildings", "val")
    (local / IMAGE.format(386691, 220241)).unlink()
    (local / GEOJSON).unlink()
    assert buildings.missing(local) == [
        IMAGE.format(386691, 220241), IMAGE.format(386693, 220242), "osm/*.geojson"
    ]  # fmt: skip
    assert len(buildings.missing(local / "nowhere")) == 6 * 2 + 1


def test_broken_image_is_named(local):
    path = local / IMAGE.format(buildings.splits["val"][1], 220242)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=f"{path.name} cannot be read"):
        data.load("buildings", "val")


@pytest.mark.parametrize("size", [(256, 256), (512, 511), (513, 512)])
def test_image_of_another_size_is_named(local, size):
    path = local / IMAGE.format(buildings.splits["val"][0], 220242)
    Image.new("RGB", size).save(path, "JPEG")
    words = rf"{path.name} is {size[1]}x{size[0]}, a tile 512x512: put it in"
    with pytest.raises(DataError, match=words):
        data.load("buildings", "val")


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", '{"features": 3}', '{"features": [3]}', '{"features": [{}]}',
    '{"features": [{"properties": null, "geometry": null}]}',
    '{"features": [{"properties": {"osm_id": 1}, "geometry": {"type": "Polygon"}}]}',
    '{"features": [{"properties": {"osm_id": 1}, "geometry": {"type": "Polygon", '
    '"coordinates": [[]]}}]}',
    '{"features": [{"properties": {"osm_id": 1}, "geometry": {"type": "Polygon", '
    '"coordinates": []}}]}',
    '{"features": [{"properties": {}, "geometry": {"type": "Polygon", '
    '"coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}}]}',
])  # fmt: skip
def test_broken_geojson_is_named(local, text):
    (local / GEOJSON).write_text(text)
    words = rf"{GEOJSON} cannot be read as GeoJSON outlines \(.*\): replace it"
    with pytest.raises(DataError, match=words):
        data.load("buildings")


def test_geojson_that_is_no_text_is_named(local):
    (local / GEOJSON).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=f"{GEOJSON} cannot be read"):
        data.load("buildings")


def test_geojson_without_outlines_is_named(local):
    save(local, [])
    with pytest.raises(DataError, match=rf"{GEOJSON} cannot .*\(it has no features\)"):
        data.load("buildings")


def metres(points):
    """Longitudes and latitudes as Web Mercator has them."""
    return to_pixels(points, Tile(0, 0, 0)) * 78271.5 - (20037508, 20037508)


def missing_number(points):
    return np.where(np.arange(len(points))[:, None] == 2, np.nan, points)


@pytest.mark.parametrize("wrong", [
    metres, missing_number, lambda points: points[:, ::-1], lambda points: -points,
    lambda points: points * np.inf, lambda points: points + 1,
], ids=["metres", "NaN", "swapped", "negative", "infinite", "elsewhere"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value")
def test_outline_far_away_is_named(local, wrong):
    """One is enough: it would be ground without a word."""
    found = json.loads((local / GEOJSON).read_text())["features"]
    rings = found[5]["geometry"]["coordinates"]
    found[5]["geometry"]["coordinates"] = [wrong(np.array(rings[0])).tolist()]
    save(local, found)
    words = rf"{GEOJSON} cannot .*outline 22 is far away, at \[.*: points are longi"
    for split in ("train", "val"):
        with pytest.raises(DataError, match=words):
            data.load("buildings", split)


def test_hidden_geojson_files_do_not_count(local):
    (local / "osm/._outlines.geojson").write_bytes(b"what a Mac leaves")
    assert len(data.load("buildings", "val")) == 4


def test_several_geojson_files_are_named(local):
    (local / "osm/copy.geojson").write_bytes((local / GEOJSON).read_bytes())
    words = r"osm holds copy.geojson and outlines.geojson: leave"
    with pytest.raises(DataError, match=words):
        data.load("buildings")


# The drawn tiles


def test_sample_has_the_form_of_the_real_tiles(drawn):
    images, labels, outlines = drawn
    assert images.shape == (22, 3, 512, 512) and images.dtype == torch.uint8
    assert labels.shape == (22, 512, 512) and labels.dtype == torch.uint8
    assert labels.unique().tolist() == [0, 1]
    for collection in outlines:
        assert collection["type"] == "FeatureCollection"
        assert json.loads(json.dumps(collection)) == collection
        assert len(set(numbers(collection))) == len(numbers(collection))
        assert max(numbers(collection)) < 0  # those of no real building


def test_sample_is_the_same_every_time(drawn):
    for split, first in (("train", 0), ("val", buildings.SCENES["train"])):
        image, label, outlines = next(buildings.sample(split))
        assert torch.equal(image, drawn[0][first])
        assert torch.equal(label, drawn[1][first])
        assert outlines == drawn[2][first]


def test_sample_tiles_differ_within_and_between_the_splits(drawn):
    for pictures in drawn[:2]:
        assert len({picture.numpy().tobytes() for picture in pictures}) == 22


def test_sample_lies_in_the_sea_each_tile_apart(drawn):
    """Near 0, 0, and no building of one tile reaches another."""
    tiles = np.array([tile_of(outlines) for outlines in drawn[2]])
    assert (tiles[:, 2] == 19).all()
    for tile, outlines in zip(tiles, drawn[2]):
        degrees = buildings.bounds(outlines["features"])
        assert abs(degrees).max() < 0.1
        others = tiles[(tiles != tile).any(axis=1)]
        for other in others:
            there = buildings.outlines_on(Tile(*other), outlines["features"], degrees)
            assert there["features"] == []


def test_sample_labels_are_their_outlines(drawn):
    for label, outlines in zip(drawn[1], drawn[2]):
        assert ((instances(outlines) > 0) == label.numpy().astype(bool)).all()


def test_sample_houses_do_not_overlap(drawn):
    """Nothing is lost where a later house lies above: at most a shared wall."""
    for outlines in drawn[2][::4]:
        polygons = buildings.polygons_in(outlines)
        alone = sum((rasterise([polygon]) > 0).sum() for polygon in polygons)
        assert alone - (rasterise(polygons) > 0).sum() < 30


def test_sample_is_as_dense_as_the_real_tiles(drawn):
    """Real: 0.453 of the pixels, 39 buildings a tile, 0.62 of them touch another."""
    train = buildings.SCENES["train"]
    for part in (slice(train), slice(train, None)):
        assert abs(drawn[1][part].float().mean() - 0.453) < 0.05
        found = [len(outlines["features"]) for outlines in drawn[2][part]]
        assert abs(np.mean(found) - 39) < 10
    near, all_of_them = np.sum([touching(instances(o)) for o in drawn[2]], axis=0)
    assert 0.5 < near / all_of_them < 0.75


def test_sample_has_courtyards(drawn):
    polygons = [p for outlines in drawn[2] for p in buildings.polygons_in(outlines)]
    assert 0 < sum(len(rings) > 1 for rings in polygons) < 0.03 * len(polygons)


def test_sample_looks_like_the_real_tiles(drawn):
    """Mean colours near the real ones, and colour alone does not tell a roof."""
    images, labels = drawn[0].float().movedim(1, -1), drawn[1]  # (22, 512, 512, 3)
    ground, roof = (images[labels == k] for k in (0, 1))
    real = torch.tensor([[95.0, 96, 88], [119, 118, 117]])
    found = torch.stack([ground.mean(dim=0), roof.mean(dim=0)])
    assert (found - real).abs().max() < 15
    grey = [pixels.mean(dim=-1) for pixels in (ground, roof)]
    assert all(30 < pixels.std() < 50 for pixels in grey)
    assert 0.15 < (grey[0] > grey[1].median()).float().mean() < 0.4


def edges(image, label):
    """How steep an image (3, H, W) is on the outlines in its label, and beside them."""
    steep = gaussian_gradient_magnitude(image.float().mean(dim=0).numpy(), 1)
    label = label.numpy()
    outline = np.zeros(label.shape, bool)
    outline[1:] |= label[1:] != label[:-1]
    outline[:, 1:] |= label[:, 1:] != label[:, :-1]
    shifts = (12, 0), (-12, 0), (0, 12), (0, -12)
    beside = [steep[np.roll(outline, shift, (0, 1))].mean() for shift in shifts]
    return steep[outline].mean(), max(beside)


def test_sample_labels_lie_on_their_pixels(drawn):
    for image, label in zip(*drawn[:2]):
        on, beside = edges(image, label)
        assert on > 1.3 * beside


@pytest.fixture
def scene():
    """An empty scene with straight streets along the rows, shadows to the east."""
    return straight(buildings.Scene(np.random.default_rng(0)))


def straight(scene):
    scene.axes, scene.bend, scene.shade = np.eye(2), 0, np.array((1.0, 0.0))
    return scene


def test_paint_and_outlines_meet_to_a_fraction_of_a_pixel(scene):
    """A white box on black; what is painted beside its pixels stays black."""
    scene.pen.rectangle((0, 0, 1024, 1024), "black")
    ring = buildings.box(-56, 44, -26, 34)
    assert np.allclose(scene.see(ring), box(200, 300, 230, 290))
    scene.paint("white", ring)
    grey = np.asarray(scene.image.reduce(2).convert("L"), float) / 255
    inside = rasterise([[box(200, 300, 230, 290)]]) > 0
    assert abs(grey - inside).sum() < 0.6 * 2 * (100 + 60)  # of the pixels around it
    rows, columns = np.indices(grey.shape) + 0.5
    middle = [(grey * at).sum() / grey.sum() for at in (columns, rows)]
    assert np.allclose(middle, (250, 260), atol=0.3)


def test_streets_bend(scene):
    scene.bend = 0.001
    found = scene.see([(-100, 0), (0, 0), (100, 0)])
    assert np.allclose(found, [(156, 266), (256, 256), (356, 266)])


def test_shadows_fall_beside_houses_all_one_way(scene):
    scene.shadow(buildings.box(-56, 44, -26, 34), 20)
    dark = np.asarray(scene.light.reduce(2)) < 200
    assert dark[235:285, 302:318].all()
    assert not dark[:, :298].any() and not dark[:, 323:].any()


def test_courtyards_lie_open(scene):
    """Their ground is plain earth, which has not the colour of the roof around it."""
    rings = [buildings.box(-60, 60, -60, 60), buildings.box(-30, 30, -30, 30)]
    for _ in range(6):
        buildings.build(scene, buildings.House(rings, 10))
        image = np.asarray(scene.image.reduce(2), float)
        earth, roof = image[230:282, 230:282], image[200:222, 200:312]
        assert np.ptp(earth, axis=(0, 1)).max() == 0
        assert abs(earth.mean(axis=(0, 1)) - roof.mean(axis=(0, 1))).max() > 3


@pytest.mark.parametrize("order", [1, -1])
def test_high_houses_darken_low_ones(monkeypatch, order):
    """Whichever of them comes first."""
    high = buildings.House([buildings.box(-60, 0, -40, 40)], 30)
    low = buildings.House([buildings.box(0, 80, -40, 40)], 5)

    def town(scene):
        straight(scene).houses.extend([high, low][::order])

    monkeypatch.setattr(buildings, "town", town)
    image, _, _ = buildings.draw(CORNER, np.random.default_rng(0))
    near, far = image[:, 225:285, 260:280], image[:, 225:285, 292:330]
    assert near.float().mean() < 0.7 * far.float().mean()


def test_smoke_takes_the_sample(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    monkeypatch.setattr(buildings, "SCENES", {"train": 2, "val": 1})
    found = data.load("buildings", size=128)
    assert found.source == "sample" and len(found.outlines) == 2
    assert found.images.shape == (2, 3, 128, 128)
    assert found.labels.unique().tolist() == [0, 1]


# The real tiles


@pytest.fixture
def real(monkeypatch):
    if not REAL or not (runtime.root() / REAL / "buildings").is_dir():
        pytest.skip("SEGBOOK_DATA names no folder with the real buildings")
    monkeypatch.setenv("SEGBOOK_DATA", REAL)
    return data.data_root() / "buildings"


def test_real_folder_has_the_pinned_hash(real):
    assert download.folder_hash(real) == buildings.archive.sha256
    assert len(list(real.glob("oam/*.tif"))) == 48 and not buildings.missing(real)


COLUMNS = {  # share of building pixels, buildings a tile
    386690: (0.3948, 26.500), 386691: (0.4783, 39.625), 386692: (0.4399, 39.375),
    386693: (0.4639, 46.250), 386694: (0.4920, 41.750), 386695: (0.4486, 40.750),
}  # fmt: skip


def test_the_end_held_out_is_most_like_the_rest():
    """The relative differences of share and number, added."""

    def apart(pair):
        rest = [COLUMNS[x] for x in COLUMNS if x not in pair]
        held = [COLUMNS[x] for x in pair]
        return abs(np.mean(held, axis=0) / np.mean(rest, axis=0) - 1).sum()

    xs = sorted(COLUMNS)
    ends = tuple(xs[:2]), tuple(xs[-2:])
    assert min(ends, key=apart) == buildings.splits["val"]
    assert buildings.splits["train"] == tuple(xs[:-2])


@pytest.mark.parametrize("column", COLUMNS)
def test_real_column(real, column, monkeypatch):
    """Its numbers, and roofs' edges lie on their outlines."""
    monkeypatch.setitem(buildings.splits, "val", (column,))
    images, labels, outlines = zip(*buildings.read(real, "val"))
    assert [tile_of(o).y for o in outlines] == list(range(220241, 220249))
    share, found = COLUMNS[column]
    assert abs(torch.stack(labels).float().mean() - share) < 0.0002
    assert np.mean([len(o["features"]) for o in outlines]) == found
    for image, label in zip(images, labels):
        on, beside = edges(image, label)
        assert on > 1.05 * beside


def test_real_outlines_load(real):
    """Each of the 1,466 outlines is on some tile, some on several."""
    found = [
        data.load("buildings", split, size=64, source="local")
        for split in buildings.splits
    ]
    assert [len(split) for split in found] == [32, 16]
    ids = [n for split in found for o in split.outlines for n in numbers(o)]
    assert len(set(ids)) == 1466 < len(ids)


def test_real_buildings_touch(real):
    near, count = np.sum(
        [touching(instances(o)) for _, _, o in buildings.read(real, "val")], axis=0
    )
    assert abs(near / count - 0.59) < 0.03
