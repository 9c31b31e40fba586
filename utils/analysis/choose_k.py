"""How many clusters? Clusterings into several numbers, compared without labels."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from . import embedding, partitions

TIE = 0.02  # difference of modularity that says nothing; see docs/LOG.md
# default candidates; those with fewer than MIN_MEAN_SIZE images per cluster are skipped
CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)
MIN_MEAN_SIZE = 10
MOST_OF_RANGE = 16  # numbers of a range that are compared


def candidates(low: int, high: int) -> list[int]:
    """The numbers from `low` to `high`; of more than MOST_OF_RANGE, about as many, in about equal ratios."""
    if high - low < MOST_OF_RANGE:
        return list(range(low, high + 1))
    return sorted(set(np.geomspace(low, high, MOST_OF_RANGE).round().astype(int).tolist()))


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


def compare_numbers(
    neighbors: torch.Tensor, embedded: torch.Tensor, numbers: Sequence[int], seed: int = 0
) -> list[dict[str, Any]]:
    """Cut Ward's linkage of embedded images into each of several numbers of clusters.

    Args:
        neighbors: int64 (N, k).
        embedded: float32 (N, M), the joined layouts of `embedding.embed`.

    Returns:
        a dict for each number: `clusters`, the number; `modularity` on the neighbors; `silhouette` in the
        embedding; `stability`, the mean adjusted Rand index of two single layouts; `smallest` and `largest`
        size.
    """
    layouts = embedded.chunk(len(embedding.GRAPH_WIDTHS), 1)
    spaces = tqdm((embedded, *layouts), desc="numbers of clusters", leave=False, disable=None)
    joined, *single = (partitions.cut_ward(x.numpy(), numbers, seed) for x in spaces)
    rows = []
    for column, number in enumerate(numbers):
        clusters = torch.from_numpy(joined[:, column]).long()
        pairs = combinations((cut[:, column] for cut in single), 2)
        sizes = clusters.bincount()
        rows.append(
            {
                "clusters": number,
                "modularity": modularity(clusters, neighbors),
                "silhouette": partitions.silhouette(embedded, clusters),
                "stability": float(np.mean([adjusted_rand_score(a, b) for a, b in pairs])),
                "smallest": int(sizes.min()),
                "largest": int(sizes.max()),
            }
        )
    return rows


def suggest(rows: list[dict[str, Any]]) -> tuple[int, list[int]]:
    """The number of clusters of the highest modularity; and the numbers that may be as good.

    These are the numbers within TIE of it, and each whose silhouette is higher than those of its neighbors.
    """
    best = max(rows, key=lambda row: row["modularity"])
    heights = [-np.inf, *(row["silhouette"] for row in rows), -np.inf]
    alike = [
        row["clusters"]
        for row, before, here, after in zip(rows, heights, heights[1:], heights[2:], strict=False)
        if row["modularity"] >= best["modularity"] - TIE or here > max(before, after)
    ]
    return best["clusters"], alike
