"""The subfolders of one's own images as classes, to compare the clusters with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errors import UserError
from utils.analysis import metrics

NO_CLASSES = "train", "test", "val"  # subfolders that are splits


def require_classes(names: Sequence[str]) -> None:
    """Raise UserError unless the images of these names are in two or more classes."""
    classes = set(map(class_of, names)) - {None}
    if len(classes) < 2:
        raise UserError(f"--labels subfolders: the images are in {len(classes)} folders; leave --labels out")


def class_of(name: str) -> str | None:
    """The first folder of an image's name that is no split; None for an image without such a folder."""
    return next((part for part in Path(name).parts[:-1] if part not in NO_CLASSES), None)


def labels_of(names: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Labels int64 (N,) of images by their names, -1 for those without a class; the names of the classes."""
    found = [class_of(name) for name in names]
    classes = sorted({name for name in found if name})
    label_of = {name: label for label, name in enumerate(classes)}
    return torch.tensor([label_of.get(name or "", -1) for name in found]), classes


def compare_with_classes(
    probabilities: torch.Tensor, labels: torch.Tensor, classes: list[str]
) -> dict[str, Any]:
    """Metrics of the clusters, for metrics.json; images without a class do not count."""
    labeled = labels >= 0
    figures = metrics.clustering_metrics(probabilities[labeled], labels[labeled], len(classes))
    return {"classes": classes, "num_labeled": int(labeled.sum()), **figures}
