"""Classes to compare the clusters with: the subfolders of one's own images, or a table of labels."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.csv_tables import read_table, rows_of_images
from data.messages import say_once, shown
from errors import UserError
from utils.analysis import metrics

log = logging.getLogger(__name__)

SUBFOLDERS = "subfolders"
NO_CLASSES = "train", "test", "val"  # subfolders that are splits
# what a table may call its columns, the likeliest first
FILE_COLUMNS = "file|filename|file_name|image|path|image_path|name|id|image_id"
LABEL_COLUMNS = "label|class|category|target|class_name"


def require_classes(names: Sequence[str], source: str) -> None:
    """Raise UserError unless the images of these names are in two or more classes."""
    classes = labels_of(names, source)[1]
    if len(classes) < 2:
        what = "folders" if source == SUBFOLDERS else "classes"
        example = "" if source == SUBFOLDERS else f" (they are named such as {names[0]})"
        raise UserError(
            f"--labels {source}: the images are in {len(classes)} {what}{example}; leave --labels out"
        )


def labels_of(names: Sequence[str], source: str) -> tuple[torch.Tensor, list[str]]:
    """Labels int64 (N,) of images by their names, -1 for those without a class; the names of the classes.

    `source`: SUBFOLDERS, or the path of a table. Raises UserError as `table_classes`.
    """
    found = list(map(class_of, names)) if source == SUBFOLDERS else table_classes(names, Path(source))
    classes = sorted({name for name in found if name})
    label_of = {name: label for label, name in enumerate(classes)}
    return torch.tensor([label_of.get(name or "", -1) for name in found]), classes


def class_of(name: str) -> str | None:
    """The first folder of an image's name that is no split; None for an image without such a folder."""
    return next((part for part in Path(name).parts[:-1] if part not in NO_CLASSES), None)


def table_classes(names: Sequence[str], path: Path) -> list[str | None]:
    """The class of each image by a table with a column for the file and one for the label.

    Says how many rows fit, see `rows_of_images`. Raises UserError as `read_table`.
    """
    table = [list(row.values()) for _, row in read_table(path, (FILE_COLUMNS, LABEL_COLUMNS))]
    rows = [(shown(file.replace("\\", "/")), label) for file, label in table if label]
    of_images = rows_of_images([file for file, _ in rows], names)
    labels = [{rows[row][1] for row in own} for own in of_images]
    found = [own.pop() if len(own) == 1 else None for own in labels]
    without = [name for name, label in zip(names, found, strict=True) if label is None]
    used = set(itertools.chain.from_iterable(of_images))
    unused = [file for row, (file, _) in enumerate(rows) if row not in used]
    message = f"{path}: labels of {len(names) - len(without)} of {len(names)} images"
    message += f"; of none of {', '.join(without[:3])}{', ...' * (len(without) > 3)}" if without else ""
    message += f"; {len(unused)} rows name no image, or several, such as {unused[0]}" if unused else ""
    say_once(log.info, message)
    return found


def compare_with_classes(
    probabilities: torch.Tensor, labels: torch.Tensor, classes: list[str]
) -> dict[str, Any]:
    """Metrics of the clusters, for metrics.json; images without a class do not count."""
    labeled = labels >= 0
    figures = metrics.clustering_metrics(probabilities[labeled], labels[labeled], len(classes))
    return {"classes": classes, "num_labeled": int(labeled.sum()), **figures}
