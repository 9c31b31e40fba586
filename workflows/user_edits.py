"""What the user made of a clustering stays: names, corrections, cells of clusters.csv that were changed."""

import filecmp
import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data import Dataset
from data.csv_tables import read_table
from errors import UserError
from utils.analysis import embedding, partitions
from utils.files import digest, read_json, write_csv
from workflows.cluster_names import named_clustering, read_names
from workflows.corrections import COLUMNS, CORRECTIONS, corrected_head, do_again, read_corrections
from workflows.final_head import (
    HEAD_FILE,
    IDENTITY_DIGITS,
    TABLE,
    Correction,
    Earlier,
    FinalHead,
    Kept,
    earlier_clustering,
    hashes_of,
    head_of,
    number_clusters,
    table_names,
)

NAMES = "names.csv"
PART_COMPONENTS = 32  # principal ones of the features, by which a cluster falls into two parts

Classify = Callable[[nn.Linear], torch.Tensor]  # a head -> float32 (N, C), the images' probabilities


@dataclass(frozen=True)
class Settled:
    """A clustering with what the user made of it."""

    head: FinalHead
    probabilities: torch.Tensor  # float32 (N, C), 1 for an image that the user moved
    part: list[int]  # of each image, 0 or 1, see `parts_of`
    corrected: list[str]  # of each image, see `Corrected.marks`
    names: list[str] | None  # of the C clusters


def settle(
    folder: Path,
    model: str,
    layer: nn.Linear,
    classify: Classify,
    features: torch.Tensor,
    dataset: Dataset,
    given: Path | None = None,
) -> Settled:
    """Number the clusters of a step, correct them, and name them as the user did.

    Writes head.npz and, where they are no longer right, names.csv and corrections.csv, after copies.

    Args:
        folder: of the results.
        model: digest of the step's model.pth.tar; `layer`: its head.
        features: float32 (N, D).
        given: a file of corrections, which are added to the folder's own.

    Raises:
        UserError: one of the user's tables is wrong. Then nothing is written.
    """
    earlier, table, head = Earlier(), None, head_of(folder, model)
    if head is None:
        earlier = earlier_clustering(folder)
        called = names_by_handle(folder / NAMES, earlier.clustering, earlier, None) or {}
        head, table = number_clusters(layer, model, classify(layer).argmax(1), dataset, earlier, called)
    before = head.clustering if table is None else earlier.clustering
    rows = read_all(folder, given, head, dataset)
    named = names_by_handle(folder / NAMES, before, head, table)
    corrected = [""] * len(dataset)
    if rows or head.rows:
        base = classify(replace(head, weights=head.base_weights, biases=head.base_biases).linear())
        handle_of = {name: handle for handle, name in (named or {}).items()}
        wanted = do_again(rows, base, dataset, head, handle_of)
        for handle, into in wanted.merged:  # a name stays where the other has none
            name = (named or {}).get(handle) or ("" if handle.isdecimal() else handle)
            if name and into.isdecimal():
                named = {into: name} | (named or {})
        refitted = table is not None or not is_fitted(head, rows) or wanted.handles != head.handles
        if refitted:
            head = corrected_head(head, rows, wanted, features, dataset)
        probabilities = wanted.place(classify(head.linear()))
        corrected = wanted.marks()
        if refitted:
            others = int(((probabilities.argmax(1) != wanted.now) & ~wanted.moved).sum())
            lost = f"; {wanted.lost} were of clusters that are no longer there" if wanted.lost else ""
            done = f"{int(wanted.moved.sum())} images are where they were moved, and {others} others followed"
            undone = "no corrections are left: the clusters are those of the training"
            print(f"{len(rows)} corrections: {done}{lost}" if rows else undone)
    else:
        probabilities = classify(head.linear())
    clusters = probabilities.argmax(1)
    part = parts_of(features, clusters)
    keep_rows(folder / CORRECTIONS, rows)
    kept = zip(clusters.tolist(), hashes_of(dataset), corrected, part, strict=True)
    images = dict(zip(table_names(dataset), itertools.starmap(Kept, kept), strict=True))
    head = replace(head, images=images, rows=rows)
    head.write(folder)
    # at last: only this head knows the clustering that it names
    names = carry_names(folder, before, head, named)
    return Settled(head, probabilities, part, corrected, names)


def read_all(folder: Path, given: Path | None, head: FinalHead, dataset: Dataset) -> list[Correction]:
    """The corrections in the folder, and those of a given file that are not there. Raises UserError."""
    rows = read_corrections(folder / CORRECTIONS, head, dataset)
    return list(dict.fromkeys([*rows, *(read_corrections(given, head, dataset) if given else [])]))


def is_fitted(head: FinalHead, rows: list[Correction]) -> bool:
    """Whether the head was fitted to these corrections."""
    n = len(COLUMNS)  # whatever is kept of the images
    return [row[:n] for row in rows] == [row[:n] for row in head.rows]


def parts_of(features: torch.Tensor, clusters: torch.Tensor) -> list[int]:
    """Which finer part of its cluster each image is in, by Ward's linkage: 0 (the larger) or 1."""
    x = embedding.principal_components(embedding.power_normalize(features), PART_COMPONENTS).numpy()
    part = np.zeros(len(x), np.int64)
    for cluster in clusters.unique().tolist():
        members = (clusters == cluster).nonzero().squeeze(1).numpy()
        if len(members) > 2:
            own = partitions.cluster_by_ward(x[members], 2, seed=0)
            part[members] = own != (2 * own.sum() > len(own))
    return part.tolist()


# --- tables --------------------------------------------------------------------------------------


def set_aside(path: Path, clustering: str) -> Path:
    """Copy a table of a clustering to earlier-tables/, unless it is there; returns the copy."""
    folder, identity = path.parent / "earlier-tables", re.sub(r"\W", "", clustering)[:IDENTITY_DIGITS]
    folder.mkdir(exist_ok=True)
    name = f"{path.stem}-{identity or 'unknown'}"
    copies = (folder / f"{name}{f'-{n}' * (n > 1)}{path.suffix}" for n in itertools.count(1))
    copy = next(copy for copy in copies if not copy.exists() or filecmp.cmp(copy, path, shallow=False))
    return copy if copy.exists() else Path(shutil.copy2(path, copy))


def table_digests(folder: Path) -> dict[str, str]:
    """Of the tables in which a user may change clusters, for metrics.json."""
    return {name: digest(folder / name) for name in (TABLE, CORRECTIONS)}


def changed_tables(folder: Path) -> list[str]:
    """Those that are there and were changed since metrics.json was written."""
    written = read_json(folder / "metrics.json").get("tables", {})
    changed = table_digests(folder).items() - written.items() if written else set()
    return sorted(str(folder / name) for name, sum_ in changed if sum_ != "none")


def take_edits(folder: Path, given: Path | None = None) -> None:
    """Add to corrections.csv what the user changed in the column `cluster` of clusters.csv.

    The table is copied aside, whatever was changed. Raises UserError if one of the two, or a `given` file of
    corrections, is wrong: before anything is trained or moved aside.
    """
    path, corrections, changed = folder / TABLE, folder / CORRECTIONS, changed_tables(folder)
    try:
        head = FinalHead.read(folder)
    except UserError:
        if changed or corrections.exists():
            raise
        head = None
        print(f"{folder / HEAD_FILE}: cannot be read, and is made anew")
        (folder / HEAD_FILE).unlink()
    if head is None:
        return
    for table in filter(None, (corrections, given)):
        read_corrections(table, head, None)
    if str(path) not in changed:
        return
    moves = []
    for line, cells in read_table(path, ("file", "cluster")):
        kept, to = head.images.get(cells["file"]), cells["cluster"].removesuffix(".0")  # as of a spreadsheet
        if kept and not to:
            raise UserError(f"{path}, line {line}: no cluster; give one, or none for an image without")
        if kept and to != str(kept.cluster):
            moves.append(["move", cells["file"], to, head.clustering])
    print(f"{path} was changed; a copy is kept: {set_aside(path, head.clustering)}")
    if moves:
        rows = []
        if corrections.exists():
            rows = [list(cells.values()) for _, cells in read_table(corrections, COLUMNS[:3], COLUMNS[3:])]
            set_aside(corrections, head.clustering)
        write_csv(COLUMNS, [*rows, *(move for move in moves if move not in rows)], corrections)
        print(f"{len(moves)} images have another cluster there: as moves in {corrections}")


def keep_rows(path: Path, rows: list[Correction]) -> None:
    """Write the corrections if they are not only those of the file, but also given ones or earlier ones."""
    there = len(read_table(path, COLUMNS[:3])) if path.exists() else 0
    if len(rows) <= there:
        return
    if there:
        print(f"{path}: the earlier file is kept: {set_aside(path, rows[-1].clustering)}")
    write_csv(COLUMNS, (row[: len(COLUMNS)] for row in rows), path)


# --- names ---------------------------------------------------------------------------------------


def names_by_handle(
    path: Path, before: str, head: FinalHead | Earlier, table: np.ndarray | None
) -> dict[str, str] | None:
    """What the user called the clusters, by their handles; None if there is no table, or of other clusters.

    Args:
        before: identity of the clustering that was there, of which a table is that does not say.
        table: `overlaps` of the clusters with those, if a training has made others.
    """
    if not path.exists():
        return None
    of = named_clustering(path) or before
    if table is not None and of == before:
        names = read_names(path, max(table.shape[1], len(read_table(path, ("cluster", "name")))))
        most = table.argmax(1)  # of the one or the other, at least half is in both
        half = np.minimum(table.sum(1), table.sum(0)[most]) / 2
        pairs = [(str(i), old) for i, old in enumerate(most) if table[i, old] >= max(half[i], 1)]
    elif of in head.history:
        names = read_names(path, len(head.history[of]))
        pairs = [(handle, old) for old, handle in enumerate(head.history[of]) if handle]
    else:
        return None
    return {handle: names[old] for handle, old in pairs if names[old] != str(old)}


def carry_names(folder: Path, before: str, head: FinalHead, named: dict[str, str] | None) -> list[str] | None:
    """The names of the clusters of `head`, which are also written to names.csv if that has others.

    None if there are no names; a table of other clusters is set aside.
    """
    path = folder / NAMES
    known = {handle: handle for handle in head.handles if not handle.isdecimal()} | (named or {})
    of = (named_clustering(path) or before) if path.exists() else None
    if of == head.clustering:
        return read_names(path, len(head.handles))
    copy = set_aside(path, of) if of is not None else None
    if not known:
        if copy:
            path.unlink()
            print(f"{path}: names other clusters than those of now; set aside: {copy}")
        return None
    names = [known.get(handle, str(number)) for number, handle in enumerate(head.handles)]
    write_csv(
        ("cluster", "name", "clustering"), [(i, name, head.clustering) for i, name in enumerate(names)], path
    )
    without = [str(number) for number, handle in enumerate(head.handles) if handle not in known]
    what = f"; clusters without a name: {', '.join(without)}" * bool(without)
    print(f"{path}: the names were carried over{what}" + (f"; the earlier file: {copy}" if copy else ""))
    return names
