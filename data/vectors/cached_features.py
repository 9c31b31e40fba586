"""Cached features in place of images, to train heads on a frozen backbone."""

from collections.abc import Iterable, Iterator

import torch

from ..dataset import BatchSource
from ..device import Device, moved_if_it_fits, to_device


class CachedFeatures(BatchSource):
    """Features of several augmented views of each image; each use draws one view at random.

    Args:
        views: float (V, N, D), V views of N images.
    """

    def __init__(self, views: torch.Tensor):
        self.views = views

    def __len__(self) -> int:
        return self.views.size(1)

    def to(self, device: Device) -> None:
        self.views = moved_if_it_fits(self.views, device, f"the features of {len(self)} images")

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        for index in index_batches:
            view = torch.randint(len(self.views), index.shape)
            at = self.views.device
            yield self.views[to_device(view, at), to_device(index, at)].to(device, non_blocking=True)
