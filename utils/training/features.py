"""Features of a frozen backbone, computed once and kept in a file for the steps that follow."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from utils.run import distributed
from utils.run.config import to_dict
from utils.run.fingerprint import backbone_hash
from utils.run.folder import Run

from .inference import infer_to_file

if TYPE_CHECKING:
    from data import Dataset, Loader


def backbone_features(run: Run, folder: Path, model: nn.Module, loader: "Loader", title: str) -> torch.Tensor:
    """The backbone's features of all images of an evaluation loader, in float32.

    They are read from a file if an earlier run computed them with these weights, of these images, with this
    evaluation transform.

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
            infer_to_file(model.get_submodule("backbone"), loader, title, own)
            if run.main:
                os.replace(own, path)
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


def digest_of(dataset: "Dataset") -> str:
    """The hash of all images if the dataset has one, else its fingerprint, which is of a sample."""
    return dataset.content_digest() or dataset.fingerprint()


def remove_stale_features(folder: Path, keep: Iterable[Path]) -> None:
    """Remove the features in `folder` that an earlier model, or other images, left there."""
    for path in set(folder.glob("features-*.npy")) - set(keep):
        path.unlink(missing_ok=True)
