"""Datasets, and how the steps see them.

To add a dataset, write a builder(data_dir, split, size) that returns a `Dataset`, and enter it in DATASETS.
Use ArrayImages for images that fit in memory, FolderImages for image files. A file `{data_dir}/{name}.npz` or
a folder `{data_dir}/{name}/` needs no code at all.
"""

from functools import partial
from pathlib import Path

import torch

from errors import UserError, did_you_mean

from .augment.transforms import build_eval_transform, build_train_transform
from .dataset import Dataset
from .device import to_device
from .folder.decode import FolderImages, How
from .folder.listing import build_folder, list_images, white_of_training
from .folder.stream import stream_squares
from .loader import Loader
from .sets.arrays import ArrayImages
from .sets.digits import build_digits
from .sets.imagenet import build_imagenet
from .sets.labels import leave_out_a_single_class
from .sets.npz import read_npz
from .sets.torchvision_sets import build_cifar10, build_cifar20, build_stl10
from .vectors.cached_features import CachedFeatures
from .vectors.features_file import vector_backbone, with_vectors
from .views import AnchorNeighborView, PlainView, TwoViews, WeakStrongView

__all__ = [
    "DATASETS",
    "WITH_UNLABELED",
    "AnchorNeighborView",
    "ArrayImages",
    "CachedFeatures",
    "Dataset",
    "FolderImages",
    "Loader",
    "PlainView",
    "TwoViews",
    "WeakStrongView",
    "build_dataset",
    "build_eval_transform",
    "build_train_transform",
    "eval_loader",
    "feature_loader",
    "list_images",
    "stream",
    "to_device",
    "vector_backbone",
]


# name: builder(data_dir, split, size) of a Dataset; `split`: see build_dataset; `size`: side in pixels of the
# squares to which image files are resized and cropped, so that they can be batched
DATASETS = {
    "cifar-10": build_cifar10,
    "cifar-20": build_cifar20,
    "stl-10": build_stl10,
    "digits": build_digits,
    "imagenet": build_imagenet,
    "imagenet_50": partial(build_imagenet, subset=50),
    "imagenet_100": partial(build_imagenet, subset=100),
    "imagenet_200": partial(build_imagenet, subset=200),
}
WITH_UNLABELED = {"stl-10"}  # datasets with a split "train+unlabeled", which the pretext step trains on

SPLITS = ("train", "test", "train+unlabeled")

# For callers who read a YAML file without load_config: defaults of keys that may be missing. A test compares
# them with the table of keys in utils/run/schema.py.
DEFAULTS = {"data_dir": "datasets", "transformation_kwargs": {"crop_size": 224}, "resize": "crop"}


def build_dataset(config, split):
    """One split of the dataset that a configuration names.

    For train_db_name, and for val_db_name if it is the same, the folder `image_folder` is used if there is
    one. Otherwise a file `{data_dir}/{name}.npz` is used if there is one, then DATASETS, then a folder
    `{data_dir}/{name}/`. If all labels are the same, they are dropped.

    Args:
        config: mapping with `train_db_name`, `val_db_name` and, if not `datasets`, `data_dir`. For image
            files, 256 / 224 of `transformation_kwargs.crop_size` is their side. For folders, see
            `build_folder`; with `root_dir`, their decoded images are kept in `{root_dir}/{name}/images/`.
            With `features_file`, `fetch` gives the vectors of that file instead of the images; see
            `with_vectors`.
        split: "train", "test" (of val_db_name), or "train+unlabeled" (WITH_UNLABELED only).

    Returns:
        A Dataset.

    Raises:
        UserError: unknown name, missing or damaged files.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    config = {**DEFAULTS, **config}
    if config.get("features_file"):
        return with_vectors(config, split, _build_images)
    return _build_images(config, split)


def _build_images(config, split):
    name = config["val_db_name" if split == "test" else "train_db_name"]
    data_dir = Path(config["data_dir"]).expanduser()
    npz, folder = data_dir / f"{name}.npz", data_dir / name
    if config.get("image_folder") and name == config["train_db_name"]:
        images = Path(config["image_folder"]).expanduser()
        dataset = build_folder(images, split, _how(config), called="", **_of_folder(config, name))
    elif npz.is_file():
        dataset = read_npz(npz, split)
    elif name in DATASETS:
        dataset = DATASETS[name](data_dir, split, _how(config).size)
    elif folder.is_dir():
        dataset = build_folder(folder, split, _how(config), **_of_folder(config, name))
    else:
        question = did_you_mean(name, DATASETS)
        hint = f"{question} " if question else ""
        raise UserError(
            f"dataset {name!r}: unknown, and there is neither {npz} nor a folder {folder}; "
            f"{hint}known: {', '.join(DATASETS)}"
        )
    if len(dataset) == 0:
        raise UserError(f"dataset {name!r}, split {split!r}: holds no images")
    leave_out_a_single_class(dataset, f"dataset {name!r}, split {split!r}")
    return dataset


def side(config):
    """Side in pixels of the squares that image files are brought to: 256 of 224, see build_dataset."""
    return round({**DEFAULTS, **config}["transformation_kwargs"]["crop_size"] * 256 / 224)


def _how(config):
    return How(side(config), config["resize"])


def _of_folder(config, name):
    """Arguments of build_folder that a configuration gives."""
    keys = ("num_workers", "max_unreadable", "folder_labels", "white_level")
    options = {key: config[key] for key in keys if key in config}
    options["results"] = config.get("root_dir")
    for option, name_ in (("keep_in", name), ("training_in", config["train_db_name"])):
        options[option] = _images_of(config, name_)
    return options


def _images_of(config, name):
    """Folder that a dataset's decoded images are kept in, or None without `root_dir`."""
    return Path(config["root_dir"]).expanduser() / name / "images" if "root_dir" in config else None


def stream(files, config, num_workers=0, size=None):
    """Decode any number of image files once, in order, in bounded memory.

    Args:
        files: paths as text, such as those of `list_images`.
        config: mapping, as for build_dataset. The value that is shown white in files of 16 bits is
            `white_level`, or that of the train split if its decoded images are kept in `root_dir`, or 65535,
            which a line then says.
        num_workers: processes that decode.
        size: S, by default as for a folder's dataset; for a model that was trained on arrays, their size.

    Yields:
        for a few files at a time: those that can be read, a list of n of the paths; their squares, uint8
        (n, 3, S, S), as `fetch` of a folder's dataset gives them; and a dict from each path that cannot be
        read to the reason.
    """
    config = {**DEFAULTS, **config}
    how, white = How(size or side(config), config["resize"]), config.get("white_level")
    if white is None and "root_dir" in config:
        white = white_of_training(_images_of(config, config["train_db_name"]), how)
    return stream_squares(files, how, white, num_workers)


def eval_loader(dataset, config, **loading):
    """Loader of a whole split with the evaluation transform; `loading`: further arguments of Loader."""
    return Loader(dataset, PlainView(build_eval_transform(config)), train=False, **loading)


def feature_loader(features, **loading):
    """Loader of features (N, D) in order, in place of images; `loading`: further arguments of Loader."""
    return Loader(
        CachedFeatures(features.unsqueeze(0)), PlainView(torch.nn.Identity()), train=False, **loading
    )
