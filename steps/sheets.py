"""Sheets of images: one for each cluster, all of a cluster, or images beside their nearest neighbors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data
from utils.analysis import plots

ROWS = 10  # of neighbors.png, an image and its neighbors each
MOST_CONFIDENT, LEAST_CONFIDENT = 80, 20  # images of a cluster's sheet


def save_prototypes(dataset: data.Dataset, figures: dict[str, Any], path: Path) -> None:
    """A sheet of an image for each cluster, titled with its matched class and size.

    `figures`: `prototypes`, C image indices or None, `cluster_sizes` and, with labels, `matches`.
    """
    plots.save_image_sheet(_prototypes(dataset, figures), path)


def save_neighbors(dataset: data.Dataset, mined: torch.Tensor, path: Path) -> None:
    """A sheet with a row for each of ROWS evenly spaced images and its neighbors `mined`, int64 (N, k)."""
    plots.save_image_sheet(_neighbors(dataset, mined), path)


def save_clusters(dataset: data.Dataset, probabilities: torch.Tensor, folder: Path) -> None:
    """A sheet of each cluster's images, the most confident first and the least confident last.

    `probabilities`: float (N, C). The sheets that `folder` holds are removed.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    confidence, clusters = probabilities.max(1)
    digits = len(str(probabilities.size(1) - 1))
    for cluster in clusters.unique().tolist():
        members = (clusters == cluster).nonzero().squeeze(1)
        members = members[confidence[members].argsort(descending=True)].tolist()
        most, least = members[:MOST_CONFIDENT], members[MOST_CONFIDENT:][-LEAST_CONFIDENT:]
        cells = [(dataset.raw(i), f"{100 * confidence[i]:.0f} %") for i in most + least]
        shown = "" if len(members) == len(cells) else f"; {len(most)} most and {len(least)} least confident"
        title = f"cluster {cluster}: {len(members)} images{shown}"
        plots.save_contact_sheet(cells, title, folder / f"{cluster:0{digits}d}.png")


def _prototypes(dataset: data.Dataset, figures: dict[str, Any]) -> Iterator[plots.Cell]:
    class_of = dict(figures.get("matches", []))
    names = plots.drawable(tuple(enumerate(figures.get("classes") or dataset.classes or ())))
    for cluster, index in enumerate(figures["prototypes"]):
        name = f" = {names[class_of[cluster]]}" if cluster in class_of else ""
        title = f"cluster {cluster}{name}\n{figures['cluster_sizes'][cluster]} images"
        yield None if index is None else dataset.raw(index), title


def _neighbors(dataset: data.Dataset, mined: torch.Tensor) -> Iterator[plots.Cell]:
    rows = []
    for anchor in np.unique(np.linspace(0, len(dataset) - 1, ROWS).astype(int)).tolist():
        nearest = [i for i in mined[anchor].tolist() if i != anchor]
        rows.append([anchor, *nearest[: plots.SHEET_COLUMNS - 1]])
    names = dataset.names()
    images = {i for row in rows for i in row}
    shown = plots.drawable(tuple((i, names[i]) for i in images))
    for row in rows:
        for i in row:
            yield dataset.raw(i), f"neighbors of\n{shown[i]}" if i == row[0] else shown[i]
        yield from [(None, "")] * (plots.SHEET_COLUMNS - len(row))
