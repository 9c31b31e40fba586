"""Mining and voting against slow loops; files of neighbors that do not belong."""

import re
import resource
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mistakes import npy, refused, zipped
from processes import finish, start

from errors import UserError
from utils.analysis import neighbors
from utils.run import machine


def features(n, d=8, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("library", ["auto", "faiss", "torch", "not installed"])
def test_mining_loop(library, monkeypatch, caplog):
    caplog.set_level("INFO")
    name = "faiss" if library in ("auto", "faiss") else "torch"
    if name == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)  # its import now fails
    function, told = ("search" if name == "torch" else "_query"), []
    search = getattr(neighbors, function)
    monkeypatch.setattr(neighbors, function, lambda *args: told.append(caplog.text) or search(*args))
    bank = features(500)
    mined = neighbors.nearest_neighbors(bank, 7, library="auto" if library == "not installed" else library)
    assert mined.dtype == torch.int64 and mined.shape == (500, 8)
    for i in range(0, 500, 50):
        order = sorted(range(500), key=lambda j, i=i: -float(bank[i] @ bank[j]))
        assert mined[i].tolist() == order[:8]
    assert mined[:, 0].tolist() == list(range(500))  # the image itself comes first
    assert f"{name} searches 500 features on cpu\n" in told[0]  # before it does
    assert ("faiss is not installed" in caplog.text) == (library == "not installed")


class FaissForOneGPU:
    """What `mine` uses of faiss there; its search is torch's."""

    IndexFlatIP = StandardGpuResources = lambda *_: None

    def __init__(self, fails=None):
        self.fails, self.bank = fails, []

    def get_num_gpus(self):
        return 1

    def index_cpu_to_gpu(self, resources, device, index):
        if self.fails:
            raise RuntimeError("line\n" + self.fails)
        return self

    def add(self, features):
        self.bank.append(torch.from_numpy(features))

    def search(self, queries, k):
        found = neighbors.search(torch.from_numpy(queries), torch.cat(self.bank), k)
        return tuple(part.numpy() for part in found)


@pytest.fixture
def torch_on_the_cpu(monkeypatch):
    """torch's search, noted, and done on the CPU whatever device is asked for."""
    devices, search = [], neighbors.search

    def on_cpu(queries, bank, k, device=None):
        devices.append(str(device))
        return search(queries, bank, k)

    monkeypatch.setattr(neighbors, "search", on_cpu)
    return devices


@pytest.mark.parametrize(
    ("faiss", "library", "device", "told", "torch_searches"),
    [
        (FaissForOneGPU(), "auto", "cuda", "faiss searches 30 features on cuda; if it ends", False),
        (FaissForOneGPU(), "faiss", "cuda:0", "faiss searches 30 features on cuda:0; if it", False),
        (FaissForOneGPU("full"), "auto", "cuda", "torch does (full)", True),
        (FaissForOneGPU(), "torch", "cuda", "torch searches 30 features on cuda\n", True),
        (FaissForOneGPU(), "auto", "cuda:1", "faiss does not see cuda:1 (pip install", True),
        (None, "auto", "cuda", "faiss is not installed (pip install", True),
    ],
)  # fmt: skip
def test_mining_on_a_gpu(monkeypatch, caplog, torch_on_the_cpu, faiss, library, device, told, torch_searches):
    caplog.set_level("INFO")
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    bank = features(30)
    expected = (bank @ bank.T).topk(4).indices
    assert torch.equal(neighbors.nearest_neighbors(bank, 3, device, library), expected)
    assert told in caplog.text
    assert (device in torch_on_the_cpu) == torch_searches


@pytest.mark.parametrize(
    ("faiss", "device", "why"),
    [(None, "cpu", "is not installed"), (FaissForOneGPU(), "cuda:1", "does not see cuda:1")],
)
def test_faiss_that_was_asked_for_and_is_not_there(monkeypatch, faiss, device, why):
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    with pytest.raises(UserError, match=f"search: faiss was asked for, but faiss {why}.* set search to auto"):
        neighbors.nearest_neighbors(features(30), 3, device, "faiss")


def test_search_in_blocks_is_exact(monkeypatch):
    """Blocks that divide neither the queries nor the bank, and a bank block smaller than k."""
    monkeypatch.setattr(neighbors, "QUERIES", 7)
    monkeypatch.setattr(neighbors, "BANK", 11)
    bank, queries = features(127), features(30, seed=1)
    similarity, index = neighbors.search(queries, bank, 15)
    best = (queries @ bank.T).sort(1, descending=True)
    assert torch.equal(index, best.indices[:, :15])
    torch.testing.assert_close(similarity, best.values[:, :15])


def peak_of_a_search():
    """Print by how many blocks of similarities the memory of this process grows at most."""
    torch.set_num_threads(1)
    machine.reuse_freed_memory()
    before, bank = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, features(10_000)
    neighbors.search(bank, bank, 20)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(1024 * grown / (4 * neighbors.QUERIES * len(bank)))


def test_a_search_holds_one_block_of_similarities(tmp_path):
    """Also where the C library keeps freed memory, which results between the blocks would fragment."""
    assert finish(start(peak_of_a_search, output=tmp_path / "blocks")) == 0
    assert float((tmp_path / "blocks").read_text()) < 2.5


def clustered(n, d=16, clusters=40):
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(clusters, d, generator=generator)
    points = centers[torch.randint(clusters, (n,), generator=generator)]
    return F.normalize(points + 0.3 * torch.randn(n, d, generator=generator), dim=1)


def test_large_splits_are_searched_approximately_with_a_measured_recall(monkeypatch, caplog):
    pytest.importorskip("faiss")
    caplog.set_level("INFO")
    bank = clustered(6000)
    exact = neighbors.nearest_neighbors(bank, 20)
    assert "recall" not in caplog.text
    monkeypatch.setattr(neighbors, "EXACT_ON_CPU", 5000)
    mined = neighbors.nearest_neighbors(bank, 20)
    recall = (exact.unsqueeze(2) == mined.unsqueeze(1)).any(2).double().mean().item()
    stated = float(re.search(r"recall ([\d.]+) % of the 21 exact neighbors", caplog.text)[1]) / 100
    assert stated >= neighbors.RECALL
    assert recall == pytest.approx(stated, abs=0.005)
    assert (mined[:, 0] == torch.arange(6000)).all()
    assert all(len(set(row)) == 21 for row in mined.tolist())


def test_cells_that_hold_too_few_images(monkeypatch):
    """Where the cells that are visited hold fewer than k images, the row is searched exactly."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbors, "EXACT_ON_CPU", 10)
    monkeypatch.setattr(neighbors, "RECALL", 0)  # visit few cells
    bank = clustered(2000)
    searched = []
    search = neighbors.search
    monkeypatch.setattr(neighbors, "search", lambda *args: searched.append(args[0]) or search(*args))
    mined = neighbors.nearest_neighbors(bank, 500)
    assert len(searched) == 2  # for the recall, and for the short rows
    assert all(len(set(row)) == 501 for row in mined.tolist())
    exact = search(bank, bank, 501)[1]
    assert (mined == exact).all(1).sum() >= len(searched[1]) > 0


def test_too_few_images():
    with pytest.raises(UserError, match="20 neighbors among 15 images"):
        neighbors.nearest_neighbors(features(15), 20)


def test_votes_loop(monkeypatch):
    monkeypatch.setattr(neighbors, "QUERIES", 7)  # several blocks
    torch.manual_seed(0)
    features = F.normalize(torch.randn(40, 5), dim=1)
    probabilities = (3 * torch.randn(40, 4)).softmax(1)
    voted, agreement = neighbors.vote(neighbors.nearest_neighbors(features, 6), probabilities)
    for i in range(40):
        nearest = (features @ features[i]).argsort(descending=True)[:7]  # the image is its own nearest
        assert voted[i] == probabilities[nearest].mean(0).argmax()
        same = (probabilities[nearest].argmax(1) == voted[i]).sum()
        assert agreement[i] == pytest.approx(int(same) / 7)


def test_agreement_excludes_the_image_itself():
    mined = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    labels = torch.tensor([0, 0, 1])
    assert neighbors.label_agreement(mined, labels, 1) == pytest.approx(2 / 3)
    assert neighbors.label_agreement(mined, labels, 2) == pytest.approx(2 / 6)


# --- files of neighbors that cannot be used ------------------------------------------------------

SIZES = {"train": (1437, 21), "val": (360, 6)}


TABLE_IS = "expected a table of whole numbers; mine the neighbors again"
# an array or bytes in the place of the mined neighbors, or a function of those
FILES: list[tuple] = [
    ("train", lambda a: a[:-1], "topk-train-neighbors.npy", "of 1436 images, but the split has 1437"),
    ("train", lambda a: a[:, :1], "0 neighbors of 1437 images"),
    ("train", lambda a: a.astype(np.uint64) - np.uint64(1), "holds indices outside 0..1436"),
    ("train", lambda a: a.astype(float), TABLE_IS),
    ("train", lambda a: a.astype(object), "not a readable .npy file; mine the neighbors again"),
    ("train", None, "topk-train-neighbors.npy: no such file", "run the pretext step", "simclr.py"),
    ("train", lambda a: npy(a)[:5000], "not a readable .npy file"),
    ("train", lambda a: zipped("a.npy", npy(a)), "topk-train-neighbors.npy"),
    ("val", lambda a: a[:9], "topk-val-neighbors.npy", "of 9 images, but the split has 360"),
    ("val", lambda a: a + 300, "topk-val-neighbors.npy", "outside 0..359"),
]


@pytest.mark.parametrize("number", range(len(FILES)), ids=[f"{i}-{row[2]}" for i, row in enumerate(FILES)])
def test_refused(number, tmp_path):
    name, given, *words = FILES[number]
    path, (n, k) = tmp_path / f"topk-{name}-neighbors.npy", SIZES[name]
    mined = (np.arange(n).reshape(-1, 1) + np.arange(k)) % n
    given = given(mined) if callable(given) else given
    if given is not None:
        path.write_bytes(given if isinstance(given, bytes) else npy(given))
    refused(words, neighbors.read_neighbors, path, n)
