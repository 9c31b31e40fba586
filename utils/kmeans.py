"""The baseline: k-means on features."""

import logging

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from errors import UserError

from . import metrics

log = logging.getLogger(__name__)

FIT_ON = 300_000  # images at most; of more, this many are drawn at random


def cluster(train, test, num_clusters, seed, initialisations=1):
    """Fit on the train split, assign the test split.

    Args:
        train, test: float32 (N, D) and (M, D).
        seed: of the initialisation (k-means++).
        initialisations: the best one by inertia counts.

    Returns:
        the clusters of the test split, int64 (M,), and the inertia of the fit. Raises UserError for fewer
        images than clusters.
    """
    if len(train) > FIT_ON:
        log.info("k-means is fitted on %d of %d images", FIT_ON, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        train = train[order[:FIT_ON].sort().values]
    if len(train) < num_clusters:
        raise UserError(
            f"k-means needs at least {num_clusters} training images, one a cluster, has {len(train)}"
        )
    fitted = KMeans(num_clusters, n_init=initialisations, random_state=seed).fit(train.float().numpy())
    return torch.from_numpy(fitted.predict(test.float().numpy())).long(), float(fitted.inertia_)


def score(clusters, labels, num_clusters, num_classes):
    """Compare clusters, int64 (M,), with labels, int64 (M,): see metrics.clustering_metrics."""
    return metrics.clustering_metrics(F.one_hot(clusters, num_clusters).float(), labels, num_classes)
