"""Clusters of the neighbor graph, and linear heads that reproduce them: a start for the clustering step.

Normalized cuts (Shi and Malik, 2000; Ng, Jordan and Weiss, 2001) with twice as many eigenvectors as clusters,
weighted by their eigenvalues: the weaker ones tell clusters apart that the first ones leave together.
"""

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import lobpcg
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from errors import UserError

log = logging.getLogger(__name__)

# There are three graphs: each image is connected with the nearest 50 %, 75 % and 100 % of its neighbors.
WIDTHS = 0.5, 0.75, 1
DENSE = 500  # images up to which all eigenvectors are computed, which is then as fast
MAX_MEMORY = 8e9  # bytes
MAX_FITTED = 20_000  # images that the heads are fitted on
WEIGHT_DECAY = 1e-4  # of the fit, on features of unit scale

Spectrum = tuple[np.ndarray, np.ndarray]  # eigenvalues (K,), in falling order, and eigenvectors (N, K)


def clusterings(neighbors: torch.Tensor, num_clusters: int, count: int, seed: int) -> torch.Tensor:
    """`count` clusterings of the images by their neighbor graphs.

    They differ in how many neighbors each image is connected with (WIDTHS), and in the seed of k-means.

    Returns:
        int64 (count, N).

    Raises:
        UserError: fewer images than clusters; see also `spectra_of`.
    """
    if len(neighbors) < num_clusters:
        raise UserError(
            f"{len(neighbors)} images cannot form num_classes {num_clusters} clusters; lower num_classes"
        )
    embeddings = [embedding(*spectrum, num_clusters) for spectrum in spectra_of(neighbors, num_clusters)]
    found = []
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # of equal rows
        for i in range(count):
            fit = KMeans(num_clusters, n_init=10, random_state=seed + i)
            found.append(torch.from_numpy(fit.fit_predict(embeddings[i % len(WIDTHS)])).long())
    return torch.stack(found)


def spectra_of(neighbors: torch.Tensor, num_clusters: int) -> list[Spectrum]:
    """The largest 2 C eigenvalues, and their eigenvectors, of the graph of each of WIDTHS.

    Raises UserError if they would not fit in memory.
    """
    n = len(neighbors)
    needed = 8 * n * 16 * num_clusters  # the eigenvectors, and as much again for each of seven work arrays
    if needed > MAX_MEMORY:
        raise UserError(
            f"the eigenvectors of the neighbor graph of {n} images for {num_clusters} clusters need "
            f"{needed / 1e9:.0f} GB of memory; lower num_classes, or set head_init to random or judged"
        )
    k = neighbors.size(1) - 1
    return [spectrum(neighbors[:, : max(1, round(share * k)) + 1], 2 * num_clusters) for share in WIDTHS]


def spectrum(neighbors: torch.Tensor, count: int) -> Spectrum:
    """The largest `count` eigenvalues and their eigenvectors of the normalized graph."""
    edges = connect(neighbors)
    n = len(neighbors)
    degrees = np.asarray(edges.sum(1)).ravel()  # 0: an image that is its only neighbor
    scale = sparse.diags(np.where(degrees > 0, degrees, np.inf) ** -0.5)
    normalized = scale @ edges @ scale
    count = min(count, n)
    if n <= max(DENSE, 5 * count):
        values, vectors = scipy.linalg.eigh(normalized.toarray(), subset_by_index=(n - count, n - 1))
    else:  # a block method, because the graph's parts may be unconnected: as many eigenvalues are 1
        start = np.random.RandomState(0).randn(n, count)
        with warnings.catch_warnings(action="ignore"):  # of the last digits, which do not matter here
            values, vectors = lobpcg(normalized, start, largest=True, tol=1e-3, maxiter=100)
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def embedding(values: np.ndarray, vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """Directions of the images in the space of the graph's first eigenvectors, float32 (N, <= 2 C).

    An image that is its only neighbor gets zeros.
    """
    values, vectors = values[: 2 * num_clusters], vectors[:, : 2 * num_clusters]
    return F.normalize(torch.from_numpy(vectors * values.clip(0) ** 2), dim=1).float().numpy()


def connect(neighbors: torch.Tensor) -> sparse.csr_matrix:
    """The graph: sparse (N, N) of 1 between an image and its neighbor, 1/2 if only one names the other."""
    n = len(neighbors)
    anchors = np.repeat(np.arange(n), neighbors.size(1))
    ends = neighbors.numpy().ravel()
    other = anchors != ends
    ones = np.ones(np.count_nonzero(other))
    directed = sparse.csr_matrix((ones, (anchors[other], ends[other])), shape=(n, n))
    return (directed + directed.T) / 2


def fit_heads(features: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear heads whose softmax reproduces the given clusters: logistic regression.

    Args:
        targets: float (H, N, C), the probabilities of the clusters.

    Returns:
        float32 weights (H, C, D) and biases (H, C), on the features' device.
    """
    if len(features) > MAX_FITTED:
        chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:MAX_FITTED]
        features, targets = features[chosen.to(features.device)], targets[:, chosen]
    features, targets = features.float(), targets.float().to(features.device)
    mean = features.mean(0)
    unit = (features - mean).square().sum(1).mean().sqrt().clamp(min=1e-12)
    x = (features - mean) / unit
    heads, _, num_clusters = targets.shape
    weights = x.new_zeros(heads * num_clusters, x.size(1), requires_grad=True)
    biases = x.new_zeros(heads * num_clusters, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, biases], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.linear(x, weights, biases).unflatten(1, (heads, num_clusters))  # (N, H, C)
        total = F.cross_entropy(logits.flatten(0, 1), targets.transpose(0, 1).flatten(0, 1)) * heads
        total = total + WEIGHT_DECAY * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        optimizer.step(loss)
    weights = weights.detach() / unit
    biases = biases.detach() - weights @ mean
    return weights.unflatten(0, (heads, num_clusters)), biases.unflatten(0, (heads, num_clusters))


@torch.no_grad()
def initialize_heads(
    cluster_heads: Sequence[nn.Linear],
    features: torch.Tensor,
    neighbors: torch.Tensor,
    images: torch.Tensor,
    seed: int,
) -> None:
    """Set linear heads to clusters of the neighbor graph.

    Args:
        cluster_heads: H linear layers from D to C.
        images: int64 (M,), the images to cluster, whose neighbors are among them.
        seed: of the clusterings.
    """
    num_clusters = cluster_heads[0].out_features
    place = torch.full((len(features),), -1).index_put_((images,), torch.arange(len(images)))
    clusters = clusterings(place[neighbors[images]], num_clusters, len(cluster_heads), seed)
    set_heads(cluster_heads, features[images.to(features.device)], F.one_hot(clusters, num_clusters))
    log.info("%d heads start from clusters of the neighbor graph", len(cluster_heads))


@torch.no_grad()
def set_heads(cluster_heads: Sequence[nn.Linear], features: torch.Tensor, targets: torch.Tensor) -> None:
    """Set H linear heads to what `fit_heads` returns."""
    for head, weight, bias in zip(cluster_heads, *fit_heads(features, targets), strict=True):
        head.weight.copy_(weight)
        head.bias.copy_(bias)
