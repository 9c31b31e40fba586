"""A map of the features: similar images lie near each other."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from utils.analysis.baselines import import_umap

EQUAL = 1e-6  # features that differ by less are all the same
TOO_FEW = 10  # images, for methods that look at neighborhoods
TSNE_DIMENSIONS = 50  # of the features that t-SNE gets
TSNE_PERPLEXITY, TSNE_ITERATIONS = 30, 500
TSNE_ANGLE = 0.8  # a third faster than the default, and neighbors stay as near


def lay_out(features: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, str]:
    """Coordinates of images on a plane, by UMAP if it is installed, otherwise by t-SNE.

    10 000 images take a minute on a CPU.

    Args:
        features: float (N, D), N >= 1; normalized here.

    Returns:
        float32 (N, 2), from 0 to 1 on either axis; and the name of the method, for the page.
    """
    n = len(features)
    normalized = F.normalize(features.float(), dim=1).numpy()
    if np.ptp(normalized, 0).max() < EQUAL:
        return torch.full((n, 2), 0.5), "principal components"
    dimensions = min(TSNE_DIMENSIONS if n > TOO_FEW else 2, *normalized.shape)
    components = PCA(dimensions, svd_solver="randomized", random_state=seed).fit_transform(normalized)
    if n <= TOO_FEW or dimensions < 2:
        return _scaled(components), "principal components"
    umap = import_umap()
    if umap:
        method = umap.UMAP(n_neighbors=min(15, n - 1), metric="cosine", n_jobs=1, random_state=seed)
        return _scaled(method.fit_transform(normalized)), "UMAP (umap-learn)"
    method = TSNE(
        perplexity=min(TSNE_PERPLEXITY, (n - 1) / 3),
        max_iter=TSNE_ITERATIONS,
        angle=TSNE_ANGLE,
        init="pca",
        random_state=seed,
        n_jobs=-1,
    )
    with threadpool_limits(torch.get_num_threads(), "openmp"):  # more threads would wait for each other
        return _scaled(method.fit_transform(components)), "t-SNE (scikit-learn)"


def _scaled(coordinates: np.ndarray) -> torch.Tensor:
    """Stretch coordinates (N, 1 or 2) until they fill the unit square; an axis without extent becomes 0.5.

    Images that the method cannot place (UMAP leaves out isolated points) are put at the mean of the others.
    """
    places = torch.as_tensor(coordinates).float()
    places = F.pad(places, (0, 2 - places.size(1)))
    placed = places.isfinite().all(1, keepdim=True)
    places = places.where(placed, places[placed[:, 0]].mean(0))
    low, high = places.amin(0), places.amax(0)
    return (places - (low + high) / 2) / (high - low).clamp(min=1e-12) + 0.5
