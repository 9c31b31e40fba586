"""The k-means baseline: what it fits on, and what it cannot."""

from types import SimpleNamespace

import pytest
import torch

from errors import UserError
from utils.analysis import kmeans


def blobs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centers = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    return centers[labels] + torch.randn(n, 2, generator=generator), labels


@pytest.mark.parametrize(("limit", "fitted"), [(100, 90), (60, 60)])
def test_separate_blobs_are_found(monkeypatch, caplog, limit, fitted):
    """In a sample of a large split, too."""
    caplog.set_level("INFO")
    monkeypatch.setattr(kmeans, "KMEANS_LIMIT", limit)
    (train, _), (test, labels) = blobs(90, 0), blobs(30, 1)
    clusters, _ = kmeans.fit_predict(train, test, 3, seed=0, initializations=3)
    figures = kmeans.score(clusters, labels, 3, 3)
    assert figures["acc"] == figures["nmi"] == 1
    assert ("fitted on 60 of 90 images" in caplog.text) == (fitted < 90)


def test_more_clusters_than_images():
    with pytest.raises(UserError, match="at least 5 training images"):
        kmeans.fit_predict(blobs(4, 0)[0], blobs(30, 1)[0], 5, seed=0)


@pytest.mark.parametrize("with_labels", [True, False])
def test_repeated_with_and_without_labels(caplog, with_labels):
    caplog.set_level("INFO")
    (train, _), (test, labels) = blobs(90, 0), blobs(30, 1)
    dataset = SimpleNamespace(labels=labels if with_labels else None, classes=["a", "b", "c"])
    figures, clusters = kmeans.repeat(train, test, dataset, 3)
    assert len(figures["inertia"]["values"]) == 10
    best = min(kmeans.fit_predict(train, test, 3, seed)[1] for seed in range(10))
    assert min(figures["inertia"]["values"]) == best
    assert figures["cluster_sizes"] == clusters.bincount().tolist() == [10, 10, 10]
    assert ("acc" in figures) == with_labels
    assert ("ACC" if with_labels else "cluster sizes [10, 10, 10]") in caplog.text
