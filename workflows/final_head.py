"""head.npz in the folder of cluster.py's results: the clusters as they are reported, as a linear head.

The numbers that a training gives to its clusters mean nothing. Here the largest is 0, unless there is an
earlier clustering of the same images: clusters that correspond keep their numbers. What the user corrected
is in the head, too, see `corrections`. The identity of the clustering, by which names.csv and corrections.csv
say what they are of, is a digest of this head.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from data import Dataset
from errors import UserError
from utils.analysis.metrics import contingency
from utils.files import atomic, read_json

HEAD_FILE = "head.npz"
TABLE = "clusters.csv"
ARRAYS = "weights", "biases", "base_weights", "base_biases"
RECORD = "model", "images", "rows", "history", "parts"
IDENTITY_DIGITS, HASH_DIGITS = 12, 16
CORRESPONDS = 0.5  # clusters that share more of their union than this are the same


class Kept(NamedTuple):
    """What is kept of an image, to compare later clusterings with."""

    cluster: int
    content: str = ""  # the start of its hash, "" if that is not known
    corrected: str = ""  # see `corrections.Corrected.marks`
    part: int = 0  # which of its cluster's two finer parts it is in


class Correction(NamedTuple):
    """A row of corrections.csv."""

    action: str  # move, merge, split
    what: str  # a file as in clusters.csv, or a cluster
    to: str  # a cluster; of a move also "none"; of a move or split also the name of a new cluster
    clustering: str  # identity of the clustering whose numbers these are
    content: str = ""  # of a move: hash of the image when it was moved, by which it is known if it is renamed


Clustered = dict[str, Kept]  # by the file in clusters.csv
History = dict[str, list[str | None]]


@dataclass(frozen=True)
class FinalHead:
    """A linear head of C clusters, and what it was made of.

    Attributes:
        weights: float32 (C, D).
        biases: float32 (C,).
        model: digest of the model.pth.tar whose backbone it belongs to.
        base_weights, base_biases: without corrections.
        images: those that were clustered by it.
        rows: of corrections.csv, that it was fitted to.
        history: of each clustering that rows may be of, by identity, the handles of its clusters: see
            `corrections`. None: a cluster that this model has not.
        parts: the second part of clusters that were split, see `second_part`, by "identity:number".
    """

    weights: torch.Tensor
    biases: torch.Tensor
    model: str
    base_weights: torch.Tensor
    base_biases: torch.Tensor
    images: Clustered = field(default_factory=dict)
    rows: list[Correction] = field(default_factory=list)
    history: History = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
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

    @property
    def handles(self) -> list[str]:
        """Those of its clusters, see `history`."""
        return [str(handle) for handle in self.history[self.clustering]]

    def second_part(self, clustering: str, number: str) -> list[str]:
        """The hashes, or names of files, in the second part of a cluster of one of the clusterings.

        Nothing if that is no longer known.
        """
        known = self.parts.get(f"{clustering}:{number}")
        if known is None and clustering == self.clustering:
            images = self.images.items()
            known = [k.content or file for file, k in images if k.cluster == int(number) and k.part]
        return known or []

    def write(self, folder: Path) -> None:
        record = {name: getattr(self, name) for name in (*RECORD, "clustering")}
        arrays = {name: getattr(self, name).numpy() for name in ARRAYS}
        arrays["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
        with atomic(folder / HEAD_FILE) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What `write` wrote; None if there is none. Raises UserError if the file is damaged."""
        path = folder / HEAD_FILE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as saved:
                arrays: dict[str, Any] = {name: torch.from_numpy(saved[name]).float() for name in ARRAYS}
                record = json.loads(saved["record"].tobytes())
            clustering = record.pop("clustering")
            record["images"] = {file: Kept(*kept) for file, kept in record["images"].items()}
            record["rows"] = [Correction(*row) for row in record["rows"]]
            head = cls(**arrays, **record)
            whole = head.clustering == clustering
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
    layer: nn.Linear,
    model: str,
    clusters: torch.Tensor,
    dataset: Dataset,
    earlier: "Earlier",
    named: Mapping[str, str],
) -> tuple[FinalHead, np.ndarray]:
    """The final head of a step: its own, with its clusters renumbered; and `overlaps` of these.

    Args:
        layer: the step's head.
        model: digest of its model.pth.tar.
        clusters: int64 (N,), of each image by `layer`.
        named: the names of earlier clusters, by their handles; those not found again keep these.
    """
    c = layer.out_features
    table = overlaps(clusters, c, dataset, earlier.images)
    union = table.sum(1)[:, None] + table.sum(0) - table
    same = np.argwhere(table > CORRESPONDS * union)
    kept = {int(number): int(own) for own, number in same if number < c}
    sizes = clusters.bincount(minlength=c).tolist()
    first = torch.full((c,), len(clusters)).scatter_reduce(0, clusters, torch.arange(len(clusters)), "amin")
    others = iter(sorted(set(range(c)) - set(kept.values()), key=lambda own: (-sizes[own], first[own])))
    order = [kept[number] if number in kept else next(others) for number in range(c)]
    table, weights, biases = table[order], *(x.detach().cpu()[order] for x in (layer.weight, layer.bias))
    head = FinalHead(
        weights, biases, model, weights, biases, earlier.images, earlier.rows, parts=earlier.parts
    )
    # the earlier clusters of which at least half is in one of these
    found = 2 * table.max(0) >= np.maximum(table.sum(0), 1)
    here = [str(own) if there else None for own, there in zip(table.argmax(0), found, strict=True)]
    now = dict(zip(earlier.handles, here, strict=False))

    def handle_now(handle: str | None) -> str | None:
        if handle is None or now.get(handle):
            return now.get(handle or "")
        name = named.get(handle, "") if handle.isdecimal() else handle
        return name if name and not name.isdecimal() else None

    history: History = {of: list(map(handle_now, handles)) for of, handles in earlier.history.items()}
    history[head.clustering] = [str(i) for i in range(c)]
    return replace(head, history=history), table


def overlaps(clusters: torch.Tensor, num_clusters: int, dataset: Dataset, earlier: Clustered) -> np.ndarray:
    """How many of the images that both have are in each pair of a cluster and an earlier one: (C, E)."""
    before = look_up(earlier, dataset)
    pairs = [(own, kept.cluster) for own, kept in zip(clusters.tolist(), before, strict=True) if kept]
    found = np.array(pairs, np.int64).reshape(-1, 2)
    most = 1 + max((kept.cluster for kept in earlier.values()), default=0)
    return contingency(found[:, 0], found[:, 1], num_clusters, most)


def look_up(earlier: Clustered, dataset: Dataset) -> list[Kept | None]:
    """What was kept of each image, by its name or, where the content is known, by that."""
    by_content = {kept.content: kept for kept in earlier.values() if kept.content}
    found = []
    for name, content in zip(table_names(dataset), hashes_of(dataset), strict=True):
        kept = earlier.get(name)
        is_other = kept and content != kept.content and "" not in (content, kept.content)  # took the name
        found.append(by_content.get(content) if kept is None or is_other else kept)
    return found


def table_names(dataset: Dataset) -> list[str]:
    """The images' names as clusters.csv has them."""
    return [name.encode("utf-8", "backslashreplace").decode() for name in dataset.names()]


def hashes_of(dataset: Dataset) -> Sequence[str]:
    """The start of each image's hash, "" where it is not known."""
    return [content[:HASH_DIGITS] for content in dataset.content_hashes() or [""] * len(dataset)]


@dataclass(frozen=True)
class Earlier:
    """What is known of an earlier clustering; of none, nothing. The attributes are those of FinalHead."""

    images: Clustered = field(default_factory=dict)
    rows: list[Correction] = field(default_factory=list)
    history: History = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=dict)
    handles: list[str] = field(default_factory=list)
    clustering: str = ""


def earlier_clustering(folder: Path) -> Earlier:
    """The clustering in the folder, or in the latest earlier-N/ that has one."""
    older = sorted(folder.glob("earlier-*"), key=lambda path: (len(path.name), path.name), reverse=True)
    for place in (folder, *older):
        try:
            head = FinalHead.read(place)
        except UserError:
            head = None
        if head:
            parts = head.parts | {
                f"{head.clustering}:{number}": head.second_part(head.clustering, str(number))
                for number in range(len(head.weights))
            }
            return Earlier(head.images, head.rows, head.history, parts, head.handles, head.clustering)
        if images := read_clusters(place / TABLE):
            return Earlier(images, clustering=read_json(place / "metrics.json").get("clustering", ""))
    return Earlier()


def read_clusters(path: Path) -> Clustered:
    """The clusters of a table of an older version, which kept no head; none if it cannot be read."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return {row["file"]: Kept(int(row["cluster"])) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
