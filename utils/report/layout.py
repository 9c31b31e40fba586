"""A map of the features: similar images lie near each other."""

import hashlib
import logging

import numpy as np
import torch
import torch.nn.functional as F

from utils.analysis import embedding, neighbors
from utils.files import KeptArrays

EQUAL = 1e-6  # features that differ by less are all the same
TOO_FEW = 10  # images, for methods that look at neighborhoods
MAP_NEIGHBORS = 15
MOST_NEW, PLACED_BY = 0.2, 5  # share of new images in a kept map; their nearest ones, between which they lie

log = logging.getLogger(__name__)


def lay_out(
    features: torch.Tensor, seed: int = 0, kept: KeptArrays | None = None
) -> tuple[torch.Tensor, str]:
    """Coordinates of images on a plane, by their neighbors.

    Args:
        features: float (N, D), N >= 1; normalized here.
        kept: an earlier map, of which images keep their places if not too many are new.

    Returns:
        float32 (N, 2), from 0 to 1 on either axis; and the name of the method, for the page.
    """
    n, kept = len(features), kept or KeptArrays()
    normalized = F.normalize(features.float(), dim=1)
    if np.ptp(normalized.numpy(), 0).max() < EQUAL:
        return torch.full((n, 2), 0.5), "principal components"
    if n <= TOO_FEW or normalized.size(1) < 2:
        return _scaled(embedding.principal_components(normalized, 2)), "principal components"
    normalized = embedding.power_normalize(normalized)
    rows = [hashlib.sha256(row).hexdigest()[:16] for row in features.contiguous().numpy()]
    name, of = f"map {seed}", f"images of map {seed}"
    if len({*rows} - {*kept.arrays.get(of, np.array([])).tolist()}) > MOST_NEW * n:
        mined = neighbors.nearest_neighbors(normalized, min(MAP_NEIGHBORS, n - 1), tell=log.debug)
        widths = [MAP_NEIGHBORS]
        places = embedding.embed(normalized, neighbors.without_itself(mined), seed, widths, dimensions=2)
        kept.arrays |= {name: _scaled(places).numpy(), of: np.array(rows)}
    if kept.arrays[of].tolist() == rows:
        return torch.from_numpy(kept.arrays[name]), "neighbor layout (as UMAP)"
    place_of = dict(zip(kept.arrays[of].tolist(), torch.from_numpy(kept.arrays[name]), strict=True))
    there = torch.tensor([row in place_of for row in rows])
    places = torch.stack([place_of.get(row, torch.zeros(2)) for row in rows])
    if not there.all():
        near = neighbors.search(normalized[~there], normalized[there], min(PLACED_BY, int(there.sum())))[1]
        places[~there] = places[there][near].mean(1)
    return places, "neighbor layout (as UMAP)"


def _scaled(places: torch.Tensor) -> torch.Tensor:
    """Stretch coordinates (N, 1 or 2) until they fill the unit square; an axis without extent becomes 0.5."""
    places = F.pad(places, (0, 2 - places.size(1)))
    low, high = places.amin(0), places.amax(0)
    return (places - (low + high) / 2) / (high - low).clamp(min=1e-12) + 0.5
