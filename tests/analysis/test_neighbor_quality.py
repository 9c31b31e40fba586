"""The quality of neighbors against a slow loop, and the verdict on hand-made ones."""

import json

import numpy as np
import pytest
import torch
from digits_files import neighbor_table, random_neighbors

from utils.analysis.neighbor_quality import neighbor_quality


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def nearest(points, k):
    """Each row's own index and its k nearest."""
    return torch.cdist(points, points).topk(k + 1, largest=False).indices


def test_figures_against_a_slow_loop():
    torch.manual_seed(0)
    table = torch.randint(60, (60, 8))  # with repetitions, and some images in their own list
    lists = [{j for j in row if j != i} for i, row in enumerate(table.tolist())]
    pairs = [(i, j) for i in range(60) for j in lists[i]]
    degree = np.array([sum(j in others for others in lists) for j in range(60)])
    before = table.clone()
    found = neighbor_quality(table)
    assert torch.equal(table, before)
    assert found["mutual"] == pytest.approx(sum(i in lists[j] for i, j in pairs) / len(pairs))
    assert found["by_chance"] == pytest.approx(len(pairs) / 60 / 59)
    repeated = [(i, j) for i, row in enumerate(table.tolist()) for j in row if j != i]
    theirs = [(i, x) for i, j in repeated for x in table[j].tolist() if x not in (i, j)]
    assert found["transitive"] == pytest.approx(sum(x in lists[i] for i, x in theirs) / len(theirs))
    assert found["nobodys"] == (degree == 0).mean()
    skewness = ((degree - degree.mean()) ** 3).mean() / degree.std() ** 3
    assert found["in_degree_skewness"] == pytest.approx(skewness)
    json.dumps(found)


@pytest.mark.parametrize(("n", "k"), [(1500, 5), (400, 20), (1000, 1), (100, 50)])
def test_random_neighbors_are_no_go(caplog, n, k):
    torch.manual_seed(0)
    found = neighbor_quality(random_neighbors(n, k))
    assert found["mutual"] == pytest.approx(k / n, abs=0.03)
    assert found["transitive"] == pytest.approx(k / n, abs=0.03)
    assert found["nobodys"] == pytest.approx((1 - k / (n - 1)) ** (n - 1), abs=0.05)
    assert found["verdict"] == "no-go"
    (message,) = warnings(caplog)
    assert "no-go: hardly more are mutual than by chance" in message
    assert "train the pretext longer" in message


@pytest.mark.parametrize("itself", [True, False])
def test_collapsed_neighbors_are_no_go(caplog, itself):
    """Everybody has the same ones, which mining lists before or after the image itself."""
    table = torch.arange(10).repeat(1000, 1)
    if itself:
        table = neighbor_table(table)
    found = neighbor_quality(table)
    assert found["nobodys"] == 0.99
    assert found["in_degree_skewness"] > 5
    assert found["verdict"] == "no-go"
    assert "no-go: most images are no other image's neighbor" in warnings(caplog)[0]


@pytest.mark.parametrize("k", [1, 5, 50])
def test_neighbors_with_structure_are_go(caplog, k):
    caplog.set_level("INFO")
    torch.manual_seed(0)
    points = torch.randn(10, 8).repeat_interleave(100, 0) + 0.3 * torch.randn(1000, 8)
    found = neighbor_quality(nearest(points, k))
    assert found["verdict"] == "go"
    assert caplog.messages[-1] == "neighbors: go"
    assert warnings(caplog) == []


def test_neighbors_among_noise_are_no_go(caplog):
    """They are mutual, as all neighbors by a symmetric similarity, but not each other's."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2000, 512), dim=1)
    found = neighbor_quality(nearest(features, 5))
    assert found["mutual"] > 0.5
    assert found["verdict"] == "no-go"
    assert "as if the features were noise" in warnings(caplog)[0]


def test_neighbors_of_two_images():
    assert neighbor_quality(torch.tensor([[0, 1], [1, 0]]))["verdict"] == "no-go"
    assert neighbor_quality(torch.tensor([[0, 0], [1, 1]]))["verdict"] == "no-go"
