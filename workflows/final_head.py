"""head.npz in the folder of cluster.py's results: the clusters as they are reported, as a linear head.

The numbers that a training gives to its clusters mean nothing. Here the largest is 0, unless there is an
earlier clustering of the same images: clusters that correspond keep their numbers. The identity of the
clustering, by which names.csv says what it names, is a digest of this head.
"""

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from data import Dataset
from errors import UserError
from utils.analysis.metrics import contingency
from utils.files import atomic

HEAD_FILE = "head.npz"
TABLE = "clusters.csv"
IDENTITY_DIGITS, HASH_DIGITS = 12, 16
CORRESPONDS = 0.5  # clusters that share more of their union than this are the same

Clustered = dict[str, list[Any]]  # file: its cluster and the hash of its content, "" if that is not known


@dataclass(frozen=True)
class FinalHead:
    """A linear head of C clusters, and what it was made of.

    Attributes:
        weights: float32 (C, D).
        biases: float32 (C,).
        model: digest of the model.pth.tar whose backbone it belongs to.
        images: those that were clustered by it.
    """

    weights: torch.Tensor
    biases: torch.Tensor
    model: str
    images: Clustered = field(default_factory=dict)

    @property
    def clustering(self) -> str:
        """The identity of the clustering."""
        sum_ = hashlib.sha256(self.model.encode())
        for part in (self.weights, self.biases):
            sum_.update(part.numpy().tobytes())
        return sum_.hexdigest()[:IDENTITY_DIGITS]

    def linear(self) -> nn.Linear:
        """The head as a layer, on the CPU."""
        layer = nn.Linear(self.weights.size(1), len(self.weights))
        layer.load_state_dict({"weight": self.weights, "bias": self.biases})
        return layer.requires_grad_(False)

    def write(self, folder: Path) -> None:
        text = json.dumps({"model": self.model, "clustering": self.clustering, "images": self.images})
        record = np.frombuffer(text.encode(), np.uint8)
        with atomic(folder / HEAD_FILE) as temporary, open(temporary, "wb") as file:
            np.savez(file, weights=self.weights.numpy(), biases=self.biases.numpy(), record=record)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None if there is none. Raises UserError if the file is damaged."""
        path = folder / HEAD_FILE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as saved:
                weights, biases = (torch.from_numpy(saved[name]).float() for name in ("weights", "biases"))
                record = json.loads(saved["record"].tobytes())
            head = cls(weights, biases, record["model"], record["images"])
            whole = head.clustering == record["clustering"]
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, BadZipFile):
            whole = False
        if not whole:
            raise UserError(
                f"{path}: damaged; copy it again, or remove it and give cluster.py's command again"
            )
        return head


def head_of(folder: Path, model: str) -> FinalHead | None:
    """The final head in the folder of the results, if it belongs to the model of that digest."""
    head = FinalHead.read(folder)
    return head if head and head.model == model else None


def number_clusters(
    layer: nn.Linear, model: str, clusters: torch.Tensor, dataset: Dataset, earlier: Clustered
) -> FinalHead:
    """The final head of a step: its own, with its clusters renumbered.

    Args:
        layer: the step's head.
        model: digest of its model.pth.tar.
        clusters: int64 (N,), of each image by `layer`.
        earlier: an earlier clustering, see `earlier_clustering`.
    """
    c = layer.out_features
    kept = {}
    if earlier:
        table = overlaps(clusters, c, dataset, earlier)
        shared = table / np.maximum(table.sum(1)[:, None] + table.sum(0) - table, 1)
        kept = {int(new): int(old) for old, new in np.argwhere(shared > CORRESPONDS) if new < c}
    sizes = clusters.bincount(minlength=c).tolist()
    first = torch.full((c,), len(clusters)).scatter_reduce(0, clusters, torch.arange(len(clusters)), "amin")
    others = iter(sorted(set(range(c)) - set(kept.values()), key=lambda old: (-sizes[old], first[old])))
    order = [kept[new] if new in kept else next(others) for new in range(c)]
    return FinalHead(layer.weight.detach().cpu()[order], layer.bias.detach().cpu()[order], model)


def overlaps(clusters: torch.Tensor, num_clusters: int, dataset: Dataset, earlier: Clustered) -> np.ndarray:
    """How many of the images that both have are in each pair of a cluster (C) and an earlier one: (C, E)."""
    pairs = [
        (new, old)
        for new, old in zip(clusters.tolist(), look_up(earlier, dataset), strict=True)
        if old is not None
    ]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    most = 1 + max(cluster for cluster, _ in earlier.values())
    return contingency(found[:, 0], found[:, 1], num_clusters, most)


def look_up(earlier: Clustered, dataset: Dataset) -> list[int | None]:
    """The earlier cluster of each image, by its name or, where the content is known, by that."""
    by_content = {content: cluster for cluster, content in earlier.values() if content}
    found: list[int | None] = []
    for name, content in zip(dataset.names(), hashes_of(dataset), strict=True):
        cluster, before = earlier.get(name, (None, content))
        is_other = content != before and "" not in (content, before)  # an image that has taken the name
        found.append(by_content.get(content) if cluster is None or is_other else cluster)
    return found


def clustered(dataset: Dataset, clusters: torch.Tensor) -> Clustered:
    """What is kept of a clustering, to compare later ones with it."""
    rows = zip(clusters.tolist(), hashes_of(dataset), strict=True)
    return dict(zip(dataset.names(), map(list, rows), strict=True))


def hashes_of(dataset: Dataset) -> Sequence[str]:
    """The start of each image's hash, "" where it is not known."""
    return [content[:HASH_DIGITS] for content in dataset.content_hashes() or [""] * len(dataset)]


def earlier_clustering(folder: Path) -> Clustered:
    """The clustering in the folder, or in the latest earlier-N/ that has one; empty if there is none."""
    older = sorted(folder.glob("earlier-*"), key=lambda path: (len(path.name), path.name), reverse=True)
    for place in (folder, *older):
        try:
            head = FinalHead.read(place)
        except UserError:
            head = None
        if found := head.images if head else read_clusters(place / TABLE):
            return found
    return {}


def read_clusters(path: Path) -> Clustered:
    """The clusters of a table of an older version, which kept no head; empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {row["file"]: [int(row["cluster"]), ""] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
