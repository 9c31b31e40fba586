"""clusters.csv and report.html: what a clustering found, whether it can be trusted, what to do next."""

import datetime
import hashlib
import logging
import shlex

import torch
import torch.nn.functional as F

from utils.analysis import duplicates
from utils.analysis.calibration import UNSURE
from utils.analysis.plots import or_a_warning
from utils.files import atomic, write_csv

from . import content
from .layout import METHODS, lay_out
from .page import render
from .rows import copies_of, count_neighbors, describe, figures_of, others_of, rounded, table
from .thumbnails import draw_sheets
from .verdicts import verdicts

__all__ = ["describe", "figures_of", "verdicts", "write"]

log = logging.getLogger(__name__)

# by whether labels had a part in the features: True, False, or None if that is unknown
LEARNED = {
    True: "found without labels, by features that were learned with labels",
    False: "found without labels",
    None: "found without labels; it is unknown whether the features were learned with some",
}


def write(folder, dataset, features, found, figures, about, truth=None, columns=None, seed=0):
    """Write clusters.csv, a row for each image, and report.html.

    A page that cannot be made is a warning; then clusters.csv has no coordinates of the map.

    Args:
        folder: pathlib.Path of the results.
        dataset: the N images.
        features: float (N, D).
        found: what `describe` returned.
        figures: dict with what `verdicts` needs and `prototypes`; with labels, also clustering_metrics; of
            pretrained features, `labels_in_pretraining`, see LEARNED.
        about: dict: `title`; `results`, the folder to give to predict.py, or None; `facts`, list of (term,
            text); `advice`, see `verdicts`; `epochs`, dict step -> logged lines, see Run.read_epochs;
            `folder`, the URL of the image files, ending in a slash, or None.
        truth: labels int64 (N,), -1 where there is none; names of the classes; what they are. None without.
        columns: further columns of clusters.csv, dict name -> list.
        seed: of the map, and of the sample if the page does not show all images.
    """
    names = dataset.names()
    rows = table(names, found) | {axis: [""] * len(names) for axis in "xy"}
    page, path = None, folder / "report.html"
    path.unlink(missing_ok=True)
    with or_a_warning(path):
        lists = _lists(found, figures, truth)
        sample = content.choose_sample(len(names), lists, seed)
        places, method = lay_out(features[sample], seed)
        for axis, values in zip("xy", places.T, strict=True):
            for index, value in zip(sample.tolist(), rounded(values), strict=True):
                rows[axis][index] = value
        page = _head(names, found, figures, about) | lists | {"map_method": METHODS[method]}
    rows |= columns or {}
    write_csv(rows, zip(*rows.values(), strict=True), folder / "clusters.csv")
    if page is None:
        return
    with or_a_warning(path):
        row_of = torch.full((len(names),), -1)
        row_of[sample] = torch.arange(len(sample))
        page = content.with_rows(page, lambda index: row_of[index].item())
        page["sample"] = len(sample) if len(sample) < len(names) else None
        page["images"] = _images(names, features, found, sample, row_of, places, truth)
        page = _readable(page) | {"thumbnails": draw_sheets(dataset, sample.tolist())}
        with atomic(path) as temporary:
            temporary.write_text(render(page), encoding="utf-8")
        log.info("report in %s", path)


def _head(names, found, figures, about):
    """What the page says of all images."""
    results = about["results"]
    return {
        "title": about["title"],
        "how": LEARNED[figures.get("labels_in_pretraining", False)],
        "results": None if results is None else shlex.quote(str(results)),
        "id": hashlib.sha256(repr((names, found["cluster"].tolist())).encode()).hexdigest()[:16],
        "made": datetime.date.today().isoformat(),
        "about": about["facts"],
        "num_images": len(names),
        "num_copies": figures["copy"],
        "num_near": figures["near_duplicate"],
        "unsure": {"below": UNSURE, "count": int((found["confidence"] < UNSURE).sum())},
        "verdicts": verdicts(figures, about["advice"]),
        "curves": content.curves(about["epochs"]),
        "folder": about["folder"],
    }


def _lists(found, figures, truth):
    """The lists of the page, with indices of all images."""
    clusters = list(content.clusters_of(found, figures["prototypes"]))
    compared, class_of = content.compare(found, figures, *truth) if truth else (None, {})
    for number, cluster in enumerate(clusters):
        cluster["name"] = truth[1][class_of[number]] if number in class_of else None
    return {
        "clusters": clusters,
        "borderline": content.borderline(found),
        "pairs": content.mergeable(found, clusters),
        "copies": content.copies(found),
        "near": content.near_duplicates(found),
        "outliers": content.outliers(found),
        "labels": compared,
    }


def _images(names, features, found, sample, row_of, places, truth):
    """The columns of the images on the page, dict of lists."""
    row_of = torch.cat([row_of, torch.tensor([-1])])  # so that -1 stays -1
    neighbors = found["neighbors"]
    copies = copies_of(found)[sample]
    if len(sample) < len(names):  # those that are on the page, too
        first = duplicates.first_of(found["first"][sample].tolist())
        similar = F.normalize(features[sample].float(), dim=1)
        mined = duplicates.mine_distinct(similar, count_neighbors(first), first)
        neighbors = sample[mined[others_of(mined)].view(len(sample), -1)]
        found = {name: values[sample] for name, values in found.items()}
    images = {
        "name": [names[i] for i in sample.tolist()],
        "neighbors": row_of[neighbors].tolist(),
        "copy_of": row_of[copies].tolist(),
        "near_duplicate_of": row_of[found["near_duplicate_of"]].tolist(),
        "x": _short(places[:, 0]),
        "y": _short(places[:, 1]),
    }
    for name in ("cluster", "runner_up"):
        images[name] = found[name].tolist()
    for name in ("confidence", "runner_up_confidence"):
        images[name] = _short(found[name])
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
