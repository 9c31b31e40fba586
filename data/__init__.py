"""Datasets, and how the steps see them.

To add a dataset, write a builder(data_dir, split, size) that returns a `Dataset`, and enter it in DATASETS.
Use ArrayImages for images that fit in memory, FolderImages for image files. A file `{data_dir}/{name}.npz` or
a folder `{data_dir}/{name}/` needs no code at all.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from errors import UserError, did_you_mean

from .augment.transforms import build_eval_transform, build_train_transform
from .dataset import BatchSource, Dataset
from .device import to_device
from .folder.containers import read_file, stat_file
from .folder.decode import ResizeSpec
from .folder.decode_pass import decode_batches
from .folder.image_files import FolderImages
from .folder.listing import list_images
from .folder.sanity_checks import WHITE
from .folder.sources import described, images_of, require_source
from .folder.splits import build_folder, white_of_training
from .loader import Loader
from .messages import say_once
from .sets.arrays import ArrayImages
from .sets.digits import build_digits
from .sets.imagenet import build_imagenet
from .sets.labels import drop_labels_of_one_class
from .sets.npz import read_npz
from .sets.torchvision_sets import build_cifar10, build_cifar20, build_stl10
from .vectors.cached_features import CachedFeatures
from .vectors.features_file import build_vectors
from .vectors.formats import read_vectors
from .vectors.rows import say_nothing
from .views import AnchorNeighborView, PlainView, Transform, TwoViews, View, WeakStrongView

log = logging.getLogger(__name__)

# name: builder(data_dir, split, size) of a Dataset; `split`: see build_dataset; `size`: side in pixels of the
# squares to which image files are resized and cropped, so that they can be batched
DATASETS: dict[str, Callable[[Path, str, int], Dataset]] = {
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

# For callers who read a YAML file without load_config: defaults of keys that may be missing. A test compares
# them with the table of keys in utils/run/schema.py.
DATA_DEFAULTS = {
    "data_dir": "datasets", "transformation_kwargs": {"crop_size": 224}, "crop_ratio": 0.875,
    "resize": "crop",
}  # fmt: skip


def build_dataset(config: Mapping[str, Any], split: str) -> Dataset:
    """One split of the dataset that a configuration names.

    `image_folder`, if given, is what `image_sources` says of train_db_name, and of val_db_name if that is the
    same name.
    Otherwise a file `{data_dir}/{name}.npz` is used if there is one, then DATASETS, then a folder
    `{data_dir}/{name}/`. If all labels are the same, they are dropped.

    Args:
        config: with `train_db_name`, `val_db_name` and, if not `datasets`, `data_dir`. For image files,
            `transformation_kwargs.crop_size` / `crop_ratio` is their side. For folders, see `build_folder`;
            with `root_dir`, their decoded images are kept in `{root_dir}/{name}/images/`. With
            `features_file`, `fetch` gives that file's vectors instead of the images; see `build_vectors`.
        split: "train", "test" (of val_db_name), or "train+unlabeled" (WITH_UNLABELED only).

    Raises:
        UserError: unknown name, missing or damaged files.
    """
    if split not in ("train", "test", "train+unlabeled"):
        raise ValueError(f"split must be train, test or train+unlabeled, got {split!r}")
    config = {**DATA_DEFAULTS, **config}
    if not config.get("features_file"):
        return _build_images(config, split)
    if one_for_both_splits(config):
        images = _build_images(config, split)
        return build_vectors(config, split, lambda *_: images)
    return build_vectors(config, split, _build_images)


def one_for_both_splits(config: Mapping[str, Any]) -> bool:
    """Whether both splits are all images of the folder `image_folder`, so that one dataset does for both."""
    same_name = config["train_db_name"] == config["val_db_name"]
    return bool(config.get("image_folder")) and config.get("folder_labels") == "none" and same_name


def _build_images(config: Mapping[str, Any], split: str) -> Dataset:
    name = config["val_db_name" if split == "test" else "train_db_name"]
    data_dir = Path(config["data_dir"]).expanduser()
    npz, folder = data_dir / f"{name}.npz", data_dir / name
    dataset: Dataset
    if config.get("image_folder") and name == config["train_db_name"]:
        sources, options = image_sources(config), _folder_options(config, name)
        options["added"] = [Path(path).expanduser() for path in config.get("added_images") or ()]
        dataset = build_folder(sources, split, _resize_spec(config), only_read=True, **options)
    elif npz.is_file():
        dataset = read_npz(npz, split)
    elif name in DATASETS:
        dataset = DATASETS[name](data_dir, split, side(config))
    elif folder.is_dir():
        dataset = build_folder(folder, split, _resize_spec(config), **_folder_options(config, name))
    else:
        question = did_you_mean(name, DATASETS)
        raise UserError(
            f"dataset {name!r}: unknown, and there is neither {npz} nor a folder {folder}; "
            f"{question}{' ' if question else ''}known: {', '.join(DATASETS)}"
        )
    if len(dataset) == 0:
        raise UserError(f"dataset {name!r}, split {split!r}: holds no images")
    drop_labels_of_one_class(dataset, f"dataset {name!r}, split {split!r}")
    return dataset


def image_sources(config: Mapping[str, Any]) -> list[Path]:
    """The folders and files that `image_folder` names, or the folder of train_db_name."""
    given = config.get("image_folder") or Path(config["data_dir"], config["train_db_name"])
    return [Path(path).expanduser() for path in (given if isinstance(given, list) else [given])]


def side(config: Mapping[str, Any]) -> int:
    """Side in pixels of the squares that image files are brought to."""
    config = {**DATA_DEFAULTS, **config}
    return round(config["transformation_kwargs"]["crop_size"] / config["crop_ratio"])


def _resize_spec(config: Mapping[str, Any], size: int | None = None) -> ResizeSpec:
    given = {key: config[key] for key in ResizeSpec._fields if key in config}
    return ResizeSpec(**{**given, "size": size or side(config), "channels": tuple(given.get("channels", ()))})


def _folder_options(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Arguments of build_folder that a configuration gives."""
    keys = ("num_workers", "max_unreadable", "folder_labels", "white_level", "every")
    return {
        **{key: config[key] for key in keys if key in config},
        "results": config.get("root_dir"),
        "cache_folder": _cache_folder(config, name),
        "train_cache_folder": _cache_folder(config, config["train_db_name"]),
    }


def _cache_folder(config: Mapping[str, Any], name: str) -> Path | None:
    """Folder that a dataset's decoded images are kept in, or None without `root_dir`."""
    return Path(config["root_dir"]).expanduser() / name / "images" if "root_dir" in config else None


def stream(
    files: Sequence[str], config: Mapping[str, Any], num_workers: int = 0, size: int | None = None
) -> Iterator[tuple[list[str], torch.Tensor, dict[str, str]]]:
    """Decode any number of image files once, in order, in bounded memory.

    Args:
        files: paths as text, such as those of `list_images`.
        config: as for build_dataset. The value that is shown white in files of 16 bits is `white_level`, or
            that of the train split if its decoded images are kept in `root_dir`, else 65535, and a log line
            says so.
        num_workers: processes that decode.
        size: S, by default as for a folder's dataset; for a model that was trained on arrays, their size.

    Yields:
        for a few files at a time: their paths; the pixels of those n that can be read, uint8 (n, 3, S, S),
        as `fetch` of a folder's dataset gives them; and a dict from each path that cannot be read to the
        reason.
    """
    config = {**DATA_DEFAULTS, **config}
    spec, white = _resize_spec(config, size), config.get("white_level")
    if white is None and "root_dir" in config:
        white = white_of_training(_cache_folder(config, config["train_db_name"]), spec)
    rest = iter(files)
    for records, pixels in decode_batches(files, spec, white or WHITE, num_workers):
        if white is None and any(record.brightest >= 0 for record in records):
            message = f"new images have 16 bits, of which {WHITE} is assumed to be white, because the"
            say_once(log.warning, f"{message} training images do not say so; set white_level")
        paths = list(islice(rest, len(records)))
        reasons = {path: record.reason for path, record in zip(paths, records, strict=True) if record.reason}
        if pixels is None:
            pixels = torch.empty(0, 3, spec.size, spec.size, dtype=torch.uint8)
        yield paths, pixels, reasons


def eval_loader(dataset: Dataset, config: Mapping[str, Any], **loading: Any) -> Loader[Dataset]:
    """Loader of a whole split with the evaluation transform; `loading`: further arguments of Loader."""
    return Loader(dataset, PlainView(build_eval_transform(config)), train=False, **loading)


def feature_loader(features: torch.Tensor, **loading: Any) -> Loader[CachedFeatures]:
    """Loader of features (N, D) in order, in place of images; `loading`: further arguments of Loader."""
    view = PlainView(torch.nn.Identity())
    return Loader(CachedFeatures(features.unsqueeze(0)), view, train=False, **loading)
