"""What the report is told about a clustering, besides its figures."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import torch

from utils.files import KeptArrays


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
        facts: what the page was made from, term -> value; of a path the page says only the last name.
        advice: problem -> what to do about it, see health.advice_for.
        image_url: URL of the folder of the image files, ending in a slash; None for no links to them.
        clustering: the clustering's identity, by which names and corrections are known to belong to it; the
            page corrects only a clustering that has one.
        names: what the user called the clusters before; None if there are no names.
        truth: the labels, if there are any.
        columns: further columns of clusters.csv, name -> N values. The page splits clusters by `part`, 0 or
            1, and marks what is `corrected`: "yes", "none" for an image that belongs nowhere, or "".
        kept: what an earlier report was made of.
        seed: of the map, and of the sample if the page cannot show all images.
    """

    title: str
    results: Path | None
    facts: dict[str, object]
    advice: dict[str, str]
    image_url: str | None = None
    clustering: str = ""
    names: list[str] | None = None
    truth: GroundTruth | None = None
    columns: dict[str, list] = field(default_factory=dict)
    kept: KeptArrays = field(default_factory=KeptArrays)
    seed: int = 0


def relative_url(images: Path, results: Path) -> str | None:
    """URL of the folder `images` from a page in `results`, for ReportContext.image_url.

    None if it would tell others more than what is in the current folder: the user's name, folders elsewhere.
    """
    images = images.resolve()
    try:
        way = Path(os.path.relpath(images, results.resolve()))
    except ValueError:  # another drive
        return None
    names = [part for part in way.parts if part != ".."]
    if (len(names) > 1 and not images.is_relative_to(Path.cwd())) or Path.home().name in names:
        return None
    return f"{quote(os.fsencode(way.as_posix()))}/"


def told(path: Path) -> str:
    """A path as a report may tell it: from the current folder; of a path elsewhere, only its last name."""
    path, here = path.resolve(), Path.cwd()
    inside = path.is_relative_to(here) and Path.home().name not in path.relative_to(here).parts
    return str(path.relative_to(here)) if inside else path.name
