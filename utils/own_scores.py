"""How well a network does on held-out images: scores with intervals, the worst images,
the threshold, and whether more images would help."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import stats

from utils import effects, metrics
from utils.predict import labels_of, probabilities

MATTERS = 0.01  # of mean IoU: the smallest gain for which to label more images
STEPS = 1000  # thresholds are multiples of 1 / STEPS


@dataclass(frozen=True)
class Scores:
    """IoU of each class (K,) and their mean, with 95 % intervals; printed as a table.

    tables: confusion matrix of each image (N, K, K), rows are the truth. groups: of
    each image. An interval is nan where there are fewer than two groups.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]  # of the images, or ()
    tables: np.ndarray = field(repr=False)
    groups: tuple
    iou: np.ndarray
    mean: float
    low: np.ndarray  # (K + 1,), the mean's last
    high: np.ndarray

    @property
    def shares(self):
        """Of the pixels that count, by their true class (K,)."""
        true = self.tables.sum((0, 2))
        return true / max(true.sum(), 1)

    def rows(self):
        """Name, IoU, interval and share of the pixels, as text."""
        values = (*self.iou, self.mean)
        shares = [f"{share:.1%}" for share in self.shares] + [""]
        names = (*self.classes, "mean")
        for name, value, low, high, share in zip(
            names, values, self.low, self.high, shares
        ):
            interval = "–" if np.isnan(low) else f"{low:.3f} to {high:.3f}"
            yield name, "–" if np.isnan(value) else f"{value:.3f}", interval, share

    @property
    def rests_on(self):
        count, groups = len(self.tables), len(set(self.groups))
        images = f"{count} image{'s' * (count > 1)}"
        if groups < 2:
            return f"{images} in one group: that gives no interval"
        apart = "" if groups == count else f" in {groups} groups"
        return f"{images}{apart}; intervals are over {'groups' if apart else 'images'}"

    def __str__(self):
        table = [("class", "IoU", "95 % interval", "pixels"), *self.rows()]
        wide = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])])
            for row in table
        ]
        return "\n".join([*lines, f"On {self.rests_on}."])

    def _repr_markdown_(self):
        table = [("class", "IoU", "95 % interval", "pixels"), 4 * ("---",)]
        lines = ["| " + " | ".join(row) + " |" for row in (*table, *self.rows())]
        return "\n".join(lines) + f"\n\nOn {self.rests_on}."


def marked(dataset):
    """The data set with a label to ignore: 255, which no class has, if it has none."""
    return replace(dataset, ignore=255) if dataset.ignore is None else dataset


def groups_of(dataset, groups=None):
    """The group of each image: the given ones (N,), that of its name in a dict, what a
    function makes of its name, or each image a group of its own. Another number of
    them: ValueError."""
    if isinstance(groups, Mapping):
        groups = groups.__getitem__
    if callable(groups):
        groups = [groups(name) for name in dataset.names]
    groups = range(len(dataset)) if groups is None else groups
    if len(groups) != len(dataset):
        raise ValueError(f"{len(dataset)} images need a group each, not {len(groups)}")
    return tuple(groups)


def scores(net, dataset, groups=None, threshold=None, resamples=2000, seed=0):
    """`Scores` of a network on the images of a data set.

    groups: of each image, or by its name, a dict (`sets.groups`) or a function; images
    that resemble each other, as of one place or one patient, belong into one.
    threshold: of the second of two classes, as in `predict_folder`. resamples: of the
    bootstrap over groups; 0: none.

    An interval is Student's, from the standard error of the bootstrap, as
    `utils.effects.over_frames` has it. It is about other images like these.
    """
    groups, dataset = groups_of(dataset, groups), marked(dataset)
    tables = [
        metrics.confusion_matrix(
            labels_of(probabilities(net, image), threshold),
            truth,
            len(dataset.classes),
            dataset.ignore,
        )  # fmt: skip
        for image, truth in zip(dataset.images, dataset.labels)
    ]
    tables = torch.stack(tables).numpy()
    iou = metrics.iou(tables.sum(0)).numpy()
    found = np.append(iou, np.nanmean(iou) if tables.any() else np.nan)
    low, high = intervals(found, sums_of(tables, groups), resamples, seed)
    return Scores(
        dataset.classes, dataset.names, tables, groups, iou, float(found[-1]), low, high
    )


def sums_of(tables, groups):
    """The confusion matrix of each group (G, K, K)."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(names), *tables.shape[1:]))
    np.add.at(sums, [names[group] for group in groups], tables)
    return sums


def intervals(found, sums, resamples, seed):
    """(low, high) of the IoU of each class and of their mean, (K + 1,) each."""
    count = len(sums)
    if count < 2 or not resamples:
        return np.full((2, len(found)), np.nan)

    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), resamples)  # (R, G)
    total = np.tensordot(times, sums, 1)  # (R, K, K)
    hits = np.diagonal(total, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        iou = hits / (total.sum(1) + total.sum(2) - hits)
    drawn = np.column_stack([iou, effects.mean_iou(total)])  # (R, K + 1)
    known, error = np.isfinite(drawn).any(0), np.full(len(found), np.nan)
    # The bootstrap's variance has n groups, not n - 1, below the line.
    error[known] = np.nanstd(drawn[:, known], 0) * np.sqrt(count / (count - 1))
    half = stats.t.ppf((1 + effects.LEVEL) / 2, count - 1) * error
    return np.clip(found - half, 0, 1), np.clip(found + half, 0, 1)


def worst(found, count=6):
    """Numbers of the images with the lowest mean IoU, the worst first.

    found: `Scores`. Images without a pixel that counts are left out.
    """
    with np.errstate(invalid="ignore"):
        each = effects.mean_iou(found.tables.astype(float))
    order = np.argsort(each, kind="stable")  # nan last
    return [int(number) for number in order if not np.isnan(each[number])][:count]


def threshold(net, val, thing=1):
    """The threshold with the best IoU on a data set, for its class `thing` of two.

    A pixel is `thing` where its probability is above. Choose it on val, never on test.
    Other than two classes, or a val without the class: ValueError.
    """
    val = marked(val)
    if len(val.classes) != 2:
        raise ValueError(
            f"a threshold is for two classes, and there are {len(val.classes)}: the "
            "most probable class is taken"
        )
    counts = torch.zeros(2, STEPS + 1)  # of pixels, by truth and by probability
    for image, truth in zip(val.images, val.labels):
        level = (probabilities(net, image)[thing] * STEPS).ceil().long()
        for true in (0, 1):
            own = (truth != val.ignore) & ((truth == thing) == bool(true))
            counts[true] += torch.bincount(level[own], minlength=STEPS + 1)
    if not counts[1].any():
        raise ValueError(f"the set has no pixel of {val.classes[thing]!r}: choose none")
    # Above t / STEPS are the pixels of which the level, rounded up, is more than t.
    wrong, right = counts.double().flip(1).cumsum(1).flip(1)[:, 1:]  # (STEPS,)
    iou = right / (counts[1].double().sum() + wrong)
    best = (iou == iou.max()).nonzero()[:, 0]
    return float(best[len(best) // 2]) / STEPS  # the middle of equal ones


@dataclass(frozen=True)
class Curve:
    """Scores on val of networks that learnt from more and more images."""

    images: list[int]
    scores: list[Scores]

    def sentence(self):
        """Whether the last step brought more than `MATTERS`, by `utils.effects`."""
        fewer, all_of_them = self.images[-2:]
        claim = f"{all_of_them} images rather than {fewer} help"
        last, first = self.scores[-1], self.scores[-2]
        if len(set(last.groups)) < effects.FEWEST_BLOCKS:
            gain = last.mean - first.mean
            return (
                f"{claim}: not resolved ({gain:+.3f}), as val has fewer than "
                f"{effects.FEWEST_BLOCKS} images or groups."
            )
        effect = effects.over_frames(
            sums_of(last.tables, last.groups), sums_of(first.tables, first.groups),
            MATTERS, block=1,
        )  # fmt: skip
        return effect.sentence(claim, "Mean IoU").replace("**", "")

    def __str__(self):
        lines = [
            f"{count:5} images: mean IoU {one.mean:.3f}{between(one)}"
            for count, one in zip(self.images, self.scores)
        ]
        return "\n".join([*lines, self.sentence()])


def between(found):
    """The interval of a mean as text; none where it is not known."""
    low, high = found.low[-1], found.high[-1]
    return "" if np.isnan(low) else f" ({low:.3f} to {high:.3f})"
