"""Vectors from a file in the place of images: features that any other program computed."""

import hashlib
import os
import weakref
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from errors import UserError

from ..dataset import Dataset
from ..device import moved_if_it_fits, to_device

ORDER = (
    "a row for each image of the train split, then for each of the test split if it has other images, sorted"
)


_tables = weakref.WeakValueDictionary()  # (the file's identity, its rows): Table; a cache of this process


class Table:
    """Vectors, float32 tensor (N, D), that all datasets of these rows share."""

    def __init__(self, vectors):
        self.vectors = vectors
        self.sum = hashlib.sha256(vectors.numpy()).hexdigest()[:16]


class VectorDataset(Dataset):
    """A dataset whose names, labels and pictures are those of images, and whose `fetch` gives vectors.

    Args:
        images: a `data.Dataset` of N images.
        table: Table of N vectors.
    """

    def __init__(self, images, table):
        self.images = images
        self.table = table
        self.labels, self.classes = images.labels, images.classes

    def __len__(self):
        return len(self.images)

    def names(self):
        """The images' names."""
        return self.images.names()

    def raw(self, index):
        """One image, uint8 (3, H, W), on the CPU."""
        return self.images.raw(index)

    def content_hashes(self):
        """Those of the images, or None."""
        return self.images.content_hashes()

    def content_digest(self):
        """That of the images with a hash of all vectors, or None."""
        digest = self.images.content_digest()
        return digest and f"{digest}, vectors {self.table.sum}"

    def fingerprint(self):
        """The images' fingerprint and a hash of all vectors."""
        return f"{self.images.fingerprint()}, vectors of {self.table.vectors.size(1)} ({self.table.sum})"

    def to(self, device):
        """Move the vectors to `device` if they fit there; if not, `fetch` copies each batch."""
        what = f"the vectors of {len(self)} images"
        self.table.vectors = moved_if_it_fits(self.table.vectors, device, what)

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the vectors of each int64 index batch, float32 (*index.shape, D), on `device`."""
        for index in index_batches:
            index = to_device(index, self.table.vectors.device)
            yield self.table.vectors[index].to(device, non_blocking=True)


def with_vectors(config, split, build):
    """The images of one split with the vectors of `features_file`.

    The file has a row for each image of both splits, so both are built. For the test split of another dataset
    than the training's, a row for each of its images is enough, and the training images are not needed.

    Args:
        config: a configuration with `features_file`.
        split: "train" or "test".
        build: function (config, split) that builds the dataset of the images.

    Returns:
        VectorDataset.

    Raises:
        UserError: the file cannot be read, holds something else than finite vectors, not one for each image,
            or of another length than `backbone` says.
    """
    path = Path(config["features_file"]).expanduser()
    if config.get("cache_features"):
        raise UserError("cache_features: features_file holds features already; leave cache_features out")
    table = _read(path)
    backbone = _backbone_of(table)
    if config.get("backbone", backbone) != backbone:
        raise UserError(
            f"backbone {config['backbone']}: must be {backbone}, since the vectors of {path} have "
            f"{table.shape[1]} numbers"
        )
    other = split == "test" and config["val_db_name"] != config["train_db_name"]
    images = {"test": build(config, "test")} if other else {}
    start = 0
    if not other or len(table) != len(images["test"]):
        images = {name: images.get(name) or build(config, name) for name in ("train", "test")}
        n, m = len(images["train"]), len(images["test"])
        same = images["train"].fingerprint() == images["test"].fingerprint()
        if len(table) != n + (0 if same else m):
            counts = f"{n} images, which are both splits" if same else f"{n} train and {m} test images"
            raise UserError(f"{path}: holds {len(table)} vectors, but there are {counts}; expected {ORDER}")
        start = n if split == "test" and not same else 0
    images, status = images[split], os.stat(path)
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, start, len(images)
    shared = _tables.get(key)
    if shared is None:
        shared = _tables[key] = Table(_finite(path, table, start, images))
    return VectorDataset(images, shared)


def _finite(path, table, start, images):
    """The images' vectors, float32 (N, D), from a row on. Raises UserError."""
    with np.errstate(over="ignore"):  # it is refused below
        vectors = torch.from_numpy(table[start : start + len(images)].astype(np.float32))
    broken = (~vectors.isfinite().all(1)).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{path}: {len(broken)} vectors hold NaN or infinity, or numbers too large for float32, the "
            f"first one in row {start + int(broken[0])} ({images.names()[broken[0]]})"
        )
    return vectors


def vector_backbone(path):
    """The `backbone` of a model of the vectors in this .npy file. Raises UserError, see `with_vectors`."""
    return _backbone_of(_read(Path(path)))


def _backbone_of(table):
    return f"features/{table.shape[1]}"


def _read(path):
    """Map the table of an .npy file, float (N, D)."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"features_file {path}: no such file") from None
    except (OSError, ValueError, EOFError, BadZipFile):  # a table of objects is a ValueError, too
        raise UserError(
            f"features_file {path}: not a readable .npy file of numbers; write it with numpy.save"
        ) from None
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f" or 0 in table.shape:
        found = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else "several arrays"
        raise UserError(
            f"features_file {path}: expected floating-point numbers of shape (N, D), found {found}"
        )
    return table
