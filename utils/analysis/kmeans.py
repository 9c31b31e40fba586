"""The baseline: k-means on features."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from tqdm import tqdm

from errors import UserError

from . import health, metrics

if TYPE_CHECKING:
    from data import Dataset

log = logging.getLogger(__name__)

KMEANS_LIMIT = 300_000  # images; from a larger split, so many are drawn at random
SEEDS = range(10)


def fit_predict(
    train: torch.Tensor, test: torch.Tensor, num_clusters: int, seed: int, initializations: int = 1
) -> tuple[torch.Tensor, float]:
    """Fit on the train split, assign the test split.

    Args:
        train, test: float32 (N, D) and (M, D).
        seed: of the initialization (k-means++).
        initializations: their number, of which the best by inertia is kept.

    Returns:
        the clusters of the test split, int64 (M,), and the inertia of the fit. Raises UserError for fewer
        images than clusters.
    """
    if len(train) > KMEANS_LIMIT:
        log.info("k-means is fitted on %d of %d images", KMEANS_LIMIT, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        train = train[order[:KMEANS_LIMIT].sort().values]
    require_one_per_cluster(len(train), num_clusters)
    fitted = KMeans(num_clusters, n_init=initializations, random_state=seed).fit(train.float().numpy())
    return torch.from_numpy(fitted.predict(test.float().numpy())).long(), float(fitted.inertia_)


def require_one_per_cluster(n: int, num_clusters: int) -> None:
    """Raise UserError for fewer images than clusters."""
    if n < num_clusters:
        raise UserError(
            f"k-means needs at least {num_clusters} training images, one per cluster, but has {n}"
        )


def score(
    clusters: torch.Tensor, labels: torch.Tensor, num_clusters: int, num_classes: int
) -> dict[str, Any]:
    """metrics.clustering_metrics of clusters."""
    return metrics.clustering_metrics(F.one_hot(clusters, num_clusters).float(), labels, num_classes)


def repeat(
    train: torch.Tensor, test: torch.Tensor, dataset: "Dataset", num_clusters: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Call `fit_predict` with each of SEEDS, and log the figures.

    Args:
        train, test: float32 (N, D) and (M, D).
        dataset: the M images; its labels are used if there are any.

    Returns:
        metrics.spread of the inertia and, with labels, of ACC, NMI and ARI, and `cluster_sizes` of the fit
        with the lowest inertia; that fit's clusters, int64 (M,).
    """
    bar = tqdm(SEEDS, desc="k-means", leave=False, disable=None)
    fits, inertia = zip(*(fit_predict(train, test, num_clusters, seed) for seed in bar), strict=True)
    best = fits[int(np.argmin(inertia))]
    sizes = best.bincount(minlength=num_clusters)
    figures: dict[str, Any] = {"inertia": metrics.spread(inertia), "cluster_sizes": sizes.tolist()}
    text = f"cluster sizes {health.describe_counts(sizes)}"
    if dataset.labels is not None:
        scores = [score(fit, dataset.labels, num_clusters, len(dataset.classes or ())) for fit in fits]
        texts = []
        for name in ("acc", "nmi", "ari"):
            found = figures[name] = metrics.spread([fit_score[name] for fit_score in scores])
            texts.append(f"{name.upper()} {100 * found['mean']:.2f} ± {100 * (found['std'] or 0):.2f}")
        text = f"{'  '.join(texts)} %"
    log.info("k-means on the features, %d initializations: %s", len(fits), text)
    return figures, best
