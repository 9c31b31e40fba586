"""Images that are held in memory as one tensor."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from errors import UserError

from ..dataset import Dataset
from ..device import Device, moved_if_it_fits, to_device
from .labels import labels_and_names


class ArrayImages(Dataset):
    """One split of a small dataset, kept on the training device if it fits there.

    Args:
        images: uint8 (N, 3, H, W).
        labels: integers (N,), or None.
        classes: class names; by default the labels themselves. None without labels.

    Raises:
        ValueError: images or labels of the wrong shape or type, see `labels_and_names`.
    """

    def __init__(
        self,
        images: torch.Tensor | np.ndarray,
        labels: ArrayLike | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.images = torch.as_tensor(images)
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.size(1) != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        self.labels, self.classes = labels_and_names(labels, classes, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Number of images and a hash of about a thousand of them; labels do not matter."""
        some = self.images[:: max(1, len(self) // 1000)].cpu().contiguous()
        content = str(tuple(self.images.shape)).encode() + some.numpy().tobytes()
        return f"{len(self)} images ({hashlib.sha256(content).hexdigest()[:16]})"

    def names(self) -> list[str]:
        """The images' indices in the split, as text."""
        return [str(index) for index in range(len(self))]

    def raw(self, index: int) -> torch.Tensor:
        return self.images[index].clone().cpu()  # the images may be mapped read-only

    def to(self, device: Device) -> None:
        self.images = moved_if_it_fits(self.images, device, f"{len(self)} images")

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        for index in index_batches:
            index = to_device(index, self.images.device)
            yield self.images[index].to(device, non_blocking=True)


def to_channels_first(images: ArrayLike, where: str) -> np.ndarray:
    """uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W) -> contiguous (N, 3, H, W); gray is repeated.

    Raises UserError, naming `where`, for anything else.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise UserError(
            f"{where}: images must be uint8 of shape (N, H, W, 3) or (N, H, W), "
            f"found {images.dtype} {images.shape}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
