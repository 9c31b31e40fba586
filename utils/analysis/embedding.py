"""An embedding of the images in which groups of the neighbor graph are dense and lie apart.

UMAP (McInnes, Healy and Melville, 2018): the fuzzy graph of section 3.1, and the layout of section 3.2, which
starts from principal components and takes all edges of an epoch in one step of Adam. Three graphs, of few and
of many neighbors, are laid out, and their coordinates joined: what only one of them shows counts less.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from tqdm import tqdm

from . import neighbors

GRAPH_WIDTHS = 10, 15, 30  # neighbors of each image in the graphs
DIMENSIONS = 10  # of each layout
LAYOUT_EPOCHS, LAYOUT_EPOCHS_OF_MANY, MANY_IMAGES = 300, 100, 20_000
# of the curve 1 / (1 + a d^(2 b)): how likely two images at the distance d are neighbors; for min_dist 0
CURVE_A, CURVE_B = 1.929, 0.7915
NEGATIVES = 5  # images from which an edge pushes its end away
MAX_STEP = 4.0  # of the gradient of one edge
BETAS = 0.5, 0.9  # of Adam, whose rate falls from 1 to 0
BISECTIONS = 40


def embed(
    normalized: torch.Tensor,
    mined: torch.Tensor,
    seed: int,
    widths: Sequence[int] = GRAPH_WIDTHS,
    dimensions: int = DIMENSIONS,
) -> torch.Tensor:
    """Lay out the neighbor graphs of features, one for each of `widths`, in so many dimensions each.

    Args:
        normalized: float32 (N, D), of length 1.
        mined: int64 (N, k), the neighbors without the image itself, nearest first.
        seed: of the layouts.

    Returns:
        float32 (N, M), each of the layouts of unit standard deviation.
    """
    distances = (1 - neighbors.similarities(normalized, mined)).clamp(min=0)
    start = principal_components(normalized, dimensions)
    epochs = LAYOUT_EPOCHS if len(normalized) <= MANY_IMAGES else LAYOUT_EPOCHS_OF_MANY
    layouts = []
    for number, width in enumerate(widths):
        graph = fuzzy_graph(mined[:, :width], distances[:, :width])
        layouts.append(place_by_neighbors(graph, start, epochs, seed + number))
    return torch.cat(layouts, 1)


def principal_components(features: torch.Tensor, count: int) -> torch.Tensor:
    """Coordinates of float32 (N, D) along the first principal components: (N, min(count, N - 1, D))."""
    count = min(count, len(features) - 1, features.size(1))
    centered = features - features.mean(0)
    if features.size(1) <= len(features):
        vectors = torch.linalg.eigh((centered.T @ centered).double())[1]
        return centered @ vectors[:, -count:].flip(1).float()
    values, vectors = torch.linalg.eigh((centered @ centered.T).double())
    return (vectors[:, -count:] * values[-count:].clamp(min=0).sqrt()).flip(1).float()


def power_normalize(features: torch.Tensor) -> torch.Tensor:
    """Signed square roots, centered, of length 1: float32 (N, D), on the CPU.

    A few large features would otherwise decide which images are near (Perronnin, Sanchez and Mensink, 2010).
    """
    roots = features.float().cpu()
    roots = roots.sign() * roots.abs().sqrt()
    return F.normalize(roots - roots.mean(0), dim=1)


def fuzzy_graph(mined: torch.Tensor, distances: torch.Tensor) -> sparse.csr_matrix:
    """The weights with which images are neighbors, symmetric (N, N), from 0 to 1.

    Distances are measured from the nearest neighbor, in units that give each image the same sum of weights,
    log2 k; an edge has the weight of being one in either direction.

    Args:
        mined: int64 (N, k), the neighbors without the image itself; distances: float (N, k), >= 0, rising.
    """
    n, k = mined.shape
    beyond = (distances - distances[:, :1]).double().clamp(min=0)
    low, high = beyond.new_zeros(n, 1), beyond.new_full((n, 1), float("inf"))
    unit = beyond.new_ones(n, 1)
    for _ in range(BISECTIONS):
        too_wide = torch.exp(-beyond / unit).sum(1, keepdim=True) > np.log2(k)
        low, high = torch.where(too_wide, low, unit), torch.where(too_wide, unit, high)
        unit = torch.where(high.isinf(), 2 * unit, (low + high) / 2)
    unit = torch.maximum(unit, 1e-3 * distances.double().mean(1, keepdim=True).clamp(min=1e-12))
    weights = torch.exp(-beyond / unit).numpy()
    anchors = np.repeat(np.arange(n), k)
    directed = sparse.csr_matrix((weights.ravel(), (anchors, mined.numpy().ravel())), shape=(n, n))
    return (directed + directed.T - directed.multiply(directed.T)).tocsr()


def place_by_neighbors(graph: sparse.csr_matrix, start: torch.Tensor, epochs: int, seed: int) -> torch.Tensor:
    """Place the images so that neighbors of the graph lie together and others apart.

    Args:
        start: float32 (N, d), where the images are at first.

    Returns:
        float32 (N, d), of unit standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)
    edges = graph.tocoo()
    # of the epochs, that each edge takes part in
    share = torch.from_numpy(edges.data / edges.data.max()).float()
    kept = share >= 1 / epochs
    share = share[kept]
    ends = [torch.from_numpy(side.astype(np.int64))[kept] for side in (edges.row, edges.col)]
    apart = 1e-4 * torch.randn(start.shape, generator=generator)  # equal images, too
    place = 10 * start / start.abs().max().clamp(min=1e-12) + apart
    mean, square = torch.zeros_like(place), torch.zeros_like(place)
    for epoch in tqdm(range(epochs), desc="map", leave=False, disable=None):
        chosen = torch.rand(len(share), generator=generator) < share
        head, tail = (side[chosen] for side in ends)
        pushed = head.repeat_interleave(NEGATIVES)
        others = torch.randint(len(place), (len(pushed),), generator=generator)
        # each edge is there in both directions, so it is enough to move its first end
        gradient = torch.zeros_like(place)
        gradient.index_add_(0, head, _force(place[head] - place[tail], attract=True))
        gradient.index_add_(0, pushed, _force(place[pushed] - place[others], attract=False))
        mean.lerp_(gradient, 1 - BETAS[0])
        square.lerp_(gradient.square(), 1 - BETAS[1])
        unbiased = [m / (1 - beta ** (epoch + 1)) for m, beta in zip((mean, square), BETAS, strict=True)]
        place -= (1 - epoch / epochs) * unbiased[0] / (unbiased[1].sqrt() + 1e-7)
    return place / place.std()


def _force(difference: torch.Tensor, attract: bool) -> torch.Tensor:
    """The gradient of the cross-entropy for the first of two images, of an edge or of no edge."""
    q = difference.square().sum(1, keepdim=True)
    curve = 1 + CURVE_A * q**CURVE_B
    if attract:
        slope = 2 * CURVE_A * CURVE_B * q.clamp(min=1e-12) ** (CURVE_B - 1) / curve
    else:
        slope = -2 * CURVE_B / ((1e-3 + q) * curve)
    return (slope * difference).clamp(-MAX_STEP, MAX_STEP)
