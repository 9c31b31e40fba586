"""How unlike the training images an image is: not every image needs to belong to a cluster.

The number is a percentile: the share of the training images, copies counted once, that are less unlike the
others. What counts is the distance to the NTH neighbor, 1 - cosine similarity of the features.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F

from errors import UserError
from utils.files import atomic

from . import neighbors

NTH = 5
MAX_KEPT = 20_000  # training images with which new ones are compared
SAME = 1e-5  # largest distance of an image to its own features in float16


def own_distances(similarity: torch.Tensor) -> torch.Tensor:
    """Distance of each image to its NTH neighbor, or to its last: float (N,).

    `similarity`: float (N, 1 + k), highest first, of each image with itself and its k neighbors.
    """
    return 1 - similarity[:, : NTH + 1].amin(1)


def percent_below(distances: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    """Percent of the `training` distances (M,), sorted, that are smaller than each of (N,): float64 (N,)."""
    return 100 * torch.searchsorted(training, distances).double() / len(training)


def unlike_text(percent: float) -> str:
    """Two decimals, rounded down: only 100 is written as 100.00. Empty for NaN."""
    return "" if math.isnan(percent) else f"{math.floor(100 * percent + 1e-6) / 100:.2f}"


@dataclass(frozen=True)
class TrainingFeatures:
    """The features of at most MAX_KEPT training images, and how far apart these are."""

    features: torch.Tensor  # float32 (M, D), rounded to float16, then normalized
    distances: torch.Tensor  # float32 (M,), sorted, each image's among these M

    @classmethod
    def choose(cls, features: torch.Tensor, first: torch.Tensor, device: torch.device) -> Self:
        """Of features float (N, D), N >= 2, without copies; of more than MAX_KEPT a random sample.

        `first`: int64 (N,), see `duplicates.first_copies`.
        """
        kept = (first == torch.arange(len(first))).nonzero().squeeze(1)
        if len(kept) > MAX_KEPT:
            order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
            kept = kept[order[:MAX_KEPT].sort().values]
        bank = F.normalize(F.normalize(features[kept].float(), dim=1).half().float(), dim=1)
        similarity, _ = neighbors.search(bank, bank, min(NTH + 1, len(bank)), device)
        return cls(bank, own_distances(similarity).sort().values.cpu())

    def unlike(self, features: torch.Tensor) -> torch.Tensor:
        """How unlike images are, by their features (B, D): percent, float64 (B,), on the CPU.

        A training image that is given again is no neighbor of its own.
        """
        queries, k = F.normalize(features.float(), dim=1), min(NTH + 1, len(self.features))
        similarity = neighbors.search(queries, self.features, k, queries.device)[0].cpu()
        again = similarity[:, 0] > 1 - SAME
        return percent_below(1 - similarity[:, -1].where(again, similarity[:, :NTH].amin(1)), self.distances)

    def write(self, path: Path) -> None:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, features=self.features.half().numpy(), distances=self.distances.numpy())

    @classmethod
    def read(cls, path: Path, width: int) -> Self | None:
        """What `write` wrote, None if there is no file.

        Raises UserError for another file, or features that are not of `width`.
        """
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as saved:
                arrays = saved["features"], saved["distances"]
            features, distances = (torch.from_numpy(array).float() for array in arrays)
        except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, BadZipFile):
            features, distances = torch.empty(0), torch.empty(0)
        if features.shape != (len(distances), width) or not len(distances):
            raise UserError(
                f"{path}: damaged, or of another model; copy the whole folder, or remove the file"
            )
        return cls(F.normalize(features, dim=1), distances)
