"""Checks of labels, which only evaluation uses: wrong ones are an error, meaningless ones are dropped."""

import logging

import numpy as np
import torch

from errors import UserError

from ..messages import say_once, shown

log = logging.getLogger(__name__)

MOST_CLASSES = 30_000  # comparing more of them with clusters would take gigabytes


def labels_and_names(labels, classes, count):
    """The labels and class names as a dataset keeps them.

    Args:
        labels: integers (count,), or None.
        classes: class names; None: the labels themselves.
        count: number of images.

    Returns:
        int64 tensor (count,) and a list of strings, or None and None without labels. Raises ValueError, see
        `check`.
    """
    if labels is None:
        return None, None
    labels = np.asarray(labels)
    check(labels, count, classes)
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return labels, classes or [str(name) for name in range(len(labels.bincount()))]


def check(labels, count, classes, what="labels"):
    """Raise ValueError, naming `what`, unless an array holds one class index per image.

    Args:
        labels: the array, which should hold integers (count,).
        count: number of images.
        classes: class names, or None.
    """
    if not count and not len(labels):  # an empty list has no type
        return
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers of shape ({count},), found {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"{what} holds negative labels; leave the array out if there are none")
    if labels.max() >= MOST_CLASSES:
        raise ValueError(f"{what} holds {labels.max()}; number the classes 0, 1, 2, ...")
    if classes is not None and labels.max() >= len(classes):
        raise ValueError(f"'classes' has {len(classes)} names, but a label is {labels.max()}")


def none_if_unknown(labels):
    """The labels, or None if some are negative: torchvision marks unknown ones by -1."""
    return None if (np.asarray(labels) < 0).any() else labels


def require_few(classes, where):
    """Raise UserError for more class folders than can be compared with clusters."""
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{where}: {len(classes)} folders would be as many classes; if they are not classes, put their "
            "images into one folder"
        )


def require_known(train, classes, folder, present):
    """Raise UserError if a split has a class folder that the train split lacks."""
    unknown = sorted(set(present) - set(classes))
    if unknown:
        names = ", ".join(map(shown, unknown[:4]))
        raise UserError(f"{shown(str(train))}: has no class folder {names}, but {shown(str(folder))} has")


def leave_out_a_single_class(dataset, where):
    """Drop the labels if all images have the same: a collapsed clustering would match them perfectly."""
    if dataset.labels is None or len(dataset) < 2 or (dataset.labels != dataset.labels[0]).any():
        return
    name = dataset.classes[dataset.labels[0]]
    message = f"{where}: all images are of one class ({name}), which is no information: treated as unlabeled"
    say_once(log.info, message)
    dataset.labels = dataset.classes = None
