import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.analysis import choose_k, embedding, neighbors


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
    """Neighbors of features of `count` groups, and the embedding of these."""
    torch.manual_seed(seed)
    centers = torch.randn(count, 16)
    features = F.normalize(centers.repeat_interleave(size, 0) + noise * torch.randn(count * size, 16), dim=1)
    mined = neighbors.nearest_neighbors(features, 10, library="torch")
    return mined, embedding.embed(features, neighbors.without_itself(mined), seed)


def test_modularity():
    torch.manual_seed(0)
    table, labels = groups(3, 12, 0.8)[0], torch.arange(36) // 12
    for clusters in (torch.randint(3, (36,)), labels, 3 * labels, torch.zeros(36, dtype=torch.int64)):
        assert choose_k.modularity(clusters, table) == pytest.approx(modularity_by_pairs(clusters, table))


@pytest.mark.parametrize("count", [3, 6])
def test_the_number_of_groups_is_suggested(count):
    rows = choose_k.compare_numbers(*groups(count, 40, 0.3), [2, 3, 4, 6, 8, 10])
    suggested, alike = choose_k.suggest(rows)
    assert suggested == count and count in alike
    row = next(row for row in rows if row["clusters"] == count)
    assert row["stability"] == pytest.approx(1) and row["smallest"] == row["largest"] == 40


def test_numbers_that_cannot_be_told_apart():
    """Within 0.02 of the highest modularity: 3, 4; of a higher silhouette than both neighbors: 2, 6, 8."""
    columns = (2, 3, 4, 5, 6, 7, 8), (50, 70, 69, 67, 60, 50, 40), (90, 60, 50, 50, 60, 40, 41)
    rows = [{"clusters": n, "modularity": q / 100, "silhouette": s} for n, q, s in zip(*columns, strict=True)]
    assert choose_k.suggest(rows) == (3, [2, 3, 4, 6, 8])


def test_numbers_of_a_range():
    assert choose_k.candidates(5, 20) == list(range(5, 21))
    for low, high in ((5, 30), (2, 18), (2, 1000)):
        numbers = choose_k.candidates(low, high)
        assert (numbers[0], numbers[-1]) == (low, high) and numbers == sorted(set(numbers))
        assert 11 <= len(numbers) <= 16
