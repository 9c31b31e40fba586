"""Write the figures and pictures of an evaluation."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.files import write_csv, write_json

from . import calibration, health, metrics, plots

if TYPE_CHECKING:
    from data import Dataset

log = logging.getLogger(__name__)

# files beside metrics.json; each kind of evaluation writes some of them
PARTS = (
    "assignment.csv",
    "confusion_matrix.png",
    "prototypes.png",
    "neighbors.png",
    "clusters.csv",
    "clusters.parquet",
    "report.html",
)


def write_figures(figures: dict[str, Any], folder: Path) -> None:
    """Write metrics.json; if there was one before, remove the files that belong to its figures."""
    stale = PARTS if (folder / "metrics.json").exists() else ()
    write_json(figures, folder / "metrics.json")
    for name in stale:
        (folder / name).unlink(missing_ok=True)
    log.info("figures in %s", folder / "metrics.json")


def save_clustering(
    folder: Path, probabilities: torch.Tensor, dataset: "Dataset", about: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate clusters; write metrics.json and assignment.csv and, with labels, confusion_matrix.png.

    Args:
        probabilities: on the CPU.
        about: what was evaluated, put first in metrics.json; with `split`.

    Returns:
        the content of metrics.json.
    """
    labels, classes = dataset.labels, dataset.classes or []
    confidence, clusters = probabilities.max(1)
    sizes = torch.bincount(clusters, minlength=probabilities.size(1))
    empty = (sizes == 0).nonzero().flatten().tolist()
    figures: dict[str, Any] = {
        **about,
        "num_images": len(probabilities),
        "image_side": min(dataset.raw(0).shape[1:]),  # the size that new images are to have
        "white_level": dataset.white_level,  # and their white, if of 16 bits
        "num_clusters": len(sizes),
        "mean_confidence": confidence.mean().item(),
        "cluster_sizes": sizes.tolist(),
        "empty_clusters": empty,
    }
    if empty:
        log.warning("%d of %d clusters are empty: %s", len(empty), len(sizes), health.join_some(empty))
    if labels is None:
        log.info("%s split without labels: cluster sizes %s", about["split"], health.describe_counts(sizes))
    else:
        figures["num_classes"] = len(classes)
        figures |= metrics.clustering_metrics(probabilities, labels, len(classes))
        acc, nmi, ari, top5 = (100 * figures[key] for key in ("acc", "nmi", "ari", "top5"))
        log.info(
            f"ACC {acc:.2f}  NMI {nmi:.2f}  ARI {ari:.2f}  top-5 {top5:.2f} (%) on the {about['split']} split"
        )
        if len(sizes) != len(classes):
            log.info(
                "%d clusters for %d classes: ACC is after one-to-one matching; by majority vote %.2f %%",
                len(sizes), len(classes), 100 * figures["majority_vote_acc"],
            )  # fmt: skip
        table = metrics.contingency(clusters.numpy(), labels.numpy(), len(sizes), len(classes))
        right = calibration.judged_class(table, figures["matches"])[clusters] == labels
        figures["calibration"] = calibration.calibration_figures(confidence, right)
    write_figures(figures, folder)
    shown = (f"{value:.4f}" for value in confidence.tolist())
    rows = zip(dataset.names(), clusters.tolist(), shown, strict=True)
    write_csv(("image", "cluster", "confidence"), rows, folder / "assignment.csv")
    if labels is not None:
        matrix, columns = metrics.confusion_matrix(table, figures["matches"])
        names = ["(none)" if cluster is None else str(cluster) for cluster in columns]
        plots.save_confusion_matrix(matrix, classes, names, folder / "confusion_matrix.png")
    return figures
