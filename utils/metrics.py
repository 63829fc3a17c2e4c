"""Scores of a segmentation: overlap, boundaries, separate objects.

All functions take torch tensors (on any device) or NumPy arrays. Pixels are counted
where they lie; scores are float64 and on the CPU, as Apple's `mps` has no float64.
"""

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label
from skimage.metrics import adapted_rand_error
from skimage.segmentation import expand_labels


def confusion_matrix(prediction, target, classes, ignore=None):
    """Counts of pixels: rows are the true class, columns the predicted one.

    prediction, target: class numbers 0 .. classes - 1, of the same shape; pixels whose
    target is `ignore` do not count. Returns (K, K) int64 on the prediction's device.
    Sums of such matrices over batches are the matrix of all of them.
    Labels out of range, fractions, or shapes that differ: ValueError.
    """
    prediction, target = _pair(prediction, target)
    if ignore is not None:
        counted = target != ignore
        prediction, target = prediction[counted], target[counted]
    _check_range(prediction, classes, "prediction")
    _check_range(target, classes, "target")
    pairs = (classes * target + prediction).flatten()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def iou(confusion):
    """Intersection over union of each class (K,), float64 on the CPU; nan where a
    class never occurs."""
    hits, true, predicted = _counts(confusion)
    return hits / (true + predicted - hits)


def dice(confusion):
    """Dice score (= F1 of the pixels) of each class (K,); nan as in `iou`."""
    hits, true, predicted = _counts(confusion)
    return 2 * hits / (true + predicted)


def mean_iou(confusion):
    """Mean IoU over the classes present in truth or prediction; nan if none is."""
    return iou(confusion).nanmean().item()


def mean_dice(confusion):
    """Mean Dice over the classes present in truth or prediction; nan if none is."""
    return dice(confusion).nanmean().item()


def pixel_accuracy(confusion):
    """Share of pixels with the right class; nan without pixels."""
    hits, true, _ = _counts(confusion)
    return (hits.sum() / true.sum()).item()


def boundary_f1(prediction, target, classes, tolerance=2, ignore=None):
    """How well the outlines agree, for each class: (K,) float64 on the CPU.

    The boundary of a class is its pixels with a direct neighbour of another class; the
    border of the image and ignored pixels make no boundary. A boundary pixel is matched
    if the other map has one at most `tolerance` pixels away. F1 joins precision (the
    matched share of the predicted boundary) and recall (that of the true one).
    Maps are (H, W) or (B, H, W); the score is the mean over the images in which the
    class has a boundary in truth or prediction, nan where there is no such image.

    After Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013.
    """
    prediction, target = _pair(prediction, target)
    if target.ndim not in (2, 3):
        shape = tuple(target.shape)
        raise ValueError(f"expected (H, W) or (B, H, W), got {shape}")
    counted = torch.ones_like(target, dtype=torch.bool)
    if ignore is not None:
        counted = target != ignore
    _check_range(prediction[counted], classes, "prediction")
    _check_range(target[counted], classes, "target")
    predicted = _boundaries(prediction, classes, counted)  # (B, K, H, W)
    true = _boundaries(target, classes, counted)
    found = _sizes(predicted & _near(true, tolerance))  # (B, K)
    hit = _sizes(true & _near(predicted, tolerance))
    size_predicted, size_true = _sizes(predicted), _sizes(true)
    precision, recall = found / size_predicted, hit / size_true
    score = 2 * precision * recall / (precision + recall)
    missed = (found + hit == 0) & (size_predicted + size_true > 0)
    return score.masked_fill(missed, 0.0).nanmean(0)  # (K,)


def rand_error(prediction_cells, truth_cells, parts=False, thin=False):
    """Adapted Rand error of a map of cells, 0 is best: are cells kept apart and whole?

    Both maps are (H, W), true where there is a cell; the cells are the 4-connected
    components, so that a diagonal membrane separates. Pixels that are no cell in the
    truth are left out; what the prediction calls membrane inside a cell counts as one
    more segment. With `thin` there is no such segment: the predicted cells first grow
    until they meet, so that the width of a membrane does not matter. With `parts`:
    (error, precision, recall) of the pairs of pixels in one segment: merged cells cost
    precision, split cells cost recall.

    1 - F of the Rand index, the score of the ISBI 2012 challenge, which later added
    the thinning: Arganda-Carreras et al., Frontiers in Neuroanatomy 2015.
    """
    prediction, truth = (_to_array(cells) for cells in (prediction_cells, truth_cells))
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(
            "expected two maps (H, W) of one size, "
            f"got {prediction.shape} and {truth.shape}"
        )
    if not truth.any():
        raise ValueError("the truth has no cell, so there is nothing to compare with")
    truth, prediction = (label(cells, connectivity=1) for cells in (truth, prediction))
    if thin:
        prediction = expand_labels(prediction, sum(prediction.shape))
    # scikit-image gives the recall of pairs first (its issue 6485).
    error, recall, precision = map(float, adapted_rand_error(truth, prediction))
    return (error, precision, recall) if parts else error


def _pair(prediction, target):
    """Both as int64 tensors on one device."""
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    if prediction.shape != target.shape:
        raise ValueError(
            "prediction and target differ in shape: "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if prediction.is_floating_point() or target.is_floating_point():
        raise ValueError("expected class numbers: take logits.argmax(1) first")
    return prediction.long(), target.long().to(prediction.device)


def _check_range(labels, classes, name):
    if labels.numel() and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"{name} holds labels {labels.min()} .. {labels.max()}, outside "
            f"0 .. {classes - 1}: pass the number of classes and the label to ignore"
        )


def _counts(confusion):
    """Per class, float64 on the CPU: right pixels, true pixels, predicted pixels."""
    confusion = torch.as_tensor(confusion).cpu().double()
    return confusion.diagonal(), confusion.sum(1), confusion.sum(0)


def _boundaries(labels, classes, counted):
    """(H, W) or (B, H, W) -> (B, K, H, W) bool."""
    labels = labels.masked_fill(~counted, -1).reshape(-1, *labels.shape[-2:])
    edge = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        size = labels.shape[dim]
        first, second = labels.narrow(dim, 0, size - 1), labels.narrow(dim, 1, size - 1)
        step = (first != second) & (first >= 0) & (second >= 0)
        edge.narrow(dim, 0, size - 1).logical_or_(step)
        edge.narrow(dim, 1, size - 1).logical_or_(step)
    numbers = torch.arange(classes, device=labels.device)[:, None, None]
    return (labels[:, None] == numbers) & edge[:, None]


def _near(mask, tolerance):
    """Pixels at most `tolerance` away from the mask: dilation by a disc."""
    radius = int(tolerance)
    steps = torch.arange(-radius, radius + 1, device=mask.device)
    disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).float()
    maps = mask.flatten(0, 1)[:, None].float()  # (B * K, 1, H, W)
    return F.conv2d(maps, disc[None, None], padding=radius).view_as(mask) > 0.5


def _sizes(masks):
    """Pixels of each mask (B, K, H, W): (B, K) float64 on the CPU."""
    return masks.sum((2, 3)).cpu().double()


def _to_array(cells):
    if isinstance(cells, torch.Tensor):
        cells = cells.detach().cpu().numpy()
    return np.asarray(cells) != 0
