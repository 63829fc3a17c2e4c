"""What a comparison of two arms of an experiment shows, with a 95 % interval.

An effect is the score of one arm minus that of the other; higher scores are better.
What is said follows from its interval and from `matters`, the smallest effect that
would matter, fixed before the runs. The first line that fits:

- "smaller than what matters": the interval lies inside -matters .. +matters, even if
  it excludes 0;
- "shows": the interval lies above 0;
- "the opposite shows": it lies below 0;
- "not resolved": anything else. An end exactly on a limit is not beyond it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
BLOCKS = 8  # over all frames, unless the caller says how long a block is
FEWEST_BLOCKS = 5
WIDER = 1.2  # the interval over frames, set by its error rate, see `over_frames`


@dataclass(frozen=True)
class Effect:
    """A difference of two mean scores, ours - others, and its interval low .. high.

    n, unit: what the interval rests on, such as 5 and "paired seeds".
    """

    ours: float
    others: float
    difference: float
    low: float
    high: float
    matters: float
    n: int
    unit: str

    @property
    def word(self):
        return _word(self.low, self.high, self.matters)

    def sentence(self, claim, score):
        """Markdown: the claim, the word for it, and the numbers behind it.

        claim: what a positive difference would show; score: the name of the scores.
        """
        d = self._digits()
        return (
            f"**{claim}**: {self.word}. "
            f"{score} {self.ours:.{d}f} against {self.others:.{d}f} "
            f"(difference {self.difference:+.{d}f}, 95 % interval "
            f"{self.low:+.{d}f} to {self.high:+.{d}f}, {self.n} {self.unit})."
            f"{self._remark()}"
        )

    def _remark(self):
        """What a reader needs to judge a result that is none."""
        if self.word == "not resolved":
            half = (self.high - self.low) / 2
            return f" Only a difference beyond ±{half:.{self._digits()}f} would show."
        if self.word == "smaller than what matters":
            return f" The interval lies within ±{self.matters:g}."
        return ""

    def _digits(self):
        """The fewest, from three, at which the printed interval says the same word."""
        for digits in range(3, 9):
            low, high = round(self.low, digits), round(self.high, digits)
            if _word(low, high, self.matters) == self.word:
                return digits
        return 9


def paired(ours, others, matters):
    """The effect over seeds: `Effect` of two arms trained with the same seeds.

    ours, others: (n,) scores, n >= 2, the same seeds (the same data order) in the same
    order. Student's t interval of the mean of the n differences ("The probable error
    of a mean", Biometrika 1908): it is about trainings with other seeds, on the same
    frames. Two arms that are alike "show" in 2.5 % of comparisons, and the opposite
    shows in another 2.5 %, if their differences are normal.

    One seed, scores of different length or not finite: ValueError. So are differences
    that are all the same and not 0: that is no scatter but rounded scores, or one run
    copied. Differences that are all 0 are an effect of 0.
    """
    ours, others = _scores(ours), _scores(others)
    if ours.shape != others.shape:
        raise ValueError(
            "expected one score of each arm for every seed, "
            f"got {ours.size} and {others.size}"
        )
    if ours.size < 2:
        raise ValueError("one seed has no scatter: an interval needs two or more")
    error = stats.sem(ours - others)
    means = ours.mean(), others.mean()
    return _effect(means, error, ours.size, matters, "paired seeds")


def mean_iou(confusion):
    """Like `utils.metrics.mean_iou`, of many matrices: (..., K, K) -> (...)."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    with np.errstate(invalid="ignore"):  # 0 / 0: a class, or any, that never occurs
        return np.nansum(hits / union, -1) / (union > 0).sum(-1)


def over_frames(
    ours,
    others,
    matters,
    groups=None,
    block=None,
    statistic=mean_iou,
    seed=0,
    resamples=2000,
):
    """The effect over frames: `Effect` of two arms scored on the same frames.

    ours, others: confusion matrices of the frames (N, K, K), in the order in which
    they were filmed, or those of S seeds (S, N, K, K). groups: the drive, or whatever
    else frames have in common, of each frame (N,); None: one drive. statistic: matrices
    (..., K, K) -> scores (...); it gets sums over frames, and the score of an arm is
    its mean over the seeds.

    Neighbouring frames are alike, so N frames say less than N separate ones. Each
    drive is cut into blocks of about `block` neighbouring frames, which never mix
    drives, and blocks are resampled, the same ones for both arms and all seeds. By
    default a block is an eighth of all frames: blocks must be much longer than frames
    stay alike. Separate pictures can have `block` 1. seed: of the resampling.

    The interval is Student's, with one degree of freedom less than blocks, from the
    standard error of the bootstrap, and WIDER times that, as neighbouring blocks are
    still a little alike. (The percentiles of the bootstrap itself are too close
    together with so few blocks.) Measured on two arms that are alike, with drives of 62
    and 171 frames as in CamVid, in 2500 comparisons each: "shows" and "the opposite
    shows" together appear in 3.3 to 4.3 % if the correlation of frames next to each
    other is 0 to 0.8, and in 5.2 % if it is 0.9.

    The interval is about other frames like these, for the networks at hand. It knows
    nothing of other seeds: two arms that differ by nothing but their seeds do differ on
    the same frames. For a claim about a method see `paired`.

    Blocks cut side by side: Carlstein, Annals of Statistics 1986; the bootstrap of
    blocks: Künsch, Annals of Statistics 1989; few long blocks and Student's t:
    Ibragimov, Müller, Journal of Business & Economic Statistics 2010.

    Shapes that do not fit, counts below 0 or not finite, frames whose true pixels are
    not the same in both arms, or fewer than 5 blocks: ValueError.
    """
    matrices = _matrices(ours, others)  # (N, 2, S, K, K)
    seeds, blocks = matrices.shape[2], _blocks(len(matrices), groups, block)
    sums = np.stack([matrices[frames].sum(0) for frames in blocks])
    count = len(blocks)
    if not sums.any((-1, -2)).all():
        raise ValueError("a block of frames is without a pixel that counts")

    def scores(sums):
        return statistic(sums).mean(-1)  # (..., 2, S, K, K) -> (..., 2)

    def difference(drawn, axis):
        rows = drawn + count * np.arange(len(drawn))[:, None]  # (resamples, blocks)
        times = np.bincount(rows.ravel(), minlength=rows.size).reshape(rows.shape)
        return np.diff(scores(np.tensordot(times, sums, 1)))[..., 0]

    scatter = stats.bootstrap(
        (np.arange(count),), difference, n_resamples=resamples, batch=200,
        method="percentile", vectorized=True, rng=seed,
    ).standard_error  # fmt: skip
    # The bootstrap's variance has n blocks, not n - 1, below the line.
    error = WIDER * scatter * np.sqrt(count / (count - 1))
    length = round(len(matrices) / count)
    unit = f"blocks of about {length} frames" if length > 1 else "frames"
    if seeds > 1:
        unit += f", mean of {seeds} seeds"
    return _effect(scores(sums.sum(0)), error, count, matters, unit)


def spread(values):
    """The mean, lowest and highest of a few scores: "0.512 (0.498 to 0.526)"."""
    values = _scores(values)
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def _word(low, high, matters):
    if -matters < low and high < matters:
        return "smaller than what matters"
    if low > 0:
        return "shows"
    if high < 0:
        return "the opposite shows"
    return "not resolved"


def _effect(means, error, n, matters, unit):
    """Student's interval of n - 1 degrees of freedom around a difference of means."""
    ours, others = map(float, means)
    difference, error = ours - others, float(error)
    if not (np.isfinite(matters) and matters > 0):
        raise ValueError(f"what matters must be a number above 0, got {matters}")
    if not np.isfinite(difference + error):
        raise ValueError("the score of some frames is not a number")
    if difference and error <= 1e-9 * abs(difference):
        raise ValueError(
            "the difference is everywhere the same, so its scatter is not known: "
            "are the scores rounded, or is it one run copied?"
        )
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    low, high = difference - half, difference + half
    return Effect(ours, others, difference, low, high, float(matters), n, unit)


def _scores(values):
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"expected a row of scores, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"some score is not a number: {values}")
    return values


def _matrices(ours, others):
    """Both arms, checked, as (N, 2, S, K, K) float64."""
    ours, others = np.asarray(ours, float), np.asarray(others, float)
    if ours.shape != others.shape:
        raise ValueError(f"the arms differ in shape: {ours.shape} and {others.shape}")
    if ours.ndim not in (3, 4) or ours.shape[-1] != ours.shape[-2] or not ours.size:
        raise ValueError(
            f"expected matrices (N, K, K) or (S, N, K, K), got shape {ours.shape}"
        )
    both = np.stack((ours, others))
    both = both.reshape(2, -1, *ours.shape[-3:])  # one seed may have no axis
    if not (np.isfinite(both).all() and (both >= 0).all()):
        raise ValueError("confusion matrices hold counts: finite, 0 or more")
    true = both.sum(-1)
    if (true != true[0, 0]).any():
        raise ValueError(
            "a frame has other true pixels in one arm or seed than in another: "
            "are the frames the same, in the same order?"
        )
    return np.moveaxis(both, 2, 0)


def _blocks(n, groups, block):
    """The numbers of the frames of each block, as equal in length as drives allow."""
    groups = np.zeros(n) if groups is None else np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"{n} frames need {n} groups, got shape {groups.shape}")
    if block is not None and not block >= 1:
        raise ValueError(f"a block has one frame or more, got {block}")
    length = n / BLOCKS if block is None else block
    blocks = []
    for group in np.unique(groups):
        frames = np.flatnonzero(groups == group)
        pieces = min(len(frames), max(1, round(len(frames) / length)))
        blocks += np.array_split(frames, pieces)
    if len(blocks) < FEWEST_BLOCKS:
        raise ValueError(
            f"{n} frames make {len(blocks)} blocks, and an interval needs "
            f"{FEWEST_BLOCKS}: take more frames or shorter blocks"
        )
    return blocks
