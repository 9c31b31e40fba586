"""Labels, which only evaluation looks at: refused where they cannot be, left out where they say nothing."""

import logging

import numpy as np
import torch

from errors import UserError

from .messages import say_once, shown

log = logging.getLogger(__name__)

MOST_CLASSES = 30_000  # more would need gigabytes to be compared with clusters


def labels_and_names(labels, classes, count):
    """The labels and names of the classes that a dataset keeps.

    Args:
        labels: integers (count,), or None.
        classes: names of the classes; None: the labels themselves.
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
    """Raise ValueError, naming `what`, unless an array holds one class number per image.

    Args:
        labels: to be integers (count,).
        count: number of images.
        classes: names of the classes, or None.
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
    """The labels, or None where some are -1, by which torchvision says that it does not know them."""
    return None if (np.asarray(labels) < 0).any() else labels


def require_few(classes, where):
    """Raise UserError for more class folders than can be compared with clusters."""
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{where}: {len(classes)} folders would be as many classes; if they are none, put their images "
            "into one folder"
        )


def require_known(train, classes, folder, present):
    """Raise UserError if a split has a class folder that the training split has not."""
    unknown = sorted(set(present) - set(classes))
    if unknown:
        names = ", ".join(map(shown, unknown[:4]))
        raise UserError(f"{shown(str(train))}: has no class folder {names}, but {shown(str(folder))} has")


def leave_out_a_single_class(dataset, where):
    """One class for several images is no label: a collapsed clustering would agree with it perfectly."""
    if dataset.labels is None or len(dataset) < 2 or (dataset.labels != dataset.labels[0]).any():
        return
    name = dataset.classes[dataset.labels[0]]
    message = f"{where}: all images are of one class ({name}), which tells nothing: taken as unlabelled"
    say_once(log.info, message)
    dataset.labels = dataset.classes = None
