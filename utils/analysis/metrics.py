"""How good a clustering is: with labels, and, to select a model, without them."""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sklearn_metrics

# of probabilities at a time in the validation objective: few enough for a CPU's cache, or enough for a GPU
CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**26}
# The published lower bounds, as in losses/scan.py.
MIN_PROBABILITY, MIN_LOG = 1e-8, -100

Matches = list[tuple[int, int]]


def contingency(clusters: np.ndarray, labels: np.ndarray, num_clusters: int, num_classes: int) -> np.ndarray:
    """Number of images of each (cluster, class) pair in one pass: int64 (num_clusters, num_classes)."""
    pairs = np.bincount(clusters * num_classes + labels, minlength=num_clusters * num_classes)
    return pairs.reshape(num_clusters, num_classes)


def hungarian_match(table: np.ndarray) -> Matches:
    """One-to-one assignment of clusters to classes that explains the most images.

    Pairs without a common image are left out: they explain nothing, and would be arbitrary.

    Returns:
        (cluster, class) pairs, sorted by cluster, without unmatched clusters and classes.
    """
    # only clusters and classes that occur: empty ones must not decide between equally good assignments
    clusters, classes = (np.flatnonzero(table.sum(axis)) for axis in (1, 0))
    rows, columns = linear_sum_assignment(table[np.ix_(clusters, classes)], maximize=True)
    pairs = zip(clusters[rows].tolist(), classes[columns].tolist(), strict=True)
    return [pair for pair in pairs if table[pair] > 0]


def matched_class(matches: Matches, num_clusters: int) -> torch.Tensor:
    """The class of each cluster, int64 (num_clusters,), -1 for a cluster without a match."""
    class_of = torch.full((num_clusters,), -1)
    for cluster, class_index in matches:
        class_of[cluster] = class_index
    return class_of


def matched_share(table: np.ndarray, matches: Matches) -> float:
    """Share of the images that are in the matched pairs."""
    return sum(int(table[pair]) for pair in matches) / int(table.sum())


def clustering_accuracy(probabilities: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """The `acc` of `clustering_metrics` alone, for monitoring: the other figures take longer."""
    table = contingency(probabilities.argmax(1).numpy(), labels.numpy(), probabilities.size(1), num_classes)
    return matched_share(table, hungarian_match(table))


def clustering_metrics(probabilities: torch.Tensor, labels: torch.Tensor, num_classes: int) -> dict[str, Any]:
    """Compare clusters with the true classes.

    Returns:
        `acc` and `top5` (top-min(5, C)) after one-to-one matching, `majority_vote_acc` (each cluster takes
        its most frequent class), `nmi`, `ari`, `ami`, which need no matching, and `matches`.
    """
    num_clusters = probabilities.size(1)
    top = probabilities.topk(min(5, num_clusters), dim=1).indices  # (N, 5)
    clusters, truth = probabilities.argmax(1).numpy(), labels.numpy()
    table = contingency(clusters, truth, num_clusters, num_classes)
    matches = hungarian_match(table)
    class_of = matched_class(matches, num_clusters)
    return {
        "acc": matched_share(table, matches),
        "top5": (class_of[top] == labels.unsqueeze(1)).any(1).double().mean().item(),
        "majority_vote_acc": int(table.max(1).sum()) / len(truth),
        "nmi": float(sklearn_metrics.normalized_mutual_info_score(truth, clusters)),
        "ari": float(sklearn_metrics.adjusted_rand_score(truth, clusters)),
        "ami": float(sklearn_metrics.adjusted_mutual_info_score(truth, clusters)),
        "matches": matches,
    }


def confusion_matrix(table: np.ndarray, matches: Matches) -> tuple[np.ndarray, list[int | None]]:
    """Share of each true class (rows) in each cluster (columns).

    Columns are the classes' matched clusters in the order of the classes, then the unmatched
    clusters. Each row is divided by its own sum; a class without images stays 0.

    Returns:
        float (K, columns); the cluster of each column, None for a class without one.
    """
    num_clusters, num_classes = table.shape
    cluster_of = {class_index: cluster for cluster, class_index in matches}
    columns = [cluster_of.get(class_index) for class_index in range(num_classes)]
    columns += [cluster for cluster in range(num_clusters) if cluster not in cluster_of.values()]
    matrix = np.stack([np.zeros(num_classes) if c is None else table[c] for c in columns], axis=1)
    return matrix / np.maximum(table.sum(0)[:, None], 1), columns


def validation_objective(
    probabilities: torch.Tensor, neighbors: torch.Tensor, images: torch.Tensor | slice = slice(None)
) -> dict[str, float]:
    """The SCAN objective of one head over a whole split, entropy weight 1; needs no labels.

    The consistency is averaged over all stored neighbors, the image itself included; memory is
    O(N k), not N x N.

    Args:
        neighbors: int64 (M, k), those of `images`.
        images: int64 (M,), the images to average over; by default all N.

    Returns:
        `entropy`, `consistency`, `loss` = consistency - entropy.
    """
    p = probabilities.float()
    neighbors = neighbors.to(p.device)
    total = torch.zeros((), dtype=torch.float64, device=p.device)
    rows = max(1, CHUNK_BYTES[p.device.type] // (p.element_size() * p.size(1)))
    chosen = p[images]
    for chunk, index in zip(chosen.split(rows), neighbors.split(rows), strict=True):
        for column in index.unbind(1):
            similarity = (p.index_select(0, column) * chunk).sum(1)
            total -= similarity.log().clamp(min=MIN_LOG).sum(dtype=torch.float64)
    mean = chosen.double().mean(0).clamp(min=MIN_PROBABILITY)
    entropy = -(mean * mean.log()).sum().item()
    consistency = total.item() / neighbors.numel()
    return {"entropy": entropy, "consistency": consistency, "loss": consistency - entropy}


def neighbor_agreement(
    clusters: torch.Tensor, neighbors: torch.Tensor, images: torch.Tensor | slice = slice(None)
) -> float:
    """How much more often than by chance images share their neighbors' cluster; needs no labels.

    (agreement - chance) / (1 - chance), as Cohen's kappa; chance is the share of pairs of images that are in
    the same cluster. A large cluster raises both, so that clusterings of different evenness can be compared,
    provided that no cluster is empty.

    Args:
        neighbors: int64 (M, 1 + k), those of `images`.
        images: int64 (M,), the images to average over; by default all N.

    Returns:
        at most 1; 0 if all images are in one cluster.
    """
    chosen = clusters[images]
    agreement = (clusters[neighbors[:, 1:]] == chosen.unsqueeze(1)).double().mean().item()
    chance = (chosen.bincount().double() / len(chosen)).square().sum().item()
    return (agreement - chance) / (1 - chance) if chance < 1 else 0.0


class Spread(TypedDict):
    """A figure of several runs."""

    mean: float
    std: float | None  # standard deviation (n - 1); None of a single run
    values: list[float]


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of a figure."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "values": list(values)}
