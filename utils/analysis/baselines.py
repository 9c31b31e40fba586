"""How other methods cluster the same features: where they disagree is where a person should look."""

import logging
import time

import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics
from sklearn.cluster import AgglomerativeClustering

from . import kmeans, metrics

log = logging.getLogger(__name__)

WARD_ON = 10_000  # images at most: its distances take 8 N^2 bytes, here 0.8 GB
UMAP_ON = 50_000  # images at most: more take hours
INITIALISATIONS = 10
UMAP = {"n_neighbors": 15, "n_components": 10, "min_dist": 0.0, "metric": "cosine"}  # for clustering: no gaps


def cluster(features, num_clusters, seed=0):
    """Cluster features by k-means, by Ward's linkage, and by k-means after UMAP.

    k-means and Ward's linkage see L2-normalized features, as the mining of neighbors does. A method that
    cannot be had (too many images, UMAP not installed) is left out, with a log line.

    Args:
        features: float (N, D).

    Returns:
        dict of int64 (N,): "kmeans", "ward", "umap". Raises UserError for fewer images than clusters.
    """
    x = F.normalize(features.float().cpu(), dim=1)
    kmeans.require_enough(len(x), num_clusters)
    methods = {"kmeans": _kmeans, "ward": _ward, "umap": _umap}
    found = {}
    for name, method in methods.items():
        start = time.perf_counter()
        clusters = method(x, num_clusters, seed)
        if clusters is not None:
            found[name] = clusters
            log.info("second opinion, %s: %.1f s", name, time.perf_counter() - start)
    return found


def compare(clusters, opinions, num_clusters):
    """How far each second opinion agrees with our clusters.

    Args:
        clusters: int64 (N,), ours.
        opinions: see `cluster`.

    Returns:
        dict name -> {"matched": share of the images in one-to-one matched clusters, "nmi": normalized mutual
        information}; and dict name -> int64 (N,), the opinion in the numbers of our clusters that it is
        matched with (-1: a cluster without match).
    """
    agreement, renumbered = {}, {}
    for name, other in opinions.items():
        table = metrics.contingency(other.numpy(), clusters.numpy(), num_clusters, num_clusters)
        matches = metrics.hungarian_match(table)
        ours = torch.full((num_clusters,), -1)
        for theirs, cluster_of_ours in matches:
            ours[theirs] = cluster_of_ours
        renumbered[name] = ours[other]
        agreement[name] = {
            "matched": metrics.matched_share(table, matches),
            "nmi": float(sklearn_metrics.normalized_mutual_info_score(clusters, other)),
        }
    return agreement, renumbered


def _kmeans(x, num_clusters, seed):
    return kmeans.cluster(x, x, num_clusters, seed, INITIALISATIONS)[0]


def _ward(x, num_clusters, seed):
    if len(x) > WARD_ON:
        log.info("second opinion: Ward's linkage is left out, %d images are more than %d", len(x), WARD_ON)
        return None
    return torch.from_numpy(
        AgglomerativeClustering(num_clusters, linkage="ward").fit_predict(x.numpy())
    ).long()


def _umap(x, num_clusters, seed):
    try:
        import umap
    except ImportError:
        log.info("second opinion: UMAP is left out, it is not installed (pip install umap-learn)")
        return None
    if len(x) > UMAP_ON:
        log.info("second opinion: UMAP is left out, %d images are more than %d", len(x), UMAP_ON)
        return None
    if len(x) <= UMAP["n_components"] + 1 or len(x) <= UMAP["n_neighbors"]:
        log.info("second opinion: UMAP is left out, %d images are too few", len(x))
        return None
    embedded = torch.from_numpy(umap.UMAP(**UMAP, n_jobs=1, random_state=seed).fit_transform(x.numpy()))
    return kmeans.cluster(embedded, embedded, num_clusters, seed, INITIALISATIONS)[0]
