"""Mining and voting against slow loops; files of neighbors that do not belong."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from errors import UserError
from utils import neighbors


def features(n, d=8, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("with_faiss", [True, False])
def test_mining_loop(with_faiss, monkeypatch, caplog):
    if not with_faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)  # its import now fails
    caplog.set_level("INFO")
    bank = features(1500)
    mined = neighbors.mine(bank, 7)
    assert mined.dtype == torch.int64
    assert mined.shape == (1500, 8)
    for i in range(0, 1500, 100):
        order = sorted(range(1500), key=lambda j, i=i: -float(bank[i] @ bank[j]))
        assert mined[i].tolist() == order[:8]
    assert mined[:, 0].tolist() == list(range(1500))  # the image itself comes first
    assert ("faiss is not installed" in caplog.text) != with_faiss


def test_too_few_images():
    with pytest.raises(UserError, match="20 neighbors among 15 images"):
        neighbors.mine(features(15), 20)


def test_agreement_excludes_the_image_itself():
    mined = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    labels = torch.tensor([0, 0, 1])
    assert neighbors.agreement(mined, labels, 1) == pytest.approx(2 / 3)
    assert neighbors.agreement(mined, labels, 2) == pytest.approx(2 / 6)


@pytest.mark.parametrize("k", [5, 100, 1000])
def test_weighted_knn_loop(k):
    bank, queries = features(120), features(9, seed=1)
    labels = torch.randint(4, (120,), generator=torch.Generator().manual_seed(2))
    found = neighbors.weighted_knn(bank, labels, queries, 4, k=k, temperature=0.2)
    for query, name in zip(queries, found.tolist(), strict=True):
        similarity = (bank @ query).tolist()
        nearest = sorted(range(120), key=lambda j, s=similarity: -s[j])[:k]
        votes = [0.0] * 4
        for j in nearest:
            votes[labels[j]] += np.exp(similarity[j] / 0.2)
        assert name == int(np.argmax(votes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((9, 6), dtype=np.int64), "split has 10"),
        (np.full((10, 6), 10), "outside 0..9"),
        (np.full((10, 6), -1), "outside 0..9"),
        (np.zeros((10, 6)), "float64"),
        (np.zeros(10, dtype=np.int64), "mine them again"),
    ],
)
def test_neighbors_of_something_else(tmp_path, content, message):
    np.save(tmp_path / "n.npy", content)
    with pytest.raises(UserError, match=message):
        neighbors.read(tmp_path / "n.npy", 10)


def test_file_that_is_no_array(tmp_path):
    (tmp_path / "n.npy").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not a readable"):
        neighbors.read(tmp_path / "n.npy", 10)
    with pytest.raises(UserError, match="simclr.py"):
        neighbors.read(tmp_path / "other.npy", 10)
