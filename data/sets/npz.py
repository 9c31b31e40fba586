"""Array files: `.npz`, as NumPy writes them."""

import logging
from pathlib import Path

import numpy as np
import torch

from errors import UserError

from ..folder import sanity_checks
from .arrays import ArrayImages, to_channels_first
from .labels import check

log = logging.getLogger(__name__)


def read_npz(path, which):
    """Read `{split}_images` and, if present, `{split}_labels` of an npz file.

    For `which` see `build_dataset`; "train+unlabeled" adds the array `unlabeled_images`, if there is one, and
    drops the labels. The file may hold `classes`, the class names. Labels may have shape (N,) or, as
    MedMNIST's, (N, 1). Raises UserError for a missing array or one of the wrong shape or type.
    """
    path, split = Path(path), "test" if which == "test" else "train"
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can break the reader in any way
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: holds a single array; expected an .npz with {split}_images")
    with archive:
        if f"{split}_images" not in archive:
            raise UserError(
                f"{path}: has no array '{split}_images', only {', '.join(archive.files) or 'nothing'}"
            )
        try:
            images = archive[f"{split}_images"]
            labels, classes = archive.get(f"{split}_labels"), archive.get("classes")
            unlabeled = archive.get("unlabeled_images") if which == "train+unlabeled" else None
        except Exception as error:
            raise UserError(f"{path}: cannot be read ({error}); write it again") from None
    where = f"{path}: {split}_images"
    images = torch.from_numpy(to_channels_first(images, where))
    if unlabeled is not None:
        more = torch.from_numpy(to_channels_first(unlabeled, f"{path}: unlabeled_images"))
        sizes = [tuple(part.shape[2:]) for part in (images, more)]
        if sizes[0] != sizes[1]:
            raise UserError(f"{path}: unlabeled_images are of size {sizes[1]}, train_images of {sizes[0]}")
        images, labels = torch.cat([images, more]), None
    elif which == "train+unlabeled":
        log.info("%s: has no array 'unlabeled_images', so only the train split is learned from", path)
    sanity_checks.warn([sanity_checks.look(image) for image in images[:: max(1, len(images) // 1000)]], where)
    if classes is not None and classes.ndim != 1:
        raise UserError(f"{path}: 'classes' must be a list of names, found shape {classes.shape}")
    if labels is not None:
        labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        try:
            check(labels, len(images), classes, f"{split}_labels")
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    return ArrayImages(images, labels, None if classes is None else [str(name) for name in classes])
