"""Checks of labels, which only evaluation uses: wrong ones are an error, meaningless ones are dropped."""

import logging
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from errors import UserError

from ..dataset import Dataset
from ..messages import say_once, shown

log = logging.getLogger(__name__)

MOST_CLASSES = 30_000  # comparing more of them with clusters would take gigabytes


def labels_and_names(
    labels: ArrayLike | None, classes: Sequence[str] | None, count: int
) -> tuple[torch.Tensor | None, list[str] | None]:
    """Labels, int64 (count,), and class names, by default the labels themselves; None without labels.

    Raises ValueError unless the labels are integers (count,), indices of the classes.
    """
    if labels is None:
        return None, None
    labels = np.asarray(labels)
    if not count and not len(labels):  # an empty list has no type
        labels = labels.astype(int)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape ({count},), found {labels.dtype} {labels.shape}")
    if count and labels.min() < 0:
        raise ValueError("labels holds negative labels; leave the array out if there are none")
    most = labels.max() if count else -1
    if most >= MOST_CLASSES:
        raise ValueError(f"labels holds {most}; number the classes 0, 1, 2, ...")
    if classes is not None and most >= len(classes):
        raise ValueError(f"labels: 'classes' has {len(classes)} names, but a label is {most}")
    indices = torch.as_tensor(labels, dtype=torch.int64)
    return indices, list(classes or map(str, range(len(indices.bincount()))))


def require_few(classes: Sized, where: str) -> None:
    """Raise UserError for more class folders than can be compared with clusters."""
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{where}: {len(classes)} folders would be as many classes; if they are not classes, put their "
            "images into one folder"
        )


def require_known(train: Path, classes: Iterable[str], folder: Path, present: Iterable[str]) -> None:
    """Raise UserError if a split has a class folder that the train split lacks."""
    unknown = sorted(set(present) - set(classes))
    if unknown:
        names = ", ".join(map(shown, unknown[:4]))
        raise UserError(f"{shown(str(train))}: has no class folder {names}, but {shown(str(folder))} has")


def drop_labels_of_one_class(dataset: Dataset, where: str) -> None:
    """Drop the labels if all images have the same: a collapsed clustering would match them perfectly."""
    labels, classes = dataset.labels, dataset.classes
    if labels is None or classes is None or len(labels) < 2 or (labels != labels[0]).any():
        return
    name = classes[labels[0]]
    message = f"{where}: all images are of one class ({name}), which is no information: treated as unlabeled"
    say_once(log.info, message)
    dataset.labels = dataset.classes = None
