"""How other methods cluster the same features: images where they disagree deserve a look."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics

from utils.files import KeptArrays

from . import kmeans, metrics, partitions

INITIALIZATIONS = 10


def cluster_by_baselines(
    features: torch.Tensor, num_clusters: int, seed: int = 0, kept: KeptArrays | None = None
) -> dict[str, torch.Tensor]:
    """Cluster L2-normalized features by k-means and by Ward's linkage.

    `kept`: has the clusters, if they were found before.

    Returns:
        clusters for "kmeans", "ward". Raises UserError for fewer images than clusters.
    """
    x = F.normalize(features.float().cpu(), dim=1)
    methods: dict[str, Callable[[], np.ndarray]] = {
        "kmeans": lambda: kmeans.fit_predict(x, x, num_clusters, seed, INITIALIZATIONS)[0].numpy(),
        "ward": lambda: partitions.cluster_by_ward(x.numpy(), num_clusters, seed),
    }
    kept, made_of = kept or KeptArrays(), (x.numpy(), num_clusters, seed)
    found = {name: kept.get(name, made_of, method) for name, method in methods.items()}
    return {name: torch.from_numpy(clusters).long() for name, clusters in found.items()}


def measure_agreement(
    clusters: torch.Tensor, baselines: dict[str, torch.Tensor], num_clusters: int
) -> tuple[dict[str, dict[str, float]], dict[str, torch.Tensor]]:
    """How far each baseline agrees with our clusters.

    Returns:
        name -> {"matched": share of the images in one-to-one matched clusters, "nmi": normalized mutual
        information}; and name -> the baseline's clusters in the numbers of those of ours that they are
        matched with (-1: a cluster without match).
    """
    agreement, renumbered = {}, {}
    for name, other in baselines.items():
        table = metrics.contingency(other.numpy(), clusters.numpy(), num_clusters, num_clusters)
        matches = metrics.hungarian_match(table)
        renumbered[name] = metrics.matched_class(matches, num_clusters)[other]
        agreement[name] = {
            "matched": metrics.matched_share(table, matches),
            "nmi": float(sklearn_metrics.normalized_mutual_info_score(clusters, other)),
        }
    return agreement, renumbered
