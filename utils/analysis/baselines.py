"""How other methods cluster the same features: images where they disagree deserve a look."""

import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics

from . import kmeans, metrics, partitions

INITIALIZATIONS = 10


def cluster_by_baselines(features: torch.Tensor, num_clusters: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Cluster L2-normalized features by k-means and by Ward's linkage.

    Returns:
        clusters for "kmeans", "ward". Raises UserError for fewer images than clusters.
    """
    x = F.normalize(features.float().cpu(), dim=1)
    by_means, _ = kmeans.fit_predict(x, x, num_clusters, seed, INITIALIZATIONS)
    by_ward = partitions.cluster_by_ward(x.numpy(), num_clusters, seed)
    return {"kmeans": by_means, "ward": torch.from_numpy(by_ward).long()}


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
