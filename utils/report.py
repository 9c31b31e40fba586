"""The figures and pictures that an evaluation leaves behind."""

import csv
import json
import logging

import torch

from . import metrics, plots
from .checkpoint import atomic

log = logging.getLogger(__name__)


def write_json(content, path):
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def report_clusters(folder, probabilities, dataset, about):
    """Evaluate an assignment; write metrics.json, assignment.csv and, with labels, confusion_matrix.png.

    Args:
        folder: where to write.
        probabilities: float (N, C), on the CPU.
        dataset: the images, with `labels` (int64 (N,) or None), `classes` and `names()`.
        about: dict of what was evaluated, put first in metrics.json.

    Returns:
        the content of metrics.json, a dict.
    """
    labels, classes = dataset.labels, dataset.classes
    confidence, clusters = probabilities.max(1)
    _write_assignment(dataset.names(), clusters.tolist(), confidence.tolist(), folder / "assignment.csv")
    sizes = torch.bincount(clusters, minlength=probabilities.size(1)).tolist()
    empty = [cluster for cluster, size in enumerate(sizes) if size == 0]
    figures = {
        **about,
        "num_images": len(probabilities),
        "num_clusters": probabilities.size(1),
        "mean_confidence": confidence.mean().item(),
        "cluster_sizes": sizes,
        "empty_clusters": empty,
    }
    if empty:
        log.warning("%d of %d clusters are empty: %s", len(empty), len(sizes), empty)
    if labels is None:
        log.info("%s split without labels: cluster sizes %s", about["split"], sizes)
    else:
        figures["num_classes"] = len(classes)
        figures.update(metrics.clustering_metrics(probabilities, labels, len(classes)))
        matrix, columns = metrics.confusion_matrix(
            clusters.numpy(), labels.numpy(), figures["matches"], len(sizes), len(classes)
        )
        names = ["(none)" if cluster is None else str(cluster) for cluster in columns]
        plots.save_confusion_matrix(matrix, classes, names, folder / "confusion_matrix.png")
        log.info(
            "ACC %.2f  NMI %.2f  ARI %.2f  top-5 %.2f (%%) on the %s split",
            *(100 * figures[key] for key in ("acc", "nmi", "ari", "top5")), about["split"],
        )  # fmt: skip
        if len(sizes) != len(classes):
            log.info(
                "%d clusters for %d classes: ACC is after one-to-one matching; by majority vote %.2f %%",
                len(sizes), len(classes), 100 * figures["majority_vote_acc"],
            )  # fmt: skip
    write_json(figures, folder / "metrics.json")
    log.info("figures in %s", folder / "metrics.json")
    return figures


def _write_assignment(names, clusters, confidence, path):
    """One line per image: which cluster, and how sure the model is."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "cluster", "confidence"))
        writer.writerows(zip(names, clusters, (f"{value:.4f}" for value in confidence), strict=True))
