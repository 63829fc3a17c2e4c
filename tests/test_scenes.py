"""The recipe for street scenes: batches, loss, learning rates, predictions, scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from utils import chapters, encoders, metrics, runtime, scenes
from utils.data import Dataset

VOID = 3
CLASSES = ("sky", "road", "car")
GREY = torch.tensor([40, 120, 200, 255], dtype=torch.uint8)  # of each class and of void
SIZE = (33, 49)
RECIPE = scenes.Recipe(batch=5, steps=4, every=2, scale=(1, 1), brightness=0.0)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    torch.manual_seed(0)


def street(frames=4, void=True):
    """Frames of eleven by seven patches, whose grey value tells the class."""
    labels = torch.randint(4 if void else 3, (frames, 1, 11, 7)).float()
    labels = F.interpolate(labels, SIZE)[:, 0].to(torch.uint8)
    images = GREY[labels.long()][:, None].expand(-1, 3, -1, -1).contiguous()
    return Dataset(
        "street", "train", images, labels, CLASSES, ((0, 0, 0),) * 3, VOID, "", "",
        "sample",
    )  # fmt: skip


class Bare(nn.Module):
    """As an encoder, it only normalises: from [0, 1] to [-1, 1]."""

    def normalise(self, images):
        return 2 * images - 1


class Fake(nn.Module):
    """A network that is one function; it notes the shapes that it is given."""

    def __init__(self, function):
        super().__init__()
        self.encoder, self.function, self.shapes = Bare(), function, []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return self.function(images)


class Tiny(nn.Module):
    """A network that learns the class of a grey value."""

    def __init__(self, width=16):
        super().__init__()
        self.encoder = Bare()
        self.encoder.layer = nn.Conv2d(3, width, 1)
        self.new = nn.Conv2d(width, 3, 1)

    def forward(self, images):
        return self.new(self.encoder.layer(images).relu())


def perfect(images):
    """Logits of the class whose grey value is the nearest."""
    known = (2 * (GREY[:3] / 255) - 1).view(1, 3, 1, 1)
    return -100 * (images[:, :1] - known).abs()


def constant(images):
    """The same logits everywhere."""
    return torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1).expand_as(images)


def split(images):
    """Sky on the left, car on the right, whatever the image."""
    columns = torch.linspace(-2, 2, images.shape[3]).expand_as(images[:, 0])
    return torch.stack([-columns, 0 * columns, columns], 1)


# Loss


def test_class_weights_by_hand():
    labels = torch.tensor([[[0, 0, 0, VOID], [1, VOID, VOID, VOID]]], dtype=torch.uint8)
    expected = [1 / math.log(1.1 + f) for f in (0.75, 0.25, 0)]
    assert scenes.class_weights(labels, 3, VOID).tolist() == pytest.approx(expected)


def test_less_softening_tells_rare_classes_further_apart():
    labels = torch.tensor([[0] * 199 + [1]], dtype=torch.uint8)
    ours = scenes.class_weights(labels, 2, VOID)
    enet = scenes.class_weights(labels, 2, VOID, softening=1.02)
    assert enet[1] / enet[0] > 3 * ours[1] / ours[0]
    assert enet[1].item() == pytest.approx(1 / math.log(1.02 + 0.005))


def test_the_loss_is_a_weighted_mean_over_the_counted_pixels():
    dataset = street()
    logits, labels = torch.randn(4, 3, *SIZE), dataset.labels.long()
    weights = scenes.class_weights(labels, 3, VOID)
    total = share = 0.0
    for k in range(3):
        here = labels == k
        total -= weights[k] * logits.log_softmax(1)[:, k][here].sum()
        share += weights[k] * here.sum()
    found = scenes.scene_loss(dataset, aux=0.4)(logits, labels)
    assert found.item() == pytest.approx((total / share).item(), rel=1e-5)


def test_the_auxiliary_loss_is_added_with_its_weight():
    dataset = street()
    labels = dataset.labels.long()
    main, extra = torch.randn(2, 4, 3, *SIZE)
    loss = scenes.scene_loss(dataset, aux=0.25)
    expected = loss(main, labels) + 0.25 * loss(extra, labels)
    assert torch.allclose(loss((main, extra), labels), expected)
    assert torch.equal(scenes.scene_loss(dataset, 0.0)((main, extra), labels),
                       loss(main, labels))  # fmt: skip


def test_void_has_no_gradient():
    dataset = street()
    logits = torch.randn(4, 3, *SIZE, requires_grad=True)
    scenes.scene_loss(dataset, 0.4)(logits, dataset.labels.long()).backward()
    assert torch.equal(logits.grad.abs().sum(1) > 0, dataset.labels != VOID)


# Learning rates


@pytest.mark.parametrize("frozen", [0, 2])
@pytest.mark.parametrize(
    "chapter, name", [("pspnet", "PSPNet"), ("deeplab", "DeepLabV3Plus")]
)
def test_every_parameter_that_learns_is_in_one_group(chapter, name, frozen):
    network = getattr(chapters.load(chapter), name)
    encoder = encoders.build("lite0", output_stride=16)
    encoder.blocks[:frozen].requires_grad_(False)
    model = network(3, encoder, width=8)
    recipe = replace(RECIPE, rate=0.01, faster=5.0, decay=0.3)
    optimizer = scenes.optimizer(model, recipe)

    of = {}  # id of a parameter -> the learning rates that it has
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.3
        for parameter in group["params"]:
            of.setdefault(id(parameter), []).append(group["lr"])
    for key, parameter in model.named_parameters():
        rate = 0.01 if key.startswith("encoder.") else 0.05
        expected = [pytest.approx(rate)] if parameter.requires_grad else None
        assert of.get(id(parameter)) == expected, key
    still = [key for key, p in model.named_parameters() if not p.requires_grad]
    assert bool(still) == bool(frozen)


# Batches


def draw(dataset, seed=0, **changes):
    sample = scenes.batches(dataset, Bare(), replace(RECIPE, **changes))
    return sample(torch.Generator().manual_seed(seed))


def test_batches_are_normalised_frames_or_their_mirror_images():
    dataset = street()
    images, labels = draw(dataset, batch=40)
    assert images.shape == (40, 3, *SIZE) and labels.shape == (40, *SIZE)
    assert labels.dtype == torch.int64
    frames = 2 * dataset.images.float() / 255 - 1
    both = torch.cat([frames, frames.flip(3)])
    both_labels = torch.cat([dataset.labels, dataset.labels.flip(2)])
    which = torch.cdist(images.flatten(1), both.flatten(1)).argmin(1)
    assert torch.allclose(images, both[which], atol=1e-3)
    assert torch.equal(labels, both_labels[which].long())
    assert set(which.tolist()) == set(range(8))


@pytest.mark.parametrize("zoom", [0.5, 1, 2])
def test_a_zoomed_frame_keeps_its_labels_and_fills_the_view(zoom):
    images, labels = draw(street(void=False), batch=20, scale=(zoom, zoom))
    assert labels.min() >= 0 and labels.max() < VOID  # mirrored where the frame ends
    grey = 2 * (GREY[labels] / 255) - 1
    assert ((images[:, 0] - grey).abs() < 0.02).float().mean() > 0.7  # mixed at borders


def test_a_crop_is_a_window_of_a_frame():
    dataset = street()
    images, labels = draw(dataset, crop=(33, 40))
    assert images.shape[-2:] == labels.shape[-2:] == (33, 40)
    frames = torch.cat([dataset.labels, dataset.labels.flip(2)])
    windows = frames.unfold(1, 33, 1).unfold(2, 40, 1)  # (frames, y, x, 33, 40)
    for crop in labels:
        assert (windows == crop).all((3, 4)).any()


def test_light_changes_the_image_and_not_the_labels():
    dataset = street()
    plain, labels = draw(dataset)
    changed, same = draw(dataset, brightness=0.2)
    assert torch.equal(labels, same)
    assert ((plain - changed).abs().mean((1, 2, 3)) > 1e-3).all()
    assert changed.min() >= -1 and changed.max() <= 1


def test_same_generator_same_batch():
    dataset = street()
    for one, other in zip(draw(dataset, scale=(0.7, 2)), draw(dataset, scale=(0.7, 2))):
        assert torch.equal(one, other)
    assert not torch.equal(draw(dataset)[1], draw(dataset, seed=1)[1])


# Predictions


def test_predictions_are_probabilities():
    network = nn.Conv2d(3, 3, 3, padding=1)
    images = street().images
    for options in ({}, dict(scales=(0.5, 1.0, 1.5), flip=True)):
        found = scenes.predict(Fake(network), images, **options)
        assert found.shape == (4, 3, *SIZE) and found.device.type == "cpu"
        assert found.min() >= 0
        assert torch.allclose(found.sum(1), torch.ones(4, *SIZE), atol=1e-5)
    with torch.inference_mode():
        expected = network(2 * images.float() / 255 - 1).softmax(1)
    assert torch.allclose(scenes.predict(Fake(network), images), expected, atol=1e-5)


def test_scales_and_mirror_images_leave_a_constant_as_it_is():
    images = street().images
    single = scenes.predict(Fake(constant), images)
    multi = scenes.predict(Fake(constant), images, (0.5, 1.0, 1.75), flip=True)
    assert torch.allclose(single, multi, atol=1e-5)


def test_mirror_images_are_mirrored_back():
    images = street().images
    single = scenes.predict(Fake(perfect), images)
    assert torch.allclose(scenes.predict(Fake(perfect), images, flip=True), single)

    single = scenes.predict(Fake(split), images)
    both = scenes.predict(Fake(split), images, flip=True)
    assert not torch.allclose(single, single.flip(3), atol=0.1)
    assert torch.allclose(both, (single + single.flip(3)) / 2, atol=1e-5)


def test_probabilities_are_averaged_over_the_scales():
    def by_size(images):
        chance = [0.8, 0.1, 0.1] if images.shape[2] == SIZE[0] else [0.4, 0.5, 0.1]
        return torch.tensor(chance).log().view(1, 3, 1, 1).expand_as(images)

    found = scenes.predict(Fake(by_size), street().images, scales=(1.0, 2.0))
    expected = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1).expand_as(found)
    assert torch.allclose(found, expected, atol=1e-5)


def test_sizes_of_the_scaled_images():
    model = Fake(constant)
    images = torch.zeros(1, 3, 65, 97, dtype=torch.uint8)
    scenes.predict(model, images, scales=(0.5, 1.0, 1.5), flip=True)
    sizes = [shape[2:] for shape in model.shapes]
    assert sizes == 2 * [(33, 49)] + 2 * [(65, 97)] + 2 * [(97, 145)]

    model = Fake(constant)
    scenes.predict(model, images[..., :60, :80], scales=(0.75, 1.0, 1.3))
    small, same, large = (shape[2:] for shape in model.shapes)
    assert same == (60, 80)
    assert all(side % 16 == 1 for side in (*small, *large))


def test_predictions_do_not_depend_on_the_batches():
    images, model = street(frames=5).images, Fake(perfect)
    expected = scenes.predict(model, images)
    model.shapes.clear()
    assert torch.equal(scenes.predict(model, images, batch=2), expected)
    assert [shape[0] for shape in model.shapes] == [2, 2, 1]


@pytest.mark.parametrize("ways", [{}, dict(scales=(0.75, 1.0, 1.5), flip=True)])
def test_labels_are_the_most_probable_classes(ways):
    images, model = street(frames=5).images, Fake(split)
    expected = scenes.predict(model, images, **ways).argmax(1)
    found = scenes.predict_labels(model, images, batch=2, **ways)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)


def test_logits_are_resized_to_the_labels_before_the_choice():
    images = street().images
    found = scenes.predict_labels(Fake(split), images, size=(60, 80))
    assert found.shape == (4, 60, 80)
    logits = scenes.resize(split(images), (60, 80))
    assert torch.equal(found.long(), logits.argmax(1))


def test_scores_are_taken_at_the_size_of_the_labels():
    """As with frames of 353 x 481 and labels of 360 x 480."""
    dataset = street(void=False)
    labels = dataset.labels.repeat_interleave(3, 1).repeat_interleave(3, 2)
    large = replace(dataset, labels=labels)
    found = scenes.score(Fake(perfect), large)
    up = scenes.resize(perfect(2 * (dataset.images / 255) - 1), labels.shape[-2:])
    assert found == metrics.mean_iou(scenes.confusion(up.argmax(1), large))
    assert 0.5 < found < 1


def test_what_a_recorded_run_keeps():
    test = replace(street(), names=("A_1.png", "A_2.png", "B_1.png", "B_2.png"))
    sets = {"train": test, "val": street(void=False), "test": test}
    spoilt = test.images.clone()
    spoilt[2:] = 255 - spoilt[2:]  # the second drive is seen wrongly
    sets["test"] = replace(test, images=spoilt)
    found = scenes.scores_of(Fake(perfect), sets)
    numbers = found.numbers
    assert numbers["val, one pass"] == numbers["test, one pass, A"] == 1
    assert numbers["test, one pass, B"] < 0.5
    tables = torch.tensor(found.details["tables"]["one pass"])
    assert tables.shape == (4, 3, 3)
    assert numbers["test, one pass"] == metrics.mean_iou(tables.sum(0))
    assert metrics.mean_iou(tables[:2].sum(0)) == 1
    assert tables.sum((1, 2)).tolist() == (test.labels != VOID).sum((1, 2)).tolist()
    assert found.details["frames"] == list(test.names)
    assert set(numbers) == {
        "val, one pass", "test, one pass", "test, scales and mirror images",
        "test, one pass, A", "test, one pass, B",
    }  # fmt: skip

    # and what a page reads from it
    totals, drives, frames = scenes.by_drive(found)
    assert drives.tolist() == ["A", "A", "B", "B"]
    assert torch.equal(frames, tables)
    assert list(totals) == [*found.details["tables"], "one pass, A", "one pass, B"]
    for name, total in totals.items():
        assert metrics.mean_iou(total) == numbers[f"test, {name}"]


def test_the_best_and_the_worst_frame_of_each_drive():
    drives = np.array(["B", "A", "A", "B", "A"])
    picked = scenes.best_and_worst([0.9, 0.5, 0.7, 0.1, 0.6], drives)
    assert picked == [2, 1, 0, 3]


# Scores


def test_score_of_a_perfect_network_is_one():
    """Void is not scored, whatever the network says there."""
    assert scenes.score(Fake(perfect), street()) == 1


def test_score_of_a_network_that_knows_one_class():
    dataset = street()
    always_sky = Fake(lambda images: torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
                      .expand_as(images))  # fmt: skip
    counted = dataset.labels[dataset.labels != VOID]
    share = (counted == 0).float().mean().item()
    assert scenes.score(always_sky, dataset) == pytest.approx(share / 3)


def test_scores_of_frames():
    dataset = street()
    prediction = dataset.labels.long().clamp(max=2)
    prediction[1] = 0
    first, second, *rest = scenes.score_of_frames(prediction, dataset)
    assert [first, *rest] == [1, 1, 1]
    share = (dataset.labels[1] == 0).sum() / (dataset.labels[1] != VOID).sum()
    assert second == pytest.approx(share.item() / 3)


def test_table_of_scores():
    table = torch.tensor([[3, 1], [0, 4]])
    tables = {"one pass": table, "turned": table.T}
    assert scenes.as_table(tables, ("sky", "road")).splitlines() == [
        "|  | one pass | turned |",
        "| --- | --- | --- |",
        "| sky | 0.75 | 0.75 |",
        "| road | 0.80 | 0.80 |",
        "| **mean** | **0.775** | **0.775** |",
    ]


# Training


def test_it_trains_and_is_read_back(tmp_path):
    dataset = street()
    recipe = replace(RECIPE, steps=80, every=40, rate=0.02)
    model, path = Tiny(), tmp_path / "run.pt"
    history = scenes.train(model, recipe, dataset, dataset, path)
    assert [step for step, _ in history.scores] == [40, 80]
    assert history.best[1] > 0.9
    assert not model.training
    assert scenes.score(model, dataset) == pytest.approx(history.best[1])

    again = Tiny()
    assert scenes.train(again, recipe, dataset, dataset, path).losses == history.losses
    assert scenes.score(again, dataset) == pytest.approx(history.best[1])


def helper():
    return 1


def another():
    return 2


def altered(dataset, what):
    """The data set with one value changed."""
    changed = getattr(dataset, what).clone()
    changed.view(-1)[0] ^= 1
    return replace(dataset, **{what: changed})


def test_a_checkpoint_s_file_changes_with_all_that_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGBOOK_RUNS", str(tmp_path))
    train_set, val_set, model = street(), street(), Tiny()

    def path(name="main", model=model, recipe=RECIPE, sets=(train_set, val_set),
             code=(helper,)):  # fmt: skip
        return scenes.checkpoint("pspnet", name, model, recipe, *sets, *code)

    first = path()
    assert first.parent == tmp_path / "pspnet" and first.name.startswith("main-")
    assert path(model=Tiny()) == first  # the weights are not yet learnt
    others = {
        path(name="other"),
        path(model=Tiny(width=8)),
        path(recipe=replace(RECIPE, seed=1)),
        path(recipe=replace(RECIPE, rate=1e-4)),
        path(sets=(altered(train_set, "images"), val_set)),
        path(sets=(altered(train_set, "labels"), val_set)),
        path(sets=(train_set, altered(val_set, "images"))),
        path(sets=(train_set, altered(val_set, "labels"))),
        path(code=(another,)),
        path(code=(helper, Fake)),
    }
    assert len(others) == 10 and first not in others


# Boundaries


def test_a_band_around_a_boundary():
    labels = torch.zeros(1, 5, 9, dtype=torch.uint8)
    labels[..., 4:] = 2
    for width in (1, 2, 3):
        inside = [4 - width <= column < 4 + width for column in range(9)]
        expected = torch.tensor(inside).expand(1, 5, 9)
        assert torch.equal(scenes.band(labels, width), expected)


def test_no_boundary_no_band():
    assert not scenes.band(torch.full((2, 6, 7), 3), 4).any()


def test_a_score_counts_the_kept_pixels_and_the_classes_there():
    """Predicted classes without a true pixel cost nothing but the pixels they take."""
    dataset = street(void=False)
    kept = torch.zeros_like(dataset.labels, dtype=torch.bool)
    kept[:, :4] = True
    wrong = torch.where(kept, dataset.labels, (dataset.labels + 1) % 3)
    assert scenes.score_where(wrong, dataset, kept) == 1
    assert scenes.score_where(wrong, dataset, ~kept) == 0

    only = dataset.labels == 0
    guess = torch.zeros_like(dataset.labels)
    guess[0][only[0]] = 1  # one frame of four names a class that is not there
    share = only[1:].sum() / only.sum()
    found = scenes.score_where(guess, dataset, only)
    assert found == pytest.approx(share.item(), abs=1e-6)
