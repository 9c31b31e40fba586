"""Calibration: closed-form values, slow loops, and what counts as right."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from utils.analysis import calibration, metrics


def constant(value, right, wrong):
    """`right` + `wrong` images of one confidence."""
    return torch.full((right + wrong,), value), torch.arange(right + wrong) < right


def random_images(n, seed):
    """Confidence on a grid that holds all edges of bins, the same for many images; and what is right."""
    draw = torch.Generator().manual_seed(seed)
    confidence = torch.randint(0, 61, (n,), generator=draw).double() / 60
    return confidence, torch.rand(n, generator=draw) < confidence


# --- expected calibration error ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (constant(0.75, 3, 1), 0),
        (constant(1.0, 0, 5), 1),
        (constant(0.0, 1, 0), 1),
        (constant(0.1, 0, 1_000_000), 0.1),  # sums are in double precision
    ],
)
def test_error_of_constant_confidence(images, error):
    assert calibration.expected_calibration_error(*images) == pytest.approx(error, abs=1e-7)


@pytest.mark.parametrize("n", [1, 7, 500])
def test_bins_are_those_of_a_slow_loop(n):
    confidence, right = random_images(n, seed=n)
    inside = [[] for _ in range(15)]
    for value, good in zip(confidence.tolist(), right.tolist(), strict=True):
        exact = Fraction(value).limit_denominator(60)
        place = next(i for i in range(15) if exact <= Fraction(i + 1, 15))
        inside[place].append((value, good))
    mean, accuracy, count = calibration.reliability_bins(confidence, right)
    assert count.tolist() == [len(images) for images in inside]
    error = 0
    for i, images in enumerate(inside):
        if not images:
            assert mean[i].isnan() and accuracy[i].isnan()
            continue
        expected = [sum(values) / len(images) for values in zip(*images, strict=True)]
        assert [mean[i].item(), accuracy[i].item()] == pytest.approx(expected)
        error += len(images) / n * abs(expected[0] - expected[1])
    assert calibration.expected_calibration_error(confidence, right) == pytest.approx(error)


# --- coverage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 40, 333])
def test_coverage_is_that_of_a_slow_loop(n):
    confidence, right = random_images(n, seed=n)
    images = sorted(zip(confidence.tolist(), right.tolist(), strict=True), reverse=True)
    curve = calibration.coverage_curve(confidence, right).tolist()
    for share, accuracy in zip(range(5, 101, 5), curve, strict=True):
        taken = next(k for k in range(1, n + 1) if 100 * k >= share * n)
        good = 0
        for value, _ in images[:taken]:
            alike = [is_right for other, is_right in images if other == value]
            good += sum(alike) / len(alike)
        assert accuracy == pytest.approx(good / taken)


def test_sure_begins_at_the_threshold():
    confidence = torch.tensor([0.8, 0.79999, 0.95, 0.1])
    right = torch.tensor([True, False, False, False])
    for n, expected in ((4, [(2, 0.5), (2, 0)]), (1, [(1, 1), (0, None)])):
        found = calibration.sure_and_unsure(confidence[:n], right[:n])
        assert [(part["count"], part["accuracy"]) for part in found] == expected


# --- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "classes"), [(6, 6), (4, 6), (9, 6)])
def test_the_mean_of_what_is_right_is_a_published_accuracy(c, classes):
    draw = torch.Generator().manual_seed(c)
    probabilities = torch.randn(400, c, generator=draw).softmax(1)
    labels = torch.randint(classes, (400,), generator=draw)
    found = metrics.clustering_metrics(probabilities, labels, classes)
    table = metrics.contingency(probabilities.argmax(1).numpy(), labels.numpy(), c, classes)
    right = calibration.judged_class(table, found["matches"])[probabilities.argmax(1)] == labels
    name = "majority_vote_acc" if c > classes else "acc"
    assert right.double().mean().item() == pytest.approx(found[name])
    assert c < classes or found["acc"] != found["majority_vote_acc"]


def test_a_cluster_without_a_match_is_wrong_unless_there_are_more_clusters_than_classes():
    assert calibration.judged_class(np.array([[3, 0], [2, 0]]), [(0, 0)]).tolist() == [0, -1]
    assert calibration.judged_class(np.array([[3], [2]]), [(0, 0)]).tolist() == [0, 0]


# --- metrics.json --------------------------------------------------------------------------------


def test_summary_is_rounded_and_has_no_nan():
    confidence, right = constant(0.777777, 2, 1)
    found = calibration.calibration_figures(confidence, right)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    filled = 11  # (11/15, 12/15]
    assert found["bins"]["confidence"] == [None] * filled + [0.7778] + [None] * 3
    assert found["bins"]["accuracy"][filled] == 0.6667 and found["bins"]["count"][filled] == 3
    assert found["coverage"] == {"share": [i / 20 for i in range(1, 21)], "accuracy": [0.6667] * 20}
    assert found["ece"] == pytest.approx(0.777777 - 2 / 3)
    assert found["unsure_below"] == 0.8
    assert found["sure"] == {"count": 0, "accuracy": None}
    assert found["unsure"] == {"count": 3, "accuracy": pytest.approx(2 / 3)}
