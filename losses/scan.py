"""Step 2, semantic clustering by adopting nearest neighbors (SCAN, equation 2).

    L = -1/B  sum_i  log <p_i, q_i>   +   lambda  sum_c  p'_c log p'_c

p_i, q_i: cluster probabilities of image i and of one of its neighbors; p': mean of p over the
batch. The first term makes neighbors agree with confidence, the second spreads the images over the
clusters.
"""

import torch
from torch import nn

# The published lower bounds, to which a probability and the log of a similarity are clamped.
MIN_PROBABILITY, MIN_LOG = 1e-8, -100


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats along the last axis, probabilities clamped at MIN_PROBABILITY: (..., C) -> (...)."""
    p = probabilities.clamp(min=MIN_PROBABILITY)
    return -(p * p.log()).sum(-1)


class SCANLoss(nn.Module):
    """SCAN loss of one head.

    Args:
        entropy_weight: lambda >= 0 (the paper uses 5). Raises ValueError otherwise.
    """

    def __init__(self, entropy_weight: float = 5.0):
        super().__init__()
        if not entropy_weight >= 0:
            raise ValueError(f"entropy_weight must not be negative, got {entropy_weight}")
        self.entropy_weight = entropy_weight

    def forward(
        self, anchor_logits: torch.Tensor, neighbor_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both (B, C). Returns three float32 scalars: (total, consistency, entropy)."""
        if anchor_logits.shape != neighbor_logits.shape or anchor_logits.dim() != 2:
            raise ValueError(
                "anchor and neighbor logits must both be (B, C), got "
                f"{tuple(anchor_logits.shape)} and {tuple(neighbor_logits.shape)}"
            )
        log_p = anchor_logits.float().log_softmax(1)
        log_q = neighbor_logits.float().log_softmax(1)
        # log <p, q> as a logsumexp: its gradient stays finite where the product underflows.
        log_similarity = torch.logsumexp(log_p + log_q, 1)  # (B,)
        consistency = -log_similarity.clamp(min=MIN_LOG).mean()
        spread = entropy(log_p.exp().mean(0))
        return consistency - self.entropy_weight * spread, consistency, spread
