"""Whether confidence can be believed: of the images at 90 %, are 90 % right?"""

from typing import Any

import torch

from . import metrics

CALIBRATION_BINS = 15  # of equal width, as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017
COVERAGE = tuple(range(5, 101, 5))  # of the images, the most confident ones, in %
UNSURE_BELOW = 0.8  # an image of lower confidence counts as unsure


def is_right(
    clusters: torch.Tensor,
    labels: torch.Tensor,
    matches: list[tuple[int, int]],
    num_clusters: int,
    num_classes: int,
) -> torch.Tensor:
    """Whether each image's class is that of its cluster: bool (N,).

    A cluster's class is the one that is matched with it, so that the mean is `acc`, and an image in a cluster
    without a match is wrong. With more clusters than classes some have no match, however good they are; then
    each cluster's class is that of most of its images, and the mean is `majority_vote_acc`.

    Args:
        clusters, labels: int64 (N,).
        matches: pairs (cluster, class), see metrics.hungarian_match.
    """
    class_of = metrics.matched_class(matches, num_clusters)
    if num_clusters > num_classes:
        table = metrics.contingency(clusters.numpy(), labels.numpy(), num_clusters, num_classes)
        class_of = torch.from_numpy(table.argmax(1))
    return class_of[clusters] == labels


def reliability_bins(
    confidence: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is in each of CALIBRATION_BINS bins of confidence, (0, 1/15], (1/15, 2/15], ..., (14/15, 1].

    Args:
        confidence: float (N,) in [0, 1]; 0 is in the first bin.
        right: bool (N,), see `is_right`.

    Returns:
        mean confidence float64 (BINS,), accuracy float64 (BINS,), count int64 (BINS,). Both means of a bin
        without images are NaN.
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

    Equation 3 of Guo et al., 2017, with CALIBRATION_BINS bins. For few images it is above 0 even if the
    confidence is perfect, because the accuracy in a bin is subject to chance.
    """
    mean, accuracy, count = reliability_bins(confidence, right)
    filled = count > 0
    return ((accuracy - mean).abs() * count)[filled].sum().item() / len(confidence)


def coverage_curve(confidence: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Accuracy of the most confident share of the images, for each of COVERAGE: float64 (len(COVERAGE),).

    Shares are rounded up to whole images. Images with the same confidence, which may be many at 1,
    have no order: each counts with the mean of all of them.
    """
    values, place, count = confidence.unique(return_inverse=True, return_counts=True)  # sorted
    mean = place.bincount(right.double(), minlength=len(values)) / count
    ranked = mean.flip(0).repeat_interleave(count.flip(0)).cumsum(0)
    n = len(confidence)
    taken = torch.tensor([-(-n * share // 100) for share in COVERAGE])
    return ranked[taken - 1] / taken


def sure_and_unsure(confidence: torch.Tensor, right: torch.Tensor) -> list[tuple[int, float | None]]:
    """Images with a confidence of at least UNSURE_BELOW, and the others: count and accuracy of each.

    The accuracy of no images is None.
    """
    sure = confidence >= UNSURE_BELOW
    return [
        (int(part.sum()), right[part].double().mean().item() if part.any() else None)
        for part in (sure, ~sure)
    ]


def calibration_figures(confidence: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
    """All of the above for metrics.json; values in lists are rounded, means of no images are None."""
    mean, accuracy, count = reliability_bins(confidence, right)
    sure, unsure = sure_and_unsure(confidence, right)
    return {
        "ece": expected_calibration_error(confidence, right),
        "bins": {"confidence": _rounded(mean), "accuracy": _rounded(accuracy), "count": count.tolist()},
        "coverage": {
            "share": [share / 100 for share in COVERAGE],
            "accuracy": _rounded(coverage_curve(confidence, right)),
        },
        "unsure_below": UNSURE_BELOW,
        "sure": dict(zip(("count", "accuracy"), sure, strict=True)),
        "unsure": dict(zip(("count", "accuracy"), unsure, strict=True)),
    }


def _rounded(values: torch.Tensor) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.tolist()]
