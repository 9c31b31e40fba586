"""What each step sees of the images."""

import pytest
import torch
from image_folders import numbered, values

import data
from errors import UserError


def test_two_views_are_interleaved():
    loader = data.Loader(numbered(4), data.TwoViews(lambda x: x), 4, train=False)
    assert values(next(iter(loader))) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_neighbors_are_drawn_uniformly_from_the_first_entries():
    torch.manual_seed(0)
    lists = torch.tensor([[i, 10 + i, 20 + i, 30 + i] for i in range(10)] * 4)
    view = data.AnchorNeighborView(lambda x: x, lists, num_neighbors=2)
    counts = torch.zeros(3)
    for _ in range(300):
        for anchors, neighbors in data.Loader(numbered(40), view, 10, train=True):
            offset = torch.tensor(values(neighbors)) - torch.tensor(values(anchors)) % 10
            counts += (offset / 10).long().bincount(minlength=3)  # bincount refuses what is out of range
    assert (counts - counts.sum() / 3).abs().max() < 5 * (counts.sum() / 3) ** 0.5


def test_anchor_and_neighbor_are_augmented_on_their_own():
    view = data.AnchorNeighborView(None, torch.arange(6).view(6, 1), num_neighbors=0)
    view.transform = lambda images: torch.rand(images.shape)
    anchors, neighbors = next(iter(data.Loader(numbered(6), view, 6, train=False)))
    assert not torch.equal(anchors, neighbors)


def test_more_neighbors_than_mined():
    message = "num_neighbors 5 is more than the 3 neighbors.* set num_neighbors to 3 or less"
    with pytest.raises(UserError, match=message):
        data.AnchorNeighborView(None, torch.zeros(9, 4, dtype=torch.int64), 5)


def test_weak_and_strong_show_the_same_images():
    view = data.WeakStrongView(lambda x: x, lambda x: x.float() + 100)
    weak, strong = next(iter(data.Loader(numbered(5), view, 5, train=True)))
    assert torch.equal(weak + 100.0, strong)
