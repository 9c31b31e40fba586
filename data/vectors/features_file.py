"""Vectors from a file in the place of images: features that any other program computed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary
from zipfile import BadZipFile

import numpy as np
import torch

from errors import UserError

from ..dataset import Dataset
from ..device import Device, moved_if_it_fits, to_device

ROW_ORDER = (
    "a row for each image of the train split, then for each of the test split if it has other images, sorted"
)


class SharedVectors:
    """Vectors, float32 (N, D), which train and test share if both are the same rows of a file."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors
        self.digest = hashlib.sha256(vectors.numpy().data).hexdigest()[:16]


_in_use: WeakValueDictionary[tuple, SharedVectors] = WeakValueDictionary()  # (file status, rows): vectors


class VectorDataset(Dataset):
    """A dataset whose names, labels and pictures are those of N images, and whose `fetch` gives N vectors."""

    def __init__(self, images: Dataset, shared: SharedVectors):
        self.images = images
        self.shared = shared
        self.labels, self.classes = images.labels, images.classes

    def __len__(self) -> int:
        return len(self.images)

    def names(self) -> list[str]:
        return self.images.names()

    def raw(self, index: int) -> torch.Tensor:
        return self.images.raw(index)

    def content_hashes(self) -> list[str] | None:
        return self.images.content_hashes()

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

    The file has a row for each image of both splits, so both are built. For the test split of another dataset
    than the training's, a row for each of its images is enough, and the training images are not needed.

    Args:
        config: a configuration with `features_file`.
        split: "train" or "test".
        build_images: function (config, split) that builds the dataset of the images.

    Raises:
        UserError: the file cannot be read, holds something else than finite vectors, not one for each image,
            or of another length than `backbone` says.
    """
    path = Path(config["features_file"]).expanduser()
    if config.get("cache_features"):
        raise UserError("cache_features: features_file holds features already; leave cache_features out")
    table, backbone = read_vectors(path)
    if config.get("backbone", backbone) != backbone:
        raise UserError(
            f"backbone {config['backbone']}: must be {backbone}, since the vectors of {path} have "
            f"{table.shape[1]} numbers"
        )
    images, start = build_images(config, split), 0
    other = split == "test" and config["val_db_name"] != config["train_db_name"]
    if not (other and len(table) == len(images)):
        train, test = (images if name == split else build_images(config, name) for name in ("train", "test"))
        n, m, same = len(train), len(test), train.fingerprint() == test.fingerprint()
        if len(table) != (n if same else n + m):
            counts = f"{n} images, which are both splits" if same else f"{n} train and {m} test images"
            raise UserError(
                f"{path}: holds {len(table)} vectors, but there are {counts}; expected {ROW_ORDER}"
            )
        start = n if split == "test" and not same else 0
    status = os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, start, len(images)
    shared = _in_use.get(key) or SharedVectors(_finite(path, table, start, images))
    _in_use[key] = shared
    return VectorDataset(images, shared)


def _finite(path: Path, table: np.ndarray, start: int, images: Dataset) -> torch.Tensor:
    """The images' vectors, float32 (N, D), from a row on. Raises UserError."""
    with np.errstate(over="ignore"):  # it is refused below
        vectors = torch.from_numpy(table[start : start + len(images)].astype(np.float32))
    broken = (~vectors.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"{path}: {len(broken)} vectors hold NaN or infinity, or numbers too large for float32, the "
            f"first one in row {start + broken[0]} ({images.names()[broken[0]]})"
        )
    return vectors


def read_vectors(path: Path) -> tuple[np.ndarray, str]:
    """Map the vectors of an .npy file, float (N, D).

    Returns them and the `backbone` that a configuration with these vectors has. Raises UserError, see
    `build_vectors`.
    """
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"features_file {path}: no such file") from None
    except (OSError, ValueError, EOFError, BadZipFile):  # a table of objects is a ValueError, too
        raise UserError(
            f"features_file {path}: not a readable .npy file of numbers; write it with numpy.save"
        ) from None
    is_array = isinstance(table, np.ndarray)
    if not is_array or table.ndim != 2 or table.dtype.kind != "f" or 0 in table.shape:
        found = f"{table.dtype} {table.shape}" if is_array else "several arrays"
        raise UserError(
            f"features_file {path}: expected floating-point numbers of shape (N, D), found {found}"
        )
    return table, f"features/{table.shape[1]}"
