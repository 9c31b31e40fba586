"""Clusterings by Ward's linkage, and clusters merged into fewer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from utils.analysis import partitions


@pytest.mark.parametrize("pairs_of", [5000, 100])
def test_cuts_are_clusterings_by_ward(pairs_of, monkeypatch):
    monkeypatch.setattr(partitions, "PAIRS_OF", pairs_of)
    monkeypatch.setattr(partitions, "GROUPS", 50)
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    cuts = partitions.cut_ward(x, [3, 5, 20], 0)
    for cut, number in zip(cuts.T, (3, 5, 20), strict=True):
        assert adjusted_rand_score(cut, partitions.cluster_by_ward(x, number, 0)) == pytest.approx(1)


def random_clusters(clusters=9, images=60):
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(images, 5, generator=generator), dim=1)
    return features, torch.arange(images) % clusters


def test_merged_clusters_nest():
    features, clusters = random_clusters()
    levels = partitions.merge_clusters(features, F.one_hot(clusters), [2, 4, 5, 9])
    assert [len(set(level)) for level in levels] == [2, 4, 5, 9] and levels[-1] == list(range(9))
    for coarse, fine in zip(levels, levels[1:], strict=False):
        assert len(set(zip(fine, coarse, strict=True))) == len(set(fine))  # each in one
        assert list(dict.fromkeys(coarse)) == sorted(set(coarse))  # counted by their first cluster


def test_clusters_are_merged_as_ward_merges_their_images():
    """Started from clusters of equal images."""
    features, _ = random_clusters()
    clusters = torch.arange(60).repeat_interleave(1 + torch.arange(60) % 3)
    (merged,) = partitions.merge_clusters(features[clusters], F.one_hot(clusters), [7])
    expected = partitions.cluster_by_ward(features[clusters].numpy(), 7, 0)
    assert adjusted_rand_score(torch.tensor(merged)[clusters], expected) == pytest.approx(1)


def test_an_empty_cluster_is_merged_where_its_probability_lies():
    features = torch.eye(3).repeat_interleave(4, 0)
    probabilities = F.one_hot(torch.arange(12) // 4, 4) + 1e-6 * torch.eye(4)[3]
    probabilities[8:, 3] += 1e-5
    assert partitions.merge_clusters(features, probabilities, [3]) == [[0, 1, 2, 2]]
