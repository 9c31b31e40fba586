"""corrections.csv: what the user moved, merged and split. The final head is refitted so that it agrees.

The corrections are done again, in their order, on the clusters that the training found: what is no longer in
the table is undone. A row names clusters by their numbers in the clustering that it was made for. So each
cluster also has a handle that stays: its number in the training's clustering, or the name of a new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from data import Dataset
from data.csv_tables import read_table
from data.messages import shown
from errors import UserError
from utils.analysis import duplicates, neighbors
from utils.analysis.graph import MAX_FITTED
from workflows.final_head import Correction, FinalHead, hashes_of, table_names

CORRECTIONS = "corrections.csv"
COLUMNS = "action", "what", "to", "clustering"
NONE, NOWHERE = "none", -1  # where an image is moved that belongs to no cluster: in the table, as a number
NEIGHBORS, RULE, ROUNDS, ALL = 10, 0.25, 3, 2 / 3  # see `followers`
TRUST = 10.0  # how many other images one that was moved counts for
DECAY, FIT_ITERATIONS = 1e-4, 50  # of the fit, on features of unit scale
NEW_BIAS = -8.0  # of a new cluster, below the one whose head it starts from: it has no image at first


@dataclass(frozen=True)
class Corrected:
    """The clusters of N images as the user wants them.

    Attributes:
        shares: float32 (N, S), how much of each image is in each of S clusters, before images were moved.
        now: int64 (N,), its cluster after that, or NOWHERE.
        moved: bool (N,), whether the user said so.
        handles: of the clusters, S different ones.
        start: for each cluster, the one of the training from whose head its own starts.
        lost: rows of clusters that a new training did not find again.
        merged: pairs of handles: of a cluster that was merged, and of the one that it joined.
    """

    shares: torch.Tensor
    now: torch.Tensor
    moved: torch.Tensor
    handles: list[str]
    start: list[int]
    lost: int
    merged: list[tuple[str, str]]

    def place(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities (N, S) in which each moved image surely is where the user put it."""
        placed = F.one_hot(self.now.clamp(min=0), len(self.handles)) + 1e-6 * probabilities
        own = (self.moved & (self.now != NOWHERE))[:, None]
        return torch.where(own, placed / placed.sum(1, keepdim=True), probabilities)

    def marks(self) -> list[str]:
        """The column `corrected` of clusters.csv."""
        pairs = zip(self.moved.tolist(), self.now.tolist(), strict=True)
        return [("yes" if cluster != NOWHERE else NONE) if moved else "" for moved, cluster in pairs]


# --- the table -----------------------------------------------------------------------------------


def read_corrections(path: Path, head: FinalHead, dataset: Dataset | None) -> list[Correction]:
    """The rows of corrections.csv; none without the file. Without a dataset, any file may be one of it.

    A row without an identity is of the clustering of `head`, or of that for which it was applied before. A
    table of the report's page has what was done on that page alone: what its clustering rests on comes first.

    Raises UserError for a row that is no correction, or of a clustering that `head` does not know.
    """
    if not path.exists():
        return []
    contents = dict(zip(table_names(dataset), hashes_of(dataset), strict=True)) if dataset else {}
    contents |= {file: kept.content for file, kept in head.images.items()}
    before = {row[:3]: row.clustering for row in head.rows}
    moved = {row[:4]: row.content for row in head.rows}  # also of images that are gone
    rows, given = [], set()
    for line, cells in read_table(path, COLUMNS[:3], COLUMNS[3:]):
        action, what, to = cells["action"].lower(), cells["what"], cells["to"]
        to = NONE if to.lower() == NONE else to
        of = cells["clustering"] or before.get((action, what, to), head.clustering)
        given.add(cells["clustering"])
        where, wrong = f"{path}, line {line}", ""
        if of not in head.history:
            raise UserError(
                f"{where}: is of clustering {shown(of)}, which is none of these results; remove the row, or "
                "correct this clustering in report.html"
            )
        last = len(head.history[of]) - 1
        numbers = [text for text in (what, to)[action == "move" :] if text.isdecimal()]
        if action not in ("move", "merge", "split"):
            wrong = f"{shown(action)!r} is no action; expected move, merge or split"
        elif not what or (not to and action != "split"):
            wrong = f"{action} needs `what` and `to`"
        elif action == "move" and dataset and what not in contents and (action, what, to, of) not in moved:
            wrong = f"{shown(what)} is no file of clusters.csv"
        elif any(len(text) > 9 or int(text) > last for text in numbers):
            wrong = f"{' or '.join(numbers)} is no cluster; they are 0 to {last}"
        elif action != "move" and (to == NONE or what == NONE):
            wrong = f"only images can be in {NONE}"
        if wrong:
            raise UserError(f"{where}: {wrong}; correct or remove the row")
        content = moved.get((action, what, to, of)) or contents.get(what, "")
        rows.append(Correction(action, what, to, of, content if action == "move" else ""))
    earlier = [row for row in head.rows if row.clustering not in given]
    return [*earlier, *rows] if len(given) == 1 and "" not in given else rows


# --- what they mean ------------------------------------------------------------------------------


def do_again(
    rows: Sequence[Correction],
    base: torch.Tensor,
    dataset: Dataset,
    head: FinalHead,
    named: Mapping[str, str],
) -> Corrected:
    """Do the corrections, in their order.

    Args:
        base: float32 (N, C), the probabilities of the clusters that the training found.
        head: knows the clusterings that the rows are of.
        named: the handles of clusters that have a name in names.csv.

    Raises:
        UserError: a single cluster is left.
    """
    handles, start, lost = [str(i) for i in range(base.size(1))], list(range(base.size(1))), 0
    shares, now, moved = base.clone(), base.argmax(1), torch.zeros(len(base), dtype=torch.bool)
    merged: list[tuple[str, str]] = []
    files, contents = table_names(dataset), hashes_of(dataset)
    by_name, by_content = ({key: i for i, key in enumerate(keys) if key} for keys in (files, contents))

    def find(row: Correction, text: str, from_: int | None = None) -> int | None:
        """The cluster that a row means; with `from_`, a new one that starts from there if there is none."""
        nonlocal shares
        handle = head.history[row.clustering][int(text)] if text.isdecimal() else named.get(text, text)
        if handle and not handle.isdecimal() and handle not in head.handles:  # not found again: by its name
            handle = named.get(handle, handle)
        if handle not in handles and handle is not None and from_ is not None:
            handles.append(handle)
            start.append(start[from_])
            shares = F.pad(shares, (0, 1))
        return handles.index(handle) if handle in handles else None

    for row in rows:
        if row.action == "move":
            i = by_name.get(row.what)  # None: the image was removed
            if i is None or contents[i] != row.content:  # it was renamed, or else edited
                i = by_content.get(row.content, i)
            if i is not None:
                to = NOWHERE if row.to == NONE else find(row, row.to, int(base[i].argmax()))
                lost += to is None
                if to is not None:
                    now[i], moved[i] = to, True
            continue
        what = find(row, row.what)
        new = row.to or f"{row.what} (2)"  # of a split
        to = None if what is None else find(row, new, what if row.action == "split" else None)
        if what is None or to is None:
            lost += 1
        elif row.action == "merge" and what != to:
            shares[:, to] += shares[:, what]
            shares[:, what] = 0
            now[now == what] = to
            merged.append((handles[what], handles[to]))
        elif row.action == "split":
            those = {*head.second_part(row.clustering, row.what)}
            inside = [i for i, keys in enumerate(zip(files, contents, strict=True)) if those & {*keys}]
            part = torch.tensor(inside, dtype=torch.int64)
            part = part[~moved[part] | (now[part] == what)]
            shares[part, to] = shares[part, what].where(shares[part].argmax(1) == what, 1.0)
            shares[part, what] = 0
            now[part] = to
    c = base.size(1)
    gone = {handle for handle, _ in merged}
    left = [i for i, handle in enumerate(handles) if (i < c and handle not in gone) or (now == i).any()]
    if len(left) < 2:
        raise UserError(f"{CORRECTIONS}: a single cluster is left; merge fewer")
    number = torch.full((len(handles) + 1,), NOWHERE)  # the last one is that of NOWHERE
    number[left] = torch.arange(len(left))
    shares = F.normalize(shares[:, left], p=1, dim=1)
    handles, start = [handles[i] for i in left], [start[i] for i in left]
    return Corrected(shares, number[now], moved, handles, start, lost, merged)


# --- the head ------------------------------------------------------------------------------------


def corrected_head(
    head: FinalHead, rows: Sequence[Correction], wanted: Corrected, features: torch.Tensor, dataset: Dataset
) -> FinalHead:
    """The head refitted so that moved images are where the user put them, and similar ones follow.

    It starts from the training's head. Its targets are `wanted`, and for the images that the user did not
    speak of the probabilities that they have, so that nothing else moves.

    Args:
        features: float32 (N, D).
    """
    c = len(wanted.handles)
    follow = followers(features, wanted, duplicates.first_copies(dataset))
    targets = (1 - follow.sum(1, keepdim=True)) * wanted.shares + follow
    own = wanted.moved & (wanted.now != NOWHERE)
    targets[own] = F.one_hot(wanted.now[own], c).float()
    # a move that is like no other says nothing about other images: the image stays there in any case
    trust = (1 + (TRUST - 1) * follow.sum(1) * own) * (wanted.now != NOWHERE)
    order = torch.randperm(len(trust), generator=torch.Generator().manual_seed(0))
    chosen = order[:MAX_FITTED] if len(order) > MAX_FITTED else torch.arange(len(order))
    chosen = torch.cat([chosen, own.nonzero().squeeze(1)]).unique()
    new = torch.tensor([not handle.isdecimal() for handle in wanted.handles])
    weights, biases = head.base_weights[wanted.start], head.base_biases[wanted.start] + NEW_BIAS * new
    if rows:
        weights, biases = refit(weights, biases, features[chosen], targets[chosen], trust[chosen])
    split = [(row.clustering, row.what) for row in rows if row.action == "split"]
    parts = {f"{of}:{what}": head.second_part(of, what) for of, what in split}
    fitted = replace(head, weights=weights, biases=biases, parts=parts)
    return replace(fitted, history=head.history | {fitted.clustering: [*wanted.handles]})


def followers(features: torch.Tensor, wanted: Corrected, first: torch.Tensor) -> torch.Tensor:
    """How much images follow the moved ones into each cluster, also these each other: float32 (N, S).

    Of a cluster from which images were moved to another, an image follows as far as its neighbors were moved,
    in units of how far those of the moved images were: these are only some of the images that are wrong
    (Elkan and Noto, Learning classifiers from only positive and unlabeled data, 2008). At least RULE of the
    NEIGHBORS count as one unit, so that a single move is no rule. From the second of the ROUNDS on, neighbors
    that mostly follow count, too. If more than ALL of a cluster would go, the moved images are not unlike the
    rest, and none follows. Copies always do.

    Args:
        first: int64 (N,), see `duplicates.first_copies`.
    """
    source, x = wanted.shares.argmax(1), F.normalize(features.float() - features.float().mean(0), dim=1)
    follow = torch.zeros_like(wanted.shares)
    moved = wanted.moved & (wanted.now != source) & (wanted.now != NOWHERE)
    k = min(NEIGHBORS + 1, len(x))
    for s in source[moved].unique().tolist():
        members = (source == s).nonzero().squeeze(1)
        nearest = neighbors.search(x[members], x, k, "cpu")[1]
        for t in wanted.now[moved & (source == s)].unique().tolist():
            ours = moved & (source == s) & (wanted.now == t)
            share = ours[members].float()  # of each image that was moved, or follows
            for _ in range(ROUNDS):
                mass = torch.zeros(len(x)).index_put_((members,), share)
                around = (mass[nearest].sum(1) - share).clamp(min=0) / max(1, k - 1)
                unit = max(float(around[ours[members]].mean()), RULE)
                share = (around / unit).clamp(max=1)
                follow[members, t] = share
                share = torch.where(ours[members], 1.0, share * (share > 0.5))
            if (share > 0.5).float().mean() > ALL > ours[members].float().mean():
                follow[members, t] = 0
    follow /= follow.sum(1, keepdim=True).clamp(min=1)
    for i in moved.nonzero().squeeze(1).tolist():
        copies = (first == first[i]) & ~wanted.moved
        follow[copies] = F.one_hot(wanted.now[i], follow.size(1)).float()
    return follow


def refit(
    weights: torch.Tensor,
    biases: torch.Tensor,
    features: torch.Tensor,
    targets: torch.Tensor,
    trust: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change a head, weights (C, D) and biases (C,), as little as reproduces targets (N, C).

    `trust`: float (N,), how much each image counts.
    """
    x = features.float()
    mean = x.mean(0)
    unit = (x - mean).square().sum(1).mean().sqrt().clamp(min=1e-12)
    start = F.linear(x, weights, biases)
    x = F.pad((x - mean) / unit, (0, 1), value=1.0)

    def loss(change: np.ndarray) -> tuple[float, np.ndarray]:
        more = torch.from_numpy(change).float().view(len(weights), -1).requires_grad_()
        with torch.enable_grad():
            each = F.cross_entropy(start + F.linear(x, more), targets, reduction="none")
            total = (trust * each).mean() + DECAY * more[:, :-1].square().sum()
        (gradient,) = torch.autograd.grad(total, more)
        return total.item(), gradient.double().flatten().numpy()

    # not by torch.optim, which loads its compiler for two seconds
    zeros, limit = np.zeros(len(weights) * x.size(1)), {"maxiter": FIT_ITERATIONS}
    found = minimize(loss, zeros, jac=True, method="L-BFGS-B", options=limit).x
    more, shift = torch.from_numpy(found).float().view(len(weights), -1).split([x.size(1) - 1, 1], 1)
    more = more / unit
    return weights + more, biases + shift.squeeze(1) - more @ mean
