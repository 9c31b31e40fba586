"""Images that changed since their clusters were found: what is new, gone or renamed, and what fits nowhere."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import data
from utils.analysis import neighbors
from utils.analysis.unlikeness import NTH, TrainingFeatures
from utils.files import read_json, write_csv, write_json
from utils.run.folder import TRAINING_FEATURES
from utils.training.features import kept_features

KNOWN_FILE = "known_images.json"  # in the results folder
NEW_KINDS = "new_kinds.csv"  # there, too: corrections that would make clusters of new kinds
# percent of the known images that are less unlike the others than a new one that fits nowhere. Of images of
# the same kinds, 0.5 % are as unlike. In groups, a lower bound finds more, and no group of known kinds: see
# docs/IMAGES.md
UNLIKE, UNLIKE_OF_A_KIND = 99.5, 95
FEWEST = 5  # images of a new kind
LONE = "unlike"


@dataclass(frozen=True)
class KnownImages:
    """The N images of the tables: the content of KNOWN_FILE."""

    names: list[str]
    hashes: list[str]  # of the contents
    trained: list[bool]  # whether the clusters were found on it

    @classmethod
    def read(cls, folder: Path) -> "KnownImages | None":
        """What `write` wrote, None if it did not."""
        content = read_json(folder / KNOWN_FILE)
        return cls(**content) if content else None

    def write(self, folder: Path) -> None:
        write_json(asdict(self), folder / KNOWN_FILE)


@dataclass(frozen=True)
class Growth:
    """What became of known images."""

    images: KnownImages  # of today
    added: torch.Tensor  # bool (N,)
    removed: int
    renamed: int

    def told(self, cluster: torch.Tensor) -> str:
        """In words. `cluster`: int64 (N,)."""
        counts = Counter(cluster[self.added].tolist())
        where = ", ".join(f"{count} in cluster {number}" for number, count in sorted(counts.items()))
        parts = [f"{int(self.added.sum())} new images: {where}"] if counts else []
        for what in ("removed", "renamed"):
            parts += [f"{getattr(self, what)} {what}"] * (getattr(self, what) > 0)
        return "; ".join(parts or ["the same images"])


def compare(dataset: data.Dataset, known: KnownImages | None) -> Growth:
    """Find the images again by their content; of copies, those of the same name."""
    names, hashes = dataset.names(), dataset.content_hashes() or []
    if known is None:  # the results of an older version
        return Growth(KnownImages(names, hashes, [True] * len(names)), torch.zeros(len(names)).bool(), 0, 0)
    rows = {pair: row for row, pair in enumerate(zip(known.hashes, known.names, strict=True))}
    place = [rows.pop(pair, -1) for pair in zip(hashes, names, strict=True)]
    rest = defaultdict(list)
    for (content, _), row in rows.items():
        rest[content].append(row)
    renamed = 0
    for i, content in enumerate(hashes):
        if place[i] < 0 and rest[content]:
            place[i] = rest[content].pop(0)
            renamed += 1
    trained = [row >= 0 and known.trained[row] for row in place]
    added = torch.tensor(place) < 0
    return Growth(KnownImages(names, hashes, trained), added, sum(map(len, rest.values())), renamed)


def same_vectors(folder: Path, dataset: data.Dataset, vectors: torch.Tensor) -> bool:
    """Whether known images have the vectors (N, D) that they had in the pretext step of the `folder`."""
    place = {content: row for row, content in enumerate(dataset.content_hashes() or ())}
    for table, about in kept_features(folder):
        pairs = [(row, place[image]) for row, image in enumerate(about["images"]) if image in place]
        before, now = (list(part) for part in zip(*pairs, strict=True)) if pairs else ([], [])
        if table.shape[1] == vectors.size(1) and np.allclose(table[before], vectors[now], atol=1e-3):
            return True
    return False


def new_kinds(features: torch.Tensor, new: torch.Tensor, known: TrainingFeatures) -> dict[int, str]:
    """Which new images fit nowhere: LONE, or the number of a kind, from 1, that the clusters lack.

    Those of a kind are linked: they are among each other's nearest, and nearer than the NTH known image.

    Args:
        features: float (N, D).
        new: int64 (M,), the images to look at, without copies.
        known: of the images that the clusters were found on.
    """
    unlike = known.unlike(features[new]) if len(new) else torch.empty(0)
    found = {i: LONE for i in new[unlike >= UNLIKE].tolist()}
    some = new[unlike >= UNLIKE_OF_A_KIND]
    if len(some) < FEWEST:
        return found
    rows = F.normalize(features[some].float(), dim=1)
    similarity, near = neighbors.search(rows, rows, FEWEST)
    limit = neighbors.search(rows, known.features, min(NTH, len(known.features)))[0][:, -1:]
    start = torch.arange(len(some))[:, None].expand_as(near)
    ends = torch.stack([start, near])[:, similarity > limit].numpy()
    links = coo_array((np.ones(ends.shape[1]), ends), shape=(len(some), len(some))).tocsr()
    groups = torch.from_numpy(connected_components(links.multiply(links.T), directed=False)[1])
    sizes = groups.bincount()
    order = [group for group in sizes.argsort(descending=True, stable=True).tolist() if sizes[group] >= FEWEST]
    for kind, group in enumerate(order, start=1):
        found |= dict.fromkeys(some[groups == group].tolist(), f"new {kind}")
    return found
