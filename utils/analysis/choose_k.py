"""How many clusters? Clusterings of the neighbor graph into several numbers, compared without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from . import graph

CLUSTERINGS = 6  # of each number of clusters
TIE = 0.02  # difference of modularity that says nothing; see docs/LOG.md
# default candidates; those with fewer than MIN_MEAN_SIZE images per cluster are skipped
CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)
MIN_MEAN_SIZE = 20


def modularity(clusters: torch.Tensor, neighbors: torch.Tensor) -> float:
    """Share of the neighbors within clusters, minus that by chance (Newman and Girvan, 2004, equation 5).

    By chance each pair of images is connected in proportion to the number of their connections.
    """
    anchors = torch.arange(len(neighbors)).unsqueeze(1).expand_as(neighbors)
    other = neighbors != anchors
    ends = torch.stack([anchors[other], neighbors[other]])
    inside = (clusters[ends[0]] == clusters[ends[1]]).double().mean()
    share = clusters[ends.flatten()].bincount().double() / ends.numel()
    return (inside - share.square().sum()).item()


def compare_numbers(neighbors: torch.Tensor, numbers: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Cluster the neighbor graph into each of several numbers of clusters.

    Returns:
        a dict for each number: `clusters`, the number; `modularity` and `modularity_std`, over CLUSTERINGS;
        `stability`, the mean adjusted Rand index of two of them; `mean_smallest` and `mean_largest` size.
    """
    spectra = graph.spectra_of(neighbors, max(numbers))
    rows = []
    for number in tqdm(numbers, desc="numbers of clusters", leave=False, disable=None):
        found = graph.clusterings(neighbors, number, CLUSTERINGS, seed, spectra)
        quality = [modularity(clusters, neighbors) for clusters in found]
        pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
        sizes = torch.stack([clusters.bincount(minlength=number) for clusters in found]).double()
        rows.append(
            {
                "clusters": number,
                "modularity": float(np.mean(quality)),
                "modularity_std": float(np.std(quality, ddof=1)),
                "stability": float(np.mean([adjusted_rand_score(a, b) for a, b in pairs])),
                "mean_smallest": sizes.min(1).values.mean().item(),
                "mean_largest": sizes.max(1).values.mean().item(),
            }
        )
    return rows


def suggest(rows: list[dict[str, Any]]) -> tuple[int, list[int]]:
    """The number of clusters of the highest modularity; and all numbers within TIE of it.

    The graph does not say which of these is right.
    """
    best = max(rows, key=lambda row: row["modularity"])
    ties = [row["clusters"] for row in rows if row["modularity"] >= best["modularity"] - TIE]
    return best["clusters"], ties
