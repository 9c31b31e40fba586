"""A map of the features: similar images lie near each other."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F

from utils.analysis import embedding, neighbors
from utils.files import atomic

EQUAL = 1e-6  # features that differ by less are all the same
TOO_FEW = 10  # images, for methods that look at neighborhoods
MAP_NEIGHBORS = 15

log = logging.getLogger(__name__)


def lay_out(features: torch.Tensor, seed: int = 0, kept_in: Path | None = None) -> tuple[torch.Tensor, str]:
    """Coordinates of images on a plane, by their neighbors.

    Args:
        features: float (N, D), N >= 1; normalized here.
        kept_in: a file, which is read if it was written for these features, else written.

    Returns:
        float32 (N, 2), from 0 to 1 on either axis; and the name of the method, for the page.
    """
    if kept_in is None:
        return _lay_out(features, seed)
    made_of = f"{seed} {hashlib.sha256(features.contiguous().numpy().data).hexdigest()}"
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(kept_in) as kept:
        if str(kept["made_of"]) == made_of:
            return torch.from_numpy(kept["places"]), str(kept["method"])
    places, method = _lay_out(features, seed)
    with atomic(kept_in) as temporary, open(temporary, "wb") as file:
        np.savez(file, places=places.numpy(), method=method, made_of=made_of)
    return places, method


def _lay_out(features: torch.Tensor, seed: int) -> tuple[torch.Tensor, str]:
    n = len(features)
    normalized = F.normalize(features.float(), dim=1)
    if np.ptp(normalized.numpy(), 0).max() < EQUAL:
        return torch.full((n, 2), 0.5), "principal components"
    if n <= TOO_FEW or normalized.size(1) < 2:
        return _scaled(embedding.principal_components(normalized, 2)), "principal components"
    normalized = embedding.power_normalize(normalized)
    mined = neighbors.nearest_neighbors(normalized, min(MAP_NEIGHBORS, n - 1), tell=log.debug)
    places = embedding.embed(normalized, neighbors.without_itself(mined), seed, [MAP_NEIGHBORS], dimensions=2)
    return _scaled(places), "neighbor layout (as UMAP)"


def _scaled(places: torch.Tensor) -> torch.Tensor:
    """Stretch coordinates (N, 1 or 2) until they fill the unit square; an axis without extent becomes 0.5."""
    places = F.pad(places, (0, 2 - places.size(1)))
    low, high = places.amin(0), places.amax(0)
    return (places - (low + high) / 2) / (high - low).clamp(min=1e-12) + 0.5
