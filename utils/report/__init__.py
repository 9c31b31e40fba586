"""clusters.csv and report.html: what a clustering found, whether it can be trusted, what to do next."""

import datetime
import hashlib
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from utils.analysis import duplicates
from utils.analysis.calibration import UNSURE_BELOW
from utils.analysis.plots import or_a_warning
from utils.files import atomic, write_csv

from . import content
from .assignment import Assignment, build_assignment, four_decimals, mine_others
from .context import GroundTruth, ReportContext
from .layout import lay_out
from .page import render
from .thumbnails import draw_sheets
from .verdicts import verdicts

if TYPE_CHECKING:
    from data import Dataset

__all__ = ["Assignment", "GroundTruth", "ReportContext", "build_assignment", "verdicts", "write_report"]

log = logging.getLogger(__name__)

# by whether labels had a part in the features: True, False, or None if that is unknown
HOW_FOUND = {
    True: "found without labels, by features that were learned with labels",
    False: "found without labels",
    None: "found without labels; it is unknown whether the features were learned with labels",
}


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
            clustering_metrics; for pretrained features, `labels_in_pretraining`, see HOW_FOUND.
    """
    names, seed = dataset.names(), context.seed
    table = assignment.table(names) | {axis: [""] * len(names) for axis in "xy"}
    page, path = None, folder / "report.html"
    path.unlink(missing_ok=True)
    with or_a_warning(path):
        lists = _lists(assignment, figures, context.truth)
        sample = content.choose_sample(len(names), lists, seed)
        places, method = lay_out(features[sample.indices], seed)
        for axis, values in zip("xy", places.T, strict=True):
            for index, value in zip(sample.indices.tolist(), four_decimals(values), strict=True):
                table[axis][index] = value
        page = _head(names, assignment, figures, context) | lists | {"map_method": method}
    table |= context.columns
    write_csv(list(table), zip(*table.values(), strict=True), folder / "clusters.csv")
    if page is None:
        return
    with or_a_warning(path):
        indices = sample.indices.tolist()
        page = content.map_indices(page, lambda index: int(sample.row_of[index]))
        page["sample"] = len(indices) if len(indices) < len(names) else None
        page["images"] = _images(names, features, assignment, sample, places, context.truth)
        page = _readable(page) | {"thumbnails": draw_sheets(dataset, indices)}
        with atomic(path) as temporary:
            temporary.write_text(render(page), encoding="utf-8")
        log.info("report in %s", path)


def _head(
    names: list[str], assignment: Assignment, figures: dict[str, Any], context: ReportContext
) -> dict[str, Any]:
    """What the page says about all images."""
    return {
        "title": context.title,
        "how": HOW_FOUND[figures.get("labels_in_pretraining", False)],
        "results": None if context.results is None else shlex.quote(str(context.results)),
        "id": hashlib.sha256(repr((names, assignment.cluster.tolist())).encode()).hexdigest()[:16],
        "made": datetime.date.today().isoformat(),
        "about": [[term, str(value)] for term, value in context.facts.items()],
        "num_images": len(names),
        "num_copies": figures["copy"],
        "num_near": figures["near_duplicate"],
        "unsure": {"below": UNSURE_BELOW, "count": int((assignment.confidence < UNSURE_BELOW).sum())},
        "verdicts": [verdict._asdict() for verdict in verdicts(figures, context.advice)],
        "curves": content.finite_curves(context.epochs),
        "folder": context.image_url,
    }


def _lists(assignment: Assignment, figures: dict[str, Any], truth: GroundTruth | None) -> dict[str, Any]:
    """The lists of the page, with indices of all images."""
    clusters = content.cluster_cards(assignment, figures["prototypes"])
    compared = None
    if truth:
        compared, class_of = content.compare_with_labels(assignment, figures, truth)
        for card in clusters:
            card["name"] = truth.classes[class_of[card["cluster"]]] if card["cluster"] in class_of else None
    return {
        "clusters": clusters,
        "borderline": content.borderline(assignment),
        "pairs": content.mergeable(assignment, clusters),
        "copies": content.copy_groups(assignment),
        "near": content.near_duplicate_pairs(assignment),
        "outliers": content.outliers(assignment),
        "labels": compared,
    }


def _images(
    names: list[str],
    features: torch.Tensor,
    assignment: Assignment,
    sample: content.Sample,
    places: torch.Tensor,
    truth: GroundTruth | None,
) -> dict[str, list]:
    """The columns of the images on the page; `places`: float32 (S, 2), on the map."""
    indices, row_of = sample
    shown = assignment[indices]
    neighbors = shown.neighbors
    if len(indices) < len(names):  # the nearest of those that are on the page
        first = duplicates.first_of(shown.first.tolist())
        normalized = F.normalize(features[indices].float(), dim=1)
        mined, others = mine_others(normalized, first)
        neighbors = indices[mined[others].view(len(indices), -1)]
    images = {
        "name": [names[i] for i in indices.tolist()],
        "neighbors": row_of[neighbors].tolist(),
        "copy_of": row_of[assignment.copy_of[indices]].tolist(),
        "near_duplicate_of": row_of[shown.near_duplicate_of].tolist(),
        "x": _rounded(places[:, 0]),
        "y": _rounded(places[:, 1]),
        "cluster": shown.cluster.tolist(),
        "runner_up": shown.runner_up.tolist(),
        "confidence": _rounded(shown.confidence),
        "runner_up_confidence": _rounded(shown.runner_up_confidence),
    }
    return images | {"label": truth.labels[indices].tolist()} if truth else images


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _readable(value: Any) -> Any:
    """`value` with escapes in its texts for bytes that are not UTF-8, as file names may have."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _readable(entry) for name, entry in value.items()}
    return [_readable(entry) for entry in value] if isinstance(value, list | tuple) else value
