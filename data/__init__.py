"""Datasets. A new one is one entry of DATASETS, or a file: `{data_dir}/{name}.npz`."""

from functools import partial
from pathlib import Path

from errors import UserError, did_you_mean

from .arrays import FeatureViews
from .digits import build_digits
from .folders import build_folder
from .imagenet import build_imagenet
from .labels import leave_out_a_single_class
from .loader import Loader
from .npz import read_npz
from .torchvision_sets import build_cifar10, build_cifar20, build_stl10
from .transforms import build_eval_transform, build_train_transform
from .views import AnchorNeighborView, PlainView, TwoViews, WeakStrongView, unchanged

__all__ = [
    "DATASETS",
    "FOLDERS",
    "WITH_UNLABELED",
    "AnchorNeighborView",
    "FeatureViews",
    "Loader",
    "PlainView",
    "TwoViews",
    "WeakStrongView",
    "build_dataset",
    "build_eval_transform",
    "build_train_transform",
    "eval_loader",
    "unchanged",
]

# name: builder(data_dir, split) of an ArrayImages
DATASETS = {
    "cifar-10": build_cifar10,
    "cifar-20": build_cifar20,
    "stl-10": build_stl10,
    "digits": build_digits,
}
# name: builder(data_dir, split, size) of a FolderImages
FOLDERS = {
    "imagenet": build_imagenet,
    "imagenet_50": partial(build_imagenet, subset=50),
    "imagenet_100": partial(build_imagenet, subset=100),
    "imagenet_200": partial(build_imagenet, subset=200),
}

SPLITS = ("train", "test", "train+unlabeled")
WITH_UNLABELED = ("stl-10",)  # datasets whose pretext learns from more images than the train split

# What the mapping of a caller who has read a YAML file without load_config may lack; tests compare it with
# the table of keys, in utils/.
DEFAULTS = {"data_dir": "datasets", "transformation_kwargs": {"crop_size": 224}}


def build_dataset(config, split):
    """One split of the dataset that a configuration names.

    A file `{data_dir}/{name}.npz` is used if there is one, then the registry, then a folder
    `{data_dir}/{name}/`, see `build_folder`. Labels that are one and the same are none.

    Args:
        config: mapping with `train_db_name`, `val_db_name` and, if not `datasets`, `data_dir`.
            Image files are brought to 256 / 224 of `transformation_kwargs.crop_size`; of a folder's,
            the share `max_unreadable` may be damaged, and `num_workers` processes look for those.
        split: "train", "test" (of val_db_name), or "train+unlabeled" (WITH_UNLABELED only).

    Returns:
        An object with `len`, `labels` (int64 (N,) or None), `classes` (names or None) and
        `fetch(index_batches, device, num_workers)`, which yields uint8 (B, 3, H, W).

    Raises:
        UserError: unknown name, missing or damaged files.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    config = {**DEFAULTS, **config}
    name = config["val_db_name" if split == "test" else "train_db_name"]
    data_dir = Path(config["data_dir"]).expanduser()
    known = {**DATASETS, **FOLDERS}
    npz = data_dir / f"{name}.npz"
    if npz.is_file():
        dataset = read_npz(npz, "test" if split == "test" else "train")
    elif name in DATASETS:
        dataset = DATASETS[name](data_dir, split)
    elif name in FOLDERS or (data_dir / name).is_dir():
        size = round(config["transformation_kwargs"]["crop_size"] * 256 / 224)
        if name in FOLDERS:
            dataset = FOLDERS[name](data_dir, split, size)
        else:
            options = {key: config[key] for key in ("num_workers", "max_unreadable") if key in config}
            dataset = build_folder(data_dir, split, size, name, **options)
    else:
        question = did_you_mean(name, known)
        hint = f"{question} " if question else ""
        raise UserError(
            f"dataset {name!r}: unknown, and there is neither {npz} nor a folder {data_dir / name}; "
            f"{hint}known: {', '.join(known)}"
        )
    if len(dataset) == 0:
        raise UserError(f"dataset {name!r}, split {split!r}: holds no images")
    leave_out_a_single_class(dataset, f"dataset {name!r}, split {split!r}")
    return dataset


def eval_loader(dataset, config, **loading):
    """Batches of a whole split under the evaluation transform; `loading`: see Loader."""
    return Loader(dataset, PlainView(build_eval_transform(config)), train=False, **loading)
