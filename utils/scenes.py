"""Street scenes: how every chapter on scene parsing trains and scores its network.

One recipe for all of them, so that their scores can be compared. A network here is a
module with an `encoder`; it maps normalised images (B, 3, H, W) to logits
(B, K, H, W), in training also to a pair (logits, auxiliary logits).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from utils import metrics, runs, runtime, training
from utils.data import camvid
from utils.data.augment import Augment


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on street scenes."""

    batch: int
    steps: int
    every: int  # steps from one validation to the next
    crop: tuple[int, int] | None = None  # height and width; None: whole frames
    rate: float = 1e-3  # of learning, in the encoder
    faster: float = 4.0  # times that for the layers that were not pre-trained
    decay: float = 1e-2  # of the weights
    softening: float = 1.1  # of the class weights; ENet takes 1.02
    aux: float = 0.4  # weight of the auxiliary loss
    scale: tuple[float, float] = (0.75, 1.75)
    brightness: float = 0.2
    seed: int = 0


def train(model, recipe, train_set, val_set, checkpoint=None):
    """Trains a network; returns its `History`, scored by mean IoU on `val_set`."""
    model.to(runtime.device())
    return training.fit(
        model,
        batches(train_set, model.encoder, recipe),
        scene_loss(train_set, recipe.aux, recipe.softening),
        optimizer(model, recipe),
        recipe.steps,
        evaluate=lambda model: score(model, val_set),
        every=recipe.every,
        warmup=min(50, recipe.steps // 10),
        seed=recipe.seed,
        checkpoint=checkpoint,
    )


def sets_at(size):
    """The arguments of `data.load` for a recorded run on frames of this size (height,
    width): validation and test keep the labels as they are in the files."""
    return {
        "train": dict(name="camvid", split="train", size=size),
        "val": dict(name="camvid", split="val", size=size, keep_labels=True),
        "test": dict(name="camvid", split="test", size=size, keep_labels=True),
    }


def train_on(model, recipe, sets, checkpoint):
    """`train`, as `utils.runs` calls it."""
    return train(model, recipe, sets["train"], sets["val"], checkpoint)


SCALES = (0.75, 1.0, 1.25, 1.5)


def scores_of(model, sets):
    """What a recorded run keeps: mean IoU on validation and test frames, each drive of
    the test apart, and the confusion matrix of each test frame."""
    test, size = sets["test"], sets["test"].labels.shape[-2:]
    ways = {
        "one pass": {},
        "scales and mirror images": dict(scales=SCALES, flip=True),
    }
    tables = {
        way: [
            metrics.confusion_matrix(guess, truth, len(test.classes), test.ignore)
            for guess, truth in zip(
                predict_labels(model, test.images, size, **how), test.labels
            )
        ]
        for way, how in ways.items()
    }
    numbers = {"val, one pass": score(model, sets["val"])}
    for way, found in tables.items():
        numbers[f"test, {way}"] = metrics.mean_iou(sum(found))
    drives = [camvid.drive(name) for name in test.names]
    for drive in sorted(set(drives)):
        own = [t for t, of in zip(tables["one pass"], drives) if of == drive]
        numbers[f"test, one pass, {drive}"] = metrics.mean_iou(sum(own))
    kept = {way: [table.tolist() for table in found] for way, found in tables.items()}
    return runs.Scores(numbers, {"frames": list(test.names), "tables": kept})


def checkpoint(chapter, name, model, recipe, train_set, val_set, *code):
    """The file of a run. The network counts with its layers, and with `code`, its
    classes and functions; the recipe with the code in this file."""
    ours = train, batches, scene_loss, class_weights, optimizer, score, predict, Augment
    sets = train_set.images, train_set.labels, val_set.images, val_set.labels
    return runs.path(chapter, name, repr(model), recipe, *code, *ours, *sets)


def batches(dataset, encoder, recipe):
    """A function that draws (images (B, 3, H, W), labels (B, H, W)) by a generator."""
    device = runtime.device()
    images, labels = dataset.images.to(device), dataset.labels.to(device)
    augment = Augment(
        recipe.crop or tuple(images.shape[-2:]),
        flip="h",
        scale=recipe.scale,
        brightness=recipe.brightness,
        contrast=recipe.brightness,
    )

    def sample(generator):
        i = torch.randint(len(images), (recipe.batch,), generator=generator).to(device)
        pixels, targets = augment(images[i], labels[i], generator=generator)
        return encoder.normalise(pixels), targets

    return sample


def class_weights(labels, classes, ignore, softening=1.1):
    """1 / log(softening + frequency) of each class (classes,): rare ones count more.

    The form is ENet's (Paszke et al., arXiv 1606.02147, section 4.2), whose constant is
    1.02; with this book's 1.1 the weights differ less from class to class.
    """
    counted = labels[labels != ignore].long()
    frequency = torch.bincount(counted, minlength=classes) / len(counted)
    return 1 / torch.log(softening + frequency)


def scene_loss(dataset, aux, softening=1.1):
    """Weighted cross-entropy (output, labels) -> scalar, the ignore label left out.

    An output (logits, auxiliary logits) adds `aux` times the loss of the second.
    """
    weights = class_weights(
        dataset.labels, len(dataset.classes), dataset.ignore, softening
    )
    weights = weights.to(runtime.device())

    def cross_entropy(logits, labels):
        return F.cross_entropy(
            logits.float(), labels, weights, ignore_index=dataset.ignore
        )

    def loss(output, labels):
        if isinstance(output, tuple):
            logits, auxiliary = output
            main = cross_entropy(logits, labels)
            return main + aux * cross_entropy(auxiliary, labels)
        return cross_entropy(output, labels)

    return loss


def optimizer(model, recipe):
    """AdamW with two learning rates: new layers learn faster than the encoder, and
    frozen ones not at all."""
    inside = {id(p) for p in model.encoder.parameters()}
    learnt = [p for p in model.parameters() if p.requires_grad]
    old = [p for p in learnt if id(p) in inside]
    new = [p for p in learnt if id(p) not in inside]
    groups = [
        {"params": old, "lr": recipe.rate},
        {"params": new, "lr": recipe.rate * recipe.faster},
    ]
    return torch.optim.AdamW(groups, weight_decay=recipe.decay)


def predict(model, images, scales=(1.0,), flip=False, batch=8):
    """Probabilities (N, K, H, W) of images (N, 3, H, W) uint8, on the CPU.

    scales, flip: averaged over resized and mirrored images ("multi-scale testing").
    """
    size = images.shape[-2:]
    return torch.cat(list(probabilities(model, images, size, scales, flip, batch)))


def predict_labels(model, images, size=None, scales=(1.0,), flip=False, batch=8):
    """Most probable class (N, H, W) uint8 of images (N, 3, h, w) uint8, on the CPU.

    size: H and W, by default the images'; the logits are resized to it. scales, flip:
    as in `predict`. Of the probabilities only a batch is held at a time.
    """
    size = size or images.shape[-2:]
    parts = probabilities(model, images, size, scales, flip, batch)
    return torch.cat([part.argmax(1).to(torch.uint8) for part in parts])


@torch.inference_mode()
def probabilities(model, images, size, scales, flip, batch):
    """Yields the probabilities (B, K, *size) of one batch after the other."""
    sides = images.shape[-2:]
    for part in images.split(batch):
        pixels = model.encoder.normalise(part.to(runtime.device()).float() / 255)
        total = 0
        for scale in scales:
            # A multiple of 16 plus one stays one, as align_corners wants it.
            at = [16 * round(scale * (side - 1) / 16) + 1 for side in sides]
            view = pixels if scale == 1 else resize(pixels, at)
            for mirrored in (False, True)[: 1 + flip]:
                logits = model(view.flip(3) if mirrored else view).float()
                logits = logits.flip(3) if mirrored else logits
                total = total + resize(logits, size).softmax(1)
        yield (total / total.sum(1, keepdim=True)).cpu()


def resize(maps, size):
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=True)


def confusion(prediction, dataset):
    """Confusion matrix of labels (N, H, W) against those of a data set."""
    return metrics.confusion_matrix(
        prediction, dataset.labels, len(dataset.classes), dataset.ignore
    )


def score_of_frames(prediction, dataset):
    """Mean IoU of each frame over the classes that it holds or that were predicted."""
    classes = len(dataset.classes)
    tables = (
        metrics.confusion_matrix(guess, truth, classes, dataset.ignore)
        for guess, truth in zip(prediction, dataset.labels)
    )
    return [metrics.mean_iou(table) for table in tables]


def by_drive(record):
    """What a recorded run scored on the test frames, from its confusion matrices.

    Returns (totals, drives, frames): the sum of each way of testing and, in one pass,
    of each drive, by name, as `as_table` shows them; the drive of each frame; and each
    frame's own matrix in one pass (N, K, K).
    """
    tables = {w: torch.tensor(t) for w, t in record.details["tables"].items()}
    drives = np.array([camvid.drive(name) for name in record.details["frames"]])
    frames = tables["one pass"]
    totals = {way: of_frames.sum(0) for way, of_frames in tables.items()}
    for drive in np.unique(drives):
        totals[f"one pass, {drive}"] = frames[drives == drive].sum(0)
    return totals, drives, frames


def best_and_worst(values, drives):
    """Numbers of the frames with the highest and the lowest value of each drive."""
    values = np.asarray(values)
    picked = []
    for drive in np.unique(drives):
        own = np.flatnonzero(drives == drive)
        picked += [int(own[values[own].argmax()]), int(own[values[own].argmin()])]
    return picked


def as_table(tables, classes):
    """Confusion matrices by name as a Markdown table: IoU of each class, their mean."""
    columns = [["", "---", *classes, "**mean**"]]
    for name, table in tables.items():
        values = [f"{value:.2f}" for value in metrics.iou(table).tolist()]
        columns.append([name, "---", *values, f"**{metrics.mean_iou(table):.3f}**"])
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*columns))


def score(model, dataset):
    """Mean IoU over the classes of one forward pass for each image, at the size of the
    labels."""
    prediction = predict_labels(model, dataset.images, dataset.labels.shape[-2:])
    return metrics.mean_iou(confusion(prediction, dataset))


def band(labels, width):
    """Pixels (N, H, W) at most `width` away from a boundary of the labels."""
    maps, window = labels[:, None].float(), 2 * width + 1
    both = torch.cat([maps, -maps], 1)  # rows, then columns: quicker than squares
    for kernel, pad in (((window, 1), (width, 0)), ((1, window), (0, width))):
        both = F.max_pool2d(both, kernel, 1, pad)
    return both[:, 0] != -both[:, 1]


def score_where(prediction, dataset, kept):
    """Mean IoU over the pixels in `kept` (N, H, W), of the classes that occur there.

    Others would be undefined for a network that never names them, and zero for one
    that does.
    """
    labels = dataset.labels.where(kept, dataset.ignore)
    table = metrics.confusion_matrix(
        prediction, labels, len(dataset.classes), dataset.ignore
    )
    return metrics.iou(table)[table.sum(1) > 0].mean().item()
