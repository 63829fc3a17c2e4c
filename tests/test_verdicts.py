"""Verdicts: what is said about a claim follows from the scores of the seeds."""

import pytest

from utils.verdicts import spread, verdict


def said(ours, others):
    return verdict("Pooling helps", ours, others, "mIoU")


@pytest.mark.parametrize(
    "ours, others, expected",
    [
        ([0.62, 0.66], [0.58, 0.61], "shows, on every seed"),
        ([0.58, 0.61], [0.62, 0.66], "the opposite shows, on every seed"),
        ([0.615, 0.655], [0.57, 0.62], "a hint"),
        ([0.60, 0.66], [0.59, 0.68], "does not show"),
        ([0.60, 0.62], [0.59, 0.66], "does not show"),
        ([0.60, 0.61], [0.60, 0.61], "does not show"),
        ([0.6], [0.5], "shows, on every seed"),
        ([0.5], [0.6], "the opposite shows, on every seed"),
        ([0.5], [0.5], "does not show"),
    ],
)
def test_what_the_seeds_say(ours, others, expected):
    sentence = said(ours, others)
    assert sentence.startswith(f"**Pooling helps**: {expected}")
    assert sentence.endswith(".")


def test_touching_scores_are_no_clear_win():
    """The worst seed with the claim equals the best without it."""
    assert "a hint" in said([0.6, 0.7], [0.5, 0.6])


def test_a_hint_needs_means_further_apart_than_either_side_scatters():
    """Standard deviations, of two seeds with one below the line: 0.028, then 0.05, and
    0.071; the means differ by 0.06, then by 0.08."""
    wide = [0.55, 0.65]
    assert "does not show" in said([0.64, 0.68], wide)
    assert "a hint" in said([0.645, 0.715], wide)


def test_a_lead_of_the_others_beyond_the_scatter_is_not_called_scatter():
    assert "within the scatter" not in said([0.5, 0.6], [0.6, 0.7])
    assert "a hint of the opposite" in said([0.5, 0.6], [0.6, 0.7])


def test_both_means_are_named_with_the_score():
    for ours, others in [([0.6, 0.7], [0.1, 0.2]), ([0.1, 0.2], [0.6, 0.7])]:
        means = (sum(ours) / 2, sum(others) / 2)
        expected = "mIoU {:.3f} against {:.3f}".format(*means)
        assert expected in said(ours, others)


def test_spread():
    assert spread([0.5, 0.6, 0.52]) == "0.540 (0.500 to 0.600)"
    assert spread([0.1234]) == "0.123 (0.123 to 0.123)"
