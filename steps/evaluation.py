"""How good the clusters are: after each epoch, at the end of a step, and for the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data import Dataset, Loader
from data.messages import shown
from utils import report
from utils.analysis import metrics, plots, results
from utils.analysis.prototypes import find_prototypes
from utils.files import KeptArrays, read_json
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.training import resume
from utils.training.inference import infer


def validation_accuracy(
    probabilities: torch.Tensor, dataset: Dataset, images: torch.Tensor | slice = slice(None)
) -> dict[str, float]:
    """The accuracy to log, `val_acc`, of the probabilities (M, C) of some images; nothing without labels."""
    if dataset.labels is None or dataset.classes is None:
        return {}
    accuracy = metrics.clustering_accuracy(probabilities, dataset.labels[images], len(dataset.classes))
    return {"val_acc": accuracy}


def finish_clustering(
    run: Run,
    fingerprint: Fingerprint,
    weights: dict[str, torch.Tensor],
    probabilities: torch.Tensor,
    dataset: Dataset,
    further: dict[str, Any] | None = None,
) -> None:
    """Write the results on the test split, and mark the step as finished.

    `weights` and `probabilities` (N, C) are of the final model; `further` is what else metrics.json says.
    """
    about = {"setup": run.config.setup, "dataset": run.config.val_db_name, "split": "test"}
    if run.main:
        results.save_clustering(run.folder, probabilities.cpu(), dataset, about | (further or {}))
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    resume.mark_finished(run, fingerprint, weights)


def log_clusters(
    run: Run,
    dataset: Dataset,
    backbone: Callable[[torch.Tensor], torch.Tensor],
    images: Loader,
    probabilities: torch.Tensor,
) -> None:
    """Give the run's loggers, if it has any, an image of each cluster, and features of at most 2000 images.

    `backbone` gives the features, float (N, D), of the dataset's `images`; `probabilities`: (N, C).
    """
    if not run.config.logger:
        return
    features, probabilities = infer(backbone, images, "features").cpu(), probabilities.cpu()
    found = enumerate(find_prototypes(features, probabilities))
    pictures = {f"prototypes/{cluster}": dataset.raw(i) for cluster, i in found if i is not None}
    run.loggers.log(lambda logger: [logger.add_image(*item) for item in pictures.items()])
    columns: dict[str, list] = {"image": dataset.names(), "cluster": probabilities.argmax(1).tolist()}
    if dataset.labels is not None and dataset.classes:
        columns["class"] = [dataset.classes[label] for label in dataset.labels.tolist()]
    some = slice(None, None, -(-len(features) // 2000))
    rows = [[shown(str(cell)) for cell in row] for row in zip(*columns.values(), strict=True)][some]
    run.loggers.log(lambda logger: logger.add_embedding(features[some], rows, metadata_header=[*columns]))


def describe_clusters(
    run: Run,
    dataset: Dataset,
    features: torch.Tensor,
    probabilities: torch.Tensor,
    pretext: Path,
    kept: KeptArrays | None = None,
) -> tuple[report.Assignment, dict[str, Any]]:
    """Look at each image and each cluster, without using labels.

    Args:
        features: float (N, D), of the backbone.
        probabilities: float (N, C), on the CPU.
        pretext: folder of the pretext step's results, which may be missing.
        kept: of an earlier report.

    Returns:
        what is known of each image; and for metrics.json, `prototypes`, where the features come from, and
        shares and counts.
    """
    machine, search = run.machine, run.config.search
    prototypes = find_prototypes(features, probabilities)
    assignment = report.build_assignment(
        dataset, features, probabilities, prototypes, machine.device, search, kept
    )
    figures = assignment.figures(probabilities.size(1))
    learned = read_json(pretext / "metrics.json")
    origin: dict[str, Any] = {  # of pretrained features; nothing for features of our own
        key: learned[key] for key in ("weights", "labels_in_pretraining") if key in learned
    }
    return assignment, {**origin, "prototypes": prototypes, **figures}
