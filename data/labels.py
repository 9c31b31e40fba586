"""Labels, which only evaluation looks at: refused where they cannot be, left out where they say nothing."""

import functools
import logging

from errors import UserError

from .decoding import shown

log = logging.getLogger(__name__)
_say = functools.cache(log.info)  # once per process, in which a split may be built several times

MOST_CLASSES = 30_000  # more would need gigabytes to be compared with clusters


def check(labels, count, classes, where, what):
    """Raise UserError for labels that are not one class number per image.

    Args:
        labels: array of a file, to be integers (N,).
        count: number of images.
        classes: names of the classes, or None.
        where, what: the file and the name of the labels in it.
    """
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {what} must be integers of shape ({count},), found {labels.dtype} {labels.shape}"
        )
    if not count:
        return
    if labels.min() < 0:
        raise UserError(f"{where}: {what} holds negative labels; leave the array out if there are none")
    if labels.max() >= MOST_CLASSES:
        raise UserError(f"{where}: {what} holds {labels.max()}; number the classes 0, 1, 2, ...")
    if classes is not None and labels.max() >= len(classes):
        raise UserError(f"{where}: 'classes' has {len(classes)} names, but a label is {labels.max()}")


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
    _say(f"{where}: all images are of one class ({name}), which tells nothing: taken as unlabelled")
    dataset.labels = dataset.classes = None
