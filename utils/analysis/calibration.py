"""Whether confidence can be believed: of the images at 90 %, are 90 % right?"""

import torch

from . import metrics

BINS = 15  # of equal width, as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017
SHARES = tuple(range(5, 101, 5))  # of the images, the most confident ones, in %
UNSURE_BELOW = 0.8  # an image of lower confidence counts as unsure


def is_right(clusters, labels, matches, num_clusters, num_classes):
    """Whether each image's class is that of its cluster: bool (N,).

    A cluster's class is the one that is matched with it, so that the mean is `acc`, and an image in a cluster
    without a match is wrong. With more clusters than classes some have no match, however good they are; then
    each cluster's class is that of most of its images, and the mean is `majority_vote_acc`.

    Args:
        clusters, labels: int64 (N,).
        matches: pairs (cluster, class), see metrics.hungarian_match.
    """
    class_of = torch.full((num_clusters,), -1)
    for cluster, class_index in matches:
        class_of[cluster] = class_index
    if num_clusters > num_classes:
        table = metrics.contingency(clusters.numpy(), labels.numpy(), num_clusters, num_classes)
        class_of = torch.from_numpy(table.argmax(1))
    return class_of[clusters] == labels


def reliability_bins(confidence, right):
    """What is in each of BINS bins of confidence, (0, 1/15], (1/15, 2/15], ..., (14/15, 1].

    Args:
        confidence: float (N,) in [0, 1]; 0 is in the first bin.
        right: bool (N,), see `is_right`.

    Returns:
        (mean confidence float64 (BINS,), accuracy float64 (BINS,), count int64 (BINS,)); both means of a bin
        without images are NaN.
    """
    confidence = confidence.double()
    inner = torch.arange(1, BINS, dtype=torch.float64) / BINS
    place = torch.bucketize(confidence, inner)
    count = place.bincount(minlength=BINS)
    sums = (place.bincount(values, minlength=BINS) for values in (confidence, right.double()))
    return *(total / count for total in sums), count


def expected_calibration_error(confidence, right):
    """Mean distance of the bins' accuracy from their mean confidence, weighted by their images; a float.

    Equation 3 of Guo et al., 2017, with BINS bins. Of few images it is above 0 even if the confidence is
    perfect, because the accuracy in a bin is subject to chance.
    """
    mean, accuracy, count = reliability_bins(confidence, right)
    filled = count > 0
    return ((accuracy - mean).abs() * count)[filled].sum().item() / len(confidence)


def coverage_curve(confidence, right):
    """Accuracy of the most confident share of the images, for each of SHARES: float64 (len(SHARES),).

    Shares are rounded up to whole images. Of images with the same confidence, which may be many at 1, none
    comes first: each counts with the mean of all of them.
    """
    values, place, count = confidence.unique(return_inverse=True, return_counts=True)  # sorted
    mean = place.bincount(right.double(), minlength=len(values)) / count
    ranked = mean.flip(0).repeat_interleave(count.flip(0)).cumsum(0)
    n = len(confidence)
    taken = torch.tensor([-(-n * share // 100) for share in SHARES])
    return ranked[taken - 1] / taken


def sure_and_unsure(confidence, right):
    """Images with a confidence of at least UNSURE_BELOW, and the others: a pair (count, accuracy) each.

    The accuracy of no images is None.
    """
    sure = confidence >= UNSURE_BELOW
    return [
        (int(part.sum()), right[part].double().mean().item() if part.any() else None)
        for part in (sure, ~sure)
    ]


def calibration_figures(confidence, right):
    """All of the above for metrics.json, a dict; values in lists are rounded, means of no images are None."""
    mean, accuracy, count = reliability_bins(confidence, right)
    sure, unsure = sure_and_unsure(confidence, right)
    return {
        "ece": expected_calibration_error(confidence, right),
        "bins": {"confidence": _short(mean), "accuracy": _short(accuracy), "count": count.tolist()},
        "coverage": {
            "share": [share / 100 for share in SHARES],
            "accuracy": _short(coverage_curve(confidence, right)),
        },
        "unsure_below": UNSURE_BELOW,
        "sure": dict(zip(("count", "accuracy"), sure, strict=True)),
        "unsure": dict(zip(("count", "accuracy"), unsure, strict=True)),
    }


def _short(values):
    return [None if value != value else round(value, 4) for value in values.tolist()]
