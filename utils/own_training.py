"""Training on your images: a plan that fits the time, resume, early stopping, and what
more images would bring."""

import copy
import json
import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from utils import runtime, scenes, training
from utils.checkpoints import load_weights, replacing
from utils.data.augment import Augment
from utils.fingerprint import fingerprint
from utils.own_network import SETTINGS, network
from utils.own_scores import Curve, groups_of, marked, scores
from utils.predict import fitting

MOST = 10  # validations of a training
SHARE = 0.2  # of the time, at most, for validations


@dataclass(frozen=True)
class Plan(scenes.Recipe):
    """The recipe of a training: that of the street scenes, and when it may end early.

    flip: axes along which images may be mirrored; "hv" for what has no up, as from the
    air. rotate: by at most so many degrees. patience: validations without a better
    score, behind which training stops; None: never.
    """

    flip: str = "h"
    rotate: float = 0.0
    patience: int | None = 5
    clip: float = 1.0


def train(net, sets, minutes=10, steps=None, folder=None, say=print, **settings):
    """Trains a network on `sets.train`; returns its `History`, mean IoU on `sets.val`.

    minutes: as many steps as fit into them here, told by a few that are measured
    first; or `steps`. settings: of `Plan`, as batch=2, crop=(225, 225), flip="hv",
    patience=None. At the end the network has the weights that were best on val.

    folder: where the training is kept. Interrupted, it goes on from there when `train`
    is called again with the same; finished, it is read back. A training of something
    else there: ValueError; so is a set without images or labels.
    """
    check(sets)
    train_set, val_set = marked(sets.train), marked(sets.val)
    net.to(runtime.device())
    with kept(folder) as place:
        asked = fingerprint(
            repr(net), vars(net.built), minutes, steps, settings, runtime.device().type,
            *(x for one in (train_set, val_set) for x in (one.images, one.labels)),
        )  # fmt: skip
        plan = read_plan(place, asked)
        if plan is None:
            plan = made_plan(net, train_set, val_set, minutes, steps, settings, say)
            write_plan(place, asked, plan)
        else:
            say(f"{place} holds this training, {plan.steps:,} steps: it goes on there.")
        return fitted(net, train_set, val_set, plan, place / "training.pt", say)


def check(sets):
    for name in ("train", "val"):
        one = getattr(sets, name)
        if not len(one):
            raise ValueError(f"the set {name!r} has no images: hold out fewer or more")
        if one.ignore is not None and bool((one.labels == one.ignore).all()):
            raise ValueError(f"the set {name!r} has no pixel with a class: see masks")


@contextmanager
def kept(folder):
    """A folder for a training: the given one, or one that is gone afterwards."""
    if folder is not None:
        runtime.check_writable(Path(folder))
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


def read_plan(folder, asked):
    """The `Plan` in a folder, or None; ValueError for that of another training."""
    file = folder / "plan.json"
    if not file.is_file():
        return None
    told = json.loads(file.read_text(encoding="utf-8"))
    if told["asked"] != asked:
        raise ValueError(
            f"{folder} holds a training of other images, another network or other "
            "settings: give another folder, or remove this one"
        )
    plan = {k: tuple(v) if isinstance(v, list) else v for k, v in told["plan"].items()}
    return Plan(**plan)


def write_plan(folder, asked, plan):
    with replacing(folder / "plan.json") as file:
        file.write(json.dumps({"asked": asked, "plan": asdict(plan)}).encode())


def made_plan(net, train_set, val_set, minutes, steps, settings, say):
    """A `Plan` that takes as long as it may, and says how long that is."""
    sides = train_set.images.shape[-2:]
    largest = runtime.choose(gpu=353, cpu=225, smoke=65)
    plan = Plan(
        batch=runtime.choose(gpu=8, cpu=4, smoke=2),
        steps=1,
        every=0,
        crop=tuple(fitting(net, min(side, largest), down=True) for side in sides),
    )
    plan = replace(plan, **SETTINGS.get(net.built.kind, {}) | settings)
    step, validation = measured(net, train_set, val_set, plan)  # seconds
    count = MOST
    if steps is None:
        time_left = 60 * minutes
        count = max(2, min(MOST, int(SHARE * time_left / validation)))
        steps = max(2 * count, int((time_left - count * validation) / step))
    plan = replace(plan, steps=steps, every=plan.every or math.ceil(steps / count))
    seconds = steps * step + math.ceil(steps / plan.every) * validation
    height, width = plan.crop
    say(
        f"{steps:,} steps of {plan.batch} crops of {height} x {width} pixels: about "
        f"{duration(seconds)} on {runtime.device_name()}, where a step took "
        f"{step:.2g} seconds."
    )
    return plan


def measured(net, train_set, val_set, plan, steps=3):
    """The seconds of one step and of one validation here, measured on a copy.

    MemoryError, with what to do, where a step does not fit into the accelerator.
    """
    trial, few = copy.deepcopy(net), taken(val_set, torch.arange(min(2, len(val_set))))
    how = learning(trial, train_set, plan)
    try:
        for count in (1, steps):  # the first one also prepares what is prepared once
            start = time.perf_counter()
            training.fit(trial, **how, steps=count, progress=False)
            step = (time.perf_counter() - start) / count
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{plan.batch} crops of {plan.crop} pixels do not fit into the memory of "
            f"{runtime.device_name()}: train with a smaller batch= or crop="
        ) from error
    start = time.perf_counter()
    validated(trial, few)
    return step, (time.perf_counter() - start) / len(few) * len(val_set)


def learning(net, train_set, plan):
    """What `training.fit` takes of a network, a data set and a plan."""
    return {
        "sample": batches(train_set, net.encoder, plan),
        "loss": weighted_loss(train_set, plan.softening),
        "optimizer": scenes.optimizer(net, plan),
    }


def batches(dataset, encoder, plan):
    """A function that draws (images (B, C, h, w), labels (B, h, w)) by a generator.

    The images stay where they are, as there may be many; a batch goes to the device.
    An image is drawn as often as it has pixels that count: tiles may have few.
    """
    device = runtime.device()
    counted = (dataset.labels != dataset.ignore).flatten(1).sum(1).double()
    augment = Augment(
        plan.crop, plan.flip, plan.rotate, plan.scale,
        brightness=plan.brightness, contrast=plan.brightness,
    )  # fmt: skip

    def sample(generator):
        i = torch.multinomial(counted, plan.batch, True, generator=generator)
        batch = dataset.images[i].to(device), dataset.labels[i].to(device)
        pixels, targets = augment(*batch, generator=generator)
        return encoder.normalise(pixels), targets

    return sample


def weighted_loss(dataset, softening):
    """Cross-entropy (logits (B, K, h, w), labels (B, h, w)) -> scalar in which rare
    classes weigh more, as in `scenes`; but 0, and not nan, where no pixel counts."""
    count, ignore = len(dataset.classes), dataset.ignore
    weights = scenes.class_weights(dataset.labels, count, ignore, softening)
    weights = weights.to(runtime.device())

    def loss(logits, labels):
        total = F.cross_entropy(
            logits.float(), labels, weights, ignore_index=ignore, reduction="sum"
        )
        return total / weights[labels[labels != ignore]].sum().clamp(min=1e-6)

    return loss


def validated(net, val_set):
    """Mean IoU."""
    return scores(net, val_set, resamples=0).mean


class Enough(Exception):
    """Training may stop."""


def enough(values, patience):
    """Whether the last `patience` scores are all no better than one before."""
    known = [-math.inf if math.isnan(value) else value for value in values]
    if patience is None or not known:
        return False
    return len(known) - 1 - known.index(max(known)) >= patience


def fitted(net, train_set, val_set, plan, file, say):
    """Trains by the plan, or reads back what is there, until it has been enough.

    To stop, an exception is raised in the step behind a validation: by then the
    checkpoint holds that validation and the best weights.
    """
    done = load_weights(file)["history"]["scores"] if file.is_file() else []
    values = [score for _, score in done]

    def evaluate(model):
        values.append(validated(model, val_set))
        return values[-1]

    def watch(step, loss):
        if enough(values, plan.patience):
            raise Enough

    if not enough(values, plan.patience):
        training.after_step.append(watch)
        try:
            return training.fit(
                net, **learning(net, train_set, plan), steps=plan.steps,
                evaluate=evaluate, every=plan.every, warmup=min(50, plan.steps // 10),
                clip=plan.clip, seed=plan.seed, checkpoint=file,
            )  # fmt: skip
        except Enough:
            pass
        finally:
            training.after_step.remove(watch)
    state = load_weights(file)
    net.load_state_dict(state["best_weights"])
    net.eval()
    history = training.History(**state["history"])
    step, score = history.best
    say(
        f"Stopped at step {history.steps:,} of {plan.steps:,}: {plan.patience} "
        f"validations brought nothing better than {score:.3f} at step {step:,}."
    )
    return history


def duration(seconds):
    """In words: "40 seconds", "about" is left to the caller."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


# --- would more images help?


def learning_curve(
    sets, kind="deeplab", parts=(0.25, 0.5, 1), steps=200, groups=None, seed=0,
    start="imagenet", say=print, **settings,
):  # fmt: skip
    """How the score on val grows with the images to learn from: a `Curve` to print.

    A network is trained anew on each of `parts` of the training images, the smaller
    ones inside the larger, each with the same number of steps. groups: as in `scores`,
    of which whole ones are taken; a list is that of `sets.train`. settings: of `train`.
    """
    numbers = nested(groups_of(sets.train, groups), parts, seed)
    found = []
    for chosen in numbers:
        part = SimpleNamespace(train=taken(sets.train, chosen), val=sets.val)
        net = network(part, kind, start)
        options = {"patience": None, "seed": seed} | settings
        train(net, part, steps=steps, say=say, **options)
        by_name = isinstance(groups, Mapping) or callable(groups)
        found.append(scores(net, sets.val, groups if by_name else None))
    return Curve([len(chosen) for chosen in numbers], found)


def nested(groups, parts, seed):
    """For each part the numbers of its images: whole groups, the same ones first."""
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    drawn = [n for k in order for n, g in enumerate(groups) if g == names[k]]
    ends = []  # where a group ends, in images
    for k, number in enumerate(drawn, 1):
        if k == len(drawn) or groups[drawn[k]] != groups[number]:
            ends.append(k)
    counts = [min(ends, key=lambda end: abs(end - part * len(drawn))) for part in parts]
    return [torch.tensor(drawn[:count]) for count in counts]


def taken(dataset, numbers):
    """A data set with some of its images."""
    names = tuple(dataset.names[n] for n in numbers) if dataset.names else ()
    return replace(
        dataset, images=dataset.images[numbers], labels=dataset.labels[numbers],
        names=names, outlines=(),
    )  # fmt: skip
