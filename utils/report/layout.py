"""A map of the features: similar images lie near each other."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

METHODS = {"umap": "UMAP (umap-learn)", "t-sne": "t-SNE (scikit-learn)", "pca": "principal components"}
EQUAL = 1e-6  # largest difference of features that are all the same
FEW = 10  # images, too few for neighborhoods
DIMENSIONS = 50  # that t-SNE sees
PERPLEXITY, ITERATIONS = 30, 500
ANGLE = 0.8  # of the tree that it computes with: a third faster than by default, and neighbors stay as near


def lay_out(features, seed=0):
    """Coordinates of images on a plane, by UMAP if it is installed, or else by t-SNE.

    10 000 images take a minute of a CPU.

    Args:
        features: float (N, D), N >= 1; normalized here.

    Returns:
        float32 (N, 2), from 0 to 1 on either axis; and the name of the method, one of METHODS.
    """
    n = len(features)
    features = F.normalize(features.float(), dim=1).numpy()
    if np.ptp(features, 0).max() < EQUAL:
        return torch.full((n, 2), 0.5), "pca"
    dimensions = min(DIMENSIONS, *features.shape) if n > FEW else min(2, *features.shape)
    components = PCA(dimensions, svd_solver="randomized", random_state=seed).fit_transform(features)
    if n <= FEW or dimensions < 2:
        return _scaled(torch.from_numpy(components)), "pca"
    umap = _umap()
    if umap:
        method = umap.UMAP(n_neighbors=min(15, n - 1), metric="cosine", n_jobs=1, random_state=seed)
        return _scaled(torch.from_numpy(method.fit_transform(features))), "umap"
    method = TSNE(
        perplexity=min(PERPLEXITY, (n - 1) / 3),
        max_iter=ITERATIONS,
        angle=ANGLE,
        init="pca",
        random_state=seed,
        n_jobs=-1,
    )
    with threadpool_limits(torch.get_num_threads(), "openmp"):  # more would only wait for each other
        return _scaled(torch.from_numpy(method.fit_transform(components))), "t-sne"


def _umap():
    """The module umap, or None if it is not installed."""
    try:
        import umap
    except ImportError:
        return None
    return umap


def _scaled(places):
    """Stretch places (N, 1 or 2) until they fill the unit square; the middle for an axis without extent.

    So it is for an image without a place, as UMAP leaves one that is nobody's neighbor.
    """
    places = F.pad(places.float(), (0, 2 - places.size(1)))
    placed = places.isfinite().all(1, keepdim=True)
    places = places.where(placed, places[placed[:, 0]].mean(0))
    low, high = places.amin(0), places.amax(0)
    return (places - (low + high) / 2) / (high - low).clamp(min=1e-12) + 0.5
