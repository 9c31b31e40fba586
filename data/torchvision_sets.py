"""CIFAR-10, CIFAR-100-20 and STL-10 through torchvision: its download, its checksums, its files."""

import pickle
from pathlib import Path

import numpy as np
import torchvision

from errors import UserError

from .arrays import ArrayImages, to_channels_first


def _open(constructor, root):
    """Use the files under `root`, downloading them first if need be."""
    try:
        return constructor(root=root, download=True)
    except (OSError, RuntimeError) as error:  # no network, no disk, a damaged archive
        raise UserError(
            f"{root}: the dataset is not there and could not be downloaded ({error}); "
            f"put torchvision's files in that folder, or {root}.npz beside it, or set data_dir"
        ) from None


def build_cifar10(data_dir, split):
    """CIFAR-10, 50 000 train and 10 000 test images of 32 x 32."""

    def constructor(**kwargs):
        return torchvision.datasets.CIFAR10(train=split != "test", **kwargs)

    files = _open(constructor, Path(data_dir) / "cifar-10")
    return ArrayImages(to_channels_first(files.data, "cifar-10"), files.targets, files.classes)


def build_cifar20(data_dir, split):
    """CIFAR-100 with its 20 coarse labels, which torchvision's class leaves in the files."""

    def constructor(**kwargs):
        return torchvision.datasets.CIFAR100(train=split != "test", **kwargs)

    files = _open(constructor, Path(data_dir) / "cifar-20")
    folder = Path(files.root) / files.base_folder
    part = "test" if split == "test" else "train"
    # torchvision verified the MD5 sum of this pickle a moment ago.
    labels = _unpickle(folder / part)["coarse_labels"]
    classes = _unpickle(folder / "meta")["coarse_label_names"]
    return ArrayImages(to_channels_first(files.data, "cifar-20"), labels, classes)


def _unpickle(path):
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def build_stl10(data_dir, split):
    """STL-10, 96 x 96: `train` (5 000), `test` (8 000), `train+unlabeled` (105 000, labels unknown)."""

    def constructor(**kwargs):
        return torchvision.datasets.STL10(split=split, **kwargs)

    files = _open(constructor, Path(data_dir) / "stl-10")
    labels = None if (np.asarray(files.labels) < 0).any() else files.labels
    return ArrayImages(np.ascontiguousarray(files.data), labels, files.classes)
