"""Array files: `.npz`, as NumPy writes them."""

import logging
from pathlib import Path

import numpy as np
import torch

from errors import UserError

from ..folder import sanity_checks
from .arrays import ArrayImages, to_channels_first

log = logging.getLogger(__name__)


def read_npz(path: Path, which: str) -> ArrayImages:
    """Read `{split}_images` and, if present, `{split}_labels` of an npz file.

    For `which` see `build_dataset`; "train+unlabeled" adds the array `unlabeled_images`, if there is one, and
    drops the labels. The file may hold `classes`, the class names. Labels may have shape (N,) or, as
    MedMNIST's, (N, 1). Raises UserError for a missing array or one of the wrong shape or type.
    """
    split = "test" if which == "test" else "train"
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can break the reader in any way
        raise UserError(f"{path}: not a readable .npz file ({error}); write it with numpy.savez") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: holds a single array; expected an .npz with {split}_images")
    with archive:
        if f"{split}_images" not in archive:
            found = ", ".join(archive.files) or "nothing"
            raise UserError(f"{path}: has no array '{split}_images', only {found}")
        try:
            images = archive[f"{split}_images"]
            labels, classes = archive.get(f"{split}_labels"), archive.get("classes")
            unlabeled = archive.get("unlabeled_images") if which == "train+unlabeled" else None
        except Exception as error:
            raise UserError(f"{path}: cannot be read ({error}); write it again") from None
    where = f"{path}: {split}_images"
    images = to_channels_first(images, where)
    if unlabeled is not None:
        unlabeled = to_channels_first(unlabeled, f"{path}: unlabeled_images")
        size, other_size = images.shape[2:], unlabeled.shape[2:]
        if size != other_size:
            raise UserError(f"{path}: unlabeled_images are of size {other_size}, train_images of {size}")
        images, labels = np.concatenate([images, unlabeled]), None
    elif which == "train+unlabeled":
        log.info("%s: has no array 'unlabeled_images', so only the train split is learned from", path)
    some = torch.from_numpy(images[:: max(1, len(images) // 1000)])
    sanity_checks.warn_if_alike([sanity_checks.summarize_pixels(image) for image in some], where)
    if classes is not None and classes.ndim != 1:
        raise UserError(f"{path}: 'classes' must be a list of names, found shape {classes.shape}")
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    try:
        return ArrayImages(images, labels, None if classes is None else list(map(str, classes)))
    except ValueError as error:
        raise UserError(f"{path}: {split}_{error}") from None
