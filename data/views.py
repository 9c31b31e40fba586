"""What a training step sees of the images."""

from collections.abc import Callable
from typing import Protocol

import torch

from errors import UserError

Transform = Callable[[torch.Tensor], torch.Tensor]  # uint8 (B, 3, H, W) -> float32 (B, 3, S, S)
Votes = Callable[[torch.Tensor], torch.Tensor]  # indices of images, int64 (B,) -> (B,)


class View(Protocol):
    """Chooses the images for a batch of anchors, and augments them."""

    def index(self, anchors: torch.Tensor) -> torch.Tensor:
        """Indices of the images to fetch for the anchors: int64 (B,) -> (B, ...); by default the anchors."""
        return anchors

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Those images, uint8 (B, ..., 3, H, W), and their index -> network inputs (.., 3, S, S)."""


class PlainView(View):
    """The image itself: (B, 3, S, S)."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, images: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        return self.transform(images)


class TwoViews(PlainView):
    """Step 1: two augmentations of each image, interleaved: (2B, 3, S, S), views of image i at 2i, 2i+1."""

    def __call__(self, images: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        return self.transform(images.repeat_interleave(2, dim=0))


class AnchorNeighborView(View):
    """Step 2: each image and one of its mined neighbors, augmented independently: two (B, 3, S, S).

    Args:
        transform: the training augmentation; torch.nn.Identity() for features in place of images.
        neighbors: int64 (N, 1 + mined), each row normally starting with the image itself.
        num_neighbors: draw uniformly from the first `num_neighbors + 1` entries of a row.

    Raises:
        UserError: `num_neighbors` is larger than the number of mined neighbors.
    """

    def __init__(self, transform: Transform, neighbors: torch.Tensor, num_neighbors: int):
        mined = neighbors.shape[1] - 1
        if num_neighbors > mined:
            raise UserError(
                f"num_neighbors {num_neighbors} is more than the {mined} neighbors that were mined; "
                f"set num_neighbors to {mined} or less"
            )
        self.transform = transform
        self.neighbors = torch.as_tensor(neighbors)[:, : num_neighbors + 1]

    def index(self, anchors: torch.Tensor) -> torch.Tensor:
        drawn = torch.randint(self.neighbors.size(1), anchors.shape)
        return torch.stack([anchors, self.neighbors[anchors, drawn]], dim=1)  # (B, 2)

    def __call__(
        self, images: torch.Tensor, index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = self.transform(images.flatten(0, 1)).unflatten(0, (-1, 2))  # (B, 2, 3, S, S)
        return pairs[:, 0], pairs[:, 1]


class WeakStrongView(View):
    """Step 3: each image with the evaluation transform and strongly augmented: two (B, 3, S, S).

    Args:
        weak, strong: the transforms.
        votes: optional function of the images' indices, whose values are added to the batch.
    """

    def __init__(
        self, weak: Transform, strong: Transform, votes: Callable[[torch.Tensor], torch.Tensor] | None = None
    ):
        self.weak = weak
        self.strong = strong
        self.votes = votes

    def __call__(self, images: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        views = self.weak(images), self.strong(images)
        return (*views, self.votes(index)) if self.votes else views
