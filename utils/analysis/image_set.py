"""What the analysis needs of a dataset: a part of the protocol `data.Dataset`."""

from typing import Protocol

import torch


class ImageSet(Protocol):
    """N images. Attributes: labels int64 (N,) and the names of the classes, each None without labels."""

    labels: torch.Tensor | None
    classes: list[str] | None

    def __len__(self) -> int: ...

    def names(self) -> list[str]: ...

    def raw(self, index: int) -> torch.Tensor:
        """One image, uint8 (3, H, W)."""
