"""Metrics against slow loops and known cases; clusters that are more, fewer, or empty."""

import itertools
import math

import numpy as np
import pytest
import torch

from utils.analysis import metrics
from utils.analysis.prototypes import find_prototypes


def one_hot(assignment, num_clusters):
    return torch.nn.functional.one_hot(torch.as_tensor(assignment), num_clusters).float()


def draw(n, num_clusters, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(n, num_clusters, generator=generator)
    labels = torch.randint(num_classes, (n,), generator=generator)
    return probabilities / probabilities.sum(1, keepdim=True), labels


@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (5, 3), (3, 5)])
def test_accuracy_is_the_best_over_all_assignments(clusters, classes):
    probabilities, labels = draw(200, clusters, classes)
    table = torch.zeros(clusters, classes)
    for cluster, label in zip(probabilities.argmax(1), labels, strict=True):
        table[cluster, label] += 1
    wide = table if clusters <= classes else table.T
    columns = itertools.permutations(range(wide.size(1)), wide.size(0))
    best = max(wide[range(wide.size(0)), list(chosen)].sum().item() for chosen in columns) / 200
    found = metrics.clustering_metrics(probabilities, labels, classes)
    assert found["acc"] == pytest.approx(best)
    assert found["acc"] == metrics.clustering_accuracy(probabilities, labels, classes)
    assert found["acc"] <= found["majority_vote_acc"]
    assert len(found["matches"]) == min(clusters, classes)


def test_figures_of_known_clusterings():
    labels = torch.arange(60) % 5
    found = metrics.clustering_metrics(one_hot((labels + 2) % 5, 5), labels, 5)  # perfect
    assert [found[key] for key in ("acc", "nmi", "ari", "ami", "top5")] == pytest.approx([1] * 5)
    found = metrics.clustering_metrics(one_hot(torch.arange(60) % 6, 6), torch.arange(60) % 3, 3)
    assert (found["acc"], found["majority_vote_acc"]) == (0.5, 1)  # two clusters per class
    assert metrics.clustering_metrics(*draw(100, 3, 3), 3)["top5"] == 1  # of three
    # the table has the size of the problem, not of the labels that happen to occur
    found = metrics.clustering_metrics(one_hot([3, 3, 1, 1], 6), torch.tensor([0, 0, 4, 4]), 5)
    assert (found["acc"], found["matches"]) == (1, [(1, 4), (3, 0)])


def test_a_pair_without_an_image_is_not_matched():
    """Neither an empty cluster nor a class without images changes a figure, or gets a name."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = metrics.clustering_metrics(one_hot([2, 2, 2, 2, 2, 2], 3), labels, 3)
    assert found["matches"] in ([(2, 0)], [(2, 1)])
    assert (found["acc"], found["top5"]) == (0.5, 0.5)
    disjoint = metrics.hungarian_match(np.array([[5, 0], [3, 0]]))
    assert disjoint == [(0, 0)]


def test_classes_and_clusters_without_images_change_no_figure():
    probabilities, labels = draw(60, 7, 6, seed=4)
    plain = metrics.clustering_metrics(probabilities, labels, 6)
    for classes in ([0, 1, 4, 5, 9, 30], [2, 3, 5, 6, 7, 8]):
        gaps = metrics.clustering_metrics(probabilities, torch.tensor(classes)[labels], 31)
        assert [(c, classes[k]) for c, k in plain["matches"]] == gaps["matches"]
        for key in ("acc", "top5", "nmi", "ari", "ami", "majority_vote_acc"):
            assert gaps[key] == pytest.approx(plain[key]), key
    more = torch.cat([torch.zeros(60, 3), probabilities], 1)  # 3 empty clusters, never among the top 5
    assert metrics.clustering_metrics(more, labels, 6)["top5"] == plain["top5"]


def test_confusion_matrix_rows_are_true_classes_and_sum_to_one():
    labels = np.array([0, 0, 0, 0, 1, 1])
    clusters = np.array([1, 1, 1, 0, 0, 2])
    table = metrics.contingency(clusters, labels, 3, 3)
    matrix, columns = metrics.confusion_matrix(table, [(0, 1), (1, 0)])
    assert columns == [1, 0, None, 2]
    np.testing.assert_allclose(matrix, [[0.75, 0.25, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 0]])


@pytest.mark.parametrize("n", [50, 5000])
def test_validation_objective_loop(n):
    probabilities, _ = draw(n, 4, 4)
    neighbors = torch.randint(n, (n, 6), generator=torch.Generator().manual_seed(1))
    found = metrics.validation_objective(probabilities, neighbors)
    p = probabilities.tolist()
    total = 0.0
    for i, row in enumerate(neighbors.tolist()):
        for j in row:
            total -= math.log(sum(a * b for a, b in zip(p[i], p[j], strict=True)))
    mean = probabilities.double().mean(0)
    assert found["consistency"] == pytest.approx(total / (6 * n), rel=1e-5)
    assert found["entropy"] == pytest.approx(float(-(mean * mean.log()).sum()), rel=1e-6)
    assert found["loss"] == pytest.approx(found["consistency"] - found["entropy"])
    disagree = metrics.validation_objective(one_hot([0, 1], 2), torch.tensor([[1], [0]]))
    assert disagree["consistency"] == 100  # the logarithm is clamped


# --- prototypes ----------------------------------------------------------------------------------


def test_prototype_of_small_and_empty_clusters():
    probabilities = one_hot([0, 0, 0, 2], 4)
    features = torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    assert find_prototypes(features, probabilities) == [1, None, 3, None]


def test_neighbor_agreement_is_relative_to_chance():
    row = torch.arange(12).unsqueeze(1)
    same_half = torch.cat([row, (row + 2) % 12, (row + 4) % 12], 1)  # of the same parity
    halves = torch.arange(12) % 2
    assert metrics.neighbor_agreement(halves, same_half) == pytest.approx(1)
    assert metrics.neighbor_agreement(halves, (row + torch.arange(3)) % 12) == pytest.approx(0)  # 1 of 2
    assert metrics.neighbor_agreement(torch.zeros(12, dtype=torch.int64), same_half) == 0
    # ten of twelve images in one cluster agree with their neighbors by chance alone
    uneven = (torch.arange(12) >= 10).long()
    everybody = torch.stack([torch.cat([torch.tensor([i]), torch.arange(12)]) for i in range(12)])
    assert metrics.neighbor_agreement(uneven, everybody) == pytest.approx(0)
    clusters, images = torch.tensor([0, 0, 1, 1, 1, 0]), torch.tensor([1, 4])  # of some images
    neighbors = torch.tensor([[1, 0, 2], [4, 2, 3]])  # agree: 1 of 2, 2 of 2; chance 1/2
    assert metrics.neighbor_agreement(clusters, neighbors, images) == pytest.approx((0.75 - 0.5) / 0.5)
