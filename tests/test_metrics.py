import math

import numpy as np
import pytest
import torch
from skimage.metrics import adapted_rand_error
from sklearn import metrics as reference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from utils import metrics


def random_pair(classes=4, shape=(3, 20, 17), seed=0):
    generator = torch.Generator().manual_seed(seed)
    prediction, target = torch.randint(classes, (2, *shape), generator=generator)
    return prediction, target


# --- confusion matrix and the scores that follow from it


def test_confusion_by_hand():
    target = torch.tensor([[0, 0, 1], [1, 1, 2]])
    prediction = torch.tensor([[0, 1, 1], [1, 0, 0]])
    confusion = metrics.confusion_matrix(prediction, target, 3)
    assert confusion.tolist() == [[1, 1, 0], [1, 2, 0], [1, 0, 0]]
    assert confusion.dtype == torch.int64
    assert metrics.iou(confusion).tolist() == [1 / 4, 2 / 4, 0]
    assert metrics.dice(confusion).tolist() == [2 / 5, 4 / 6, 0]
    assert metrics.mean_iou(confusion) == pytest.approx(0.25)
    assert metrics.mean_dice(confusion) == pytest.approx((2 / 5 + 4 / 6) / 3)
    assert metrics.pixel_accuracy(confusion) == 0.5


def test_against_scikit_learn():
    prediction, target = random_pair()
    confusion = metrics.confusion_matrix(prediction, target, 4)
    flat = target.flatten().numpy(), prediction.flatten().numpy()
    assert (confusion.numpy() == reference.confusion_matrix(*flat)).all()
    jaccard = reference.jaccard_score(*flat, average=None)
    assert np.allclose(metrics.iou(confusion), jaccard, atol=1e-15)
    f1 = reference.f1_score(*flat, average=None)
    assert np.allclose(metrics.dice(confusion), f1, atol=1e-15)
    accuracy = reference.accuracy_score(*flat)
    assert metrics.pixel_accuracy(confusion) == pytest.approx(accuracy, abs=1e-15)


@pytest.mark.parametrize("ignore", [255, 3])
def test_ignored_pixels_never_count(ignore):
    prediction, target = random_pair(classes=3)
    expected = metrics.confusion_matrix(prediction[:, :, :9], target[:, :, :9], 3)
    target[:, :, 9:] = ignore
    prediction[0, 0, 9] = 200  # not even looked at
    confusion = metrics.confusion_matrix(prediction, target, 3, ignore=ignore)
    assert (confusion == expected).all()


def test_everything_ignored():
    blank = torch.full((4, 4), 255)
    confusion = metrics.confusion_matrix(torch.zeros_like(blank), blank, 2, ignore=255)
    assert confusion.sum() == 0
    assert math.isnan(metrics.mean_iou(confusion))
    assert math.isnan(metrics.pixel_accuracy(confusion))


def test_an_absent_class_has_no_score_and_an_invented_one_has_zero():
    target = torch.zeros(2, 2, dtype=torch.uint8)
    absent = metrics.confusion_matrix(target, target, 3)
    assert metrics.iou(absent)[0] == 1 and metrics.iou(absent)[1:].isnan().all()
    assert metrics.mean_iou(absent) == metrics.mean_dice(absent) == 1
    invented = metrics.confusion_matrix(torch.tensor([[0, 0], [0, 2]]), target, 3)
    assert metrics.iou(invented)[2] == 0
    assert metrics.mean_iou(invented) == pytest.approx(3 / 8)


def test_kinds_of_input_agree():
    prediction, target = random_pair(classes=2)
    expected = metrics.confusion_matrix(prediction, target, 2)
    for a, b in [
        (prediction.numpy(), target.numpy()),
        (prediction.to(torch.uint8), target.to(torch.uint8)),
        (prediction.bool(), target),
        (prediction.mT, target.mT),
        (prediction[:, ::1].flip(1), target.flip(1)),
    ]:
        assert (metrics.confusion_matrix(a, b, 2) == expected).all()
    parts = zip(prediction, target)
    summed = sum(metrics.confusion_matrix(p[None], t[None], 2) for p, t in parts)
    assert (summed == expected).all()


@pytest.mark.parametrize("function", [metrics.confusion_matrix, metrics.boundary_f1])
def test_what_is_refused(function):
    good = torch.zeros(4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"prediction holds labels 0 \.\. 5.*0 \.\. 2"):
        function(good.index_fill(0, torch.tensor(1), 5), good, 3)
    with pytest.raises(ValueError, match=r"target holds labels -1 \.\. 0"):
        function(good, good.index_fill(0, torch.tensor(1), -1), 3)
    with pytest.raises(ValueError, match="label to ignore"):
        function(good, good + 255, 3)
    with pytest.raises(ValueError, match=r"shape: \(4, 4\) and \(2, 4\)"):
        function(good, good[:2], 3)
    with pytest.raises(ValueError, match="argmax"):
        function(good.float(), good, 3)


# --- boundaries


def squares(*boxes, size=24):
    labels = torch.zeros(size, size, dtype=torch.long)
    for top, left, bottom, right in boxes:
        labels[top:bottom, left:right] = 1
    return labels


def test_equal_maps_score_one_and_the_border_is_no_boundary():
    labels = squares((0, 0, 24, 10))  # only the edge at column 10 is a boundary
    assert metrics.boundary_f1(labels, labels, 2).tolist() == [1, 1]
    empty = torch.zeros_like(labels)
    assert metrics.boundary_f1(empty, empty, 2).isnan().all()


@pytest.mark.parametrize("shift, inside", [(0, 1), (2, 1), (3, 0)])
def test_a_shifted_edge_matches_up_to_the_tolerance(shift, inside):
    truth, moved = squares((0, 0, 24, 8)), squares((0, 0, 24, 8 + shift))
    scores = metrics.boundary_f1(moved, truth, 2, tolerance=2)
    assert scores.tolist() == [inside, inside]


def test_the_distance_is_euclidean():
    truth, prediction = squares((5, 5, 6, 6)), squares((7, 7, 8, 8))  # sqrt(8) apart
    assert metrics.boundary_f1(prediction, truth, 2, tolerance=2.8)[1] == 0
    assert metrics.boundary_f1(prediction, truth, 2, tolerance=2.9)[1] == 1


def test_precision_and_recall_by_hand():
    truth = squares((2, 2, 5, 5))
    prediction = squares((2, 2, 5, 5), (12, 12, 18, 18))
    # class 1: boundary of 8 pixels, all found; predicted 8 + 20, of which 8 are right
    precision, recall = 8 / 28, 1.0
    expected = 2 * precision * recall / (precision + recall)
    assert metrics.boundary_f1(prediction, truth, 2)[1] == pytest.approx(expected)


def test_missed_class_scores_zero():
    truth = squares((4, 4, 9, 9))
    scores = metrics.boundary_f1(torch.zeros_like(truth), truth, 2)
    assert scores.tolist() == [0, 0]


def test_the_mean_leaves_out_images_without_the_class():
    one, empty = squares((4, 4, 9, 9)), squares()
    alone = metrics.boundary_f1(squares((4, 4, 9, 10)), one, 2, tolerance=0)
    batch = metrics.boundary_f1(
        torch.stack([squares((4, 4, 9, 10)), empty]), torch.stack([one, empty]), 2, 0
    )
    assert 0 < alone[1] < 1
    assert batch.tolist() == alone.tolist()


def test_ignored_pixels_make_no_boundary():
    truth = squares((4, 4, 12, 12))
    wrong = squares((4, 4, 12, 12), (16, 16, 20, 20))
    truth[14:, 14:] = 255
    scores = metrics.boundary_f1(wrong, truth, 2, ignore=255)
    assert scores.tolist() == [1, 1]


def test_boundary_against_distances_one_by_one():
    generator = torch.Generator().manual_seed(1)
    prediction, truth = torch.randint(3, (2, 2, 12, 11), generator=generator)

    def boundary(labels, k):
        return [
            (y, x)
            for y in range(12)
            for x in range(11)
            if labels[y, x] == k
            and any(
                0 <= y + dy < 12 and 0 <= x + dx < 11 and labels[y + dy, x + dx] != k
                for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
            )
        ]

    def matched(points, others):
        return np.mean([min(math.dist(p, q) for q in others) <= 1 for p in points])

    for k in range(3):
        scores = []
        for p, t in zip(prediction, truth):
            p, t = boundary(p, k), boundary(t, k)
            precision, recall = matched(p, t), matched(t, p)
            scores.append(2 * precision * recall / (precision + recall))
        ours = metrics.boundary_f1(prediction, truth, 3, tolerance=1)[k]
        assert ours == pytest.approx(np.mean(scores), abs=1e-12)


# --- a device without float64


class Distant(torch.Tensor):
    """Says that it lies on another device, `meta`, that has no float64, as Apple's
    `mps`; its values lie beside it, on the CPU."""

    @staticmethod
    def __new__(cls, values):
        if values.dtype == torch.float64:
            raise TypeError("no float64 on this device")
        kept = values.shape, values.stride()
        own = torch.Tensor._make_wrapper_subclass(
            cls, *kept, dtype=values.dtype, device="meta"
        )
        own.beside = values
        return own

    def __torch_dispatch__(self, *_):
        raise NotImplementedError("only within Distance")


class Distance(TorchDispatchMode):
    """Computes on the CPU what is asked of the other device, but mixes no devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = torch.device(kwargs.get("device") or ("meta" if types else "cpu"))

        def near(value):
            if isinstance(value, Distant):
                return value.beside
            assert not (types and torch.is_tensor(value) and value.ndim), "mixed"
            return "cpu" if value == torch.device("meta") else value

        found = function(*tree_map(near, args), **tree_map(near, kwargs))
        if device.type == "cpu":
            return found
        return tree_map(lambda x: Distant(x) if torch.is_tensor(x) else x, found)


def test_a_device_without_float64():
    prediction, target = random_pair(classes=3)
    prediction = prediction.where(prediction == target, target.roll(1, -1))
    target[:, :3] = 255
    functions = (
        metrics.iou, metrics.dice, metrics.mean_iou, metrics.mean_dice,
        metrics.pixel_accuracy,
    )  # fmt: skip

    def scores(prediction, target):
        confusion = metrics.confusion_matrix(prediction, target, 3, ignore=255)
        yield metrics.boundary_f1(prediction, target, 3, ignore=255)
        yield from (function(confusion) for function in functions)

    expected = list(scores(prediction, target))
    with Distance():
        one, other = Distant(prediction), Distant(target)
        with pytest.raises(TypeError, match="no float64"):
            one.double()  # the stand-in is as strict as the device
        found = list(scores(one, other))
    for ours, theirs in zip(found, expected, strict=True):
        assert not isinstance(ours, Distant)  # on the CPU
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


# --- cells


def two_cells():
    cells = torch.ones(9, 9, dtype=torch.bool)
    cells[:, 4] = False
    return cells


def test_rand_error_by_hand():
    truth = two_cells()
    assert metrics.rand_error(truth, truth) == 0
    # merged: two cells of n pixels each fall into one segment, so that
    # precision = 2 n (n - 1) / (2 n (2 n - 1)) over pairs, recall = 1
    n = 36
    error, precision, recall = metrics.rand_error(torch.ones(9, 9), truth, parts=True)
    assert recall == 1 and precision == pytest.approx((n - 1) / (2 * n - 1))
    assert error == pytest.approx(1 - 2 * precision / (precision + 1))
    # one pixel of the membrane missed merges them all the same
    leak = truth.clone()
    leak[4, 4] = True
    assert metrics.rand_error(leak, truth) == pytest.approx(error)


def test_a_diagonal_membrane_separates():
    cells = ~torch.eye(12, dtype=torch.bool)
    expected = torch.ones(12, 12).triu(1) + 2 * torch.ones(12, 12).tril(-1)
    merged = metrics.rand_error(torch.ones(12, 12), cells)
    known = adapted_rand_error(expected.int().numpy(), np.ones((12, 12), int))[0]
    assert merged == pytest.approx(known) and merged > 0.3


def test_pixels_that_are_no_cell_in_the_truth_do_not_count():
    truth = two_cells()
    thick = truth.clone()
    thick[:, 3] = False  # eats into a cell: counts
    assert metrics.rand_error(thick, truth) > 0
    assert metrics.rand_error(truth, thick) == 0  # the same pixels, now outside


def test_rand_error_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="no cell"):
        metrics.rand_error(torch.ones(4, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\(1, 4, 4\)"):
        metrics.rand_error(torch.ones(1, 4, 4), torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match="one size"):
        metrics.rand_error(torch.ones(4, 4), np.ones((4, 5)))


def test_rand_error_thinned_does_not_ask_how_thick_a_membrane_is():
    truth = np.ones((40, 40), bool)
    truth[19:21] = False
    thick, merged = truth.copy(), np.ones_like(truth)
    thick[13:27] = False  # in the right place, seven times as wide
    assert metrics.rand_error(thick, truth) > 0.1
    assert metrics.rand_error(thick, truth, thin=True) == pytest.approx(0)
    assert metrics.rand_error(merged, truth, thin=True) > 0.3
    nothing = np.zeros_like(truth)
    assert metrics.rand_error(nothing, truth, thin=True) > 0.3  # all one segment
