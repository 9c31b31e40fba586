"""Large datasets of image files, which are decoded each time a batch needs them."""

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import UserError

from ..dataset import Dataset
from ..device import Device
from ..messages import shown
from ..sets.labels import labels_and_names
from .decode import decode_plain, reason_of, unreadable_error


class FolderImages(Dataset):
    """One split of a large dataset: files that are decoded each time a batch needs them.

    So that images can be batched, the shorter side is resized to `size` pixels and the center is cropped to
    a square. The center crops of evaluation equal torchvision's to the pixel. The random crops of training
    are drawn within that square, not within the whole of a longer image.

    Args:
        files: paths, one per image. They are kept as one array of bytes: a million Path objects would take
            300 MB, which each worker process copies as it touches them.
        labels, classes: as ArrayImages.
        size: side in pixels of the images that `fetch` gives.
    """

    def __init__(
        self, files: Iterable[str | Path], labels: Sequence[int] | None, classes: list[str] | None, size: int
    ) -> None:
        self.files = np.array([os.fsencode(path) for path in files])
        self.labels, self.classes = labels_and_names(labels, classes, len(self.files))
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def paths(self) -> list[str]:
        """Each file with its folder, as the file system has it: not always text that UTF-8 can encode."""
        return [
            "/".join(os.fsdecode(path).replace(os.sep, "/").split("/")[-2:]) for path in self.files.tolist()
        ]

    def names(self) -> list[str]:
        """The images' names, all different, as text that UTF-8 can encode."""
        return [shown(path) for path in self.paths()]

    def fingerprint(self) -> str:
        """Number of images and a hash of all files' names with folders and about a hundred files' content."""
        sum_ = hashlib.sha256(os.fsencode("\n".join(self.paths())))
        for digest in self._digests():
            sum_.update(digest)
        return f"{len(self)} images ({sum_.hexdigest()[:16]})"

    def _digests(self) -> Iterator[bytes]:
        for path in self.files[:: self.sampling_step()]:
            with suppress(OSError), open(os.fsdecode(path), "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()

    def sampling_step(self) -> int:
        """The fingerprint looks at every n-th file."""
        return max(1, len(self) // 100)

    def decode(self, index: int) -> torch.Tensor:
        """One image, as `fetch` gives it, uint8 (3, size, size), on the CPU. Raises whatever Pillow does."""
        return decode_plain(os.fsdecode(self.files[index]), self.size)

    def raw(self, index: int) -> torch.Tensor:
        """`decode`, but raises a UserError that names the file."""
        try:
            return self.decode(index)
        except Exception as error:  # a damaged file can break a decoder in any way
            raise unreadable_error(os.fsdecode(self.files[index]), reason_of(error)) from None

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.raw(index)

    def to(self, device: Device) -> None:
        """Do nothing: the images stay in their files."""

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        """Yield the uint8 images of each index batch, (*index.shape, 3, size, size), on `device`."""
        index_batches, pinned = list(index_batches), torch.device(device).type == "cuda"
        loader = decoding_loader(
            self,
            num_workers,
            batch_sampler=[index.flatten().tolist() for index in index_batches],
            pin_memory=pinned,
        )
        try:
            for index, images in zip(index_batches, loader, strict=True):
                yield images.to(device, non_blocking=pinned).unflatten(0, index.shape)
        except UserError as error:  # a worker process puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].rpartition("errors.UserError: ")[2]) from None


def decoding_loader(dataset: Any, num_workers: int, **options: Any) -> torch.utils.data.DataLoader:
    """A DataLoader whose worker processes leave signals to the process that owns them."""
    return torch.utils.data.DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_owner,
        generator=torch.Generator(),  # for the workers' seed, which must not use up the training's numbers
        **options,
    )


def _leave_signals_to_the_owner(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the workers, too. SIGTERM cannot be ignored, because the owner
    # ends idle workers by it. Exit status 0, because any other raises an error in the middle of a batch.
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Windows has one of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
