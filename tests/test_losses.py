"""Losses: the logarithm of the soft Jaccard index from its formula."""

import math

import pytest
import torch

from utils.losses import log_jaccard


def test_of_sets_it_is_the_logarithm_of_the_iou():
    p, t = torch.tensor([1.0, 1, 1, 0, 0]), torch.tensor([0.0, 1, 1, 1, 0])
    assert log_jaccard(p, t).item() == pytest.approx(math.log(2 / 4))
    assert log_jaccard(t, t).item() == 0


def test_of_probabilities_it_is_the_formula():
    p, t = torch.tensor([0.8, 0.5, 0.1]), torch.tensor([1.0, 0, 1])
    expected = math.log(0.9 / (1.4 + 2 - 0.9))
    assert log_jaccard(p, t).item() == pytest.approx(expected)


def test_maps_of_a_batch_are_one_set():
    p, t = torch.rand(2, 3, 4), (torch.rand(2, 3, 4) > 0.5).float()
    assert log_jaccard(p, t).item() == pytest.approx(log_jaccard(p[:, 0:], t).item())
    both = torch.cat([p.flatten(), p.flatten()]), torch.cat([t.flatten(), t.flatten()])
    assert log_jaccard(*both).item() == pytest.approx(log_jaccard(p, t).item())


@pytest.mark.parametrize("smooth", [1e-15, 1.0])
def test_nothing_in_common_stays_finite(smooth):
    p = torch.tensor([0.5, 0.5], requires_grad=True)
    value = log_jaccard(p, torch.zeros(2), smooth)
    value.backward()
    assert value.item() == pytest.approx(math.log(smooth / (1 + smooth)), rel=1e-5)
    assert p.grad.isfinite().all() and (p.grad < 0).all()


def test_empty_against_empty_is_perfect():
    assert log_jaccard(torch.zeros(3), torch.zeros(3)).item() == 0
