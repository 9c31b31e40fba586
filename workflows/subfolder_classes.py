"""Classes to compare the clusters with: the subfolders of one's own images, or a table of labels."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from data.csv_tables import read_table, table_lines
from data.messages import say_once, shown
from errors import UserError
from utils.analysis import metrics

log = logging.getLogger(__name__)

SUBFOLDERS = "subfolders"
NO_CLASSES = "train", "test", "val"  # subfolders that are splits
# what a table may call its columns, the likeliest first
FILE_COLUMNS = "file", "filename", "file_name", "image", "path", "image_path", "name", "id", "image_id"
LABEL_COLUMNS = "label", "class", "category", "target", "class_name"


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

    Files are matched by their whole name, else their base name, else that without its suffix, if only one
    image has it. Says how many were. Raises UserError as `read_table`.
    """
    header = [cell.lower() for cell in next(table_lines(path), (0, []))[1]]
    known = FILE_COLUMNS, LABEL_COLUMNS
    columns = [next((name for name in some if name in header), "|".join(some)) for some in known]
    table = [(row[columns[0]].replace("\\", "/"), row[columns[1]]) for _, row in read_table(path, columns)]
    rows = [(shown(file).removeprefix("./"), label) for file, label in table if label]
    found: list[str | None] = [None] * len(names)
    matchers: list[Callable[[str], str]] = [str, os.path.basename, lambda name: Path(name).stem]
    for part_of in matchers:
        labels: dict[str, set[str]] = {}
        for file, label in rows:
            labels.setdefault(part_of(file), set()).add(label)
        parts = list(map(part_of, names))
        images = Counter(parts)
        for i, part in enumerate(parts):
            if found[i] is None and images[part] == 1 and len(labels.get(part, ())) == 1:
                (found[i],) = labels[part]
    without = [name for name, label in zip(names, found, strict=True) if label is None]
    images = Counter(Path(name).stem for name in names)
    unused = [file for file, _ in rows if not images[Path(file).stem]]
    message = f"{path}: labels of {len(names) - len(without)} of {len(names)} images"
    message += f"; of none of {', '.join(without[:3])}{', ...' * (len(without) > 3)}" if without else ""
    message += f"; {len(unused)} rows name no image, such as {unused[0]}" if unused else ""
    say_once(log.info, message)
    return found


def compare_with_classes(
    probabilities: torch.Tensor, labels: torch.Tensor, classes: list[str]
) -> dict[str, Any]:
    """Metrics of the clusters, for metrics.json; images without a class do not count."""
    labeled = labels >= 0
    figures = metrics.clustering_metrics(probabilities[labeled], labels[labeled], len(classes))
    return {"classes": classes, "num_labeled": int(labeled.sum()), **figures}
