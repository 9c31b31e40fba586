"""Whether confidence can be believed: of the images at 90 %, are 90 % right?

`right`, bool (N,), says for each image whether its class is `judged_class` of its cluster.
"""

from typing import Any

import numpy as np
import torch

from . import metrics

CALIBRATION_BINS = 15  # of equal width, as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017
COVERAGE = tuple(range(5, 101, 5))  # of the images, the most confident ones, in %
UNSURE_BELOW = 0.8  # an image of lower confidence counts as unsure


def judged_class(table: np.ndarray, matches: metrics.Matches) -> torch.Tensor:
    """The class by which each cluster is judged, int64 (C,), -1 for a cluster without one.

    It is the matched class, so that the share of right images is `acc`. With more clusters than classes some
    clusters have no match, however good they are; then it is the class of most of the cluster's images, and
    the share of right images is `majority_vote_acc`.
    """
    num_clusters, num_classes = table.shape
    if num_clusters > num_classes:
        return torch.from_numpy(table.argmax(1))
    return metrics.matched_class(matches, num_clusters)


def reliability_bins(
    confidence: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is in each of 15 bins of confidence, (0, 1/15], (1/15, 2/15], ..., (14/15, 1].

    Returns:
        mean confidence float64 (15,), accuracy float64 (15,), count int64 (15,). Both means of a bin without
        images are NaN. A confidence of 0 is in the first bin.
    """
    confidence = confidence.double()
    inner = torch.arange(1, CALIBRATION_BINS, dtype=torch.float64) / CALIBRATION_BINS
    place = torch.bucketize(confidence, inner)
    count = place.bincount(minlength=CALIBRATION_BINS)
    total = place.bincount(confidence, minlength=CALIBRATION_BINS)
    total_right = place.bincount(right.double(), minlength=CALIBRATION_BINS)
    return total / count, total_right / count, count


def expected_calibration_error(confidence: torch.Tensor, right: torch.Tensor) -> float:
    """Mean distance of the bins' accuracy from their mean confidence, weighted by their images.

    Equation 3 of Guo et al., 2017. For few images it is above 0 even if the confidence is perfect, because
    the accuracy in a bin is subject to chance.
    """
    mean, accuracy, count = reliability_bins(confidence, right)
    filled = count > 0
    return ((accuracy - mean).abs() * count)[filled].sum().item() / len(confidence)


def coverage_curve(confidence: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Accuracy of the most confident share of the images, for each of COVERAGE: float64 (len(COVERAGE),).

    Shares are rounded up to whole images. Images with the same confidence, which may be many at 1, have no
    order: each counts with the mean of all of them.
    """
    values, place, count = confidence.unique(return_inverse=True, return_counts=True)  # sorted
    mean = place.bincount(right.double(), minlength=len(values)) / count
    ranked = mean.flip(0).repeat_interleave(count.flip(0)).cumsum(0)
    n = len(confidence)
    taken = torch.tensor([-(-n * share // 100) for share in COVERAGE])
    return ranked[taken - 1] / taken


def sure_and_unsure(confidence: torch.Tensor, right: torch.Tensor) -> list[dict[str, Any]]:
    """`count` and `accuracy` (None without images) of the sure images, and of the others."""
    sure = confidence >= UNSURE_BELOW
    return [
        {"count": int(part.sum()), "accuracy": right[part].double().mean().item() if part.any() else None}
        for part in (sure, ~sure)
    ]


def calibration_figures(confidence: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    """All of the above for metrics.json; values in lists are rounded, means of no images are None."""
    mean, accuracy, count = reliability_bins(confidence, right)
    sure, unsure = sure_and_unsure(confidence, right)
    curve = coverage_curve(confidence, right)
    return {
        "ece": expected_calibration_error(confidence, right),
        "bins": {"confidence": _rounded(mean), "accuracy": _rounded(accuracy), "count": count.tolist()},
        "coverage": {"share": [share / 100 for share in COVERAGE], "accuracy": _rounded(curve)},
        "unsure_below": UNSURE_BELOW,
        "sure": sure,
        "unsure": unsure,
    }


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.tolist()]
