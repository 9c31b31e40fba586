"""Images that occur more than once: copies of a file, and images whose features nearly agree."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from . import neighbors

if TYPE_CHECKING:
    from data import Dataset

NEARLY_EQUAL = 0.98  # cosine similarity of the features of near duplicates


def first_copies(dataset: "Dataset") -> torch.Tensor:
    """For each image the index of the first one with the same content, int64 (N,).

    Where `content_hashes` are not known, as for arrays, each image counts as distinct.
    """
    hashes = dataset.content_hashes()
    return torch.arange(len(dataset)) if hashes is None else first_of(hashes)


def first_of(values: Sequence[object]) -> torch.Tensor:
    """For each of N values the index of the first one that is equal, int64 (N,)."""
    first: dict[object, int] = {}
    return torch.tensor([first.setdefault(value, i) for i, value in enumerate(values)])


def count_distinct(first: torch.Tensor) -> int:
    return int((first == torch.arange(len(first))).sum())


def mine_distinct(
    features: torch.Tensor,
    k: int,
    first: torch.Tensor,
    device: torch.device | str = "cpu",
    library: str = "auto",
    tell: Callable[..., None] = neighbors.log.info,
) -> torch.Tensor:
    """As `nearest_neighbors`, without copies: a copy is never found, and gets the first copy's neighbors.

    Returns:
        int64 (N, k + 1) on the CPU, each row normally starting with the image itself.

    Raises:
        UserError: fewer than k + 1 distinct images.
    """
    everyone = torch.arange(len(first))
    distinct = (first == everyone).nonzero().squeeze(1)
    if len(distinct) == len(first):
        return neighbors.nearest_neighbors(features, k, device, library, tell)
    place = torch.empty_like(first)
    place[distinct] = torch.arange(len(distinct))
    found = neighbors.nearest_neighbors(features[distinct], k, device, library, tell)
    mined = distinct[found][place[first]]
    return torch.where(mined == first[:, None], everyone[:, None], mined)


def among_distinct(mined: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Neighbors, int64 (N, k), of the distinct images only, in their own numbers: int64 (M, k)."""
    distinct = first == torch.arange(len(first))
    return (distinct.cumsum(0) - 1)[first[mined[distinct]]]


def near_duplicates(
    mined: torch.Tensor, similarity: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image the most similar earlier image of other content, if they are nearly equal.

    `similarity`: float (N, 1 + k), the cosine similarity with each of the `mined` neighbors.

    Returns:
        int64 (N,), -1 where there is none; and the similarity, float (N,).
    """
    earlier = (mined < torch.arange(len(mined))[:, None]) & (first[mined] != first[:, None])
    best, place = similarity.where(earlier, -1.0).max(1)
    return mined.gather(1, place[:, None]).squeeze(1).where(best >= NEARLY_EQUAL, -1), best
