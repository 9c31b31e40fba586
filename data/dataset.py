"""What the rest of the program asks of a dataset."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch

from .device import Device


class BatchSource(Protocol):
    """What a Loader reads its batches from: N images, or features in their place."""

    def __len__(self) -> int:
        """N."""

    def to(self, device: Device) -> None:
        """Move what is in memory to `device` if it fits there. Image files stay where they are."""

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        """For each int64 index tensor, yield its images, uint8 (*index.shape, 3, H, W), or features (..., D).

        They are on `device`, wherever the dataset is. All images of a dataset have the same size.
        `num_workers` processes read image files. Raises UserError for an image that cannot be read.
        """


class Dataset(BatchSource, Protocol):
    """The N images of one split, in an order that never changes. Datasets derive from this class.

    Attributes:
        labels: int64 (N,) on the CPU, or None. Only evaluation uses them.
        classes: class names, of which labels are the indices; None without labels.
        white_level: the value of 16-bit files that is shown white; None if not known, as without such files.
    """

    labels: torch.Tensor | None
    classes: list[str] | None
    white_level: int | None = None

    def names(self) -> list[str]:
        """The images' names in tables and pictures, all different."""

    def raw(self, index: int) -> torch.Tensor:
        """One image, uint8 (3, H, W), on the CPU. Raises UserError if it cannot be read."""

    def fingerprint(self) -> str:
        """Text that identifies these images, wherever they are stored; it does not depend on labels."""

    # The two below are optional: datasets of files override them.

    def content_hashes(self) -> list[str] | None:
        """A hash of the content of each of the N files; None if not known."""
        return None

    def content_digest(self) -> str | None:
        """Text that identifies all that `fetch` gives; None if not known.

        `fingerprint` looks at some of the images only, and not at how they are decoded.
        """
        return None
