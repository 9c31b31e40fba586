"""Do features show groups? There are fewer images between groups than within them.

The images are cut into more and more parts by k-means. Of a pair of parts, the passage is how many images
are halfway between the centers, in relation to those around the emptier center. Groups are what only low
passages connect. The same is measured of clouds without groups, which are normal and of the same covariance.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import linkage
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.neighbors import kneighbors_graph

from .embedding import principal_components

IMAGES = 2000  # of more, a sample
KEPT_COMPONENTS, CUT_COMPONENTS = 384, 50  # of the features; of what is cut into parts
NUMBERS_OF_PARTS, MIN_MEAN_PART = (2, 4, 8, 16, 32), 14
FEW = 112  # images; of more, two parts would only tell that a cloud has corners
CLOUDS, REPEATS = 3, 3
WINDOW = 0.15  # of the distance between two centers, to either side
SMALLEST = 0.05  # group that counts, as a share of the images
GROUPS_BELOW, CLOUD_ABOVE = 0.5, 0.7  # of the passage; see docs/CLUSTERING.md
# a series leads from image to image, over so many neighbors, with few images beside the way
SERIES_NEIGHBORS, SERIES_STEPS, SERIES_WIDTH = 10, 15, 2.2


def find_groups(features: torch.Tensor, seed: int = 0) -> dict[str, Any]:
    """Judge features, float (N, D), by at most IMAGES of them.

    Returns:
        dict: `passage`, the lowest one between two parts of the images, relative to that of clouds without
        groups; and `verdict`: "groups", "unclear", "series" (each image is like the next), "none", or "few"
        if there are too few images.
    """
    random = np.random.RandomState(seed)
    rows = torch.from_numpy(random.permutation(len(features))[:IMAGES])
    places = principal_components(features[rows.to(features.device)].float().cpu(), KEPT_COMPONENTS)
    few = len(places) < FEW
    numbers = [parts for parts in NUMBERS_OF_PARTS[not few :] if parts * MIN_MEAN_PART <= len(places)]
    if not numbers or len(places.unique(dim=0)) < len(places) / 2:
        return {"passage": None, "verdict": "few"}
    own = [_passages(places, numbers, random) for _ in range(REPEATS)]
    spread = places.norm(dim=0)
    clouds = [_passages(_cloud(spread, len(places), random), numbers, random) for _ in range(CLOUDS)]
    passage = float((np.mean(own, 0) / np.mean(clouds, 0).clip(max=1)).min())
    verdict = "groups" if passage < GROUPS_BELOW else "unclear" if passage < CLOUD_ABOVE or few else "none"
    if verdict != "none" and _is_series(places[:, :CUT_COMPONENTS].numpy(), random):
        verdict = "series"
    return {"passage": passage, "verdict": verdict}


def _cloud(spread: torch.Tensor, n: int, random: np.random.RandomState) -> torch.Tensor:
    """Normal (N, D) of exactly the covariance of columns of the norms (D,), which are uncorrelated."""
    normal = random.standard_normal((n, len(spread)))
    return torch.from_numpy(np.linalg.qr(normal - normal.mean(0))[0]).float() * spread


def _passages(places: torch.Tensor, numbers: list[int], random: np.random.RandomState) -> np.ndarray:
    """The lowest passage of the images, and of their directions, for each number of parts: (2, P)."""
    directions = principal_components(F.normalize(places, dim=1), CUT_COMPONENTS)
    return np.array(
        [list(_lowest(x.numpy(), numbers, random)) for x in (places[:, :CUT_COMPONENTS], directions)]
    )


def _lowest(x: np.ndarray, numbers: list[int], random: np.random.RandomState) -> Iterator[float]:
    """Parts are formed of one half of the images and counted in the other, so that chance forms no groups."""
    order = random.permutation(len(x))
    halves = order[::2], order[1::2]
    for parts in numbers:
        found = []
        for fitted, counted in (halves, halves[::-1]):
            means = KMeans(parts, n_init=2, random_state=random.randint(2**31)).fit(x[fitted])
            found.append(_lowest_passage(x[counted], means.predict(x[counted]), means.cluster_centers_))
        yield float(np.mean(found))


def _lowest_passage(x: np.ndarray, part: np.ndarray, centers: np.ndarray) -> float:
    """The lowest passage that joins two groups of SMALLEST or more, if parts join by their highest ones."""
    members = np.eye(len(centers))[part]
    between = centers[None] - centers[:, None]  # from, to
    way = np.einsum("nd,nkd->nk", x - centers[part], between[part])
    way /= np.square(between).sum(2).clip(min=1e-12)[part]  # of the way to each center: at most a half
    around, halfway = (members.T @ (np.abs(way - place) < WINDOW) for place in (0, 0.5))
    passage = (halfway + halfway.T + 0.5) / (np.minimum(around, around.T) + 0.5)
    np.fill_diagonal(passage, np.inf)
    sizes, lowest = list(members.sum(0)), 1.0
    for first, second, joined, _ in linkage(squareform(1 / passage, checks=False), "single"):
        pair = sizes[int(first)], sizes[int(second)]
        sizes.append(sum(pair))
        if min(pair) >= SMALLEST * len(x):
            lowest = 1 / joined
    return lowest


def _is_series(x: np.ndarray, random: np.random.RandomState) -> bool:
    """Whether it takes many steps from neighbor to neighbor to get to most images, as along a line."""
    graph = kneighbors_graph(x, SERIES_NEIGHBORS)
    starts = random.permutation(len(x))[:20]
    steps = shortest_path(graph, directed=False, unweighted=True, indices=starts)
    steps[np.isinf(steps)] = 0
    longest = np.median(steps.max(1))
    reached = np.median((steps > 0).sum(1))
    wide = reached / (SERIES_NEIGHBORS * longest)
    return bool(reached > 0.9 * len(x) and longest >= SERIES_STEPS and wide < SERIES_WIDTH)
