"""clusters.csv and report.html: what a clustering found, whether it can be trusted, what to do next."""

import datetime
import hashlib
import logging

import torch
import torch.nn.functional as F

from utils.analysis import neighbors as mining
from utils.analysis.calibration import UNSURE
from utils.analysis.plots import or_a_warning
from utils.files import atomic, write_csv

from . import content as contents
from .layout import METHODS, lay_out
from .page import render
from .rows import NEIGHBORS, describe, figures_of, rounded, table, without_itself
from .thumbnails import draw_sheets
from .verdicts import verdicts

__all__ = ["describe", "figures_of", "verdicts", "write"]

log = logging.getLogger(__name__)


def write(folder, dataset, features, found, figures, about, truth=None, columns=None, seed=0):
    """Write clusters.csv, a row for each image, and report.html.

    A page that cannot be made is a warning.

    Args:
        folder: pathlib.Path of the results.
        dataset: the N images.
        features: float (N, D).
        found: what `describe` returned.
        figures: dict with what `verdicts` needs and `prototypes`; with labels, also clustering_metrics.
        about: dict: `title`; `facts`, list of (term, text); `advice`, see `verdicts`; `epochs`, dict step ->
            logged lines, see Run.read_epochs; `folder`, URL of the image files, ending in a slash, or None.
        truth: labels int64 (N,), -1 where there is none; names of the classes; what they are. None without.
        columns: further columns of clusters.csv, dict name -> list.
    """
    page, class_of = _lists(found, figures, truth)
    sample = contents.choose_sample(len(dataset), page, seed)
    places, method = lay_out(features[sample], seed)
    names = dataset.names()
    content = table(names, found)
    for axis, values in zip("xy", places.T, strict=True):
        content[axis] = [""] * len(names)
        for index, value in zip(sample.tolist(), rounded(values), strict=True):
            content[axis][index] = value
    content |= columns or {}
    write_csv(content, zip(*content.values(), strict=True), folder / "clusters.csv")

    path = folder / "report.html"
    with or_a_warning(path):
        for cluster in page["clusters"]:
            known = cluster["cluster"] in class_of
            cluster["name"] = cluster["class"] = truth[1][class_of[cluster["cluster"]]] if known else None
        page |= {
            "title": about["title"],
            "id": hashlib.sha256(repr((names, found["cluster"].tolist())).encode()).hexdigest()[:16],
            "made": datetime.date.today().isoformat(),
            "about": about["facts"],
            "sample": len(sample) if len(sample) < len(names) else None,
            "num_images": len(names),
            "unsure": {"below": UNSURE, "count": int((found["confidence"] < UNSURE).sum())},
            "verdicts": verdicts(figures, about["advice"]),
            "curves": contents.curves(about["epochs"]),
            "folder": about["folder"],
            "map_method": METHODS[method],
            "map_note": "",
        }
        row_of = torch.full((len(names),), -1)
        row_of[sample] = torch.arange(len(sample))
        page = contents.with_rows(page, lambda index: row_of[index].item())
        page["images"] = _images(names, features, found, sample, row_of, places, truth)
        page = _readable(page) | {"thumbnails": draw_sheets(dataset, sample.tolist())}
        with atomic(path) as temporary:
            temporary.write_text(render(page), encoding="utf-8")
        log.info("report in %s", path)


def _lists(found, figures, truth):
    """The lists of the page, with indices of all images; and dict cluster -> index of its class."""
    clusters = list(contents.clusters_of(found, figures["prototypes"]))
    compared, class_of = contents.compare(found, figures, *truth) if truth else (None, {})
    page = {
        "clusters": clusters,
        "borderline": contents.borderline(found),
        "pairs": contents.mergeable(found, clusters),
        "copies": contents.copies(found),
        "num_copies": int((found["copy_of"] >= 0).sum()),
        "near": contents.near_duplicates(found),
        "num_near": int((found["near_duplicate_of"] >= 0).sum()),
        "outliers": contents.outliers(found),
        "labels": compared,
    }
    return page, class_of


def _images(names, features, found, sample, row_of, places, truth):
    """The columns of the images on the page, dict of lists."""
    row_of = torch.cat([row_of, torch.tensor([-1])])  # so that -1 stays -1
    neighbors = found["neighbors"]
    if len(sample) < len(names):  # those that are on the page, too
        near = mining.mine(F.normalize(features[sample].float(), dim=1), NEIGHBORS)
        neighbors = sample[without_itself(near)]
        found = {name: values[sample] for name, values in found.items()}
    images = {
        "name": [names[i] for i in sample.tolist()],
        "neighbors": row_of[neighbors].tolist(),
        "x": _short(places[:, 0]),
        "y": _short(places[:, 1]),
    }
    for name in ("cluster", "runner_up"):
        images[name] = found[name].tolist()
    for name in ("confidence", "runner_up_confidence"):
        images[name] = _short(found[name])
    for name in ("copy_of", "near_duplicate_of"):
        images[name] = row_of[found[name]].tolist()
    if truth:
        images["label"] = truth[0][sample].tolist()
    return images


def _short(values):
    return [round(value, 4) for value in values.tolist()]


def _readable(value):
    """`value` with escapes in its texts for bytes that are not UTF-8, as file names may have."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {name: _readable(entry) for name, entry in value.items()}
    return [_readable(entry) for entry in value] if isinstance(value, list | tuple) else value
