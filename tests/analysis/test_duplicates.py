from unittest.mock import Mock

import torch
import torch.nn.functional as F
from image_folders import numbered

from utils.analysis import duplicates, neighbors


def files(contents):
    return Mock(content_hashes=lambda: list(contents))


def test_first_copies():
    first = duplicates.first_copies(files("abacba"))
    assert first.tolist() == [0, 1, 0, 3, 1, 0]
    assert duplicates.count_distinct(first) == 3
    assert duplicates.first_copies(numbered(4)).tolist() == [0, 1, 2, 3]


def test_copies_are_nobodys_neighbors_and_have_those_of_the_first():
    torch.manual_seed(0)
    distinct = F.normalize(torch.randn(30, 8), dim=1)
    order = torch.cat([torch.arange(30), torch.tensor([4, 4, 17])])
    order = order[torch.randperm(33)]
    first = duplicates.first_copies(files(order.tolist()))
    mined = duplicates.mine_distinct(distinct[order], 5, first, library="torch")
    assert mined.shape == (33, 6)
    assert mined[:, 0].tolist() == list(range(33))
    alone = neighbors.nearest_neighbors(distinct, 5, library="torch")
    assert torch.equal(order[mined], alone[order])
    assert torch.equal(first[mined[:, 1:]], mined[:, 1:])


def test_near_duplicates():
    torch.manual_seed(0)
    features = F.normalize(torch.randn(20, 16), dim=1)
    features[7] = F.normalize(features[3] + 0.01 * features[5], dim=0)
    features[9] = features[7]
    first = torch.arange(20)
    first[9] = 7
    mined = duplicates.mine_distinct(features, 4, first, library="torch")
    similarity = neighbors.similarities(features, mined)
    near, values = duplicates.near_duplicates(mined, similarity, first)
    torch.testing.assert_close(values[7], features[7] @ features[3])
    assert (near >= 0).nonzero().squeeze(1).tolist() == [7, 9]
    assert near[7] == near[9] == 3
