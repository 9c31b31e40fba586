"""Other methods' clusters, and how far they agree with ours."""

import pytest
import torch

from errors import UserError
from utils.analysis import baselines


def directions(n=90, seed=0):
    """n vectors around three axes, of lengths that say nothing, and their axes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    x = torch.eye(3)[labels] + 0.05 * torch.randn(n, 3, generator=generator)
    return x * torch.rand(n, 1, generator=generator).add(0.1), labels


def test_they_find_directions():
    features, labels = directions()
    opinions = baselines.cluster_by_baselines(features.half(), 3)
    assert list(opinions) == ["kmeans", "ward"]
    agreement, renumbered = baselines.measure_agreement(labels, opinions, 3)
    for name in opinions:
        assert agreement[name] == {"matched": 1, "nmi": pytest.approx(1)}
        assert torch.equal(renumbered[name], labels)


def test_disagreement_is_counted_and_the_unmatched_marked():
    ours = torch.tensor([0, 0, 0, 1, 1, 1])
    other = torch.tensor([2, 2, 1, 0, 0, 0])
    agreement, renumbered = baselines.measure_agreement(ours, {"other": other}, 3)
    assert agreement["other"]["matched"] == pytest.approx(5 / 6)
    assert 0 < agreement["other"]["nmi"] < 1
    assert renumbered["other"].tolist() == [0, 0, -1, 1, 1, 1]


def test_fewer_images_than_clusters():
    with pytest.raises(UserError, match="at least 5"):
        baselines.cluster_by_baselines(torch.eye(3), 5)
