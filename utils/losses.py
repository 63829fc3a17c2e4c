"""Losses that several chapters use."""

import torch


def log_jaccard(probability, target, smooth=1e-15):
    """Logarithm of the soft Jaccard index of one class, a scalar, 0 at best.

    probability, target: maps of the same shape, values from 0 to 1. Intersection and
    union of sets are replaced by sums over all pixels of the batch: sum(pt) and
    sum(p) + sum(t) - sum(pt). `smooth` is added to both, so that the logarithm exists
    where the two have nothing in common.

    As in the code of TernausNet (Iglovikov, Shvets, arXiv 1801.05746).
    """
    common = (probability * target).sum()
    union = probability.sum() + target.sum() - common
    return torch.log((common + smooth) / (union + smooth))
