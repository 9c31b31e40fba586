"""How good the clusters are: after each epoch, and at the end of a step."""

from typing import Any

import torch

from data import Dataset
from utils.analysis import metrics, plots, results
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.training import resume


def validation_accuracy(
    probabilities: torch.Tensor, dataset: Dataset, images: torch.Tensor | slice = slice(None)
) -> dict[str, float]:
    """The accuracy to log, `val_acc`; nothing without labels.

    Args:
        probabilities: float (M, C), on the CPU.
        dataset: holds the M images.
        images: their indices in it.
    """
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

    Args:
        run: the Run.
        fingerprint: of the step.
        weights: state dict of the final model.
        probabilities: float (N, C).
        dataset: the N images of the test split.
        further: what else metrics.json says.
    """
    about = {"setup": run.config.setup, "dataset": run.config.val_db_name, "split": "test"}
    if run.main:
        results.report_clusters(run.folder, probabilities.cpu(), dataset, about | (further or {}))
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    resume.mark_finished(run, fingerprint, weights)
