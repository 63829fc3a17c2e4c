"""Instruments: what is read and refused, who is held out, drawn and real frames."""

import itertools
import os

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from utils import data, runtime
from utils.data import DataError, download, instrument_parts, instruments

REAL = os.environ.get("SEGBOOK_DATA")
TYPES = range(1, 8)
BACKGROUND, SHAFT, WRIST, CLASPERS = range(4)
TRAIN, VAL = instruments.splits["train"], instruments.splits["val"]


@pytest.fixture(autouse=True)
def reader(tmp_path, monkeypatch):
    """A reader with an empty data root, in the profile "cpu"."""
    monkeypatch.setenv("SEGBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("SEGBOOK_PROFILE", "cpu")
    monkeypatch.delenv("SEGBOOK_SOURCE", raising=False)
    return tmp_path


def name(sequence, frame, kind="mask", folder="1-Bipolar_Forceps"):
    return f"foreground/{folder}/{kind}/seq_{sequence}_frame{frame}.png"


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path)


def add(local, sequence, frame, folder="1-Bipolar_Forceps"):
    """A frame of 6 x 8 pixels in the colour (sequence, frame, 5).

    Its mask is 0 but for one row, which holds 0 to 7.
    """
    image = Image.new("RGB", (8, 6), (sequence, frame, 5))
    save(local / name(sequence, frame, "image_3", folder), image)
    mask = np.zeros((6, 8), np.uint8)
    mask[2] = range(8)
    save(local / name(sequence, frame, "mask", folder), mask)
    return mask


@pytest.fixture
def local(reader):
    """A whole local folder: the frames 9 and 100 of each sequence, under two types."""
    local = reader / "instruments"
    for sequence in (1, 4, 6, 7, 10, 11, 12, 13, 14):
        add(local, sequence, 9)
        add(local, sequence, 100, "7-Clip_Applier")
    save(local / instruments.BACKGROUND, Image.new("RGB", (8, 6), (200, 90, 80)))
    return local


@pytest.fixture(scope="module")
def drawn():
    """Split -> all that is drawn: images, types and parts, stacked."""
    return {
        split: [torch.stack(layer) for layer in zip(*instruments.scenes(split))]
        for split in instruments.splits
    }


# What the data sets say of themselves


@pytest.mark.parametrize("module", [instruments, instrument_parts])
def test_every_class_has_a_colour_of_its_own(module):
    """Apart from each other, from magenta (errors), from tissue, from black and white.

    The first class is what lies around the instruments: it may be near tissue.
    """
    assert len(module.classes) == len(module.palette)
    others = (214, 39, 116), (124, 83, 91), (18, 18, 18), (255, 255, 255)
    colours = np.array([*module.palette[1:], *others, module.palette[0]], float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    apart[-1, len(module.palette) :] = 99
    apart[len(module.palette) :, -1] = 99
    assert apart[~np.eye(len(colours), dtype=bool)].min() > 55


def test_no_sequence_is_in_both_splits():
    assert not set(TRAIN) & set(VAL)
    assert set(TRAIN) | set(VAL) == set(FRAMES)
    assert instruments.splits["background"] == ()


# Reading


def test_frames_come_by_sequence_and_frame(local):
    """The red of an image is its sequence, the green its frame."""
    for split, sequences in (("train", (1, 4, 11, 14)), ("val", (6, 7, 10, 12, 13))):
        found = data.load("instruments", split)
        assert found.source == "local" and found.ignore is None
        assert found.images.shape == (2 * len(sequences), 3, 6, 8)
        assert found.images.dtype == found.labels.dtype == torch.uint8
        places = [tuple(image[:2, 0, 0].tolist()) for image in found.images]
        assert places == [(k, frame) for k in sequences for frame in (9, 100)]
        assert (found.images[:, 2] == 5).all()


def test_masks_hold_the_numbers_of_the_types(local):
    labels = data.load("instruments", "val").labels
    assert labels.shape == (10, 6, 8)
    assert (labels[:, 2] == torch.arange(8)).all()
    assert not labels[:, [0, 1, 3, 4, 5]].any()


def test_background_is_one_frame_without_instruments(local):
    found = data.load("instruments", "background")
    assert found.images.shape == (1, 3, 6, 8) and found.labels.shape == (1, 6, 8)
    assert found.images[0, :, 0, 0].tolist() == [200, 90, 80]
    assert not found.labels.any() and found.labels.dtype == torch.uint8


def test_frame_of_several_types_is_read_once(local):
    before = data.load("instruments", "val")
    for folder in ("2-Prograsp_Forceps", "6-Suction_Instrument"):
        add(local, 6, 9, folder)
    after = data.load("instruments", "val")
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)


@pytest.mark.parametrize("half", ["mask", "image_3"])
def test_copies_that_differ_are_named(local, half):
    """Here the last of three copies."""
    add(local, 6, 9, "2-Prograsp_Forceps")
    add(local, 6, 9, "6-Suction_Instrument")
    with Image.open(local / name(6, 9, half)) as picture:
        picture.load()
    picture.putpixel((5, 5), 6 if half == "mask" else (6, 9, 6))
    save(local / name(6, 9, half, "6-Suction_Instrument"), picture)
    one, other = name(6, 9), name(6, 9, folder="6-Suction_Instrument")
    with pytest.raises(DataError, match=f"{one} and .*{other} are of one frame"):
        data.load("instruments", "val")
    assert len(data.load("instruments", "train")) == 8  # concerns the other split only


@pytest.mark.parametrize("value", [8, 255])
def test_value_of_no_type_is_named(local, value):
    mask = add(local, 4, 100)
    mask[0, 7] = value
    save(local / name(4, 100), mask)
    with pytest.raises(DataError, match=f"{name(4, 100)} holds the value {value}: "):
        data.load("instruments")


def test_mask_in_colours_is_refused_and_in_three_equal_channels_is_not(local):
    before = data.load("instruments", "val").labels
    with Image.open(local / name(7, 9)) as mask:
        mask = mask.convert("L")
    save(local / name(7, 9), mask.convert("RGB"))
    assert torch.equal(data.load("instruments", "val").labels, before)
    coloured = mask.convert("P")
    coloured.putpalette(np.ravel(instruments.palette).tolist())
    save(local / name(7, 9), coloured)
    with pytest.raises(DataError, match=f"{name(7, 9)} holds .* no palette; put it"):
        data.load("instruments", "val")


@pytest.mark.parametrize("height, width", [(6, 9), (5, 8), (8, 6)])
def test_mask_of_another_size_is_named(local, height, width):
    save(local / name(13, 9), np.zeros((height, width), np.uint8))
    words = f"{name(13, 9)} is {height}x{width}, its image 6x8"
    with pytest.raises(DataError, match=words):
        data.load("instruments", "val")


@pytest.mark.parametrize("half", ["mask", "image_3"])
@pytest.mark.parametrize(
    "wrong",
    ["seq_2_frame1", "seq_6_frame", "seq_6_frame1x", "frame1", "x-seq_6_frame1"],
)
def test_file_that_is_no_frame_is_named(local, half, wrong):
    path = f"foreground/3-Large_Needle_Driver/{half}/{wrong}.png"
    save(local / path, Image.new("L", (8, 6)))
    words = rf"{path} is no frame .* one of 1, 4, 6, 7, 10, 11, 12, 13, 14: remove"
    for split in instruments.splits:
        with pytest.raises(DataError, match=words):
            data.load("instruments", split)


def test_hidden_files_are_no_frames(local):
    count = len(data.load("instruments", "val"))
    for kind in ("mask", "image_3"):
        path = local / name(6, 9, kind)
        path.with_name(f"._{path.name}").write_bytes(b"what a Mac leaves")
    assert len(data.load("instruments", "val")) == count


def test_missing_files_are_listed(local):
    assert instruments.missing(local) == []
    (local / name(6, 9)).unlink()
    with pytest.raises(DataError, match=rf"lacks {name(6, 9)}\. Complete"):
        data.load("instruments", "background")
    (local / name(14, 9, "image_3")).unlink()
    (local / instruments.BACKGROUND).unlink()
    assert instruments.missing(local) == [
        instruments.BACKGROUND, name(14, 9, "image_3"), name(6, 9),
    ]  # fmt: skip


def test_whole_sequence_that_is_missing_is_listed(local):
    for path in local.glob("foreground/*/*/seq_1_frame*.png"):
        path.unlink()
    assert instruments.missing(local) == ["foreground/*/image_3/seq_1_frame*.png"]
    assert len(instruments.missing(local / "nowhere")) == 9 + 1


@pytest.mark.parametrize(
    "path", [name(7, 9), name(7, 9, "image_3"), instruments.BACKGROUND]
)
def test_broken_file_is_named(local, path):
    whole = (local / path).read_bytes()
    (local / path).write_bytes(whole[: len(whole) // 2])
    split = "background" if path == instruments.BACKGROUND else "val"
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        data.load("instruments", split)


# The drawn frames


def test_drawn_frames_have_the_size_of_the_real_ones(drawn):
    for split, count in (("train", 16), ("val", 8), ("background", 1)):
        image, types, parts = drawn[split]
        assert image.shape == (count, 3, 1024, 1280)
        assert types.shape == parts.shape == (count, 1024, 1280)
        assert image.dtype == types.dtype == parts.dtype == torch.uint8


def test_drawn_splits_hold_all_types_and_the_background_none(drawn):
    for split in ("train", "val"):
        pixels = np.bincount(drawn[split][1].flatten(), minlength=8)
        assert len(pixels) == 8 and pixels.min() > 10_000
    assert not drawn["background"][1].any() and not drawn["background"][2].any()


def test_each_pixel_of_an_instrument_belongs_to_one_part(drawn):
    for _, types, parts in drawn.values():
        assert torch.equal(types > 0, parts > 0)
    _, types, parts = drawn["train"]
    for number in TYPES:
        found = parts[types == number].unique().tolist()
        assert found == [SHAFT, WRIST, CLASPERS]


def test_samples_are_the_drawn_frames_and_the_same_every_time(drawn):
    """Both modules show one frame, each with its own label; other processes too."""
    for split in ("train", "val"):
        image, types, parts = (layer[0] for layer in drawn[split])
        for module, label in ((instruments, types), (instrument_parts, parts)):
            again, truth = next(module.sample(split))
            assert torch.equal(again, image) and torch.equal(truth, label)
    assert len(list(instruments.sample("background"))) == 1
    shares = (drawn["train"][1][:3] > 0).float().mean(dim=(1, 2))
    assert (shares - torch.tensor([0.218, 0.194, 0.125])).abs().max() < 0.002


def test_drawn_frames_differ(drawn):
    frames = [image.numpy().tobytes() for split in drawn for image in drawn[split][0]]
    assert len(set(frames)) == 25


def test_frames_of_a_sequence_resemble_each_other(drawn):
    """The hue of their tissue is nearer than that of other sequences."""
    images, types = (torch.cat([drawn[s][k] for s in ("train", "val")]) for k in (0, 1))
    seen = [image[:, label == 0] for image, label in zip(images, types)]
    colour = torch.stack([pixels.float().mean(dim=1) for pixels in seen])
    hue = colour / colour.sum(dim=1, keepdim=True)  # (24, 3)
    apart = torch.cdist(hue, hue)
    same = torch.arange(24)[:, None] // 2 == torch.arange(24) // 2
    within, between = apart[same].sum() / 24, apart[~same].mean()
    assert 5 * within < between


def test_drawn_frames_are_like_the_real_ones(drawn):
    """Share of instruments, mean colours of tissue and instruments, bright spots."""
    images, types = (torch.cat([drawn[s][k] for s in ("train", "val")]) for k in (0, 1))
    shares = (types > 0).float().mean(dim=(1, 2))
    assert 0.12 < shares.mean() < 0.22  # really 0.171
    assert shares.min() > 0.01 and shares.max() < 0.38
    pixels = images.movedim(1, -1)[:, ::4, ::4].float()  # (24, 256, 320, 3)
    over = types[:, ::4, ::4] > 0
    tissue, metal = pixels[~over].mean(dim=0), pixels[over].mean(dim=0)
    assert (tissue - torch.tensor([124, 83, 91])).abs().max() < 15
    assert (metal - torch.tensor([102, 85, 89])).abs().max() < 15
    wet = (pixels.amin(dim=-1) > 235) & ~over
    assert wet.any(dim=(1, 2)).all() and wet.float().mean() < 0.03


def test_drawn_corners_are_darker_and_the_rim_is_black(drawn):
    light = drawn["train"][0].float().mean(dim=(0, 1))
    corner = (light[40:140, 40:140] + light[-140:-40, -140:-40]).mean() / 2
    assert corner < 0.75 * light[462:562, 590:690].mean()
    for images, _, _ in drawn.values():
        assert not images[..., [0, -1], :].any() and not images[..., [0, -1]].any()


def test_types_look_different(drawn):
    """Gold on the forceps and scissors, a black probe, the rest grey."""
    images, types, parts = drawn["train"]
    pixels = images.movedim(1, -1)
    tip = {k: pixels[(types == k) & (parts == CLASPERS)].float().mean(0) for k in TYPES}
    assert tip[4][0] - tip[4][2] > 40  # gold blades
    assert tip[5].max() < min(tip[k].min() for k in (1, 2, 3, 6, 7)) - 15
    wrist = {k: pixels[(types == k) & (parts == WRIST)].float().mean(0) for k in TYPES}
    assert wrist[1][0] - wrist[1][2] > 20 > 5 > wrist[4][0] - wrist[4][2]


@pytest.mark.parametrize("tool", TYPES)
def test_claspers_lie_on_both_sides_of_the_axis(tool):
    """Those of the first two types have a hole each."""
    rng = np.random.default_rng(0)
    scene = instruments.Scene(rng, np.zeros((592, 720, 3), np.float32), 1)
    instrument = instruments.Instrument(rng, tool, (-0.1, 0.5))
    instruments.paint(scene, instrument)
    where = scene.parts == CLASPERS
    assert (scene.types[where] == tool).all()
    assert 0.35 < (instrument.v[where] > 0).mean() < 0.65
    holes = ndimage.binary_fill_holes(scene.types) & (scene.types == 0)
    sizes = np.bincount(ndimage.label(holes)[0].flatten())[1:]
    assert ((sizes > 50).sum() >= 2) == (tool in (1, 2))


def test_instruments_cast_a_shadow_down_and_to_the_right(drawn):
    images, types, _ = drawn["train"]
    grey, over = images.float().mean(dim=1), types > 0
    below, above = (
        grey[over.roll((k * 40, k * 20), dims=(1, 2)) & ~over].mean() for k in (1, -1)
    )
    assert below < 0.8 * above


def test_drawn_labels_lie_on_their_pixels(drawn):
    """At the border of an instrument the image has an edge, and not beside it."""
    images, types, _ = drawn["train"]
    grey, over = images.float().mean(dim=1), types > 0
    border = over[:, :-1] & ~over[:, 1:]  # (16, 1023, 1280)
    step = (grey[:, 1:] - grey[:, :-1]).abs()
    at = step[border].mean()
    for shift in (-6, 6):
        assert at > 1.5 * step[border.roll(shift, dims=1)].mean()


def test_smoke_takes_the_sample(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    monkeypatch.setattr(instruments, "SCENES", {"train": (2, 2), "val": (1, 1)})
    for module, most in (("instruments", 7), ("instrument_parts", 3)):
        found = data.load(module, size=(128, 160))
        assert found.source == "sample"
        assert found.images.shape == (4, 3, 128, 160)
        assert 0 < found.labels.max() <= most


def test_parts_exist_as_a_drawing_only(local, monkeypatch):
    """Whatever lies in the data root."""
    monkeypatch.setattr(instruments, "SCENES", {"train": (1, 1), "val": (1, 1)})
    found = data.load("instrument_parts", "val", size=64)
    assert found.source == "sample" and len(found) == 1
    assert not hasattr(instrument_parts, "read")
    assert instrument_parts.splits == {"train": 16, "val": 8}
    with pytest.raises(DataError, match="instrument_parts does not lie on the local"):
        data.load("instrument_parts", source="local")


# The real frames


FRAMES = {1: 4, 4: 5, 6: 1, 7: 2, 10: 2, 11: 2, 12: 1, 13: 2, 14: 5}  # of a sequence
PIXELS = {  # of each class in a real sequence
    1: (4627471, 31150, 243817, 0, 42128, 0, 0, 298314),
    4: (4886089, 949334, 175806, 139753, 210908, 0, 191710, 0),
    6: (1127891, 83593, 2291, 0, 96945, 0, 0, 0),
    7: (2259413, 96302, 103796, 0, 0, 0, 161929, 0),
    10: (2227016, 321159, 0, 0, 73265, 0, 0, 0),
    11: (2187893, 72697, 0, 0, 360850, 0, 0, 0),
    12: (1033423, 0, 272771, 0, 4526, 0, 0, 0),
    13: (2281231, 0, 126211, 213998, 0, 0, 0, 0),
    14: (5438151, 275576, 418373, 0, 0, 421500, 0, 0),
}
FEW = 500  # pixels; a type with no more than these does not count as there


def test_the_sequences_held_out_follow_the_rule():
    """As it is written beside the splits."""

    def pixels(sequences):
        return np.sum([PIXELS[k] for k in sequences], axis=0)

    def share(counts):
        return counts / counts.sum()

    whole, rated = pixels(PIXELS), {}
    for number in range(1, len(PIXELS)):
        for val in itertools.combinations(PIXELS, number):
            held = pixels(val)
            few, lacking = sum(FRAMES[k] for k in val) <= 8, whole - held <= FEW
            if few and not (lacking & (held > FEW)).any():
                apart = abs(share(held) - share(whole)).sum()
                rated[val] = -(held[1:] > FEW).sum(), apart
    assert len(rated) > 20
    assert min(rated, key=rated.get) == VAL
    assert tuple(k for k in PIXELS if k not in VAL) == TRAIN


@pytest.fixture
def real(monkeypatch):
    if not REAL or not (runtime.root() / REAL / "instruments").is_dir():
        pytest.skip("SEGBOOK_DATA names no folder with the real instruments")
    monkeypatch.setenv("SEGBOOK_DATA", REAL)
    return data.data_root() / "instruments"


def test_real_folder_has_the_pinned_hash(real):
    assert instruments.missing(real) == []
    assert download.folder_hash(real) == instruments.archive.sha256


@pytest.mark.parametrize("sequence", FRAMES)
def test_real_sequence(real, sequence, monkeypatch):
    monkeypatch.setitem(instruments.splits, "val", (sequence,))
    frames = list(instruments.read(real, "val"))
    assert len(frames) == FRAMES[sequence]
    for image, label in frames:
        assert image.shape == (3, 1024, 1280) and label.shape == (1024, 1280)
    counts = sum(np.bincount(label.flatten(), minlength=8) for _, label in frames)
    assert tuple(counts) == PIXELS[sequence]


def test_real_splits_load(real):
    found = {
        split: data.load("instruments", split, size=64, source="local")
        for split in instruments.splits
    }
    assert {split: len(part) for split, part in found.items()} == {
        "train": 16, "val": 8, "background": 1,
    }  # fmt: skip
    assert not found["background"].labels.any()
    assert found["train"].labels.unique().tolist() == [0, *TYPES]
