"""Step 3, fine-tuning through self-labeling (SCAN, section 2.3).

    L = 1/sum_i w_i  sum_{i: max p_i > t}  -w_i log s_i[argmax p_i]

p_i, s_i: probabilities of the weakly and of the strongly augmented image i; t: the confidence
threshold. With class balancing w_i = n / count of i's pseudo-label among the n confident samples.

NeighborVoteCE, which is not of the paper, takes the vote of i's neighbors for argmax p_i where they agree.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

NO_VOTE = -1


class NeighborVoting(NamedTuple):
    """How the neighbors of an image vote on its pseudo-label."""

    num_neighbors: int  # of each image, nearest by the backbone's features as they are before each epoch
    agreement: float  # share in (0, 1] of the image and its neighbors that must be in the chosen cluster


class ConfidenceBasedCE(nn.Module):
    """Cross-entropy of the strong view against the weak view's confident predictions.

    Args:
        threshold: t in [0, 1); a sample counts when its largest probability is strictly above.
        apply_class_balancing: weigh each pseudo-class by the inverse of its frequency.
    """

    voting: NeighborVoting | None = None

    def __init__(self, threshold: float, apply_class_balancing: bool):
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {threshold}")
        self.threshold = threshold
        self.apply_class_balancing = apply_class_balancing

    def pseudo_labels(
        self, weak_logits: torch.Tensor, *votes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C) -> labels (B,) int64 and the mask of confident samples (B,) bool."""
        confidence, labels = weak_logits.detach().float().softmax(1).max(1)
        return labels, confidence > self.threshold

    def loss(
        self, strong_logits: torch.Tensor, labels: torch.Tensor, confident: torch.Tensor
    ) -> torch.Tensor:
        """(B, C), and what `pseudo_labels` returns -> as `forward`."""
        losses = F.cross_entropy(strong_logits.float(), labels, reduction="none")  # (B,)
        # Weights, not a selection: the shapes do not depend on the data, so there is no GPU synchronization.
        weights = confident.float()
        if self.apply_class_balancing:
            counts = weights.new_zeros(strong_logits.size(1)).index_add_(0, labels, weights)
            # Only ratios matter in a weighted mean, so n / count becomes 1 / count.
            weights = weights / counts[labels].clamp(min=1)
        return (weights * losses).sum() / weights.sum().clamp(min=1e-12)

    def forward(
        self, weak_logits: torch.Tensor, strong_logits: torch.Tensor, *votes: torch.Tensor
    ) -> torch.Tensor:
        """Both logits (B, C), and what else `pseudo_labels` takes.

        Returns:
            a float32 scalar; zero, with zero gradients, if no sample is confident.
        """
        if weak_logits.shape != strong_logits.shape or weak_logits.dim() != 2:
            raise ValueError(
                "weak and strong logits must both be (B, C), got "
                f"{tuple(weak_logits.shape)} and {tuple(strong_logits.shape)}"
            )
        return self.loss(strong_logits, *self.pseudo_labels(weak_logits, *votes))


class NeighborVoteCE(ConfidenceBasedCE):
    """As ConfidenceBasedCE, but images whose neighbors agree take their cluster as pseudo-label.

    Not of the paper, which uses neighbors in the clustering step only.

    Args:
        threshold, apply_class_balancing: see ConfidenceBasedCE; for the images without a vote.
        num_neighbors, agreement: see NeighborVoting.
    """

    def __init__(
        self, threshold: float, apply_class_balancing: bool, num_neighbors: int = 20, agreement: float = 0.8
    ):
        super().__init__(threshold, apply_class_balancing)
        if not 0 < agreement <= 1:
            raise ValueError(f"agreement must be in (0, 1], got {agreement}")
        self.voting = NeighborVoting(num_neighbors, agreement)

    def pseudo_labels(
        self, weak_logits: torch.Tensor, *votes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C) and the votes, int64 (B,), NO_VOTE where neighbors disagree -> as ConfidenceBasedCE."""
        labels, confident = super().pseudo_labels(weak_logits)
        (voted_for,) = votes
        voted = voted_for != NO_VOTE
        return torch.where(voted, voted_for, labels), confident | voted
