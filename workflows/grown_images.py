"""Images that changed since their clusters were found: what is new, gone, renamed, and what fits nowhere."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import data
from errors import UserError
from utils.analysis import neighbors, plots
from utils.analysis.unlikeness import NTH, TrainingFeatures
from utils.files import write_csv
from utils.report import Assignment
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import TRAINING_FEATURES
from utils.training.features import kept_features
from workflows.final_head import Clustered, hashes_of, table_names
from workflows.run_steps import PlannedStep
from workflows.user_edits import Settled

NEW_KINDS = "new_kinds.csv"  # in the results folder: corrections that would make clusters of new kinds
# percent of the known images that are less unlike the others than a new one that fits nowhere. Of images of
# the same kinds, 0.5 % are as unlike. In groups, a lower bound finds more, and no group of known kinds: see
# docs/IMAGES.md
UNLIKE, UNLIKE_OF_A_KIND = 99.5, 95
FEWEST = 5  # images of a new kind
PICTURE, MOST_DRAWN = "new_kinds.png", 100
LONE = "unlike"


@dataclass(frozen=True)
class Growth:
    """How the N images of today differ from known ones.

    Attributes:
        added: bool (N,), those that were not known.
        untrained: bool (N,), those that the clusters were not found on.
    """

    added: torch.Tensor
    untrained: torch.Tensor
    removed: int
    renamed: int

    @classmethod
    def since(cls, known: Clustered, trained: Sequence[str], dataset: data.Dataset) -> Self:
        """Find known images again by their content; of copies, those of the same name.

        `trained`: hashes of the images that the clusters were found on; empty: known ones.
        """
        images = list(zip(table_names(dataset), hashes_of(dataset), strict=True))
        same = {name for name, content in images if name in known and known[name].content in (content, "")}
        rest = Counter(kept.content for name, kept in known.items() if name not in same)
        added, renamed = [], 0
        for name, content in images:
            is_renamed = name not in same and rest[content] > 0
            rest[content] -= is_renamed
            renamed += is_renamed
            added.append(name not in same and not is_renamed)
        on = {*trained}
        untrained = [content not in on for _, content in images] if on else added
        return cls(torch.tensor(added), torch.tensor(untrained), rest.total(), renamed)

    def told(self, cluster: torch.Tensor) -> str:
        """In words. `cluster`: int64 (N,)."""
        counts = Counter(cluster[self.added].tolist())
        where = ", ".join(f"{count} in cluster {number}" for number, count in sorted(counts.items()))
        parts = [f"{counts.total()} new image{'s' * (counts.total() > 1)}: {where}"] if counts else []
        others = {"removed": self.removed, "renamed": self.renamed}
        parts += [f"{count} {what}" for what, count in others.items() if count]
        return "; ".join(parts or ["the images are the same"])


def can_keep(plan: Sequence[PlannedStep], trained: Sequence[str], dataset: data.Dataset) -> bool:
    """Whether steps that trained on images of the hashes `trained` give clusters to the images of today.

    They do if they are finished, one of their images is left and, in the place of images, these have the
    vectors that they had. Raises UserError if those are in another order, as after renaming.
    """
    finished = all(read_fingerprint(step.folder) for step in plan if step.name != "selflabel")
    if not finished or (trained and not {*trained} & {*hashes_of(dataset)}):
        return False
    config, hashes = plan[0].config, dataset.content_hashes() or []
    if not config.features_file:
        return True
    vectors = next(dataset.fetch([torch.arange(len(dataset))], "cpu")).numpy()
    place = {content: row for row, content in enumerate(hashes)}
    for before, about in kept_features(plan[0].folder):
        pairs = [(row, place[content]) for row, content in enumerate(about["images"]) if content in place]
        rows, now = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        if before.shape[1] == vectors.shape[1] and np.allclose(before[rows], vectors[now], atol=1e-3):
            return True
        if Counter(hashes) == Counter(about["images"]) and np.array_equal(before, vectors):
            raise UserError(
                f"{config.features_file}: its rows are in the order that the images had before they were "
                "renamed; write it again, in the order of their names today, or with names"
            )
    return False


def new_kinds(features: torch.Tensor, new: torch.Tensor, known: TrainingFeatures) -> dict[int, int]:
    """Which new images fit nowhere; and the kind, from 1, that each is of, or 0 if it is alone.

    Those of a kind are linked: they are among each other's nearest, and nearer than the NTH known image.

    Args:
        features: float (N, D).
        new: int64 (M,), the images to look at, without copies.
        known: of the images that the clusters were found on.
    """
    unlike = known.unlike(features[new]) if len(new) else torch.empty(0)
    found = dict.fromkeys(new[unlike >= UNLIKE].tolist(), 0)
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
    order = sizes.argsort(descending=True, stable=True)
    for kind, group in enumerate(order[sizes[order] >= FEWEST].tolist(), start=1):
        found |= dict.fromkeys(some[groups == group].tolist(), kind)
    return found


def tell_growth(
    growth: Growth,
    dataset: data.Dataset,
    features: torch.Tensor,
    assignment: Assignment,
    settled: Settled,
    last: Path,
    folder: Path,
) -> dict[str, list[str]]:
    """Say what has changed; list and draw what fits nowhere, in the results folder.

    Images that the user corrected count as known.

    Args:
        features: float (N, D), of the model in the folder `last`.

    Returns:
        columns of clusters.csv: `new`, if there are any: "", "new", LONE, or "new 1" and so on, its kind
    """
    new, first = growth.untrained, assignment.first
    distinct = first == torch.arange(len(first))
    known = TrainingFeatures.read(last / TRAINING_FEATURES, features.size(1))
    if known is None:  # of a backbone that was trained
        rows = features[distinct & ~new]
        known = TrainingFeatures.choose(rows, torch.arange(len(rows)), rows.device)
    corrected = torch.tensor([bool(mark) for mark in settled.corrected])
    placed = F.normalize(features[corrected].float(), dim=1)
    known = replace(known, features=torch.cat([known.features, placed.to(known.features)]))
    found = new_kinds(features, (distinct & new & ~corrected).nonzero().flatten(), known)
    free = (kind for n in itertools.count(1) if (kind := f"new {n}") not in (settled.names or ()))
    name = [LONE, *itertools.islice(free, max(found.values(), default=0))]
    column = [""] * len(first)
    for i in new.nonzero().flatten().tolist():
        column[i] = name[found[int(first[i])]] if int(first[i]) in found else "new"
    print(growth.told(assignment.cluster))
    for made in (NEW_KINDS, PICTURE):
        (folder / made).unlink(missing_ok=True)
    apart = {i: kind for i, kind in enumerate(column) if kind not in ("", "new")}
    if not apart:
        return {"new": column} if any(column) else {}
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(apart.values()).items()))
    print(f"new images that fit no cluster: {len(apart)} ({counts}), see {folder / PICTURE}")
    drawn = sorted(apart, key=lambda i: apart[i])[:MOST_DRAWN]
    cells = [(dataset.raw(i), apart[i]) for i in drawn]
    plots.save_contact_sheet(cells, "new images that fit no cluster", folder / PICTURE)
    names = table_names(dataset)
    moves = [("move", names[i], kind) for i, kind in apart.items() if kind != LONE]
    if moves:
        write_csv(("action", "what", "to"), moves, folder / NEW_KINDS)
        print(f"to make a cluster of each kind, give --corrections {folder / NEW_KINDS}")
    return {"new": column}
