"""What the report is told about a clustering, besides its figures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch


class GroundTruth(NamedTuple):
    """Labels to compare the clusters with."""

    labels: torch.Tensor  # int64 (N,), -1 for an image without a label
    classes: list[str]  # names; labels are their indices
    source: str  # where the labels come from, as the page says it


@dataclass(frozen=True)
class ReportContext:
    """Where a clustering comes from, and what else belongs in its report.

    Attributes:
        title: of the page.
        results: the folder to give to predict.py; None for no such advice.
        facts: what the page was made from, term -> value.
        advice: problem -> what to do about it, see health.advice_for.
        epochs: step -> its logged lines, see `read_epochs`.
        image_url: URL of the folder of the image files, ending in a slash; None if there are no files.
        truth: the labels, if there are any.
        columns: further columns of clusters.csv, name -> N values.
        seed: of the map, and of the sample if the page cannot show all images.
    """

    title: str
    results: Path | None
    facts: dict[str, object]
    advice: dict[str, str]
    epochs: dict[str, list[dict[str, Any]]]
    image_url: str | None = None
    truth: GroundTruth | None = None
    columns: dict[str, list] = field(default_factory=dict)
    seed: int = 0
