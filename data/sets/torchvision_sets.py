"""CIFAR-10, CIFAR-100-20 and STL-10 through torchvision: its download, its checksums, its files."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError

from .arrays import ArrayImages, to_channels_first


def build_cifar10(data_dir: Path, split: str, size: int) -> ArrayImages:
    """CIFAR-10, 50 000 train and 10 000 test images of 32 x 32."""
    files = _read("CIFAR10", data_dir / "cifar-10", train=split != "test")
    return ArrayImages(to_channels_first(files.data, "cifar-10"), files.targets, files.classes)


def build_cifar20(data_dir: Path, split: str, size: int) -> ArrayImages:
    """CIFAR-100 with its 20 coarse labels, which are in the files but not in torchvision's class."""
    files = _read("CIFAR100", data_dir / "cifar-20", train=split != "test")
    folder = Path(files.root) / files.base_folder
    # safe to unpickle: torchvision has just verified the MD5 sums
    labels = _unpickle(folder / ("test" if split == "test" else "train"))["coarse_labels"]
    classes = _unpickle(folder / "meta")["coarse_label_names"]
    return ArrayImages(to_channels_first(files.data, "cifar-20"), labels, classes)


def build_stl10(data_dir: Path, split: str, size: int) -> ArrayImages:
    """STL-10, 96 x 96: `train` (5 000), `test` (8 000), `train+unlabeled` (105 000, labels unknown)."""
    files = _read("STL10", data_dir / "stl-10", split=split)
    labels = None if split == "train+unlabeled" else files.labels
    return ArrayImages(np.ascontiguousarray(files.data), labels, files.classes)


def _read(name: str, root: Path, **split: Any) -> Any:
    """torchvision's dataset `name` of the files under `root`, downloaded first if they are not there."""
    import torchvision  # takes seconds, so only where it is needed

    try:
        return getattr(torchvision.datasets, name)(root=root, download=True, **split)
    except (OSError, RuntimeError) as error:  # no network, no disk, a damaged archive
        raise UserError(
            f"{root}: the dataset is not there and could not be downloaded ({error}); "
            f"put torchvision's files in that folder, or {root}.npz beside it, or set data_dir"
        ) from None


def _unpickle(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")
