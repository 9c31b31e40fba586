"""Images that changed since their clusters were found: what is new, gone, renamed, and what fits nowhere."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import data
from utils.analysis import neighbors, plots
from utils.analysis.unlikeness import NTH, TrainingFeatures
from utils.files import read_json, write_csv, write_json
from utils.report import Assignment
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import TRAINING_FEATURES
from utils.training.features import kept_features
from workflows.run_steps import PlannedStep

KNOWN_FILE = "known_images.json"  # in the results folder
NEW_KINDS = "new_kinds.csv"  # there, too: corrections that would make clusters of new kinds
# percent of the known images that are less unlike the others than a new one that fits nowhere. Of images of
# the same kinds, 0.5 % are as unlike. In groups, a lower bound finds more, and no group of known kinds: see
# docs/IMAGES.md
UNLIKE, UNLIKE_OF_A_KIND = 99.5, 95
FEWEST = 5  # images of a new kind
PICTURE, MOST_DRAWN = "new_kinds.png", 100
LONE = "unlike"


@dataclass(frozen=True)
class KnownImages:
    """The N images of the tables: the content of KNOWN_FILE."""

    names: list[str]
    hashes: list[str]  # of the contents
    trained: list[bool]  # whether the clusters were found on it

    @classmethod
    def read(cls, folder: Path) -> Self | None:
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
    removed: int = 0
    renamed: int = 0

    @classmethod
    def since(cls, known: KnownImages | None, dataset: data.Dataset) -> Self:
        """Find known images again by their content; of copies, those of the same name.

        `known`: None for those that the clusters are found on.
        """
        names, hashes = dataset.names(), dataset.content_hashes() or []
        if known is None:
            everyone = [True] * len(names)
            return cls(KnownImages(names, hashes, everyone), ~torch.tensor(everyone))
        rows = {pair: row for row, pair in enumerate(zip(known.hashes, known.names, strict=True))}
        place = [rows.pop(pair, -1) for pair in zip(hashes, names, strict=True)]
        rest = defaultdict(list)
        for (content, _), row in rows.items():
            rest[content].append(row)
        renamed = [i for i, content in enumerate(hashes) if place[i] < 0 and rest[content]]
        for i in renamed:
            if rest[hashes[i]]:
                place[i] = rest[hashes[i]].pop(0)
        trained = [row >= 0 and known.trained[row] for row in place]
        added = torch.tensor(place) < 0
        removed = sum(map(len, rest.values()))
        return cls(KnownImages(names, hashes, trained), added, removed, int((~added[renamed]).sum()))

    def told(self, cluster: torch.Tensor) -> str:
        """In words. `cluster`: int64 (N,)."""
        counts = Counter(cluster[self.added].tolist())
        where = ", ".join(f"{count} in cluster {number}" for number, count in sorted(counts.items()))
        parts = [f"{counts.total()} new images: {where}"] if counts else []
        others = {"removed": self.removed, "renamed": self.renamed}
        parts += [f"{count} {what}" for what, count in others.items() if count]
        return "; ".join(parts or ["the images are the same"])


def can_keep(folder: Path, plan: Sequence[PlannedStep], dataset: data.Dataset) -> bool:
    """Whether the trained steps give clusters to the images of today.

    They do if the training is finished, known images are among these and, in the place of images, these have
    the vectors that they had.
    """
    known, config = KnownImages.read(folder), plan[0].config
    finished = all(read_fingerprint(step.folder) for step in plan if step.name != "selflabel")
    hashes = dataset.content_hashes() or []
    if not finished or (known and not {*known.hashes} & {*hashes}):
        return False
    if not config.features_file:
        return True
    vectors = next(dataset.fetch([torch.arange(len(dataset))], "cpu")).numpy()
    place = {content: row for row, content in enumerate(hashes)}
    for before, about in kept_features(plan[0].folder):
        pairs = [(row, place[content]) for row, content in enumerate(about["images"]) if content in place]
        rows, now = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        if before.shape[1] == vectors.shape[1] and np.allclose(before[rows], vectors[now], atol=1e-3):
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
    found = dict.fromkeys(new[unlike >= UNLIKE].tolist(), LONE)
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
    order = [
        group for group in sizes.argsort(descending=True, stable=True).tolist() if sizes[group] >= FEWEST
    ]
    for kind, group in enumerate(order, start=1):
        found |= dict.fromkeys(some[groups == group].tolist(), f"new {kind}")
    return found


def tell_growth(
    growth: Growth,
    dataset: data.Dataset,
    features: torch.Tensor,
    assignment: Assignment,
    last: Path,
    folder: Path,
) -> dict[str, list[str]]:
    """Say what has changed; list and draw what fits nowhere, in the results folder.

    Args:
        features: float (N, D), of the model in the folder `last`.

    Returns:
        columns of clusters.csv: `new`, if there are any: "", "new", LONE, or "new 1" and so on, its kind.
    """
    new, first = ~torch.tensor(growth.images.trained), assignment.first
    distinct = first == torch.arange(len(first))
    known = TrainingFeatures.read(last / TRAINING_FEATURES, features.size(1))
    if known is None:  # of a backbone that was trained
        rows = features[distinct & ~new]
        known = TrainingFeatures.choose(rows, torch.arange(len(rows)), rows.device)
    kinds = new_kinds(features, (distinct & new).nonzero().flatten(), known)
    column = [
        kinds.get(i, "new") if is_new else "" for i, is_new in zip(first.tolist(), new.tolist(), strict=True)
    ]
    print(growth.told(assignment.cluster))
    for name in (NEW_KINDS, PICTURE):
        (folder / name).unlink(missing_ok=True)
    apart = {i: kind for i, kind in enumerate(column) if kind not in ("", "new")}
    if not apart:
        return {"new": column} if any(column) else {}
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(apart.values()).items()))
    print(f"{len(apart)} new images fit no cluster ({counts}): {folder / PICTURE}")
    drawn = sorted(apart, key=lambda i: apart[i])[:MOST_DRAWN]
    cells = [(dataset.raw(i), apart[i]) for i in drawn]
    plots.save_contact_sheet(cells, "new images that fit no cluster", folder / PICTURE)
    moves = [("move", growth.images.names[i], kind) for i, kind in apart.items() if kind != LONE]
    if moves:
        write_csv(("action", "what", "to"), moves, folder / NEW_KINDS)
        print(f"corrections that make a cluster of each kind: {folder / NEW_KINDS}")
    return {"new": column}
