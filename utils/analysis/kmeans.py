"""The baseline: k-means on features."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from tqdm import tqdm

from errors import UserError

from . import health, metrics

log = logging.getLogger(__name__)

FIT_ON = 300_000  # images at most; from a larger split, so many are drawn at random
SEEDS = range(10)


def cluster(train, test, num_clusters, seed, initialisations=1):
    """Fit on the train split, assign the test split.

    Args:
        train, test: float32 (N, D) and (M, D).
        seed: of the initialisation (k-means++).
        initialisations: their number, of which the best by inertia is kept.

    Returns:
        the clusters of the test split, int64 (M,), and the inertia of the fit. Raises UserError for fewer
        images than clusters.
    """
    if len(train) > FIT_ON:
        log.info("k-means is fitted on %d of %d images", FIT_ON, len(train))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        train = train[order[:FIT_ON].sort().values]
    require_enough(len(train), num_clusters)
    fitted = KMeans(num_clusters, n_init=initialisations, random_state=seed).fit(train.float().numpy())
    return torch.from_numpy(fitted.predict(test.float().numpy())).long(), float(fitted.inertia_)


def require_enough(n, num_clusters):
    """Raise UserError for fewer images than clusters."""
    if n < num_clusters:
        raise UserError(
            f"k-means needs at least {num_clusters} training images, one per cluster, but has {n}"
        )


def score(train, test, labels, num_clusters, num_classes, seed, initialisations=1):
    """metrics.clustering_metrics of `cluster`, with the test split's labels, int64 (M,)."""
    return _compare(
        cluster(train, test, num_clusters, seed, initialisations)[0], labels, num_clusters, num_classes
    )


def repeat(train, test, dataset, num_clusters):
    """Call `cluster` with each of SEEDS, and log the figures.

    Args:
        train, test: float32 (N, D) and (M, D).
        dataset: the M images, with `labels` (int64 (M,) or None) and `classes`.

    Returns:
        dict of figures: metrics.spread of the inertia and, with labels, of ACC, NMI and ARI; and
        `cluster_sizes` of the fit with the lowest inertia. Second, that fit's clusters, int64 (M,).
    """
    bar = tqdm(SEEDS, desc="k-means", leave=False, disable=None)
    fits, inertia = zip(*(cluster(train, test, num_clusters, seed) for seed in bar), strict=True)
    best = fits[int(np.argmin(inertia))]
    sizes = best.bincount(minlength=num_clusters)
    figures = {"inertia": metrics.spread(inertia), "cluster_sizes": sizes.tolist()}
    if dataset.labels is None:
        shown = f"cluster sizes {health.counted(sizes)}"
    else:
        scores = [_compare(fit, dataset.labels, num_clusters, len(dataset.classes)) for fit in fits]
        accuracies = {
            name: metrics.spread([score[name] for score in scores]) for name in ("acc", "nmi", "ari")
        }
        figures |= accuracies
        shown = [
            f"{name.upper()} {100 * f['mean']:.2f} ± {100 * f['std']:.2f}" for name, f in accuracies.items()
        ]
        shown = "  ".join(shown) + " %"
    log.info("k-means on the features, %d initialisations: %s", len(fits), shown)
    return figures, best


def _compare(clusters, labels, num_clusters, num_classes):
    return metrics.clustering_metrics(F.one_hot(clusters, num_clusters).float(), labels, num_classes)
