"""How other methods cluster the same features: images where they disagree deserve a look."""

import logging
import time

import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import AgglomerativeClustering

from . import kmeans, metrics

log = logging.getLogger(__name__)

WARD_LIMIT = 10_000  # images: the distances take 8 N^2 bytes, here 0.8 GB
INITIALIZATIONS = 10


def cluster_by_baselines(features: torch.Tensor, num_clusters: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Cluster L2-normalized features by k-means and, unless there are too many, by Ward's linkage.

    Returns:
        clusters for "kmeans", "ward". Raises UserError for fewer images than clusters.
    """
    x = F.normalize(features.float().cpu(), dim=1)
    found = {}
    for name, method in {"kmeans": _kmeans, "ward": _ward}.items():
        start = time.perf_counter()
        clusters = method(x, num_clusters, seed)
        if clusters is not None:
            found[name] = clusters
            log.info("baseline %s: %.1f s", name, time.perf_counter() - start)
    return found


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


def _kmeans(x: torch.Tensor, num_clusters: int, seed: int) -> torch.Tensor:
    return kmeans.fit_predict(x, x, num_clusters, seed, INITIALIZATIONS)[0]


def _ward(x: torch.Tensor, num_clusters: int, seed: int) -> torch.Tensor | None:
    if len(x) > WARD_LIMIT:
        log.info("baseline ward is left out: %d images are more than %d", len(x), WARD_LIMIT)
        return None
    ward = AgglomerativeClustering(num_clusters, linkage="ward")
    return torch.from_numpy(ward.fit_predict(x.numpy())).long()
