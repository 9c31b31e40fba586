"""Vectors from a file in the place of images: features that any other program computed."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch

from errors import UserError

from ..dataset import Dataset
from ..device import Device, moved_if_it_fits, to_device
from ..messages import say_once
from .formats import VectorFile, read_vectors
from .rows import rows_by_name, rows_in_order, say_nothing

log = logging.getLogger(__name__)

ROW_ORDER = (
    "a row for each image of the train split, then for each of the test split if it has other images, sorted"
)


class SharedVectors:
    """Vectors, float32 (N, D), which train and test share if both are the same rows of a file.

    `images`: int64 (N,), which of the images have them.
    """

    def __init__(self, vectors: torch.Tensor, images: np.ndarray):
        self.vectors = vectors
        self.images = images
        sum_ = hashlib.sha256(vectors.numpy().data)
        if images[-1] >= len(images):  # some are left out
            sum_.update(images.data)
        self.digest = sum_.hexdigest()[:16]


# (file status, first row, images): vectors
_in_use: WeakValueDictionary[tuple, SharedVectors] = WeakValueDictionary()


class VectorDataset(Dataset):
    """A dataset with the names, labels and pictures of images, whose `fetch` gives their vectors."""

    def __init__(self, images: Dataset, shared: SharedVectors):
        self.images = images
        self.shared = shared
        labels = images.labels
        self.labels, self.classes = None if labels is None else labels[shared.images], images.classes

    def __len__(self) -> int:
        return len(self.shared.images)

    def names(self) -> list[str]:
        return self._of_each(self.images.names())

    def raw(self, index: int) -> torch.Tensor:
        return self.images.raw(int(self.shared.images[index]))

    def content_hashes(self) -> list[str] | None:
        hashes = self.images.content_hashes()
        return hashes and self._of_each(hashes)

    def _of_each(self, texts: list[str]) -> list[str]:
        return [texts[i] for i in self.shared.images]

    def content_digest(self) -> str | None:
        digest = self.images.content_digest()
        return digest and f"{digest}, vectors {self.shared.digest}"

    def fingerprint(self) -> str:
        """The images' fingerprint and a hash of all vectors."""
        width = self.shared.vectors.size(1)
        return f"{self.images.fingerprint()}, vectors of {width} ({self.shared.digest})"

    def to(self, device: Device) -> None:
        what = f"the vectors of {len(self)} images"
        self.shared.vectors = moved_if_it_fits(self.shared.vectors, device, what)

    def fetch(
        self, index_batches: Iterable[torch.Tensor], device: Device, num_workers: int = 0
    ) -> Iterator[torch.Tensor]:
        vectors = self.shared.vectors
        for index in index_batches:
            yield vectors[to_device(index, vectors.device)].to(device, non_blocking=True)


def build_vectors(
    config: Mapping[str, Any], split: str, build_images: Callable[[Mapping[str, Any], str], Dataset]
) -> VectorDataset:
    """The images of one split with the vectors of `features_file`.

    Images whose vectors say nothing, see `say_nothing`, are left out. Rows with names may be in any order. A
    file without names has a row for each image of both splits, so both are built. For the test split of
    another dataset than the training's, a row for each of its images is enough, and the training images are
    not needed.

    Args:
        config: a configuration with `features_file`.
        split: "train" or "test".
        build_images: function (config, split) that builds the dataset of the images.

    Raises:
        UserError: the file cannot be read, holds no vectors, not one for each image, or of another length
            than `backbone` says.
    """
    path = Path(config["features_file"]).expanduser()
    if config.get("cache_features"):
        raise UserError("cache_features: features_file holds features already; leave cache_features out")
    file = read_vectors(path)
    table = file.vectors
    if config.get("backbone", file.backbone) != file.backbone:
        raise UserError(
            f"backbone {config['backbone']}: must be {file.backbone}, since the vectors of {path} have "
            f"{table.shape[1]} numbers"
        )
    images, start = build_images(config, split), 0
    other = split == "test" and config["val_db_name"] != config["train_db_name"]
    if not (file.names or (other and len(table) == len(images))):
        train, test = (images if name == split else build_images(config, name) for name in ("train", "test"))
        n, m, same = len(train), len(test), train.fingerprint() == test.fingerprint()
        if len(table) != (n if same else n + m):
            counts, order = f"{n} images", "a row for each in the order of their names"
            if not same:
                counts, order = f"{n} train and {m} test images", ROW_ORDER
            raise UserError(
                f"{path}: holds {len(table)} vectors, but there are {counts}; expected {order}, or names for "
                "the rows"
            )
        start = n if split == "test" and not same else 0
    status = os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, start, images.fingerprint()
    shared = _in_use.get(key) or _vectors_of(images, path, file, start)
    _in_use[key] = shared
    return VectorDataset(images, shared)


def _vectors_of(images: Dataset, path: Path, file: VectorFile, start: int) -> SharedVectors:
    """The images' vectors, without names from row `start` on; those that say nothing are left out.

    Raises UserError if they are more than half, or by `rows_by_name`.
    """
    names, rows = images.names(), start + np.arange(len(images))
    if file.names:
        rows = rows_by_name(path, file.names, names)
    with np.errstate(over="ignore"):  # it is infinite then
        vectors = file.vectors[rows].astype(np.float32, copy=False)
    order = None if file.names else rows_in_order(path, vectors, images, start)
    if order is not None:  # a copy of all vectors, which may be large
        vectors, rows = vectors[order], rows[order]
    useless = say_nothing(vectors)
    if useless:
        some = ", ".join(f"{names[i]} (row {rows[i]}: {why})" for i, why in islice(useless.items(), 5))
        what = f"{path}: {len(useless)} of {len(names)} images have vectors that say nothing, {some}"
        if 2 * len(useless) > len(names):
            raise UserError(f"{what}; compute them again")
        say_once(log.warning, f"{what}{', ...' * (len(useless) > 5)}; these images are left out")
    kept = np.delete(np.arange(len(names)), list(useless))
    return SharedVectors(torch.from_numpy(vectors[kept] if useless else vectors), kept)
