"""Clusters of the neighbor graph, and the heads that start from them, on groups made by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from utils.analysis import graph, metrics, neighbors


def groups(sizes, spread=0.3, width=8, k=8):
    """Features around one random direction per group, their neighbors, and the groups."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    centers = F.normalize(torch.randn(len(sizes), width, generator=generator), dim=1)
    features = centers[labels] + spread * torch.randn(len(labels), width, generator=generator)
    mined = neighbors.nearest_neighbors(F.normalize(features, dim=1), k, library="torch")
    return features, mined, labels


def accuracy(clusters, labels):
    c = int(labels.max()) + 1
    return metrics.clustering_accuracy(F.one_hot(clusters, c).float(), labels, c)


@pytest.mark.parametrize("dense", [0, 1000])
def test_groups_are_found_dense_and_sparse(monkeypatch, dense):
    monkeypatch.setattr(graph, "DENSE", dense)
    _, mined, labels = groups([60, 60, 60], spread=0.1)
    found = graph.clusterings(mined, 3, 4, seed=0)
    assert found.shape == (4, 180) and found.dtype == torch.int64
    assert all(accuracy(clusters, labels) == 1 for clusters in found)


def test_dense_and_sparse_span_the_same_directions(monkeypatch):
    _, mined, _ = groups([60, 50, 70])
    similar = []
    for dense in (0, 1000):
        monkeypatch.setattr(graph, "DENSE", dense)
        e = torch.from_numpy(graph.embedding(*graph.spectrum(mined, 6), 3))
        assert e.shape == (180, 6)
        similar.append(e @ e.T)  # which the signs of eigenvectors do not change
    assert torch.allclose(*similar, atol=0.02)


def test_clusterings_repeat_and_differ_by_seed():
    _, mined, _ = groups([40] * 4, spread=0.6)
    first, again, other = (graph.clusterings(mined, 4, 6, seed) for seed in (0, 0, 100))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not all(torch.equal(first[0], clusters) for clusters in first)


def test_heads_reproduce_the_clusters():
    features, _, labels = groups([60, 60, 60], spread=0.1)
    features = 40 * features + 7  # neither centered nor of unit scale
    clusters = torch.stack([labels, (labels + 1) % 3])
    weights, biases = graph.fit_heads(features.half(), F.one_hot(clusters, 3))
    logits = torch.einsum("nd,hcd->hnc", features, weights) + biases.unsqueeze(1)
    agreement = (logits.argmax(2) == clusters).double().mean()
    assert agreement == 1


def test_only_the_given_images_count():
    features, mined, labels = groups([50, 50, 50], spread=0.1, k=30)
    images = torch.arange(0, 150, 2)
    itself = torch.arange(150).unsqueeze(1)
    kept = torch.where(mined % 2 == 0, mined, itself)  # as choose_splits does
    spoiled = features.clone()
    spoiled[1::2] = 1e6
    heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
    graph.initialize_heads(heads, spoiled, kept, images, seed=0)
    assert all(accuracy(head(features).argmax(1), labels) == 1 for head in heads)


def test_a_graph_without_any_edge_is_no_error():
    alone = torch.arange(12).unsqueeze(1).expand(12, 4)
    assert graph.clusterings(alone, 2, 1, seed=0).shape == (1, 12)


@pytest.mark.parametrize(
    ("shape", "clusters", "words"),
    [((4, 3), 5, "4 images cannot form num_classes 5"), ((100_000, 2), 2000, "head_init to random")],
)
def test_what_cannot_be_clustered(shape, clusters, words):
    with pytest.raises(UserError, match=words):
        graph.clusterings(torch.zeros(shape, dtype=torch.int64), clusters, 1, seed=0)
