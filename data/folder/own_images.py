"""A user's own images, which were decoded once."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..device import Device
from .decode import decode_image
from .decode_pass import DecodedFolder
from .image_files import FolderImages


class OwnImages(FolderImages):
    """One split of a user's own images: those that can be read, see `decode.decode_image`.

    Args:
        files, labels, classes: as FolderImages.
        names: of the files, which `prefix` precedes in tables.
        decoded: what `decode_folder` made of the folder.
        white_level: see `data.Dataset`.
    """

    def __init__(
        self,
        files: Iterable[str],
        names: Iterable[str],
        labels: Sequence[int] | None,
        classes: list[str] | None,
        prefix: str,
        decoded: DecodedFolder,
        white_level: int | None,
    ) -> None:
        super().__init__(files, labels, classes, decoded.spec.size)
        self.stored_names = np.array([os.fsencode(prefix + name) for name in names])  # see FolderImages.files
        self.decoded = decoded
        self.pixels = decoded.pixels
        self.white_level = white_level

    def paths(self) -> list[str]:
        return list(map(os.fsdecode, self.stored_names.tolist()))

    def content_hashes(self) -> list[str]:
        return self.decoded.hashes

    def content_digest(self) -> str:
        spec = self.decoded.spec
        how = str((spec.size, spec.resize, self.decoded.white, *spec.changes()))
        return hashlib.sha256("\n".join([*self.decoded.hashes, how]).encode()).hexdigest()

    def _digests(self) -> Iterator[bytes]:
        return map(bytes.fromhex, self.decoded.hashes[:: self.sampling_step()])

    def decode(self, index: int) -> torch.Tensor:
        return decode_image(os.fsdecode(self.files[index]), self.decoded.spec, self.decoded.white)[0]

    def raw(self, index: int) -> torch.Tensor:
        return super().raw(index) if self.pixels is None else self.pixels.raw(index)

    def to(self, device: Device) -> None:
        if self.pixels is not None:
            self.pixels.to(device)

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        if self.pixels is None:
            return super().fetch(index_batches, device, num_workers)
        return self.pixels.fetch(index_batches, device, num_workers)
