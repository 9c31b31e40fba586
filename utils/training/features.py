"""Features of a frozen backbone, computed once and kept in a file for the steps that follow."""

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from utils.files import read_json, write_json, writing
from utils.run import distributed
from utils.run.config import to_dict
from utils.run.fingerprint import backbone_hash
from utils.run.folder import Run

from .inference import infer, infer_to_file
from .runtimes import fastest_features

if TYPE_CHECKING:
    from data import Dataset, Loader


def backbone_features(run: Run, folder: Path, model: nn.Module, loader: "Loader", title: str) -> torch.Tensor:
    """The backbone's features of all images of an evaluation loader, in float32.

    They are read from a file if an earlier run computed them with these weights, of these images, with this
    evaluation transform. Of a folder that has changed since, only new images pass through the network.

    Args:
        folder: the pretext step's results, which hold the files; if it is read-only, the run's folder does.
        model: on the run's device, with its backbone in eval mode.

    Returns:
        float32 (N, D), not normalized, mapped from the file: not to be written to.

    Raises:
        UserError: features that are not finite, or a full disk.
    """
    path = features_path(run, folder, model, loader.dataset)
    if not path.exists() and not os.access(folder, os.W_OK):
        path = run.folder / path.name
    if not path.exists():
        own = path.with_name(f".{path.name}.{os.getpid()}")  # other runs may share the pretext step's folder
        try:
            backbone = model.get_submodule("backbone")
            about = _about(run, model, loader.dataset)
            # a file of vectors may have changed in any row; several processes share the work otherwise
            may = about["images"] and not run.config.features_file and distributed.world_size() == 1
            if not (may and _extend_earlier(folder, own, about, backbone, loader, title)):
                features = fastest_features(backbone, len(loader.dataset), run.config.runtime)
                infer_to_file(features, loader, title, own)
            if run.main:
                os.replace(own, path)
                if about["images"]:
                    write_json(about, path.with_suffix(".json"))
        finally:
            own.unlink(missing_ok=True)
        distributed.barrier()
    with warnings.catch_warnings(action="ignore"):  # of a tensor that must not be written to
        return torch.from_numpy(np.load(path, mmap_mode="r"))


def features_path(run: Run, folder: Path, model: nn.Module, dataset: "Dataset") -> Path:
    """The path in `folder` that is named after all that the features depend on."""
    config = run.config
    how = to_dict(config.transformation_kwargs), config.resize, config.white_level
    made_of = [config.backbone, backbone_hash(model.state_dict()), digest_of(dataset), *how]
    return folder / f"features-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}.npy"


def _about(run: Run, model: nn.Module, dataset: "Dataset") -> dict[str, Any]:
    """What is kept beside a file of features: `images`, a hash of each, and `how` they became features."""
    config = run.config
    decoded = to_dict(config.transformation_kwargs), config.crop_ratio, config.resize, dataset.white_level
    read = config.pages, config.channels, config.black_level
    how = json.dumps([*decoded, *read, config.backbone, backbone_hash(model.state_dict())])
    return {"how": how, "images": dataset.content_hashes()}


def kept_features(folder: Path) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The features (N, D) in a pretext step's folder, and in those that it replaced; and `_about` each."""
    for place in (folder, *folder.parent.glob(f"earlier-*/{folder.name}")):
        for path in place.glob("features-*.npy"):
            if about := read_json(path.with_suffix(".json")):
                yield np.load(path, mmap_mode="r"), about


def _extend_earlier(
    folder: Path, target: Path, about: dict[str, Any], backbone: nn.Module, loader: "Loader", title: str
) -> bool:
    """Write features to `target`, of the images that have none yet and with those of `kept_features`.

    Returns:
        False if there are none that help; nothing is written then.
    """
    images = set(about["images"])
    kept = [(table, of["images"]) for table, of in kept_features(folder) if of["how"] == about["how"]]
    table, known = max(kept, key=lambda part: len(images.intersection(part[1])), default=(None, ()))
    if table is None:
        return False
    place = {image: row for row, image in enumerate(known)}
    rows = np.array([place.get(image, -1) for image in about["images"]])
    new = np.flatnonzero(rows < 0)
    fresh = table[:0]
    if len(new):
        part = copy.copy(loader)
        part.anchors = torch.from_numpy(new)
        fresh = infer(backbone, part, f"new {title}").cpu().numpy()
    rows[new] = len(table) + np.arange(len(new))
    header = {"descr": table.dtype.str, "fortran_order": False, "shape": (len(rows), *table.shape[1:])}
    with writing(target, "free some space"), open(target, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:  # of files that may not fit in memory
            file.write((table[row] if row < len(table) else fresh[row - len(table)]).tobytes())
    return True


def digest_of(dataset: "Dataset") -> str:
    """The hash of all images if the dataset has one, else its fingerprint, which is of a sample."""
    return dataset.content_digest() or dataset.fingerprint()


def remove_stale_features(folder: Path, keep: Iterable[Path]) -> None:
    """Remove the features in `folder` that an earlier model, or other images, left there."""
    for path in set(folder.glob("features-*.npy")) - set(keep):
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
