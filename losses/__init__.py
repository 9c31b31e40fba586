"""The training objectives of the three steps, and what each step asks of its own; all compute in float32.

A new loss is one file and one entry of CRITERIA. Its options become keys of a configuration in
utils/run/schema.py. A step builds it from the keys of `criterion_kwargs`; step 3 also gives it `threshold`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .scan import SCANLoss
from .selflabel import NO_VOTE, ConfidenceBasedCE, NeighborVoteCE, NeighborVoting
from .simclr import SimCLRLoss

# the names that a configuration's `criterion` takes
CRITERIA: dict[str, Callable[..., Any]] = {
    "simclr": SimCLRLoss,
    "scan": SCANLoss,
    "confidence-cross-entropy": ConfidenceBasedCE,
    "neighbor-vote-cross-entropy": NeighborVoteCE,
}


class ContrastiveLoss(Protocol):
    """What step 1 asks of its loss."""

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(B, 2, D), the L2-normalized features of both views of each image -> a scalar."""


class ClusteringLoss(Protocol):
    """What step 2 asks of its loss."""

    def __call__(
        self, anchor_logits: torch.Tensor, neighbor_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of one head, both (B, C) -> three scalars: the loss; its consistency and entropy terms."""


class SelfLabelingLoss(Protocol):
    """What step 3 asks of its loss.

    Attributes:
        voting: how the neighbors of an image vote on its pseudo-label; None if they do not.
    """

    voting: NeighborVoting | None

    def pseudo_labels(
        self, weak_logits: torch.Tensor, *votes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, C) and, with `voting`, votes int64 (B,) -> labels int64 (B,), which to use bool (B,)."""

    def loss(
        self, strong_logits: torch.Tensor, labels: torch.Tensor, confident: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, C) and both results of `pseudo_labels` -> a scalar; zero if none is to be used."""
