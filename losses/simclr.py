"""Step 1, instance discrimination (Chen et al., SimCLR; the pretext task of SCAN, section 2.1).

    L = -1/B  sum_i  log  exp(<z_i0, z_i1> / tau)  /  sum_{k != i0} exp(<z_i0, z_k> / tau)

z_iv: normalized feature of view v of image i; k runs over all 2B features except the anchor itself.
Only view 0 is an anchor.
"""

import torch
import torch.nn.functional as F
from torch import nn


class SimCLRLoss(nn.Module):
    """Contrastive loss between the two views of each image.

    Args:
        temperature: tau > 0. Raises ValueError otherwise.
    """

    def __init__(self, temperature: float):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.temperature = temperature

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features: (B, 2, D), L2-normalized along D. Returns a float32 scalar."""
        if features.dim() != 3 or features.size(1) != 2:
            raise ValueError(f"features must be (B, 2, D), got {tuple(features.shape)}")
        with torch.autocast(features.device.type, enabled=False):
            anchors, positives = features.float().unbind(1)  # (B, D) each
            candidates = torch.cat([anchors, positives])  # (2B, D)
            logits = anchors @ candidates.T / self.temperature  # (B, 2B)
        index = torch.arange(len(anchors), device=logits.device)
        itself = torch.zeros_like(logits, dtype=torch.bool)
        itself[index, index] = True
        return F.cross_entropy(logits.masked_fill(itself, -torch.inf), index + len(anchors))
