"""Your own images: training with a plan, scores, tiles, outlines, export."""

import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.path import Path as Ring
from PIL import Image
from pycocotools import mask as coco_masks
from torch import nn

from utils import (
    chapters, data, live, metrics, outlines, own, own_network, own_training, predict,
    runs, scenes, training,
)  # fmt: skip
from utils.data import Dataset, pictures
from utils.own_scores import Curve, Scores, groups_of, intervals, marked


@dataclass
class Splits:
    train: Dataset
    val: Dataset
    test: Dataset


@functools.cache
def sets_of(name, size=64):
    """A drawn data set in three parts, the second cut in two."""
    first = data.load(name, "train", size, "sample")
    second = data.load(name, "val", size, "sample")
    half = len(second) // 2
    val, test = torch.arange(half), torch.arange(half, len(second))
    return Splits(
        first, own_training.taken(second, val), own_training.taken(second, test)
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setenv("SEGBOOK_PROFILE", "smoke")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)


def network(sets, kind="ternausnet", start="none", **how):
    return own.network(sets, kind, start, **how)


def train(net, sets, **how):
    said = []
    how = dict(steps=8, crop=(64, 64), say=said.append) | how
    return own.train(net, sets, **how), said


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values())
    return all(torch.equal(*pair) for pair in pairs)


# The network


@pytest.mark.parametrize("kind", own_network.KINDS)
@pytest.mark.parametrize("name", ["landcover", "membranes"])
def test_networks_answer_at_the_size_of_the_images(kind, name):
    sets = sets_of(name)
    net = network(sets, kind).eval()
    image = sets.train.images[0][:, :50, :60]
    found = predict.probabilities(net, image)
    assert found.shape == (len(sets.train.classes), 50, 60)
    assert torch.allclose(found.sum(0), torch.ones(50, 60), atol=1e-5)


def test_a_seed_gives_one_network_and_leaves_the_others_alone():
    sets = sets_of("membranes")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = network(sets)
    assert torch.equal(torch.rand(1), expected)
    assert same(first, network(sets)) and not same(first, network(sets, seed=1))


@pytest.mark.parametrize("name, channels", [("membranes", 1), ("landcover", 3)])
def test_the_book_s_weights_come_but_for_the_last_layer(name, channels):
    sets = sets_of(name)
    net = own.network(sets, "deeplab", "book", width=128)
    new = own.network(sets, "deeplab", "none", width=128)
    kept = runs.files(chapters.load("deeplab").MAIN)[1]
    from safetensors.torch import load_file

    recorded, own_state, fresh = load_file(kept), net.state_dict(), new.state_dict()
    first = "encoder.stem.0.weight"
    assert own_state[first].shape[1] == channels
    grey = recorded[first].float().sum(1, keepdim=True)
    assert torch.allclose(own_state[first].sum(1, keepdim=True), grey, atol=1e-6)
    for name, value in own_state.items():
        if name.startswith("classifier."):
            assert torch.equal(value, fresh[name])
        elif name != first:
            assert torch.equal(value, recorded[name].to(value.dtype)), name


def test_what_a_network_cannot_be_is_named():
    sets = sets_of("membranes")
    with pytest.raises(ValueError, match="no network 'vgg'; there are: deeplab"):
        own.network(sets, "vgg")
    with pytest.raises(ValueError, match="no start 'moon'; there are: imagenet, book"):
        own.network(sets, start="moon")
    with pytest.raises(ValueError, match="no recorded weights of ternausnet.*imagenet"):
        own.network(sets, "ternausnet", "book")


# Training


@pytest.mark.parametrize("kind, faster", [("unet", 4.0), ("refinenet", 1.0)])
def test_new_layers_without_normalisation_learn_no_faster(kind, faster, tmp_path):
    """At four times the encoder's rate RefineNet named one class everywhere."""
    sets = sets_of("membranes")
    net = network(sets, kind)
    own.train(net, sets, steps=2, folder=tmp_path / "a", say=lambda line: None)
    told = json.loads((tmp_path / "a/plan.json").read_text(encoding="utf-8"))
    assert told["plan"]["faster"] == faster
    own.train(net, sets, steps=2, folder=tmp_path / "b", say=str, faster=2.0)
    told = json.loads((tmp_path / "b/plan.json").read_text(encoding="utf-8"))
    assert told["plan"]["faster"] == 2.0  # the reader's word counts


def test_it_learns_and_says_how_long_before_it_starts(monkeypatch):
    sets, began = sets_of("buildings"), []
    fit = training.fit
    monkeypatch.setattr(
        training, "fit", lambda *a, **k: (began.append(len(said)), fit(*a, **k))[1]
    )
    net, said = network(sets, "unet", "imagenet"), []
    history = own.train(net, sets, steps=20, say=said.append, patience=None)
    assert history.steps == 20 and len(history.scores) == 10
    assert sum(history.losses[-5:]) < 0.95 * sum(history.losses[:5])
    assert "20 steps of 2 crops of 64 x 64 pixels: about" in said[0]
    assert began[-1] == 1 and not net.training  # it was said before the last fit began


def test_minutes_become_steps(monkeypatch):
    sets, net = sets_of("buildings"), network(sets_of("buildings"))
    monkeypatch.setattr(own_training, "measured", lambda *_: (0.5, 2.0))
    marked_sets = marked(sets.train), marked(sets.val)
    made = own_training.made_plan(net, *marked_sets, 1, None, {}, lambda _: None)
    assert (made.steps, made.every) == (2 * (60 - 6 * 2), 16)  # 6 validations: 12 s
    monkeypatch.setattr(own_training, "measured", lambda *_: (1e9, 1e9))
    made = own_training.made_plan(net, *marked_sets, 1, None, {}, lambda _: None)
    assert (made.steps, made.every) == (4, 2)  # never none


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [2, 5])
def test_resumed_equals_uninterrupted(tmp_path, after):
    sets = sets_of("membranes")
    whole, cut, again = network(sets), network(sets), network(sets)
    expected, _ = train(whole, sets)

    def stop(step, loss):
        if step > after and armed:
            raise Interrupted

    armed = []
    monkeyed = own_training.made_plan

    def arm(*arguments):
        plan = monkeyed(*arguments)
        armed.append(True)  # behind the measuring
        return plan

    training.after_step.append(stop)
    try:
        own_training.made_plan = arm
        with pytest.raises(Interrupted):
            train(cut, sets, folder=tmp_path)
    finally:
        training.after_step.remove(stop)
        own_training.made_plan = monkeyed
    found, said = train(again, sets, folder=tmp_path)
    assert "holds this training, 8 steps: it goes on" in said[0]
    assert found.losses == expected.losses and found.scores == expected.scores
    assert same(whole, again)
    back, _ = train(network(sets), sets, folder=tmp_path)  # finished: read back
    assert back.losses == found.losses and training.after_step == []


def test_another_training_s_folder_is_refused(tmp_path):
    sets = sets_of("membranes")
    train(network(sets), sets, folder=tmp_path, steps=2)
    for net, how in (
        (network(sets), {"steps": 3}),
        (network(sets, "refinenet"), {"steps": 2}),
        (network(sets), {"steps": 2, "flip": "hv"}),
    ):
        with pytest.raises(ValueError, match="another network or other settings"):
            train(net, sets, folder=tmp_path, **how)


def test_early_stopping_keeps_the_best(tmp_path, monkeypatch):
    sets, given = sets_of("membranes"), []
    values = [0.1, 0.3, math.nan, 0.3, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    best = {}

    def validated(net, _):
        if not measuring:
            given.append(values[len(given)])
            if len(given) == 2:
                best.update({k: v.clone() for k, v in net.state_dict().items()})
            return given[-1]
        return 0.0

    measuring, measured = [], own_training.measured

    def measure(*arguments):
        measuring.append(1)
        found = measured(*arguments)
        measuring.clear()
        return found

    monkeypatch.setattr(own_training, "validated", validated)
    monkeypatch.setattr(own_training, "measured", measure)
    net = network(sets)
    how = dict(folder=tmp_path, steps=20, patience=3)
    history, said = train(net, sets, **how)
    assert history.steps == 10 and history.best == (4, 0.3)  # 5 validations of 10
    assert all(torch.equal(net.state_dict()[k], v) for k, v in best.items())
    assert "Stopped at step 10 of 20" in said[-1] and "0.300 at step 4" in said[-1]
    assert training.after_step == [] and not net.training
    again = network(sets)
    back, said = train(again, sets, **how)  # it stays stopped
    assert repr(back) == repr(history) and len(given) == 5 and same(net, again)


def test_no_patience_trains_to_the_end(monkeypatch):
    monkeypatch.setattr(own_training, "validated", lambda *_: 0.5)
    sets = sets_of("membranes")
    history, _ = train(network(sets), sets, steps=12, patience=None)
    assert history.steps == 12


def test_sets_without_a_use_are_named():
    sets = sets_of("landcover")
    void = replace(sets.val, labels=torch.full_like(sets.val.labels, 255))
    with pytest.raises(ValueError, match="'val' has no pixel with a class"):
        train(network(sets), replace_set(sets, val=void))
    empty = own_training.taken(sets.val, torch.arange(0))
    with pytest.raises(ValueError, match="'val' has no images"):
        train(network(sets), replace_set(sets, val=empty))


def replace_set(sets, **new):
    return replace(sets, **new)


def test_crops_without_a_pixel_that_counts_teach_nothing():
    sets = sets_of("landcover")
    marked_set = marked(sets.train)
    loss = own_training.weighted_loss(marked_set, 1.1)
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    labels = torch.randint(5, (2, 4, 4))
    labels[:, :2] = 255
    weights = scenes.class_weights(marked_set.labels, 5, 255)
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    void = loss(logits, torch.full_like(labels, 255))
    void.backward()
    assert void.item() == 0 and not logits.grad.any()
    mostly = sets.train.labels.clone()
    mostly[:, :, 4:] = 255
    void_set = replace(sets.train, labels=mostly)
    history, _ = train(
        network(sets), replace(sets, train=void_set), steps=6, crop=(32, 32)
    )
    assert all(map(math.isfinite, history.losses))


def test_images_are_drawn_by_their_pixels_that_count():
    sets = sets_of("membranes")
    labels = sets.train.labels.clone()
    labels[1:] = 255
    labels[5, 0, :32] = 0
    plan = own_training.Plan(200, 1, 1, crop=(64, 64), scale=(1, 1), brightness=0)
    dataset = replace(sets.train, labels=labels, ignore=255)
    _, drawn = own_training.batches(dataset, network(sets).encoder, plan)(
        torch.Generator().manual_seed(0)
    )
    shares = (drawn != 255).flatten(1).sum(1)
    assert set(shares.tolist()) <= {64 * 64, 32} and (shares == 32).sum() < 20


def test_images_smaller_than_a_crop_are_mirrored():
    sets = sets_of("membranes", 20)
    history, _ = train(network(sets), sets, steps=2, crop=(32, 32))
    assert history.steps == 2 and math.isfinite(history.losses[-1])


# Scores


class Told(nn.Module):
    """Answers with the numbers in the first channel: (B, C, H, W) -> (B, K, H, W)."""

    def __init__(self, classes):
        super().__init__()
        self.classes, self.weight = classes, nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        numbers = (pixels[:, 0] * 255).round().long()
        return 9.0 * nn.functional.one_hot(numbers, self.classes).movedim(-1, 1)


def told(labels, truth, classes=2, ignore=None):
    """A data set in which the network `Told` answers with these labels (N, H, W)."""
    names = tuple("abcde"[:classes])
    return Dataset(
        "own", "val", labels[:, None].to(torch.uint8), truth.to(torch.uint8), names,
        ((0, 0, 0),) * classes, ignore, "yours", "", "local",
    )  # fmt: skip


def random_labels(seed, count=12, classes=2, side=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (count, side, side), generator=generator)


def test_scores_are_those_of_the_metrics():
    labels, truth = random_labels(0, classes=3), random_labels(1, classes=3)
    truth[:, :4] = 255
    found = own.scores(Told(3), told(labels, truth, 3, 255))
    table = metrics.confusion_matrix(labels, truth, 3, 255)
    assert found.iou.tolist() == metrics.iou(table).tolist()
    assert found.mean == pytest.approx(metrics.mean_iou(table))
    assert found.shares.tolist() == pytest.approx((table.sum(1) / table.sum()).tolist())
    assert ((found.low < [*found.iou, found.mean]) & (found.high < 1)).all()
    text = str(found).splitlines()
    assert text[0].split() == ["class", "IoU", "95", "%", "interval", "pixels"]
    assert text[-1] == "On 12 images; intervals are over images."
    assert f"{found.mean:.3f}" in text[-2] and "| a |" in found._repr_markdown_()


def test_intervals_hold_what_they_say():
    """Of images with a true mean IoU that is known; and groups widen them."""
    rng = np.random.default_rng(0)
    inside, wide, narrow = 0, [], []
    for trial in range(60):
        right = rng.binomial(100, rng.beta(20, 5, 10)).repeat(2)  # twins
        wrong = 100 - right
        tables = np.array([[[r, w], [w, r]] for r, w in zip(right, wrong)], float)
        total = tables.sum(0)
        iou = total[0, 0] / (total[0].sum() + total[1, 0])
        found, twins = np.array([iou, iou, iou]), tables.reshape(10, 2, 2, 2).sum(1)
        low, high = intervals(found, twins, 300, trial)
        alone = intervals(found, tables, 300, trial)
        wide.append((high - low)[-1])
        narrow.append((alone[1] - alone[0])[-1])
        p = 20 / 25
        inside += low[-1] <= p / (2 - p) <= high[-1]
    assert inside >= 53 and np.mean(wide) > 1.2 * np.mean(narrow)


def test_scores_of_groups_and_of_one_image():
    dataset = told(random_labels(0), random_labels(1))
    single = own.scores(Told(2), own_training.taken(dataset, torch.arange(1)))
    assert np.isnan(single.low).all() and "gives no interval" in str(single)
    grouped = own.scores(Told(2), dataset, groups=[k // 3 for k in range(12)])
    assert "12 images in 4 groups; intervals are over groups" in str(grouped)
    named = replace(dataset, names=tuple(f"{k // 6}-{k}" for k in range(12)))
    found = groups_of(named, lambda name: name.partition("-")[0])
    assert found == ("0",) * 6 + ("1",) * 6
    assert groups_of(named, dict(zip(named.names, found))) == found
    with pytest.raises(ValueError, match="12 images need a group each, not 2"):
        own.scores(Told(2), dataset, groups=[1, 2])


def test_a_class_that_never_occurs_has_no_score():
    labels = random_labels(0, classes=2)
    found = own.scores(Told(3), told(labels, labels, 3))
    assert np.isnan(found.iou[2]) and found.mean == 1
    assert str(found).splitlines()[3].split()[1] == "–"


def test_worst_images_come_first():
    truth = random_labels(1, 5)
    labels = truth.clone()
    labels[3], labels[1, :4] = 1 - truth[3], 1 - truth[1, :4]
    truth[4] = 255
    found = own.scores(Told(2), told(labels, truth, ignore=255))
    assert own.worst(found) == [3, 1, 0, 2] and own.worst(found, 1) == [3]
    assert isinstance(found, Scores)


class Levels(nn.Module):
    """The probability of the second class is the pixel / 255."""

    def forward(self, pixels):
        logits = torch.logit(pixels[:, :1].clamp(1e-4, 1 - 1e-4))
        return torch.cat([torch.zeros_like(logits), logits], 1)


def test_threshold_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (4, 20, 20), generator=generator)
    truth = (levels + 60 * torch.randn(levels.shape, generator=generator) > 90).long()
    truth[:, :2] = 255
    dataset = told(levels, truth, ignore=255)
    found = own.threshold(Levels(), dataset)

    def iou(at):
        guess = (levels / 255 > at).long()
        return metrics.iou(metrics.confusion_matrix(guess, truth, 2, 255))[1].item()

    assert iou(found) == pytest.approx(
        max(iou(k / 1000) for k in range(1000)), abs=1e-9
    )
    assert 0.2 < found < 0.5
    score = own.scores(Levels(), dataset, threshold=found)
    assert score.iou[1] == pytest.approx(iou(found), abs=2e-3)
    with pytest.raises(ValueError, match="for two classes, and there are 3"):
        own.threshold(Levels(), told(levels, truth, 3, 255))
    with pytest.raises(ValueError, match="no pixel of 'b'"):
        own.threshold(Levels(), told(levels, torch.zeros(4, 20, 20)))


# Would more images help?


def test_learning_curve_takes_nested_groups_and_the_same_steps(monkeypatch):
    sets, seen = sets_of("landcover"), []

    def trained(net, part, **how):
        seen.append((part.train.names, how))

    monkeypatch.setattr(own_training, "train", trained)
    curve = own.learning_curve(
        sets, "ternausnet", steps=7, start="none", groups=lambda n: int(n[-3:]) // 4
    )
    names = [set(found) for found, _ in seen]
    assert names[0] < names[1] < names[2] == set(sets.train.names)
    assert curve.images == [len(found) for found in names] == [8, 16, 36] or (
        curve.images == [8, 20, 36]
    )
    for found in names:
        assert all(
            {n for n in sets.train.names if int(n[-3:]) // 4 == int(m[-3:]) // 4}
            <= found
            for m in found
        )
    assert {how["steps"] for _, how in seen} == {7}
    assert str(curve).count("images: mean IoU") == 3
    assert "36 images rather than" in curve.sentence()


def test_a_curve_says_whether_more_images_help():
    truth = random_labels(1, 12)
    bad, good = truth.clone(), truth.clone()
    bad[:, :8] = 1 - bad[:, :8]
    for k in range(12):
        bad[k, : k % 5] = 0
        good[k, : k % 3] = 0
    few, many = (own.scores(Told(2), told(labels, truth)) for labels in (bad, good))
    assert "help: shows" in Curve([5, 10], [few, many]).sentence()
    assert "the opposite shows" in Curve([5, 10], [many, few]).sentence()
    small = [own.scores(Told(2), told(x[:3], truth[:3])) for x in (bad, good)]
    assert "not resolved" in Curve([5, 10], small).sentence()


# Tiles


class Near(nn.Module):
    """Three convolutions that see 7 pixels."""

    multiple, encoder = 1, nn.Identity()

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(), nn.Conv2d(8, classes, 3, padding=1),
        )  # fmt: skip

    def forward(self, pixels):
        return 5 * self.layers(pixels)


class Strided(Near):
    """The same on a grid of every 32nd pixel, as deep features are."""

    def forward(self, pixels):
        coarse = self.layers[0](pixels)[..., ::32, ::32].repeat_interleave(32, -1)
        coarse = coarse.repeat_interleave(32, -2)
        return (
            self.layers(pixels) + coarse[:, :3, : pixels.shape[-2], : pixels.shape[-1]]
        )


def noise(height, width, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(300, 171), (213, 500), (97, 97), (129, 328)])
@pytest.mark.parametrize("net, overlap", [(Near(), 32), (Strided(), 148)])
def test_tiles_give_the_answer_in_one_piece(size, net, overlap):
    """A quarter of the overlap is at least what the network sees on one side."""
    image, tile = noise(*size), overlap + 64
    whole = predict.probabilities(net, image)
    tiled = predict.probabilities(net, image, tile, overlap)
    assert torch.allclose(tiled, whole, atol=1e-6)
    assert torch.equal(tiled.argmax(0), whole.argmax(0))


def test_a_constant_has_no_seams():
    class Constant(nn.Module):
        def forward(self, pixels):
            b, _, h, w = pixels.shape
            return torch.tensor([0.3, 1.2, -0.4]).view(1, 3, 1, 1).expand(b, 3, h, w)

    tiled = predict.probabilities(Constant(), noise(260, 330), tile=96, overlap=33)
    assert torch.allclose(tiled, tiled[:, :1, :1].expand_as(tiled), atol=1e-6)


def test_a_step_between_tiles_becomes_a_slope():
    """A network that answers by the mean of its tile, as image pooling does."""

    class Mean(nn.Module):
        def forward(self, pixels):
            level = pixels.mean((1, 2, 3), keepdim=True).expand(
                -1, 1, *pixels.shape[2:]
            )
            return torch.cat([10 * level, -10 * level], 1)

    image = torch.zeros(3, 64, 600, dtype=torch.uint8)
    image[:, :, 300:] = 60
    found = predict.probabilities(Mean(), image, tile=256, overlap=128)[0]
    assert found.diff(dim=1).abs().max() < 0.02 < found.max() - found.min()


@pytest.mark.parametrize("side", [95, 96, 97, 200, 331])
@pytest.mark.parametrize("overlap", [0, 5, 32])
def test_every_pixel_has_a_weight_and_tiles_lie_on_the_grid(side, overlap):
    spans = predict.spans(side, 96, overlap)
    total = torch.zeros(side)
    for begin, end in spans:
        assert begin % 32 == 0
        total[begin:end] += predict.window(begin, end, side, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == side and total.min() > 0.1
    assert all(a[1] - b[0] >= overlap for a, b in zip(spans, spans[1:]))
    assert all(end - begin <= 96 + 31 for begin, end in spans)


def test_tiles_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="larger by at least 63 pixels"):
        predict.probabilities(Near(), noise(200, 200), tile=64, overlap=32)


def test_fitting_sides():
    net = network(sets_of("membranes"))
    assert [predict.fitting(net, s) for s in (1, 32, 33)] == [32, 32, 64]
    assert [predict.fitting(net, s, down=True) for s in (1, 63)] == [32, 32]
    net = network(sets_of("membranes"), "deeplab")
    assert [predict.fitting(net, s) for s in (1, 33, 34, 353)] == [33, 33, 65, 353]
    assert predict.fitting(net, 352, down=True) == 321
    assert predict.fitting(Told(2), 77) == 77


# A folder


PALETTE = (1, 2, 3), (200, 10, 10), (0, 99, 0)


def known(net, classes=("sky", "house", "tree")):
    """The network with what `predict_folder` asks for."""
    palette = PALETTE[: len(classes)]
    net.built = own_network.Built("near", "none", 3, classes, palette, 8)
    return net


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "far away").mkdir(parents=True)
    for name, size in (
        ("a.png", (70, 45)), ("a.jpg", (33, 40)), ("far away/Ü b.png", (150, 61)),
    ):  # fmt: skip
        pixels = noise(*size[::-1]).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name)
    (folder / ".hidden.png").write_bytes(b"no")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_becomes_masks_probabilities_and_outlines(photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"\x89PNG no")
    (photos / "phone.heic").write_bytes(b"no")
    before = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    out, net = tmp_path / "out", known(Near())
    files = own.predict_folder(net, photos, out, predict.FORMS, tile=96, overlap=16)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "phone.heic is in a format that Pillow does not read" in said[0]
    assert "broken.png cannot be read (not a picture): copy it again" in said[1]
    assert all(line.endswith("; left out") for line in said)
    names = {file.relative_to(out).as_posix() for file in files}
    stems = "a.png", "a.jpg", "far away/Ü b"
    assert names == {
        *(f"masks/{s}.png" for s in stems), *(f"probabilities/{s}.npz" for s in stems),
        *(f"geojson/{s}.geojson" for s in stems), "coco.json",
    }  # fmt: skip
    assert names == {
        f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()
    }
    after = {file: file.read_bytes() for file in photos.rglob("*") if file.is_file()}
    assert before == after
    image = torch.from_numpy(pictures.read_pixels(photos / "far away/Ü b.png"))
    expected = predict.probabilities(net, image, 96, 16)
    with Image.open(out / "masks/far away/Ü b.png") as mask:
        assert mask.mode == "P" and tuple(mask.getpalette()[:9]) == sum(PALETTE, ())
        assert np.array_equal(np.array(mask), expected.argmax(0))
    with np.load(out / "probabilities/far away/Ü b.npz") as kept:
        assert np.abs(kept["probability"] - expected.numpy()).max() < 1e-3
    told = json.loads((out / "coco.json").read_text())
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in told["images"]}
    assert sizes == {
        "a.png": (70, 45),
        "a.jpg": (33, 40),
        "far away/Ü b.png": (150, 61),
    }


def test_two_classes_have_a_threshold_and_16_bits(photos, tmp_path):
    net = known(Near(2), ("ground", "house"))
    out = tmp_path / "out"
    own.predict_folder(net, photos, out, ("mask", "probability"), threshold=0.8)
    image = torch.from_numpy(pictures.read_pixels(photos / "a.png"))
    expected = predict.probabilities(net, image)[1]
    with Image.open(out / "masks/a.png.png") as mask:
        assert np.array_equal(np.array(mask), expected.numpy() > 0.8)
    with Image.open(out / "probabilities/a.png.png") as grey:
        assert grey.mode == "I;16"
        assert np.abs(np.array(grey) / 65535 - expected.numpy()).max() < 1e-5
    with pytest.raises(ValueError, match="a threshold is for two classes, not 3"):
        own.predict_folder(known(Near()), photos, out, threshold=0.5)


def test_only_some_pictures(photos, tmp_path):
    only = {"far away/Ü b.png", "b.png"}
    files = own.predict_folder(known(Near()), photos, tmp_path / "out", only=only)
    assert [file.name for file in files] == ["Ü b.png"]
    with pytest.raises(ValueError, match="holds no picture"):
        own.predict_folder(known(Near()), photos, tmp_path / "out", only={"b.png"})


def test_turned_photos_are_predicted_as_they_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 40)).save(folder / "turned.jpg", exif=exif)
    (written,) = own.predict_folder(known(Near()), folder, tmp_path / "out", "mask")
    with Image.open(written) as mask:
        assert mask.size == (40, 80)


def test_nothing_is_written_among_the_pictures(photos, tmp_path):
    net = known(Near())
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "masks/a.png")
    for images, out in (
        (photos, photos), (photos, photos / "out"), (tmp_path / "masks", tmp_path),
        (photos, photos / "far away/.."),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="among the pictures.*a folder beside"):
            own.predict_folder(net, images, out)
    link = tmp_path / "link"
    link.symlink_to(photos, target_is_directory=True)
    with pytest.raises(ValueError, match="among the pictures"):
        own.predict_folder(net, photos, link)
    with pytest.raises(ValueError, match="no form .'shape'.*there are: mask, prob"):
        own.predict_folder(net, photos, tmp_path / "out", "shape")
    with pytest.raises(ValueError, match="there is no folder.*did you mean.*/photos"):
        own.predict_folder(net, tmp_path / "photo", tmp_path / "out")
    with pytest.raises(ValueError, match="levels=.9, 3.: give black first"):
        own.predict_folder(net, photos, tmp_path / "out", levels=(9, 3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        own.predict_folder(net, tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize(
    "names, expected",
    [
        (("drawn-1", "drawn-2"), ("drawn-1", "drawn-2")),
        (("b/a.v2.jpg", "a.tif"), ("b/a.v2", "a")),
        (("a.jpg@0,0", "a.jpg@0,256"), ("a@0,0", "a@0,256")),
        (("a.jpg", "a.png"), ("a.jpg", "a.png")),
        ((), ("0000", "0001")),
    ],
)
def test_a_set_is_predicted_by_its_names(tmp_path, names, expected):
    sets = sets_of("landcover")
    two = replace(own_training.taken(sets.test, torch.arange(2)), names=names)
    files = own.predict_set(network(sets), two, tmp_path, "mask")
    assert [f.relative_to(tmp_path / "masks").as_posix() for f in files] == [
        f"{name}.png" for name in expected
    ]


# Pictures of over 8 bits


def laid_out(place, make, ending="tif"):
    """Six images of 64 x 96 pixels, each what `make` gives for its number, and masks of
    two classes: (images, masks)."""
    for k in range(6):
        for kind, pixels in ("images", make(k)), ("masks", np.eye(64, 96) > 0):
            (place / kind).mkdir(parents=True, exist_ok=True)
            end = ending if kind == "images" else "png"
            Image.fromarray(pixels).save(place / f"{kind}/{k}.{end}")
    return place / "images", place / "masks"


def sixteen_bits(k):
    rng = np.random.default_rng(k)
    return rng.integers(1000 + 7 * k, 5000 + 9 * k, (64, 96), np.uint16)


def floats(k):
    levels = np.random.default_rng(k).normal(0, 1, (64, 96)).astype(np.float32)
    levels[0, :3] = np.nan, np.inf, -np.inf
    return levels


@pytest.fixture
def given(monkeypatch):
    """What the networks of `predict_folder` were given, in its order."""
    seen, answer = [], predict.probabilities

    def look(net, image, *how):
        seen.append(image)
        return answer(net, image, *how)

    monkeypatch.setattr(predict, "probabilities", look)
    return seen


def by_name(sets):
    parts = sets.train, sets.val, sets.test
    return {n: i for part in parts for n, i in zip(part.names, part.images)}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the folder: few images
@pytest.mark.parametrize("make", [sixteen_bits, floats])
def test_a_folder_of_deep_pictures_is_predicted_as_it_was_learnt(make, tmp_path, given):
    folders = laid_out(tmp_path, make)
    sets = data.folder(*folders)
    assert sets.levels is not None and sets.train.images.float().std() > 20
    net = own.network(sets, "ternausnet", "none")
    held = by_name(sets)
    for how in ({}, {"levels": sets.levels}):
        given.clear()
        own.predict_folder(net, folders[0], tmp_path / "out", **how)
        found = [image.numpy().tobytes() for image in given]
        assert found == [held[f"{k}.tif"].numpy().tobytes() for k in range(6)]
    given.clear()
    black, white = sets.levels
    own.predict_folder(net, folders[0], tmp_path / "out", levels=(black, white + 999))
    assert not torch.equal(given[0], held["0.tif"])  # what is said counts


def test_deep_pictures_without_levels_are_named(tmp_path, given, capsys):
    images, _ = laid_out(tmp_path, sixteen_bits)
    (images / "6.png").write_bytes((tmp_path / "masks/0.png").read_bytes())
    sets = sets_of("landcover")
    own.predict_folder(network(sets), images, tmp_path / "out")
    assert len(given) == 1  # the one of 8 bits
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6 and all("over 8 bits a pixel: say what" in x for x in said)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("error:invalid value")  # what is no number is black
@pytest.mark.parametrize("make", [sixteen_bits, floats])
def test_a_network_that_was_exported_keeps_its_levels(make, tmp_path, given):
    images, masks = laid_out(tmp_path, make)
    sets = data.folder(images, masks)
    made = own.network(sets, "ternausnet", "none")
    held, folder = by_name(sets), tmp_path / "network"
    middle = predict.probabilities(made, held["3.tif"])[1].median().item()
    manifest = own.export(made, sets, folder, threshold=middle)
    told = json.loads((folder / "network.json").read_text())
    assert tuple(told["levels"]) == tuple(manifest["levels"]) == sets.levels
    net = own.read(folder)
    given.clear()
    written = own.predict_folder(net, images, tmp_path / "out", threshold=middle)
    assert all(torch.equal(given[k], held[f"{k}.tif"]) for k in range(6))
    photo, mask = images / "3.tif", tmp_path / "mask.png"
    found = ran(folder, photo, mask)
    assert found["image"].tobytes() == held["3.tif"].numpy().tobytes()
    with Image.open(mask) as theirs, Image.open(written[3]) as ours:
        assert 0.1 < np.mean(ours) < 0.9
        assert (np.array(theirs) == np.array(ours)).mean() >= 0.999
    photo = tmp_path / "photo.png"  # of 8 bits: as it is
    pixels = noise(64, 96)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photo)
    assert np.array_equal(ran(folder, photo, mask)["image"][0], pixels)


def ran(folder, photo, mask):
    """The names that the lines for onnxruntime leave."""
    names = {}
    exec(own.lines(folder, photo.as_posix(), mask.as_posix()), names)
    return names


# Outlines


def drawn_labels(seed, shape=(40, 57), classes=4):
    """Blobs with holes, corners that touch, and single pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (shape[0] // 4 + 1, shape[1] // 4 + 1))
    labels = np.kron(coarse, np.ones((4, 4), int))[: shape[0], : shape[1]]
    spots = rng.random(shape) < 0.1
    return np.where(spots, rng.integers(0, classes, shape), labels).astype(np.uint8)


def rasterised(features, shape, to_pixels=lambda points: points):
    """Labels of the pixels whose centres lie in polygons and not in their holes."""
    rows, columns = np.indices(shape)
    centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], 1)
    labels = np.zeros(shape, np.uint8)
    for feature in features:
        outline, *holes = (
            Ring(to_pixels(np.array(ring))).contains_points(centres).reshape(shape)
            for ring in feature["geometry"]["coordinates"]
        )
        inside = outline & ~np.any(holes, 0) if holes else outline
        assert inside.sum() == feature["properties"]["pixels"]
        labels[inside] = feature["properties"]["number"]
    return labels


CLASSES = "background", "house", "tree", "road"


@pytest.mark.parametrize("seed", range(3))
def test_geojson_drawn_again_gives_the_mask(seed):
    labels = drawn_labels(seed)
    kept = outlines.outlined(CLASSES)
    found = outlines.geojson(labels, CLASSES, kept)
    assert kept == (1, 2, 3) and found["coordinates"] == "pixels"
    assert np.array_equal(rasterised(found["features"], labels.shape), labels)
    assert any(len(f["geometry"]["coordinates"]) > 1 for f in found["features"])
    for feature in found["features"]:
        for k, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1] and len(ring) > 3
            assert (outlines.area(np.array(ring)) > 0) == (k == 0)  # RFC 7946
    assert json.loads(outlines.as_bytes(found)) == found


@pytest.mark.parametrize("seed", range(3))
def test_coco_decoded_gives_the_mask(seed):
    labels = drawn_labels(seed)
    probability = np.eye(4, dtype=np.float32)[labels].transpose(2, 0, 1) * 0.75
    coco = outlines.Coco(CLASSES, outlines.outlined(CLASSES))
    coco.add("a.png", labels, probability)
    told = json.loads(outlines.as_bytes(coco.content))
    again = np.zeros_like(labels)
    for one in told["annotations"]:
        mask = coco_masks.decode(one["segmentation"]).astype(bool)
        again[mask] = one["category_id"]
        rows, columns = np.nonzero(mask)
        x, y, wide, high = one["bbox"]
        assert (x, y) == (columns.min(), rows.min()) and one["area"] == mask.sum()
        assert (x + wide, y + high) == (columns.max() + 1, rows.max() + 1)
        assert one["score"] == 0.75
    assert np.array_equal(again, labels)
    assert [one["name"] for one in told["categories"]] == ["house", "tree", "road"]
    ids = [one["id"] for one in told["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_which_classes_have_outlines():
    assert outlines.outlined(("ground", "house")) == (1,)
    assert outlines.outlined(("water", "land", "road")) == (0, 1, 2)
    assert outlines.outlined(("house", "background")) == (0,)
    assert outlines.outlined(CLASSES, without="road") == (0, 1, 2)
    assert outlines.outlined(CLASSES, without=()) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match="no class 'roof'; there are: background"):
        outlines.outlined(CLASSES, without=("roof",))


def test_a_world_file_gives_map_coordinates(tmp_path):
    picture = tmp_path / "map.png"
    Image.new("RGB", (57, 40)).save(picture)
    # The centre of the first pixel, half a unit a pixel, y down.
    (tmp_path / "map.pgw").write_text("0.5\n0\n0\n-0.5\n1000.25\n1999.75\n")
    labels = drawn_labels(0)
    found = outlines.geojson(labels, CLASSES, (1, 2, 3), picture)
    assert found["coordinates"] == "map"

    def back(points):
        return (points - (1000, 2000)) * (2, -2)

    assert np.array_equal(rasterised(found["features"], labels.shape, back), labels)
    ring = np.array(found["features"][0]["geometry"]["coordinates"][0])
    assert outlines.area(ring) > 0  # counter-clockwise on the map, too


def test_a_geotiff_gives_map_coordinates(tmp_path):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[33550], tags.tagtype[33550] = (0.5, 0.5, 0.0), 12
    tags[33922], tags.tagtype[33922] = (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0), 12
    tags[34735], tags.tagtype[34735] = (1, 1, 0, 1, 3072, 0, 1, 32645), 3
    picture = tmp_path / "map.tif"
    Image.new("RGB", (57, 40)).save(picture, tiffinfo=tags)
    place, system = outlines.placed(picture)
    assert place.tolist() == [[0.5, 0, 1000], [0, -0.5, 2000]] and system == 32645
    found = outlines.geojson(drawn_labels(0), CLASSES, (1,), picture)
    assert found["crs"]["properties"]["name"].endswith("EPSG::32645")
    Image.new("RGB", (5, 4)).save(tmp_path / "plain.tif")
    assert outlines.placed(tmp_path / "plain.tif") == (None, None)


# Export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network that was trained a little, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGBOOK_PROFILE", "smoke")
        sets = sets_of("landcover")
        net = own.network(sets, "deeplab", "none")
        own.train(net, sets, steps=6, batch=4, crop=(65, 65), say=lambda _: None)
        folder = tmp_path_factory.mktemp("own network")
        manifest = own.export(net, sets, folder, title="Land")
        return net, sets, folder, manifest


def test_a_manifest_is_what_the_page_reads(exported):
    net, sets, folder, manifest = exported
    shipped = live.read_manifest(live.find("deeplab"))
    assert set(shipped) <= set(manifest)
    for key, value in shipped.items():
        assert type(manifest[key]) in (type(value), int, float, tuple), key
    assert json.loads((folder / "network.json").read_text()) == json.loads(
        json.dumps(manifest)
    )
    assert manifest["graph"] == live.identity(folder / "network.onnx")
    assert manifest["weights"] == live.identity(folder / "network.safetensors")
    assert manifest["frame"] == [33, 33] and len(manifest["samples"]) == 3
    assert [c["name"] for c in manifest["classes"]] == list(sets.train.classes)
    kept = {"network.json", "network.onnx", "network.safetensors"}
    assert {file.name for file in folder.iterdir()} == kept


def test_an_export_can_keep_the_images_out(exported, tmp_path):
    net, sets, *_ = exported
    manifest = own.export(net, sets, tmp_path, samples=0)
    assert manifest["samples"] == [] and manifest["picture"] is None
    assert "data:image" not in (tmp_path / "network.json").read_text(encoding="utf-8")


def test_fifteen_lines_of_onnxruntime_give_pytorch_s_labels(exported, tmp_path):
    net, sets, folder, manifest = exported
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    pixels = sets.test.images[0, :, :33, :33]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photo)
    text = own.lines(folder, photo.as_posix(), mask.as_posix())
    assert len([line for line in text.splitlines() if line]) <= 15
    opening = f'Image.open("{photo.as_posix()}").convert("RGB").resize((width, height))'
    assert f"photo = {opening}" in text.splitlines()
    assert manifest["levels"] is None and own.read(folder).levels is None
    program = text + "import sys\nassert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program], check=True)
    again = own.read(folder)
    assert again.built == net.built and not again.training
    expected = predict.probabilities(again, pixels).argmax(0).numpy()
    with Image.open(mask) as found:
        assert (np.array(found) == expected).mean() >= 0.999
    near = predict.probabilities(net, pixels).argmax(0).numpy()
    assert (near == expected).mean() > 0.98  # weights are rounded to 16 bits


def test_lines_keep_to_the_threshold(exported, tmp_path):
    told = exported[3] | {"output": "sigmoid", "threshold": 0.3}
    (tmp_path / "network.json").write_text(json.dumps(told))
    text = own.lines(tmp_path)
    assert len([line for line in text.splitlines() if line]) <= 16
    program = "\n".join(x for x in text.splitlines() if x.startswith("labels = "))
    logits = torch.randn(1, 2, 8, 9)
    names = {"np": np, "logits": logits.numpy(), "told": told}
    exec(program, names)
    expected = predict.labels_of(logits[0].softmax(0), 0.3)
    assert np.array_equal(names["labels"], expected)


@pytest.mark.check
@pytest.mark.parametrize("kind", own_network.KINDS)
@pytest.mark.parametrize("name", ["landcover", "membranes"])
def test_every_kind_is_exported(kind, name, tmp_path):
    sets = sets_of(name, 97)
    net = network(sets, kind)
    manifest = own.export(net, sets, tmp_path)
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    height, width = manifest["frame"]
    pixels = sets.test.images[0, :, :height, :width]
    Image.fromarray(live.as_picture(pixels)).save(photo)
    text = own.lines(tmp_path, photo.as_posix(), mask.as_posix())
    subprocess.run([sys.executable, "-c", text], check=True)
    expected = predict.probabilities(own.read(tmp_path), pixels).argmax(0).numpy()
    with Image.open(mask) as found:
        assert (np.array(found) == expected).mean() >= 0.999


def test_damaged_and_missing_networks_are_named(exported, tmp_path):
    with pytest.raises(ValueError, match="holds no exported network"):
        own.read(tmp_path)
    folder = exported[2]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="network.safetensors is not the file of its"):
        own.read(tmp_path)
    with pytest.raises(ValueError, match="a threshold is for two classes, not 5"):
        own.export(*exported[:2], tmp_path, threshold=0.4)


# The command


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """As if `data.folder` had read two folders; gives what it was asked for."""
    asked = []

    def read(*folders, **how):
        asked.append((folders, how))
        sets = sets_of("buildings")
        sets.report = "22 images of two classes"
        return sets

    monkeypatch.setattr(data, "folder", read, raising=False)
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "masks"):
        (tmp_path / name).mkdir()
    return asked


SHORT = "--steps", "2", "--network", "ternausnet", "--start", "none"


def test_the_command_does_all_of_it(folder, tmp_path, capsys):
    names = ["photos", "masks", "--classes", "ground=0, house=#3C1098", *SHORT]
    names += ["--flip", "hv", "--rotate", "180"]
    assert own.main(names) == 0
    said = capsys.readouterr().out
    for part in (
        "22 images of two classes", "2 steps of 2 crops", "On the test images:",
        "Threshold of building, from val", "All is in own: ",
    ):  # fmt: skip
        assert part in said
    asked = {"ground": 0, "house": "#3C1098"}
    ((folders, how),) = folder
    assert folders == ("photos", "masks") and how.pop("classes") == asked
    assert how == dict.fromkeys(("groups", "tile", "size", "ignore"))
    found = {
        f.relative_to(tmp_path / "own").as_posix()
        for f in (tmp_path / "own").rglob("*") if f.is_file()
    }  # fmt: skip
    masks = {f"test/masks/{name}.png" for name in sets_of("buildings").test.names}
    assert found == masks | {
        "plan.json", "training.pt", "scores.txt", "test/coco.json",
        "network/network.json", "network/network.onnx", "network/network.safetensors",
    }  # fmt: skip
    assert (tmp_path / "own/scores.txt").read_text().strip() in said
    kept = json.loads((tmp_path / "own/network/network.json").read_text())["threshold"]
    assert f"Threshold of building, from val: {kept:.3f}." in said
    plan = json.loads((tmp_path / "own/plan.json").read_text())["plan"]
    assert (plan["flip"], plan["rotate"]) == ("hv", 180.0)
    assert list((tmp_path / "photos").iterdir()) == []
    assert own.main(names) == 1
    assert "own holds a training: --resume goes on with it" in capsys.readouterr().err


def test_the_command_predicts_whole_images_of_tiles(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "export", lambda *_, **how: None)
    Image.fromarray(noise(80, 90).permute(1, 2, 0).numpy()).save("photos/a.png")
    Image.new("RGB", (40, 40)).save("photos/b.png")
    sets = sets_of("buildings")
    tiles = tuple(f"a.png@0,{k}" for k in range(len(sets.test)))
    sets = replace(sets, test=replace(sets.test, names=tiles))
    sets.report = ""
    monkeypatch.setattr(data, "folder", lambda *_, **how: sets)
    assert own.main(["photos", "--tile", "64", *SHORT]) == 0
    masks = list((tmp_path / "own/test/masks").iterdir())
    assert [mask.name for mask in masks] == ["a.png"]
    with Image.open(masks[0]) as mask:
        assert mask.size == (90, 80)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", [(), ("--tile", "64")])
def test_the_command_scales_deep_pictures_as_it_learnt_them(tmp_path, given, how):
    images, masks = laid_out(tmp_path, sixteen_bits)
    sets, out = data.folder(images, masks), tmp_path / "own"
    named = str(images), str(masks), "--out", str(out)
    assert own.main([*named, *SHORT, *how]) == 0
    (name,) = {name.partition("@")[0] for name in sets.test.names}
    assert [one.stem for one in (out / "test/masks").iterdir()] == [name[:-4]]
    assert [image.numpy().tobytes() for image in given] == [
        by_name(sets)[name].numpy().tobytes()
    ]
    told = json.loads((out / "network/network.json").read_text())
    assert tuple(told["levels"]) == sets.levels


def test_the_command_resumes(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own, "export", lambda *_, **how: None)
    names = ["photos", "masks", "--out", "o", *SHORT]
    assert own.main(names) == 0 and own.main([*names, "--resume"]) == 0
    assert "o holds this training, 2 steps" in capsys.readouterr().out


def test_the_command_names_what_is_wrong(folder, monkeypatch, capsys):
    def broken(*folders, **how):
        raise data.DataError("photos/a.png has no mask: add masks/a.png")

    for out in ("photos", "photos/own", "masks/own"):
        assert own.main(["photos", "masks", "--out", out]) == 1
        assert f"--out {out} lies in" in capsys.readouterr().err
    monkeypatch.setattr(data, "folder", broken)
    assert own.main(["photos", "masks"]) == 1
    assert capsys.readouterr().err == "photos/a.png has no mask: add masks/a.png\n"
    with pytest.raises(SystemExit):
        own.main([])
    assert "IMAGES" in capsys.readouterr().err


def test_classes_of_the_command_line():
    assert own.chosen_classes("classes.json") == "classes.json"
    assert own.chosen_classes("a=b=1,c=#00FF00") == {"a=b": 1, "c": "#00FF00"}
    assert own.chosen_classes("sky, house") == ["sky", "house"]
    told = own.arguments_of(["a", "--ignore", "#000000,7", "--groups", "5"])
    assert (told.ignore, told.groups) == (["#000000", 7], 5)
