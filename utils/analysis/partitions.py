"""Clusterings of the same images by different means, and how good each looks without labels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, ward
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import silhouette_score

KMEANS_STARTS = 5  # of k-means
FINER = 3  # times as many clusters are found by k-means before they are joined
PAIRS_OF = 5000  # images; of more, groups are formed before a method that takes all pairs
GROUPS, GROUPING_ROUNDS = 1000, 20
SILHOUETTE_SAMPLE = 5000  # images


def partitions(
    embedded: torch.Tensor, normalized: torch.Tensor, num_clusters: int, seed: int
) -> dict[str, torch.Tensor]:
    """Cluster the images in several ways, which differ in how even the clusters become.

    Args:
        embedded: float32 (N, M), see `embedding.embed`.
        normalized: float32 (N, D), the features.

    Returns:
        name -> int64 (N,).
    """
    x, features = embedded.numpy(), normalized.numpy()
    found = {
        "k-means": cluster_by_kmeans(x, num_clusters, seed),
        "Ward": cluster_by_ward(x, num_clusters, seed),
        "Ward of the features": cluster_by_ward(features, num_clusters, seed),
    }
    if 1 < num_clusters <= len(x) // FINER**2:
        found["joined k-means"] = join_parts(x, num_clusters, FINER * num_clusters, seed)
    return {name: torch.from_numpy(clusters).long() for name, clusters in found.items()}


def cluster_by_kmeans(
    x: np.ndarray, num_clusters: int, seed: int, initializations: int = KMEANS_STARTS
) -> np.ndarray:
    """Clusters of about the same extent."""
    return KMeans(num_clusters, n_init=initializations, random_state=seed).fit_predict(x)


def cluster_by_ward(x: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Ward's linkage of the images or, of more than PAIRS_OF, of GROUPS of them."""
    return _by_groups(
        x, seed, lambda rows: AgglomerativeClustering(num_clusters, linkage="ward").fit_predict(rows)
    )


def cut_ward(x: np.ndarray, numbers: Sequence[int], seed: int) -> np.ndarray:
    """As `cluster_by_ward`, of the same groups, for several numbers of clusters: (N, len(numbers))."""
    return _by_groups(x, seed, lambda rows: cut_tree(ward(rows), numbers))


def merge_clusters(embedded: torch.Tensor, shares: torch.Tensor, numbers: Sequence[int]) -> list[list[int]]:
    """Go on from clusters to fewer ones by Ward's linkage, so that all levels nest.

    Args:
        embedded: float32 (N, M).
        shares: float (N, C), how much of each image is in each cluster.
        numbers: of clusters, rising, at most C.

    Returns:
        for each number, that of the merged cluster of each of the C, counted in the order of these.
    """
    sizes = shares.double().sum(0).clamp(min=1e-12)
    sums = shares.double().T @ embedded.double()
    place, levels = torch.arange(len(sizes)), []
    for number in reversed(numbers):
        while len(sizes) > number:
            means = sums / sizes[:, None]
            cost = torch.cdist(means, means).square() / (1 / sizes + 1 / sizes[:, None])
            cost += torch.full_like(cost, torch.inf).triu()
            last, first = divmod(int(cost.argmin()), len(sizes))  # first < last
            for values in (sums, sizes):
                values[first] += values[last]
            sums, sizes = (torch.cat([v[:last], v[last + 1 :]]) for v in (sums, sizes))
            place = torch.where(place == last, first, place - (place > last).long())
        levels.append(place.tolist())
    return levels[::-1]


def join_parts(x: np.ndarray, num_clusters: int, parts: int, seed: int) -> np.ndarray:
    """Clusters of any size: more of k-means, joined by the distances of their centers (average linkage)."""
    part = cluster_by_kmeans(x, parts, seed, 3)
    linkage = AgglomerativeClustering(num_clusters, linkage="average")
    return linkage.fit_predict(_centers(x, part))[np.unique(part, return_inverse=True)[1]]


def _by_groups(x: np.ndarray, seed: int, method: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if len(x) <= PAIRS_OF:
        return method(x)
    # a few rounds are enough: the groups need not be the best ones
    grouping = KMeans(GROUPS, init="random", n_init=1, max_iter=GROUPING_ROUNDS, random_state=seed)
    group = grouping.fit_predict(x)
    return method(_centers(x, group))[np.unique(group, return_inverse=True)[1]]


def _centers(x: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The mean of each cluster that has images."""
    return np.stack([x[clusters == cluster].mean(0) for cluster in np.unique(clusters)])


def silhouette(embedded: torch.Tensor, clusters: torch.Tensor) -> float:
    """Mean silhouette, from -1 to 1 (Rousseeuw, 1987), of at most SILHOUETTE_SAMPLE images.

    In an embedding by neighbors it is the best of the known judges without labels (Lowe et al., An Empirical
    Study into Clustering of Unseen Datasets with Self-Supervised Encoders, 2024). -1 for a single cluster.
    """
    n = len(clusters)
    if n > SILHOUETTE_SAMPLE:
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:SILHOUETTE_SAMPLE]
        embedded, clusters = embedded[chosen], clusters[chosen]
    if not 1 < len(clusters.unique()) < len(clusters):
        return -1.0
    return float(silhouette_score(embedded.numpy(), clusters.numpy()))
