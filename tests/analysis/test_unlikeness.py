"""How unlike the training images an image is: the percentile, the file, and few images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mistakes import npy, refused

from utils.analysis import duplicates, unlikeness
from utils.analysis.unlikeness import NTH, TrainingFeatures, unlike_text

CPU = torch.device("cpu")


def features(n, seed=0):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))


def nth_distances(queries, bank, nth=NTH):
    similarity = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    return 1 - similarity.sort(descending=True).values[:, nth - 1]


def test_the_percentile_is_the_share_of_training_images_that_are_less_unlike():
    training, new = features(300) + 1, features(50, seed=1) + 1
    own = nth_distances(training, training, NTH + 1)  # the first is the image itself
    expected = [(own < distance).double().mean().item() * 100 for distance in nth_distances(new, training)]
    known = TrainingFeatures.choose(training, torch.arange(300), CPU)
    found = known.unlike(new)
    assert found.tolist() == pytest.approx(expected, abs=0.7)  # two images of 300, by float16
    assert known.unlike(-torch.ones(1, 16)).item() == 100
    again = 100 * (own < own[:, None]).double().mean(1)
    assert known.unlike(training).tolist() == pytest.approx(again.tolist(), abs=0.7)


def test_copies_count_once():
    alone, copied = features(100), torch.cat([features(100), features(100)[:40]])
    first = duplicates.first_of([i % 100 for i in range(140)])
    expected = TrainingFeatures.choose(alone, torch.arange(100), CPU)
    found = TrainingFeatures.choose(copied, first, CPU)
    assert torch.equal(found.distances, expected.distances) and torch.equal(found.features, expected.features)


def test_of_many_images_a_sample_is_compared_with_itself(monkeypatch):
    """So that the percentiles of new images of the same kind are even, whatever the sample."""
    monkeypatch.setattr(unlikeness, "MAX_KEPT", 500)
    known = TrainingFeatures.choose(features(3000), torch.arange(3000), CPU)
    assert known.features.shape == (500, 16) and len(known.distances) == 500
    assert known.unlike(features(2000, seed=1)).mean().item() == pytest.approx(50, abs=4)


def test_a_file_is_read_as_it_was_written(tmp_path):
    path, new = tmp_path / "training_features.npz", features(20, seed=1)
    known = TrainingFeatures.choose(features(100), torch.arange(100), CPU)
    assert TrainingFeatures.read(path, 16) is None
    known.write(path)
    assert torch.equal(TrainingFeatures.read(path, 16).unlike(new), known.unlike(new))
    refused(["training_features.npz: damaged, or of another model"], TrainingFeatures.read, path, 15)
    whole = path.read_bytes()
    for content in (whole[:-100], b"", npy(np.zeros(3)), npy(np.zeros((3, 16)))):
        path.write_bytes(content)
        refused(["damaged", "remove the file"], TrainingFeatures.read, path, 16)


def test_few_images():
    """With fewer than NTH others, the last of them counts."""
    known = TrainingFeatures.choose(torch.eye(3), torch.arange(3), CPU)
    assert known.distances.tolist() == [1, 1, 1]
    assert known.unlike(torch.tensor([[1.0, 1, 1], [-1, -1, -1]])).tolist() == [0, 100]
    assert unlikeness.own_distances(torch.ones(1, 1)).tolist() == [0]


def test_only_100_is_written_as_100():
    values = (0.0, 50.0, 99.99, 99.9999, 100.0, float("nan"))
    assert [unlike_text(value) for value in values] == ["0.00", "50.00", "99.99", "99.99", "100.00", ""]
