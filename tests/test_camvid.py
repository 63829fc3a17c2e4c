"""CamVid: what is read, what is refused, the drawn streets, the real frames."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from utils import data, runtime
from utils.data import DataError, camvid, download

REAL = os.environ.get("SEGBOOK_DATA")
VOID = camvid.ignore
SKY, BUILDING, POLE, ROAD, TREE = (
    camvid.classes.index(name) for name in ("sky", "building", "pole", "road", "tree")
)


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    return tmp_path


@pytest.fixture
def local(reader, monkeypatch):
    """A whole local folder: 3, 2 and 2 frames; frame k has the colour (k, 100, 200).

    Its truth is sky above, the class k below, and void in the last column.
    """
    monkeypatch.setattr(camvid, "splits", {"train": 3, "val": 2, "test": 2})
    folder, truth = reader / "camvid", np.zeros((12, 20), np.uint8)
    frames = (
        "train/0009", "train/0100", "train/0020", "val/b", "val/a",
        "test/Seq05VD_f00030", "test/0001TP_008550",
    )  # fmt: skip
    for k, (split, name) in enumerate(frame.split("/") for frame in frames):
        truth[6:], truth[:, -1] = k, VOID
        for kind in (split, f"{split}annot"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (k, 100, 200)).save(folder / split / f"{name}.png")
        Image.fromarray(truth).save(folder / f"{split}annot" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def drawn():
    """All drawn streets: images (80, 3, 360, 480) and labels (80, 360, 480)."""
    streets = [pair for split in camvid.splits for pair in camvid.sample(split)]
    images, labels = zip(*streets)
    return torch.stack(images), torch.stack(labels)


def share(labels):
    """The share of each class and, last, of void: (12,)."""
    return torch.bincount(labels.flatten().long(), minlength=12) / labels.numel()


# What the data set says of itself


def test_every_class_has_a_colour_of_its_own():
    assert len(camvid.classes) == len(camvid.palette) == VOID == 11
    colours = np.array([*camvid.palette, (214, 39, 116)], float)  # errors are magenta
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[~np.eye(12, dtype=bool)].min() > 55


# Reading


def test_frames_come_in_the_order_of_their_names(local):
    train, val = data.load("camvid"), data.load("camvid", "val")
    assert train.source == "local" and train.ignore == VOID
    assert train.images.shape == (3, 3, 12, 20) and train.images.dtype == torch.uint8
    assert train.labels.shape == (3, 12, 20) and train.labels.dtype == torch.uint8
    assert train.images[:, 0, 0, 0].tolist() == [0, 2, 1]
    assert train.labels[:, -1, 0].tolist() == [0, 2, 1]
    assert val.images[:, 0, 0, 0].tolist() == [4, 3]
    assert data.load("camvid", "test").images[:, 0, 0, 0].tolist() == [6, 5]


def test_names_stand_beside_their_frames_and_tell_the_drive(local):
    assert data.load("camvid").names == ("0009.png", "0020.png", "0100.png")
    test = data.load("camvid", "test", size=6)
    assert test.names == ("0001TP_008550.png", "Seq05VD_f00030.png")
    assert [camvid.drive(name) for name in test.names] == ["0001TP", "Seq05VD"]
    assert camvid.drive("0016E5_07959.png") == "0016E5"
    assert camvid.drive("0006R0_f00930.png") == "0006R0"


def test_labels_kept_are_those_of_the_files(local):
    whole = data.load("camvid", "test")
    found = data.load("camvid", "test", size=(6, 10), keep_labels=True)
    assert found.images.shape == (2, 3, 6, 10)
    assert torch.equal(found.labels, whole.labels)
    assert torch.equal(found.images, data.load("camvid", "test", size=(6, 10)).images)


@pytest.mark.parametrize("size", [(6, 10), (48, 60), (7, 13)])
def test_void_stays_void_at_another_size(local, size):
    labels = data.load("camvid", "val", size=size).labels
    assert set(labels.unique().tolist()) == {SKY, 3, 4, VOID}
    assert (labels[:, :, -1] == VOID).all() and (labels[:, :, 0] != VOID).all()


@pytest.mark.parametrize("kind", ["L", "LA", "RGBA", "P"])
def test_every_kind_of_image_becomes_colour(local, kind):
    Image.new("RGB", (20, 12), (51, 51, 51)).convert(kind).save(local / "val/a.png")
    with Image.open(local / "val/a.png") as saved:
        assert saved.mode == kind
    assert data.load("camvid", "val").images[0].unique().tolist() == [51]


@pytest.mark.parametrize("kind, mode", [("trainannot", "L"), ("valannot", "RGB")])
def test_truth_with_other_values_is_named(local, kind, mode):
    path = min((local / kind).iterdir())
    Image.new(mode, (20, 12), 12 if mode == "L" else (0, 0, 200)).save(path)
    words = rf"{kind}/{path.name} holds the value (12|23):.* 11"
    with pytest.raises(DataError, match=words):
        data.load("camvid", kind.removesuffix("annot"))


def test_image_without_truth_and_truth_without_image_are_told(local):
    (local / "trainannot/0100.png").unlink()
    with pytest.raises(DataError, match="lacks trainannot/0100.png. Complete"):
        data.load("camvid", "val")
    (local / "val/b.png").unlink()
    assert camvid.missing(local) == ["trainannot/0100.png", "val/b.png"]


def test_hidden_files_are_no_frames(local):
    """A Mac puts a file ._a.png beside a.png on disks of other systems."""
    for kind in ("train", "trainannot"):
        (local / kind / "._0009.png").write_bytes(b"no image")
    (local / "val/._b.png").write_bytes(b"no image")
    assert camvid.missing(local) == []
    assert data.load("camvid").names == ("0009.png", "0020.png", "0100.png")


def test_truth_of_sixteen_bits_is_refused(local):
    path = min((local / "valannot").iterdir())
    Image.fromarray(np.full((12, 20), 300, np.uint16)).save(path)
    with pytest.raises(DataError, match=rf"valannot/{path.name} has over 8 bits"):
        data.load("camvid", "val")


def test_folder_with_too_few_frames_is_incomplete(local):
    for kind in ("train", "trainannot"):
        (local / kind / "0009.png").unlink()
    with pytest.raises(DataError, match="incomplete: it lacks a frame of train/. "):
        data.load("camvid")
    assert len(camvid.missing(local / "nowhere")) == 5


def test_folder_of_the_first_edition_serves_what_it_has(local):
    """It has no frames of "test"; once some are there, all of them must be."""
    for kind in ("test", "testannot"):
        shutil.move(local / kind, local.parent / kind)
    assert len(data.load("camvid")) == 3 and len(data.load("camvid", "val")) == 2
    with pytest.raises(DataError, match="no test/ and testannot/: .* remove the fol"):
        data.load("camvid", "test")
    shutil.move(local.parent / "test", local / "test")
    with pytest.raises(DataError, match="lacks testannot/0001TP_008550.png and 1 more"):
        data.load("camvid")
    (local / "test/0001TP_008550.png").unlink()
    assert camvid.missing(local) == [
        "testannot/Seq05VD_f00030.png", "a frame of test/"
    ]  # fmt: skip


# The drawn streets


def test_sample_has_the_real_size_and_all_classes(drawn):
    images, labels = drawn
    assert images.shape == (80, 3, 360, 480) and images.dtype == torch.uint8
    assert labels.shape == (80, 360, 480) and labels.dtype == torch.uint8
    assert labels.unique().tolist() == list(range(12))


def test_sample_is_the_same_every_time(drawn):
    for split, first in (("train", 0), ("val", 48), ("test", 64)):
        image, label = next(camvid.sample(split))
        assert torch.equal(image, drawn[0][first])
        assert torch.equal(label, drawn[1][first])


def test_sample_streets_differ(drawn):
    for pictures in drawn:
        assert len({picture.numpy().tobytes() for picture in pictures}) == 80


def test_sample_of_the_first_edition_is_as_it_was(drawn):
    """The streets of "test" came later; those of "train" and "val" are the same."""
    for seed, first in enumerate((0, 48, 64)):
        image, label = camvid.draw(np.random.default_rng([camvid.SEED, seed, 0]))
        assert torch.equal(image, drawn[0][first])
        assert torch.equal(label, drawn[1][first])


def test_sample_classes_are_as_frequent_as_the_real_ones(drawn):
    """Shares of all splits together, within a factor of two."""
    real = torch.tensor(
        [0.155, 0.238, 0.009, 0.312, 0.054, 0.110, 0.011, 0.015, 0.050, 0.006, 0.007]
    )
    assert ((share(drawn[1])[:11] / real).log2().abs() < 1).all()
    assert 0.01 < share(drawn[1])[VOID] < 0.06
    scenes = torch.stack([share(label) > 0 for label in drawn[1]])
    for part in scenes.split(list(camvid.SCENES.values())):
        assert (part.float().mean(dim=0) > 0.6).all()  # each class in most streets


def test_sample_looks_like_streets(drawn):
    images, labels = drawn[0].float().movedim(1, -1), drawn[1]  # (64, 360, 480, 3)
    colour = [images[labels == k].mean(dim=0) for k in range(12)]
    assert colour[SKY].mean() - colour[ROAD].mean() > 60
    assert colour[SKY][2] > colour[SKY][0] + 5  # bluish
    assert colour[TREE][1] > colour[TREE][[0, 2]].max()  # greenish
    assert colour[BUILDING][0] > colour[BUILDING][2] + 10  # of brick
    light = images.mean(dim=(1, 2, 3))
    assert light.std() > 12  # bright days and dark ones
    assert 85 < light.mean() < 130  # the real ones: 108

    rows = torch.arange(360.0).view(1, 360, 1).expand(labels.shape)
    assert rows[labels == SKY].mean() < 100 and rows[labels == SKY].max() < 230
    assert rows[labels == ROAD].mean() > 260 and rows[labels == ROAD].min() > 140


def test_sample_labels_lie_on_their_pixels(drawn):
    """Where sky meets another class, the image has its edge there, not beside."""
    grey, labels = drawn[0].float().mean(dim=1), drawn[1]
    below = (labels[:, :-1] == SKY) & (labels[:, 1:] == BUILDING)  # (64, 359, 480)
    step = (grey[:, 1:] - grey[:, :-1]).abs()
    at = step[below].mean()
    for shift in (-4, 4):
        assert at > 2.5 * step[below.roll(shift, dims=1)].mean()


def test_sample_poles_are_thin(drawn):
    poles = (drawn[1] == POLE).sum(dim=2)  # (64, 360), pixels of poles in a row
    assert 0 < poles.float().mean() < 15


def test_smoke_takes_the_sample(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    monkeypatch.setattr(camvid, "SCENES", {"train": 2, "val": 1})
    found = data.load("camvid", size=(176, 240))
    assert found.source == "sample"
    assert found.images.shape == (2, 3, 176, 240)
    assert found.labels.max() == VOID
    assert found.names == ("drawn-000", "drawn-001")
    assert {camvid.drive(name) for name in found.names} == {"drawn"}


# The real frames


@pytest.fixture
def real(monkeypatch):
    if not REAL or not (runtime.root() / REAL / "camvid").is_dir():
        pytest.skip("SEGBOOK_DATA names no folder with the real CamVid")
    monkeypatch.setenv("SEGBOOK_DATA", REAL)
    return data.data_root() / "camvid"


def test_real_folder_has_the_pinned_hash(real):
    assert download.folder_hash(real) == camvid.archive.sha256


def test_real_frames(real):
    train = data.load("camvid", size=(90, 120), source="local")
    val = data.load("camvid", "val", source="local")
    test = data.load("camvid", "test", size=(90, 120), keep_labels=True, source="local")
    assert test.images.shape == (233, 3, 90, 120)
    assert test.labels.shape == (233, 360, 480)
    assert abs(share(test.labels)[ROAD] - 0.2581) < 0.0005
    assert train.images.shape == (367, 3, 90, 120)
    assert val.images.shape == (101, 3, 360, 480)
    for labels in (train.labels, val.labels, test.labels):
        assert labels.unique().tolist() == list(range(12))
    assert abs(share(val.labels)[ROAD] - 0.2895) < 0.0005
    assert abs(share(train.labels)[SKY] - 0.1685) < 0.002
    assert abs(share(val.labels)[VOID] - 0.0170) < 0.0005


def test_real_drives(real):
    """As README.md beside the reader tells them."""
    drives = {
        split: Counter(map(camvid.drive, camvid.names(real, split)))
        for split in camvid.splits
    }
    assert drives == {
        "train": {"0001TP": 62, "0006R0": 101, "0016E5": 204},
        "val": {"0016E5": 101},
        "test": {"0001TP": 62, "Seq05VD": 171},
    }
    clip = tuple(f"0016E5_{k:05}.png" for k in range(7959, 8160, 2))
    assert camvid.names(real, "val") == clip
