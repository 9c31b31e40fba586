"""clusters.csv and report.html: what a clustering found, whether it can be trusted, what to do next."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.analysis.plots import or_a_warning
from utils.files import atomic, write_csv, write_parquet

from . import content
from .assignment import Assignment, build_assignment, four_decimals
from .context import GroundTruth, ReportContext, relative_url
from .layout import lay_out
from .page import render
from .thumbnails import draw_sheets
from .verdicts import verdicts

if TYPE_CHECKING:
    from data import Dataset

__all__ = [
    "Assignment", "GroundTruth", "ReportContext", "build_assignment", "relative_url", "verdicts",
    "write_report",
]  # fmt: skip

log = logging.getLogger(__name__)


def write_report(
    folder: Path,
    dataset: "Dataset",
    features: torch.Tensor,
    assignment: Assignment,
    figures: dict[str, Any],
    context: ReportContext,
) -> None:
    """Write clusters.csv, a row for each image, and report.html.

    If the page cannot be made, that is a warning, and clusters.csv has no coordinates of the map.

    Args:
        folder: of the results.
        dataset: the N images.
        features: float (N, D).
        figures: as in metrics.json: what `verdicts` needs and `prototypes`; with labels, also
            clustering_metrics; for pretrained features, `labels_in_pretraining`, see content.HOW_FOUND.
    """
    names, seed = dataset.names(), context.seed
    table = assignment.table(names) | {axis: [""] * len(names) for axis in "xy"}
    page, path = None, folder / "report.html"
    path.unlink(missing_ok=True)
    with or_a_warning(path):
        lists = content.page_lists(assignment, figures, context)
        sample = content.choose_sample(len(names), lists, seed)
        places, method = lay_out(features[sample.indices], seed, context.kept)
        for axis, values in zip("xy", places.T, strict=True):
            for index, value in zip(sample.indices.tolist(), four_decimals(values), strict=True):
                table[axis][index] = value
        page = content.page_head(names, assignment, figures, context) | lists | {"map_method": method}
    table |= context.columns
    write_csv(list(table), zip(*table.values(), strict=True), folder / "clusters.csv")
    write_parquet(folder / "clusters.csv")
    if page is None:
        return
    with or_a_warning(path):
        indices = sample.indices.tolist()
        page = content.map_indices(page, lambda index: int(sample.row_of[index]))
        page["sample"] = len(indices) if len(indices) < len(names) else None
        page["images"] = content.image_columns(names, features, assignment, sample, places, context)
        for name in ("part", "corrected"):
            if name in context.columns:
                page["images"][name] = [context.columns[name][index] for index in indices]
        sheets = context.kept.get(
            "thumbnails",
            [dataset.content_digest() or dataset.fingerprint(), indices],
            lambda: np.array(json.dumps(draw_sheets(dataset, indices)).encode()),
        )
        page = _readable(page) | {"thumbnails": json.loads(sheets.item())}
        with atomic(path) as temporary:
            temporary.write_text(render(page), encoding="utf-8")
        log.info("report in %s", path)


def _readable(value: Any) -> Any:
    """`value` with escapes in its texts for bytes that are not UTF-8, as file names may have."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_readable(name): _readable(entry) for name, entry in value.items()}
    return [_readable(entry) for entry in value] if isinstance(value, list | tuple) else value
