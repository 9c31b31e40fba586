"""The embedding, the candidates and the judge, on handwritten digits and on groups made by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from sklearn.datasets import load_digits

from errors import UserError
from losses.temi import TEMILoss
from steps.judged_clusters import Candidate, FeatureSpace, train_heads
from utils.analysis import embedding, metrics, neighbors, partitions


def groups(sizes, spread=0.1, width=16):
    """Features around one random direction per group, in random order, and the groups."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centers = F.normalize(torch.randn(len(sizes), width, generator=generator), dim=1)
    return centers[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def accuracy(clusters, labels):
    c = 1 + max(int(labels.max()), int(clusters.max()))
    return metrics.clustering_accuracy(F.one_hot(clusters, c).float(), labels, c)


@pytest.fixture(scope="module")
def digits():
    """Pixels of 720 digits, 150 of each of 0 to 3 and 20 of each other."""
    x, y = load_digits(return_X_y=True)
    labels = torch.from_numpy(y).long()
    kept = torch.cat([(labels == c).nonzero()[: 150 if c < 4 else 20, 0] for c in range(10)])
    return FeatureSpace(torch.from_numpy(x[kept]).float(), 0, library="torch"), labels[kept]


def test_power_normalized_features_are_centered_roots_of_length_one():
    found = embedding.power_normalize(torch.tensor([[4.0, -9.0], [0.0, 1.0], [1.0, 0.0]]))
    roots = torch.tensor([[2.0, -3.0], [0.0, 1.0], [1.0, 0.0]])
    assert torch.allclose(found, F.normalize(roots - roots.mean(0), dim=1))


def test_the_fuzzy_graph_is_that_of_the_paper():
    features = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    mined = neighbors.without_itself(neighbors.nearest_neighbors(features, 12, library="torch"))
    distances = 1 - neighbors.similarities(features, mined)
    directed = np.zeros((40, 40))
    for i, (others, d) in enumerate(zip(mined.numpy(), distances.double().numpy(), strict=True)):
        unit = brentq(lambda u, d=d: np.exp(-(d - d[0]) / u).sum() - np.log2(12), 1e-6, 1e3)
        directed[i, others] = np.exp(-(d - d[0]) / unit)
    expected = directed + directed.T - directed * directed.T
    assert np.allclose(embedding.fuzzy_graph(mined, distances).toarray(), expected, atol=1e-5)


def test_an_image_is_not_its_own_neighbor_even_if_copies_come_first():
    mined = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 3]])
    assert neighbors.without_itself(mined).tolist() == [[1, 2], [0, 2], [1, 0]]


@pytest.mark.parametrize("shape", [(30, 5), (20, 50)])
def test_principal_components_are_those_of_the_singular_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = embedding.principal_components(x, 4)
    u, s, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert torch.allclose(found @ found.T, (u[:, :4] * s[:4]) @ (u[:, :4] * s[:4]).T, atol=1e-3)


def test_groups_lie_apart_in_the_embedding():
    features, labels = groups([60, 60, 60])
    space = FeatureSpace(features, 0, library="torch")
    assert partitions.silhouette(space.embedded, labels) > 0.8
    assert partitions.silhouette(space.embedded, torch.zeros(180).long()) == -1


def test_clusters_repeat_and_cover_all_numbers(digits):
    space, labels = digits
    first, again = space.cluster(10)[0], space.cluster(10)[0]
    assert torch.equal(first.probabilities, again.probabilities)
    assert first.probabilities.shape == (720, 10)
    assert torch.allclose(first.probabilities.sum(1), torch.ones(720))
    assert accuracy(first.probabilities.argmax(1), labels) > 0.8


def test_the_first_candidate_has_the_highest_score(digits):
    candidates = digits[0].cluster(10)
    scores = [candidate.score for candidate in candidates]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert candidates[0].figures()["score"] == scores[0]
    sizes = candidates[0].probabilities.argmax(1).bincount(minlength=10).tolist()
    assert candidates[0].sizes == sizes and sum(sizes) == 720


def test_a_large_class_is_not_cut():
    """One class of 70 %, which even clusters would cut in two."""
    features, labels = groups([350, 50, 50, 50])
    found = FeatureSpace(features, 0, library="torch").cluster(4)[0].probabilities.argmax(1)
    assert accuracy(found, labels) > 0.99


def test_more_than_a_silhouette_counts():
    def score(staying, sizes):
        return Candidate("", torch.empty(0), 0.5, staying, sizes).score

    assert score(0.9, [50, 50]) > score(0.9, [99, 1]) > score(0.9, [100, 0]) > -10
    assert score(0.9, [50, 50]) > score(0.8, [50, 50])
    assert score(0.9, [50, 50, 0, 0]) < score(0.9, [50, 25, 25, 0]) - 0.2


def test_few_images_and_too_few():
    features, labels = groups([4, 4, 4])
    judged = FeatureSpace(features, 0, library="torch").cluster(3)[0]
    assert accuracy(judged.probabilities.argmax(1), labels) == 1
    with pytest.raises(UserError, match="12 images cannot form num_classes 13"):
        FeatureSpace(features, 0, library="torch").cluster(13)


def test_equal_features_do_not_fail():
    judged = FeatureSpace(torch.ones(40, 6), 0, library="torch").cluster(3)[0]
    assert judged.probabilities.isfinite().all()


def test_many_images_are_grouped_first(monkeypatch):
    monkeypatch.setattr(partitions, "PAIRS_OF", 100)
    monkeypatch.setattr(partitions, "GROUPS", 40)
    monkeypatch.setattr(partitions, "SILHOUETTE_SAMPLE", 100)
    features, labels = groups([60, 60, 60])
    space = FeatureSpace(features, 0, library="torch")
    assert accuracy(torch.from_numpy(partitions.cluster_by_ward(space.embedded.numpy(), 3, 0)), labels) == 1
    assert partitions.silhouette(space.embedded, labels) > 0.8


def test_a_head_keeps_the_sizes_it_starts_from():
    """Between two equal groups, uniform sizes would move the boundary; the estimated ones do not."""
    features, labels = groups([300, 60], spread=0.25)
    mined = neighbors.without_itself(
        neighbors.nearest_neighbors(F.normalize(features, dim=1), 10, library="torch")
    )
    before, after = train_heads(features, mined, torch.stack([labels, labels]), 2, 0)
    assert before.shape == after.shape == (2, 360, 2)
    assert all(accuracy(p.argmax(1), labels) > 0.97 for p in (before[0], after[0]))


def test_a_head_that_lost_a_cluster_is_not_trained(digits):
    space, _ = digits
    start = torch.arange(720) % 3
    before, after = F.one_hot(start, 3).float(), F.one_hot(start.clamp(max=1), 3).float()
    candidate = space._judge("", start, before, after)
    assert candidate.sizes == [240] * 3 and torch.equal(candidate.probabilities, before)
    assert 0.5 < candidate.staying < 0.9  # of the trained one: it still speaks against the clustering
    assert torch.equal(space._judge("", start, before, before).probabilities, before)


def test_temi_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 5, 3, generator=generator)  # 2 heads, 5 pairs, 3 clusters
    sizes = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    criterion = TEMILoss(sizes)
    p, q = a.softmax(2), b.softmax(2)
    mean = 0.9 * sizes + 0.1 * (p + q).mean(1) / 2
    weight = (p * q).sum(2).mean(0)
    expected = -(weight * ((p * q) ** 0.6 * (sizes / mean).unsqueeze(1)).sum(2).log()).mean(1).sum()
    assert torch.allclose(criterion(a, b), expected, rtol=1e-5)
    assert torch.allclose(criterion.mean, mean, rtol=1e-5)


def test_the_last_features_are_embedded_once():
    features, _ = groups([12, 12])
    space = FeatureSpace.of(features, 0, "cpu", "torch")
    assert FeatureSpace.of(features.clone(), 0, "cpu", "torch") is space
    changed = features.clone()
    changed[3, 4] += 1
    for given in ((features, 1, "cpu", "torch"), (changed, 0, "cpu", "torch")):
        assert not torch.equal(FeatureSpace.of(*given).embedded, space.embedded)
