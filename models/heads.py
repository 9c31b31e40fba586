"""Backbone and head: the contrastive head of step 1, the cluster heads of steps 2 and 3."""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn


class PretrainedModel(nn.Module):
    """A backbone alone, with features that others learned: images -> L2-normalized features (B, D)."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.backbone(images).float(), dim=1)

    def features_from(self, part: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model itself: `part` can only be "backbone"."""
        return self


class ContrastiveModel(nn.Module):
    """Backbone and projection head: images (B, 3, H, W) -> L2-normalized features (B, features_dim).

    Args:
        backbone: module that maps images to (B, dim).
        head: "mlp" (Linear, ReLU, Linear) or "linear". Raises ValueError for another name.
    """

    def __init__(self, backbone: nn.Module, dim: int, head: str = "mlp", features_dim: int = 128):
        super().__init__()
        self.backbone = backbone
        if head == "mlp":
            self.contrastive_head: nn.Module = nn.Sequential(
                nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, features_dim)
            )
        elif head == "linear":
            self.contrastive_head = nn.Linear(dim, features_dim)
        else:
            raise ValueError(f"head must be 'mlp' or 'linear', got {head!r}")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.contrastive_head(self.backbone(images)).float(), dim=1)

    def features_from(self, part: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Function images -> L2-normalized features (B, D) of the given part, "head" or "backbone"."""
        return PretrainedModel(self.backbone) if part == "backbone" else self


class ClusterHeads(nn.ModuleList):
    """Linear heads: backbone features (B, dim) -> list of num_heads float32 logits (B, num_clusters)."""

    def __init__(self, dim: int, num_clusters: int, num_heads: int):
        if num_clusters < 1 or num_heads < 1:
            raise ValueError(f"need at least one cluster and one head, got {num_clusters} and {num_heads}")
        super().__init__(nn.Linear(dim, num_clusters) for _ in range(num_heads))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        # float32 costs nothing here, and the eight bits of a bfloat16 logit are too few for a threshold.
        with torch.autocast(features.device.type, enabled=False):
            return [head(features.float()) for head in self]


class ClusteringModel(nn.Module):
    """Backbone and linear cluster heads: images (B, 3, H, W) -> list of num_heads logits (B, num_clusters).

    The `backbone` maps images to (B, dim).
    """

    def __init__(self, backbone: nn.Module, dim: int, num_clusters: int, num_heads: int = 1):
        super().__init__()
        self.backbone = backbone
        self.backbone_frozen = False
        self.cluster_head = ClusterHeads(dim, num_clusters, num_heads)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.cluster_head(self.backbone(images))

    def freeze_backbone(self) -> Self:
        """Train the heads only: no gradient in the backbone and no BatchNorm update either."""
        self.backbone_frozen = True
        self.backbone.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self
