"""Effects: known intervals, the four words, and how often the words are wrong."""

import numpy as np
import pytest
from scipy import signal, stats

from utils import metrics
from utils.effects import WIDER, Effect, _blocks, mean_iou, over_frames, paired, spread

# Any warning of NumPy or SciPy is an error here: none should reach a chapter.
pytestmark = pytest.mark.filterwarnings("error")

DRIVES = np.repeat([0, 1], (62, 171))  # as in CamVid's test frames
TINY = 1e-9  # matters so little that an effect is never called smaller


def effect(low, high, matters=0.01):
    middle = (low + high) / 2
    return Effect(0.4 + middle, 0.4, middle, low, high, matters, 5, "paired seeds")


# Known answers


def test_student_by_hand():
    """Differences 1, 2 and 3 hundredths: sd 0.01, t of 2 degrees of freedom 4.303."""
    found = paired([0.51, 0.62, 0.73], [0.50, 0.60, 0.70], 0.01)
    half = 4.303 * 0.01 / 3**0.5
    assert found.difference == pytest.approx(0.02)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)
    assert (found.low + found.high) / 2 == pytest.approx(0.02)
    assert (found.n, found.unit) == (3, "paired seeds")


def test_student_on_his_own_example():
    """Hours of sleep that two drugs gave ten patients, Biometrika 1908."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired(second, first, 0.5)
    assert found.difference == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert (found.ours, found.others) == pytest.approx((2.33, 0.75))
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(interval))


def test_seeds_that_share_their_luck_are_compared_one_by_one():
    luck = np.array([0.40, 0.45, 0.50, 0.55, 0.60])
    gain = np.array([0.019, 0.021, 0.020, 0.022, 0.018])
    assert paired(luck + gain, luck, 0.01).word == "shows"
    assert paired((luck + gain)[::-1], luck, 0.01).word == "not resolved"


def accuracy(confusion):
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def binary(hits, pixels=10_000):
    """Frames (..., N, 2, 2) of one true class, of which these shares are found."""
    frames = np.zeros((*np.shape(hits), 2, 2))
    frames[..., 0, 0] = np.round(np.multiply(hits, pixels))
    frames[..., 0, 1] = pixels - frames[..., 0, 0]
    return frames


def test_bootstrap_of_a_mean():
    """Separate frames of one size: the standard error is known, s / sqrt(n)."""
    rng = np.random.default_rng(0)
    ours, others = rng.uniform(0.4, 0.8, (2, 100))
    a, b = binary(ours), binary(others)
    found = over_frames(a, b, 0.01, block=1, statistic=accuracy, resamples=20_000)
    gain = accuracy(a) - accuracy(b)
    half = WIDER * stats.t.ppf(0.975, 99) * stats.sem(gain)
    assert found.difference == pytest.approx(gain.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)
    assert (found.n, found.unit) == (100, "frames")


def test_bootstrap_of_blocks():
    """Equal blocks of equal frames: that of the means of the blocks."""
    rng = np.random.default_rng(1)
    a, b = binary(rng.uniform(0.4, 0.8, (2, 120)))
    found = over_frames(a, b, 0.01, block=12, statistic=accuracy, resamples=20_000)
    blocks = (accuracy(a) - accuracy(b)).reshape(10, 12).mean(1)
    half = WIDER * stats.t.ppf(0.975, 9) * stats.sem(blocks)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.02)
    assert (found.n, found.unit) == (10, "blocks of about 12 frames")


def test_mean_iou_is_that_of_the_metrics():
    matrices = np.random.default_rng(2).integers(0, 50, (6, 4, 4)).astype(float)
    matrices[3, 2] = matrices[3, :, 2] = 0  # a class that never occurs
    matrices[4, 1] = 0  # one that is only predicted
    matrices[5] = 0
    expected = [metrics.mean_iou(matrix) for matrix in matrices]
    np.testing.assert_allclose(mean_iou(matrices), expected)
    assert mean_iou(matrices.reshape(2, 3, 4, 4)).shape == (2, 3)


def test_scores_are_those_of_the_summed_matrices():
    a, b = alike(np.random.default_rng(3))
    found = over_frames(a, b, 0.01, DRIVES, resamples=50)
    assert found.ours == pytest.approx(metrics.mean_iou(a.sum(0)))
    assert found.others == pytest.approx(metrics.mean_iou(b.sum(0)))


def test_score_of_several_seeds_is_their_mean():
    arms = alike(np.random.default_rng(4), gains=[0] * 6)
    a, b = np.stack(arms[:3]), np.stack(arms[3:])  # (3, 233, 3, 3) each
    found = over_frames(a, b, 0.01, DRIVES, resamples=200)
    assert found.ours == pytest.approx(np.mean([mean_iou(arm.sum(0)) for arm in a]))
    assert found.others == pytest.approx(np.mean([mean_iou(arm.sum(0)) for arm in b]))
    assert found.unit.endswith("frames, mean of 3 seeds")
    one = over_frames(a[0], b[0], 0.01, DRIVES, resamples=200)
    assert over_frames(a[:1], b[:1], 0.01, DRIVES, resamples=200) == one
    copies = over_frames(a[[0, 0]], b[[0, 0]], 0.01, DRIVES, resamples=200)
    assert (copies.low, copies.high) == pytest.approx((one.low, one.high))


def test_same_seed_of_the_resampling_same_interval():
    a, b = alike(np.random.default_rng(5))
    first = over_frames(a, b, 0.01, DRIVES, seed=7)
    assert over_frames(a, b, 0.01, DRIVES, seed=7) == first
    other = over_frames(a, b, 0.01, DRIVES, seed=8)
    assert other.high != first.high
    assert other.high == pytest.approx(first.high, rel=0.1)


# Blocks


def test_blocks_hold_every_frame_once_and_never_two_drives():
    blocks = _blocks(233, DRIVES, None)
    assert np.concatenate(blocks).tolist() == list(range(233))
    assert [len(b) for b in blocks] == [31, 31, 29, 29, 29, 28, 28, 28]
    assert all(len(set(DRIVES[block])) == 1 for block in blocks)


def test_frames_of_drives_may_take_turns():
    mixed = np.arange(40) % 2
    for block in _blocks(40, mixed, 5):
        assert set(np.diff(block)) == {2}


@pytest.mark.parametrize("length, pieces", [(1, 16), (2, 8), (None, 8), (3, 5)])
def test_number_of_blocks(length, pieces):
    assert len(_blocks(16, None, length)) == pieces


def test_drives_shorter_than_a_block_are_blocks():
    blocks = _blocks(20, np.repeat(list("abcdefghij"), 2), 50)
    assert [block.tolist() for block in blocks] == [[k, k + 1] for k in range(0, 20, 2)]


def test_frames_that_resemble_their_neighbours_say_less():
    """Correlation 0.8: blocks give thrice the width that separate frames would have."""
    ratios = []
    for k in range(10):
        a, b = alike(np.random.default_rng([6, k]), like=0.8)
        whole, single = (
            over_frames(a, b, 0.01, DRIVES, length, resamples=300)
            for length in (None, 1)
        )
        ratios.append((whole.high - whole.low) / (single.high - single.low))
    assert 2 < np.mean(ratios) < 4


# Words


@pytest.mark.parametrize(
    "low, high, word",
    [
        (0.012, 0.030, "shows"),
        (0.001, 0.030, "shows"),
        (-0.030, -0.001, "the opposite shows"),
        (-0.004, 0.006, "smaller than what matters"),
        (0.002, 0.006, "smaller than what matters"),  # though it excludes 0
        (-0.006, -0.002, "smaller than what matters"),
        (0.0, 0.0, "smaller than what matters"),
        (-0.004, 0.030, "not resolved"),
        (-0.030, 0.030, "not resolved"),
        (0.0, 0.030, "not resolved"),  # a tie is no win
        (-0.030, 0.0, "not resolved"),
        (-0.004, 0.010, "not resolved"),  # what matters does matter
        (0.002, 0.010, "shows"),
        (-0.010, -0.002, "the opposite shows"),
    ],
)
def test_the_word_follows_the_interval(low, high, word):
    assert effect(low, high).word == word


@pytest.mark.parametrize(
    "gains, word",
    [
        ([0.028, 0.030, 0.032], "shows"),
        ([-0.028, -0.030, -0.032], "the opposite shows"),
        ([0.001, 0.002, 0.003], "smaller than what matters"),
        ([-0.02, 0.03, 0.02], "not resolved"),
        ([0.02, 0.05], "not resolved"),  # two seeds that agree are hardly any
    ],
)
def test_words_from_scores(gains, word):
    others = np.linspace(0.4, 0.5, len(gains))
    assert paired(others + gains, others, 0.01).word == word


def test_frames_can_show():
    a, b = alike(np.random.default_rng(8))
    better = b.copy()
    better[:, 0] = b[:, 0].sum(-1, keepdims=True) * [1, 0, 0]
    assert over_frames(better, b, 0.01, DRIVES).word == "shows"
    assert over_frames(b, better, 0.01, DRIVES).word == "the opposite shows"
    assert over_frames(a, b, 0.5, DRIVES).word == "smaller than what matters"


def test_the_same_arm_twice_has_no_effect():
    scores, (frames, _) = [0.5, 0.6, 0.7], alike(np.random.default_rng(9))
    for found in (paired(scores, scores, 0.01), over_frames(frames, frames, 0.01)):
        assert found.difference == found.low == found.high == 0
        assert found.word == "smaller than what matters"


def test_sentences():
    found = Effect(0.452, 0.431, 0.021, 0.012, 0.030, 0.01, 5, "paired seeds")
    assert found.sentence("The decoder helps", "mIoU") == (
        "**The decoder helps**: shows. mIoU 0.452 against 0.431 (difference +0.021, "
        "95 % interval +0.012 to +0.030, 5 paired seeds)."
    )
    opposite = effect(-0.030, -0.012).sentence("It helps", "IoU")
    assert opposite.startswith("**It helps**: the opposite shows. IoU 0.379 against")


def test_an_open_question_says_what_would_have_shown():
    found = effect(-0.006, 0.018)
    assert found.sentence("It helps", "mIoU").endswith(
        "(difference +0.006, 95 % interval -0.006 to +0.018, 5 paired seeds). "
        "Only a difference beyond ±0.012 would show."
    )


def test_a_small_effect_says_what_matters():
    said = effect(0.002, 0.006, matters=0.01).sentence("It helps", "mIoU")
    assert "smaller than what matters. mIoU" in said
    assert said.endswith("The interval lies within ±0.01.")


@pytest.mark.parametrize(
    "low, high, printed",
    [
        (0.0003, 0.0300, "+0.0003 to +0.0300"),  # not +0.000: it shows
        (-0.0004, 0.0098, "-0.0004 to +0.0098"),  # not +0.010: it is smaller
        (-0.0004, 0.0300, "-0.000 to +0.030"),
    ],
)
def test_printed_numbers_say_the_same_word(low, high, printed):
    assert printed in effect(low, high).sentence("It helps", "mIoU")


def test_spread():
    assert spread([0.5, 0.6, 0.52]) == "0.540 (0.500 to 0.600)"
    assert spread([0.1234]) == "0.123 (0.123 to 0.123)"


# How often two arms that are alike are told apart


def at_most(rate, draws):
    """What a true error rate exceeds by chance in one of a hundred such tests."""
    return stats.binom.ppf(0.99, draws, rate)


def test_error_rate_over_seeds():
    """Five seeds, two arms alike: each word in 2.5 % of draws, as Student promises."""
    draws = 2000
    arms = np.random.default_rng(10).normal(0.5, 0.01, (draws, 2, 5))
    words = [paired(*pair, TINY).word for pair in arms]
    shows, opposite = words.count("shows"), words.count("the opposite shows")
    assert max(shows, opposite) <= at_most(0.025, draws)
    assert shows + opposite <= at_most(0.05, draws)
    assert shows + opposite >= stats.binom.ppf(0.01, draws, 0.05)  # no wider either


def test_every_seed_better_is_no_rule():
    """The rule it replaces, on two seeds each, is wrong in a third of such draws."""
    arms = np.random.default_rng(11).normal(0.5, 0.01, (1000, 2, 2))
    apart = (arms.min(2) > arms[:, ::-1].max(2)).any(1).mean()
    words = [paired(*pair, TINY).word for pair in arms]
    assert apart > 0.25
    assert 1000 - words.count("not resolved") <= at_most(0.05, 1000)


def alike(rng, like=0.7, gains=(0, 0), drives=(62, 171)):
    """Frames (N, 3, 3) of arms with one truth; each finds more by its gain.

    How large the classes are and how much of each is found are noise, in which frames
    next to each other have the correlation `like`.
    """
    noise = [_drive(rng, like, 3 + 3 * len(gains), n) for n in drives]
    size, *found = np.split(np.concatenate(noise, -1), 1 + len(gains))  # (3, N) each
    size = np.round(np.exp(size) * np.array([[5000], [2000], [500]]))
    arms = []
    for gain, share in zip(gains, found, strict=True):
        hits = np.round(size / (1 + np.exp(-1 - gain - 0.7 * share)))
        frames = np.einsum("kn,kj->nkj", hits, np.eye(3))
        frames += np.einsum("kn,kj->nkj", size - hits, np.eye(3)[[1, 2, 0]])
        arms.append(frames)
    return arms


def _drive(rng, like, rows, n, warm_up=50):
    """Noises (rows, n) of variance 1: autoregressive, of order 1."""
    steps = rng.normal(0, (1 - like**2) ** 0.5, (rows, warm_up + n))
    return signal.lfilter([1], [1, -like], steps)[:, warm_up:]


def compared(draws, block=None, **law):
    """Effects of many draws of two arms."""
    for k in range(draws):
        arms = alike(np.random.default_rng([12, k]), **law)
        yield over_frames(*arms, TINY, DRIVES, block, seed=k, resamples=200)


@pytest.mark.parametrize("like", [0.5, 0.8])
def test_error_rate_over_frames(like):
    words = [found.word for found in compared(500, like=like)]
    shows, opposite = words.count("shows"), words.count("the opposite shows")
    assert max(shows, opposite) <= at_most(0.025, 500)
    assert shows + opposite <= at_most(0.05, 500)


def test_error_rate_with_blocks_too_short_is_noticed():
    """Frames taken one by one as if they were separate: wrong in every third draw."""
    words = [found.word for found in compared(100, block=1, like=0.8)]
    assert 100 - words.count("not resolved") > 2 * at_most(0.05, 100)


def test_interval_over_frames_covers_a_real_difference():
    many = alike(np.random.default_rng(13), gains=(0.5, 0), drives=(100_000,))
    true = mean_iou(many[0].sum(0)) - mean_iou(many[1].sum(0))
    assert true > 0.05
    missed = sum(not e.low < true < e.high for e in compared(300, gains=(0.5, 0)))
    assert missed <= at_most(0.05, 300)


# What is refused


@pytest.mark.parametrize(
    "ours, others, complaint",
    [
        ([], [], "expected a row of scores"),
        ([[0.5, 0.6]], [[0.5, 0.6]], "expected a row of scores"),
        (0.5, 0.4, "expected a row of scores"),
        ([0.5], [0.4], "one seed has no scatter"),
        ([0.5, 0.6], [0.5, 0.6, 0.7], "every seed, got 2 and 3"),
        ([0.5, np.nan], [0.5, 0.6], "not a number"),
        ([0.5, 0.6], [0.5, np.inf], "not a number"),
        ([0.52, 0.62, 0.42], [0.5, 0.6, 0.4], "everywhere the same"),
    ],
)
def test_scores_that_are_refused(ours, others, complaint):
    with pytest.raises(ValueError, match=complaint):
        paired(ours, others, 0.01)


@pytest.mark.parametrize("matters", [0, -0.01, np.nan, np.inf])
def test_what_matters_is_more_than_nothing(matters):
    with pytest.raises(ValueError, match="what matters must be"):
        paired([0.5, 0.6], [0.4, 0.7], matters)


@pytest.mark.parametrize("values", [[], [np.nan], 0.5])
def test_spread_of_no_scores(values):
    with pytest.raises(ValueError):
        spread(values)


FRAMES = binary(np.linspace(0.4, 0.8, 40))


@pytest.mark.parametrize(
    "ours, others, options, complaint",
    [
        (FRAMES, FRAMES[:39], {}, "differ in shape"),
        (FRAMES[:, :1], FRAMES[:, :1], {}, "expected matrices"),
        (FRAMES[0], FRAMES[0], {}, "expected matrices"),
        (FRAMES[:0], FRAMES[:0], {}, "expected matrices"),
        (FRAMES, -FRAMES, {}, "counts"),
        (FRAMES, FRAMES * np.nan, {}, "counts"),
        (FRAMES, 2 * FRAMES, {}, "other true pixels"),
        (np.stack([FRAMES, 2 * FRAMES]),) * 2 + ({}, "other true pixels"),
        (0 * FRAMES, 0 * FRAMES, {}, "without a pixel that counts"),
        (FRAMES, FRAMES, {"groups": DRIVES}, "40 frames need 40 groups"),
        (FRAMES, FRAMES, {"block": 0}, "one frame or more"),
        (FRAMES, FRAMES, {"block": 10}, "40 frames make 4 blocks"),
        (FRAMES[:4], FRAMES[:4], {}, "4 frames make 4 blocks"),
        (FRAMES, FRAMES, {"matters": 0}, "what matters must be"),
        (binary([0.6] * 40), binary([0.5] * 40), {}, "everywhere the same"),
    ],
)
def test_frames_that_are_refused(ours, others, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        over_frames(ours, others, **{"matters": 0.01, **options})


def test_frames_in_another_order_are_noticed():
    a, b = alike(np.random.default_rng(14))
    with pytest.raises(ValueError, match="in the same order"):
        over_frames(a, b[::-1], 0.01)
