"""The data sets: sources and their order, what is read, the embedded sample."""

import dataclasses
import importlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data, runtime
from utils.data import DataError, download, landcover, membranes

REAL = os.environ.get("SEGBOOK_DATA")
REFUSED = "http://127.0.0.1:9"  # nothing listens there: as if there were no network


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root and no network, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_MIRROR", REFUSED)
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    monkeypatch.setattr(data, "_used", {})
    return tmp_path


@pytest.fixture
def local(reader):
    """A whole local folder: slice k is grey k, the left half of it membrane."""
    folder = reader / "membranes"
    for kind in ("image", "label"):
        (folder / kind).mkdir(parents=True)
    truth = np.full((12, 20), 255, np.uint8)
    truth[:, :10] = 0
    for k in range(30):
        Image.fromarray(np.full((12, 20), k, np.uint8)).save(folder / f"image/{k}.png")
        Image.fromarray(truth).save(folder / f"label/{k}.png")
    return folder


@pytest.fixture
def published(local, monkeypatch):
    """The local folder as if it were the published one."""
    sha256 = download.folder_hash(local)
    origin = dataclasses.replace(membranes.archive, sha256=sha256)
    monkeypatch.setattr(membranes, "archive", origin)
    return local


@pytest.fixture
def short(monkeypatch):
    """A validation split of one slice, where drawing four would only take time."""
    monkeypatch.setitem(membranes.splits, "val", range(20, 21))


# Sources


def test_local_folder_comes_first(published, capsys):
    found = data.load("membranes")
    assert found.source == "local"
    assert capsys.readouterr().out == ""
    assert data.sources_used() == {"membranes": "local"}


def test_local_folder_that_is_not_the_published_one_is_told_apart(published, capsys):
    (published / ".DS_Store").write_bytes(b"what a file manager leaves")
    assert data.load("membranes", "val").source == "local"
    assert data.sources_used() == {"membranes": "local"}
    Image.new("L", (20, 12), 255).save(published / "label/0.png")
    assert data.load("membranes", "val").source == "local"
    assert data.load("membranes", "test").source == "local"
    (line,) = capsys.readouterr().out.splitlines()  # once, not for every split
    assert "membranes are not the expected ones" in line and "as they are" in line
    both = "local + local files, not as published"
    assert data.sources_used() == {"membranes": both}


def test_offline_falls_back_to_the_sample_and_says_why(short, capsys):
    found = data.load("membranes", "val", size=32)
    assert found.source == "sample"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "no folder" in lines[0] and "trying the public archive" in lines[0]
    assert "no connection to 127.0.0.1" in lines[1]
    assert "trying the embedded sample" in lines[1]


def test_missing_root_is_made_only_by_a_download(reader, monkeypatch):
    monkeypatch.setenv("SEGBOOK_DATA", str(reader / "not" / "there"))
    with pytest.raises(DataError, match="no folder .*there"):
        data.load("membranes", source="local")
    assert not (reader / "not").exists()


@pytest.mark.parametrize("source", ["local", "archive", "kaggle"])
def test_forced_source_raises_instead_of_falling_back(source):
    with pytest.raises(DataError, match="membranes"):
        data.load("membranes", source=source)


def test_forced_source_says_what_to_do(reader):
    with pytest.raises(DataError, match="SEGBOOK_SOURCE") as caught:
        data.load("membranes", source="archive")
    assert "no connection" in str(caught.value)
    assert str(reader / "membranes") in str(caught.value)


def test_source_by_environment_and_by_profile(published, short, monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    assert data.load("membranes", "val", size=32).source == "sample"
    monkeypatch.setenv("SEGBOOK_SOURCE", "local")
    assert data.load("membranes", "val", size=32).source == "local"
    assert data.load("membranes", "val", size=32, source="sample").source == "sample"
    assert data.sources_used() == {"membranes": "local + sample"}


@pytest.mark.parametrize("shut", [".", "image", "image/3.png"])
def test_what_may_not_be_read_is_named_not_missing(local, monkeypatch, shut):
    """Pretended: whoever is root may read everything."""
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != local / shut)
    words = rf"{local / shut} may not be read: give yourself permission .*membranes \("
    with pytest.raises(DataError, match=words):
        data.load("membranes")


def test_link_to_nowhere_is_missing_not_shut(local):
    (local / "image/3.png").unlink()
    (local / "image/3.png").symlink_to(local / "nowhere.png")
    with pytest.raises(DataError, match="incomplete: it lacks image/3.png"):
        data.load("membranes")


def test_incomplete_folder_is_an_error_not_the_sample(local):
    (local / "label/7.png").unlink()
    with pytest.raises(DataError, match="incomplete: it lacks label/7.png"):
        data.load("membranes", "val")
    (local / "image/9.png").unlink()
    with pytest.raises(DataError, match="image/9.png and 1 more"):
        data.load("membranes")


def test_empty_folder_is_an_error_too(reader):
    (reader / "membranes").mkdir()
    with pytest.raises(DataError, match="image/0.png and 59 more"):
        data.load("membranes")


def test_data_root_is_seen_from_the_book(monkeypatch):
    monkeypatch.setenv("SEGBOOK_DATA", "../elsewhere")
    assert data.data_root() == runtime.root() / "../elsewhere"
    monkeypatch.delenv("SEGBOOK_DATA")
    assert data.data_root() == runtime.root() / "data"
    assert data.shown(data.data_root() / "membranes") == Path("data/membranes")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"name": "nothing"}, "there are: buildings, camvid, .*membranes"),
        ({"split": "all"}, "it has: train, val, test"),
        ({"source": "web"}, "local, archive, kaggle, sample"),
        ({"size": 0}, "size is 0"),
        ({"size": (8, 8, 8)}, "height, width"),
        ({"size": 2.5}, "size is 2.5"),
    ],
)
def test_wrong_arguments_name_the_right_ones(arguments, words):
    with pytest.raises(ValueError, match=words):
        data.load(**{"name": "membranes", "source": "sample", **arguments})


def test_wrong_source_in_the_environment(monkeypatch):
    monkeypatch.setenv("SEGBOOK_SOURCE", "disk")
    with pytest.raises(ValueError, match="no source 'disk'"):
        data.load("membranes")


# Reading


def test_slices_come_in_numeric_order(local):
    blocks = {"train": range(20), "val": range(20, 24), "test": range(24, 30)}
    for split, block in blocks.items():
        found = data.load("membranes", split)
        assert found.images[:, 0, 0, 0].tolist() == list(block)
        assert len(found) == len(block) and found.names == ()
    assert list(membranes.splits) == list(blocks)


def test_shapes_types_and_classes(local):
    found = data.load("membranes", "val")
    assert found.images.shape == (4, 1, 12, 20) and found.images.dtype == torch.uint8
    assert found.labels.shape == (4, 12, 20) and found.labels.dtype == torch.uint8
    assert (found.labels[:, :, :10] == 0).all() and (found.labels[:, :, 10:] == 1).all()
    assert found.classes == ("membrane", "cell")
    assert len(found.palette) == 2 and found.ignore is None
    assert "cite" in found.licence and "Cardona" in found.citation


@pytest.mark.parametrize("size", [(7, 33), 64, (12, 20)])
def test_size_keeps_labels_in_their_classes_and_in_place(local, size):
    found = data.load("membranes", "val", size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert found.images.shape == (4, 1, height, width)
    share = (found.labels == 0).float().mean(dim=(0, 1))  # (W,), of each column
    assert set(found.labels.unique().tolist()) == {0, 1}
    assert share.tolist() == [float(x + 0.5 < width / 2) for x in range(width)]
    assert found.images[3].unique().tolist() == [23]


@pytest.mark.parametrize("size", [(7, 33), 64, None])
def test_kept_labels_are_those_of_the_files(local, size):
    truth = np.full((12, 20), 255, np.uint8)
    truth[3, 5], truth[4:6, 7:10] = 0, 0  # which resizing would bend or lose
    Image.fromarray(truth).save(local / "label/21.png")
    found = data.load("membranes", "val", size=size, keep_labels=True)
    resized = data.load("membranes", "val", size=size)
    assert torch.equal(found.images, resized.images)
    assert found.labels.shape == (4, 12, 20) and found.labels.dtype == torch.uint8
    assert (found.labels[1].numpy() == truth // 255).all()


def test_shrinking_an_image_averages_it():
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(1, 16, 16)  # (1, 16, 32)
    small = data.resize_image(stripes, (4, 4))
    assert small.float().sub(100).abs().max() <= 8


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "LA", "1"])
def test_every_kind_of_file_becomes_one_grey_channel(tmp_path, kind):
    grey = np.zeros((5, 9), np.uint8)
    grey[1:3, 2:7] = 255
    image = Image.fromarray(grey)
    if kind == "P":  # a palette whose numbers are not the grey values
        image = Image.fromarray((grey == 0).astype(np.uint8)).convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif kind != "L":
        image = image.convert(kind)
    image.save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.mode == kind
    pixels = data.read_image(tmp_path / "x.png", "L")
    assert pixels.shape == (1, 5, 9) and pixels.dtype == torch.uint8
    assert (pixels[0].numpy() == grey).all()


DEEP = {  # mode as Pillow reads it -> what is saved
    "I;16": np.array([[0, 300, 65535]], np.uint16),
    "I;16B": np.array([[0, 300, 65535]], ">u2"),
    "I": np.array([[0, 70_000, 2_000_000]], np.int32),
    "F": np.array([[0, 0.4, 1]], np.float32),
}


@pytest.mark.parametrize("kind, ending", [*((k, "tif") for k in DEEP), ("I;16", "png")])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_more_than_eight_bits_are_refused_not_cut_off(tmp_path, kind, ending, mode):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(DEEP[kind]).save(path)
    with Image.open(path) as saved:
        assert saved.mode == kind
    with pytest.raises(DataError, match=rf"x\.{ending} has over 8 bits a pixel: save"):
        data.read_image(path, mode)


def chunk(kind, content):
    """A part of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def test_colours_of_sixteen_bits_are_scaled(tmp_path):
    """Pillow takes the upper 8 of them, but cannot write such a file."""
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0, 255, 256, 0x8080, 65535, 0x1234)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    packed = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    (tmp_path / "x.png").write_bytes(packed)
    pixels = data.read_image(tmp_path / "x.png", "RGB")
    assert pixels[:, 0].T.tolist() == [[0, 0, 1], [0x80, 255, 0x12]]


def test_colour_is_kept_where_it_is_asked_for(tmp_path):
    Image.new("RGB", (4, 3), (10, 20, 30)).save(tmp_path / "x.png")
    pixels = data.read_image(tmp_path / "x.png", "RGB")
    assert pixels.shape == (3, 3, 4) and pixels[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_broken_file_is_named(local, damage):
    path = local / "image/21.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = bytes([whole[middle] ^ 255])
    path.write_bytes({
        "truncated": whole[:middle], "empty": b"", "text": b"<html>not found</html>",
        "flipped": whole[:middle] + flipped + whole[middle + 1 :],
    }[damage])  # fmt: skip
    with pytest.raises(DataError, match=r"image/21\.png"):
        data.load("membranes", "val")


def test_label_with_other_values_is_named(local):
    Image.fromarray(np.full((12, 20), 1, np.uint8)).save(local / "label/20.png")
    with pytest.raises(DataError, match=r"label/20\.png holds the values 1"):
        data.load("membranes", "val")


def test_image_and_label_must_have_one_size(local):
    Image.new("L", (20, 13)).save(local / "image/22.png")
    with pytest.raises(DataError, match="13x20, its label 12x20"):
        data.load("membranes", "val")


def test_slices_of_different_sizes_need_a_size(local):
    for kind in ("image", "label"):
        Image.new("L", (40, 24)).save(local / f"{kind}/22.png")
    with pytest.raises(DataError, match="images of .* 12x20, 24x40; load with size="):
        data.load("membranes", "val")
    assert data.load("membranes", "val", size=16).images.shape == (4, 1, 16, 16)
    with pytest.raises(DataError, match="labels of .* 24x40; load without keep_labels"):
        data.load("membranes", "val", size=16, keep_labels=True)


# What was loaded, for records


@pytest.fixture
def no_data(monkeypatch):
    """A data root that is not there, and an error for whoever asks for it."""

    def refuse():
        raise AssertionError("an identity is told without the data")

    monkeypatch.setenv("SEGBOOK_DATA", "/not/there")
    monkeypatch.setattr(data, "data_root", refuse)


@pytest.mark.parametrize("name", data.NAMES)
def test_identity_is_told_without_the_data_and_survives_json(no_data, name):
    module = importlib.import_module(f"utils.data.{name}")
    for split in module.splits:
        found = data.identity(name, split, (48, 64))
        assert json.loads(json.dumps(found)) == found
        assert (found["name"], found["split"]) == (name, split)
    origin = module.archive or module.kaggle
    assert (found["origin"] or {}).get("sha256") == getattr(origin, "sha256", None)


def test_identity_in_full(no_data):
    assert data.identity("membranes", "val", 256, keep_labels=True) == {
        "name": "membranes",
        "split": "val",
        "size": [256, 256],
        "keep_labels": True,
        "origin": {
            "repository": membranes.archive.repository,
            "commit": membranes.archive.commit,
            "sha256": membranes.archive.sha256,
        },
        "items": [20, 21, 22, 23],
    }
    assert data.identity("camvid", "test")["items"] == 233
    assert data.identity("landcover")["origin"] == {
        "dataset": landcover.kaggle.dataset, "sha256": landcover.kaggle.sha256
    }  # fmt: skip


def test_identity_changes_with_all_it_tells(no_data, monkeypatch):
    calls = [
        ("membranes",), ("camvid",), ("membranes", "val"), ("membranes", "train", 64),
        ("membranes", "train", (64, 32)), ("membranes", "train", 64, True),
    ]  # fmt: skip
    told = [data.identity(*call) for call in calls]
    monkeypatch.setitem(membranes.splits, "train", range(19))
    told.append(data.identity("membranes"))
    for field in ("repository", "commit", "sha256"):
        changed = dataclasses.replace(membranes.archive, **{field: "other"})
        monkeypatch.setattr(membranes, "archive", changed)
        told.append(data.identity("membranes"))
    assert len({json.dumps(one) for one in told}) == len(told)
    assert data.identity("camvid", size=64) == data.identity("camvid", size=(64, 64))


@pytest.mark.parametrize("name, split", [("nothing", "val"), ("camvid", "all")])
def test_identity_of_what_there_is_not(no_data, name, split):
    with pytest.raises(ValueError, match="there are: build|it has: train, val, test"):
        data.identity(name, split)


# The embedded sample


@pytest.fixture(scope="module")
def drawn():
    images, labels = zip(*membranes.sample("val"))
    return torch.stack(images), torch.stack(labels)


def test_sample_is_the_same_every_time(drawn):
    image, label = next(membranes.sample("val"))
    assert torch.equal(image, drawn[0][0]) and torch.equal(label, drawn[1][0])


def test_sample_slices_differ(drawn):
    train, _ = next(membranes.sample("train"))
    assert len({image.numpy().tobytes() for image in (*drawn[0], train)}) == 5


def test_sample_resembles_the_real_slices(drawn):
    images, labels = drawn[0].float(), drawn[1]
    assert images.shape == (4, 1, 512, 512) and labels.shape == (4, 512, 512)
    assert labels.unique().tolist() == [0, 1]
    assert 0.17 < (labels == 0).float().mean() < 0.28  # the real ones: 0.22
    assert abs(images.mean() - 126) < 12 and abs(images.std() - 44) < 6
    membrane = images[:, 0][labels == 0].mean()
    assert images[:, 0][labels == 1].mean() - membrane > 40  # the real ones: 52


def test_sample_membranes_close_their_cells(drawn):
    from skimage.measure import label

    for truth in drawn[1]:
        assert label(truth.numpy(), connectivity=1).max() > 60  # the real ones: 85-130


def test_sample_loads_at_a_smaller_size(short):
    found = data.load("membranes", "val", size=(96, 128), source="sample")
    assert found.images.shape == (1, 1, 96, 128) and found.names == ("drawn-000",)
    assert found.labels.unique().tolist() == [0, 1]


# The real slices


@pytest.fixture
def real(monkeypatch):
    if not REAL or not (runtime.root() / REAL / "membranes").is_dir():
        pytest.skip("SEGBOOK_DATA names no folder with the real membranes")
    monkeypatch.setenv("SEGBOOK_DATA", REAL)
    return data.data_root() / "membranes"


def test_real_folder_has_the_pinned_hash(real):
    assert download.folder_hash(real) == membranes.archive.sha256


def test_real_slices(real):
    parts = [
        data.load("membranes", split, source="local") for split in membranes.splits
    ]
    assert [len(part) for part in parts] == [20, 4, 6]
    assert {part.images.shape[1:] for part in parts} == {(1, 512, 512)}
    labels = torch.cat([part.labels for part in parts])
    assert labels.unique().tolist() == [0, 1]
    assert abs((labels == 0).float().mean() - 0.2196) < 0.001


def test_forced_archive_takes_a_folder_that_is_the_archive(real, reader, monkeypatch):
    shutil.copytree(real, reader / "membranes")
    monkeypatch.setenv("SEGBOOK_DATA", str(reader))
    assert data.load("membranes", "val", size=32, source="archive").source == "archive"
    (reader / "membranes/image/0.png").write_bytes(b"changed")
    with pytest.raises(DataError, match="not the expected ones.*remove the folder"):
        data.load("membranes", "val", source="archive")
