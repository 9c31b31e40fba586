"""What can be said of clusters without labels, for the report and for metrics.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import data
from utils import report
from utils.analysis.prototypes import find_prototypes
from utils.run.machine import Machine


@dataclass(frozen=True)
class DescribedClusters:
    """N images in C clusters."""

    assignment: report.Assignment
    figures: dict[str, Any]  # for metrics.json: `prototypes`, shares and counts, where the features come from


def describe_clusters(
    dataset: data.Dataset,
    features: torch.Tensor,
    probabilities: torch.Tensor,
    machine: Machine,
    search: str,
    pretext: Path,
) -> DescribedClusters:
    """Look at each image and each cluster.

    Args:
        dataset: the N images.
        features: float (N, D), of the backbone.
        probabilities: float (N, C), on the CPU.
        machine: what computes.
        search: the library that mines neighbors, see neighbors.nearest_neighbors.
        pretext: folder of the pretext step's results, which may be missing.
    """
    prototypes = find_prototypes(features, probabilities)
    assignment = report.build_assignment(dataset, features, probabilities, prototypes, machine.device, search)
    figures = {
        **learned_by_others(pretext),
        "prototypes": prototypes,
        **assignment.figures(probabilities.size(1)),
    }
    return DescribedClusters(assignment, figures)


def learned_by_others(pretext: Path) -> dict[str, Any]:
    """Where the features of a pretext step come from, if they are pretrained, and whether labels had a part.

    An empty dict for features of our own, or if nothing is known.
    """
    path = pretext / "metrics.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    return {key: figures[key] for key in ("weights", "labels_in_pretraining") if key in figures}
