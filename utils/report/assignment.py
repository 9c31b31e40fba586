"""What is known about each image of a clustering: the rows of clusters.csv, and of the report."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from utils.analysis import duplicates, neighbors, unlikeness
from utils.analysis.calibration import UNSURE_BELOW
from utils.files import KeptArrays

if TYPE_CHECKING:
    from data import Dataset

MAX_NEIGHBORS = 8  # of each image


@dataclass(frozen=True)
class Assignment:
    """N images and their clusters. All tensors are on the CPU and have shape (N,), except `neighbors`.

    Attributes:
        cluster: int64, the most probable cluster.
        confidence: float32, its probability, to four decimals, as in clusters.csv, so that counts agree.
        runner_up: int64, the second most probable cluster.
        runner_up_confidence: float32, its probability, to four decimals.
        prototype_similarity: float, the cosine similarity to the cluster's prototype.
        neighbors: int64 (N, k), nearest first: MAX_NEIGHBORS, or all other distinct images if fewer.
        unlike: float64, percent of the images that are less unlike the others, see `unlikeness`.
        first: int64, the first image with the same content, often the image itself.
        near_duplicate_of: int64, an earlier image that is nearly equal, or -1.
        near_duplicate_similarity: float, the cosine similarity to the most similar earlier neighbor.
    """

    cluster: torch.Tensor
    confidence: torch.Tensor
    runner_up: torch.Tensor
    runner_up_confidence: torch.Tensor
    prototype_similarity: torch.Tensor
    neighbors: torch.Tensor
    unlike: torch.Tensor
    first: torch.Tensor
    near_duplicate_of: torch.Tensor
    near_duplicate_similarity: torch.Tensor

    def __len__(self) -> int:
        return len(self.cluster)

    def __getitem__(self, indices: torch.Tensor) -> "Assignment":
        """The rows of some images; the indices within them still count all images."""
        return Assignment(*(getattr(self, field.name)[indices] for field in fields(self)))

    @property
    def copy_of(self) -> torch.Tensor:
        """The first image of which each is a copy, int64 (N,), or -1."""
        return self.first.where(self.first != torch.arange(len(self)), -1)

    def figures(self, num_clusters: int) -> dict[str, Any]:
        """Shares and counts for metrics.json."""
        unsure = self.confidence < UNSURE_BELOW
        sizes = self.cluster.bincount(minlength=num_clusters)
        unsure_shares = self.cluster[unsure].bincount(minlength=num_clusters) / sizes.clamp(min=1)
        return {
            "cluster_sizes": sizes.tolist(),
            "empty_clusters": (sizes == 0).nonzero().flatten().tolist(),
            "mean_confidence": self.confidence.mean().item(),
            "unsure": unsure.double().mean().item(),
            "unsure_by_cluster": [round(share, 4) for share in unsure_shares.tolist()],
            "copy": len(self) - duplicates.count_distinct(self.first),
            "near_duplicate": int((self.near_duplicate_of >= 0).sum()),
        }

    def table(self, names: list[str]) -> dict[str, list]:
        """The columns of clusters.csv. `names`: of all images."""

        def named(indices: torch.Tensor) -> list[str]:
            return [names[i] if i >= 0 else "" for i in indices.tolist()]

        return {
            "file": names,
            "cluster": self.cluster.tolist(),
            "confidence": four_decimals(self.confidence),
            "runner_up": self.runner_up.tolist(),
            "runner_up_confidence": four_decimals(self.runner_up_confidence),
            "prototype_similarity": four_decimals(self.prototype_similarity),
            "unlike": list(map(unlikeness.unlike_text, self.unlike.tolist())),
            "copy_of": named(self.copy_of),
            "near_duplicate_of": named(self.near_duplicate_of),
        }


def build_assignment(
    dataset: "Dataset",
    features: torch.Tensor,
    probabilities: torch.Tensor,
    prototypes: list[int | None],
    device: torch.device | str = "cpu",
    library: str = "auto",
    kept: KeptArrays | None = None,
) -> Assignment:
    """Find each image's clusters and neighbors, and whether it is in the dataset more than once.

    Args:
        dataset: the N images; `content_hashes` is used if there is one, see `duplicates`.
        features: float (N, D), normalized here.
        probabilities: float (N, C), C >= 2.
        prototypes: C image indices, None for an empty cluster.
        device, library: of the search for neighbors, see `neighbors.nearest_neighbors`.
        kept: has the neighbors, if an earlier report was made of the same features.
    """
    features = F.normalize(features.float().cpu(), dim=1)
    probabilities = probabilities.float().cpu()
    confidence, cluster = probabilities.max(1)
    second, runner_up = probabilities.scatter(1, cluster[:, None], -1.0).max(1)
    prototype_of = torch.tensor([-1 if index is None else index for index in prototypes])
    first = duplicates.first_copies(dataset)
    mined = mine_for_report(features, first, kept or KeptArrays(), "neighbors", device, library)
    similarity = neighbors.similarities(features, mined)
    distances = unlikeness.own_distances(similarity)
    near, near_similarity = duplicates.near_duplicates(mined, similarity, first)
    return Assignment(
        cluster=cluster,
        confidence=confidence.round(decimals=4),
        runner_up=runner_up,
        runner_up_confidence=second.round(decimals=4),
        prototype_similarity=neighbors.similarities(features, prototype_of[cluster][:, None])[:, 0],
        neighbors=neighbors.without_itself(mined),
        unlike=unlikeness.percent_below(
            distances, distances[first == torch.arange(len(first))].sort().values
        ),
        first=first,
        near_duplicate_of=near,
        near_duplicate_similarity=near_similarity,
    )


def mine_for_report(
    features: torch.Tensor,
    first: torch.Tensor,
    kept: KeptArrays,
    name: str = "neighbors",
    device: torch.device | str = "cpu",
    library: str = "auto",
) -> torch.Tensor:
    """Neighbors int64 (N, 1 + k), normally with the image itself; see `duplicates.mine_distinct`.

    They are kept under that name.
    """
    k = min(MAX_NEIGHBORS, duplicates.count_distinct(first) - 1)

    def mine() -> np.ndarray:
        return duplicates.mine_distinct(features, k, first, device, library).numpy()

    return torch.from_numpy(kept.get(name, (features.numpy(), first.numpy()), mine))


def four_decimals(values: torch.Tensor) -> list[str]:
    return [f"{value:.4f}" for value in values.tolist()]
