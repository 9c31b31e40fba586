import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.analysis import choose_k, neighbors


def modularity_by_pairs(clusters, table):
    """Newman and Girvan's sum over all pairs, with a weight for each time that one names the other."""
    n = len(table)
    weight = np.zeros((n, n))
    for i, row in enumerate(table.tolist()):
        for j in row:
            if j != i:
                weight[i, j] += 0.5
                weight[j, i] += 0.5
    degree, total = weight.sum(1), weight.sum()
    return sum(
        weight[i, j] / total - degree[i] * degree[j] / total**2
        for i in range(n)
        for j in range(n)
        if clusters[i] == clusters[j]
    )


def groups(count, size, noise, seed=0):
    """Features of `count` groups, and their neighbors."""
    torch.manual_seed(seed)
    centers = torch.randn(count, 16)
    features = F.normalize(centers.repeat_interleave(size, 0) + noise * torch.randn(count * size, 16), dim=1)
    return neighbors.nearest_neighbors(features, 10, library="torch")


def test_modularity():
    torch.manual_seed(0)
    table, labels = groups(3, 12, 0.8), torch.arange(36) // 12
    for clusters in (torch.randint(3, (36,)), labels, 3 * labels, torch.zeros(36, dtype=torch.int64)):
        assert choose_k.modularity(clusters, table) == pytest.approx(modularity_by_pairs(clusters, table))


@pytest.mark.parametrize("count", [3, 6])
def test_the_number_of_groups_is_suggested(count):
    rows = choose_k.compare_numbers(groups(count, 40, 0.3), [2, 3, 4, 6, 8, 10])
    suggested, alike = choose_k.suggest(rows)
    assert suggested == count and count in alike
    row = next(row for row in rows if row["clusters"] == count)
    assert row["stability"] == pytest.approx(1) and row["mean_smallest"] == row["mean_largest"] == 40


def test_numbers_that_cannot_be_told_apart():
    rows = [{"clusters": n, "modularity": q} for n, q in ((2, 0.5), (3, 0.7), (4, 0.69), (5, 0.67))]
    assert choose_k.suggest(rows) == (3, [3, 4])
