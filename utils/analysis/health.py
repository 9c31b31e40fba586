"""Is the clustering healthy? Figures, warnings and an error, all without using labels.

Nothing here changes a training; the error, from `require_confident`, comes before it starts.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from errors import CannotTrainError

log = logging.getLogger(__name__)

MAX_LISTED = 50  # clusters in a message; more are summarized

# problem: what to do about it, the likeliest cause first
SCAN_ADVICE = {
    "dominant": "if one class has most of your images, leave it, or lower criterion_kwargs.entropy_weight "
    "(right if neighbor_agreement then rises and no cluster is dead); if not, train the pretext longer, or "
    "raise num_heads or criterion_kwargs.entropy_weight",
    "dead": "if they stay empty, train the pretext or this step longer, raise num_heads, lower num_classes "
    "if there are fewer kinds of images, or raise criterion_kwargs.entropy_weight",
}
SELFLABEL_ADVICE = {
    "dominant": "if one class has most of your images, leave it; if not, set "
    "criterion_kwargs.apply_class_balancing True, or lower optimizer_kwargs.lr",
    "dead": "if they were empty before this step, improve the clustering (scan.py); if not, set "
    "criterion_kwargs.apply_class_balancing True, or lower optimizer_kwargs.lr or confidence_threshold",
    "uncovered": "lower confidence_threshold, or train the clustering step longer (scan.py, epochs)",
    "merged": "set criterion_kwargs.apply_class_balancing True, lower optimizer_kwargs.lr, "
    "or raise confidence_threshold",
}
# of clusters that are not trained any further: `epochs: 0`
UNTRAINED_ADVICE = {
    "dominant": "if one class has most of your images, leave it; if not, try other features (--backbone)",
    "dead": "these features do not support so many clusters: give a lower number, or let --clusters auto "
    "compare some",
}
ADVICE = {"scan": SCAN_ADVICE, "selflabel": SELFLABEL_ADVICE}


def advice_for(config: Mapping[str, Any]) -> dict[str, str]:
    """Problem -> what to do about it, for the step of a configuration."""
    return ADVICE[config["setup"]] if config["epochs"] else UNTRAINED_ADVICE


# --- the clusters of an epoch --------------------------------------------------------------------


class ClusterMonitor:
    """Figures of the clusters after each epoch, and a warning when something is wrong.

    Each problem is warned about once per run, when first detected, even if the run is stopped and resumed.
    The problems:

        dominant   one cluster of three or more holds more than half of the images, and twice its share
        dead       clusters are empty
        uncovered  fewer than half of the clusters have a confident image, so the rest gets no pseudo-labels
        merged     clusters that were separate at the start, each of at least half the mean size, now have
                   most of their images in the same cluster

    Args:
        advice: problem -> what to do about it; SCAN_ADVICE or SELFLABEL_ADVICE.
        threshold: confidence that makes a pseudo-label; None without pseudo-labels.
        start: the clusters before the training; None if the training forms the clusters.
        patience: number of epochs at the start without warnings, while clusters form.
        history: gives the logged metrics of the earlier epochs, see `read_epochs`.
    """

    def __init__(
        self,
        advice: dict[str, str],
        threshold: float | None = None,
        start: torch.Tensor | None = None,
        patience: int = 0,
        history: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self.advice = advice
        self.threshold = threshold
        self.start = start
        self.patience = patience
        self.history = history
        self.warned: set[str] | None = None  # read at the first call, after the run has resumed

    def __call__(self, epoch: int, probabilities: torch.Tensor) -> dict[str, Any]:
        """Check the clusters after an epoch.

        Args:
            epoch: number of epochs done, for the warnings.
            probabilities: of the validation images.

        Returns:
            what to log: `cluster_sizes`, C counts; `dead_clusters`, how many of them are 0;
            `mean_confidence`; with a threshold `confident_shares`, for each cluster the share of its images
            above it, 0 for a dead one; `warned_of`, the problems of new warnings, if any.
        """
        if self.warned is None:
            self.warned = {problem for line in self.history() for problem in line.get("warned_of", ())}
        confidence, clusters = (part.cpu() for part in probabilities.float().max(1))
        sizes = torch.bincount(clusters, minlength=probabilities.size(1))
        figures: dict[str, Any] = {
            "cluster_sizes": sizes.tolist(),
            "dead_clusters": int((sizes == 0).sum()),
            "mean_confidence": confidence.mean().item(),
        }
        confident = None
        if self.threshold is not None:
            confident = confident_counts(confidence, clusters, len(sizes), self.threshold)
            shares = confident / sizes.clamp(min=1)
            figures["confident_shares"] = [round(share, 4) for share in shares.tolist()]
        if not math.isfinite(figures["mean_confidence"]):
            return figures  # the network has diverged; the engine stops the run

        problems = self._problems(clusters, sizes, confident)
        new = [problem for problem in problems if problem not in self.warned and epoch > self.patience]
        for problem in new:
            log.warning("epoch %d: %s; %s", epoch, problems[problem], self.advice[problem])
        self.warned.update(new)
        return figures | {"warned_of": new} if new else figures

    def _problems(
        self, clusters: torch.Tensor, sizes: torch.Tensor, confident: torch.Tensor | None
    ) -> dict[str, str]:
        """Problem -> text. Args: int64 (N,), clusters; (C,), their sizes and numbers of confident images."""
        c, found = len(sizes), {}
        if is_dominant(sizes):
            largest, share = sizes.argmax().item(), sizes.max().item() / len(clusters)
            found["dominant"] = f"cluster {largest} of {c} takes {100 * share:.0f} % of the validation images"
        if dead := int((sizes == 0).sum()):
            found["dead"] = f"{dead} of {c} clusters are dead: no validation image is in them"
        if confident is not None and 2 * (covered := int((confident > 0).sum())) < c:
            found["uncovered"] = (
                f"pseudo-labels cover few clusters: {covered} of {c} have a validation image of confidence "
                f"above {self.threshold:g}"
            )
        if self.start is not None and (groups := find_merged(self.start, clusters, c)):
            text = join_some([f"{join_some(group, 4)} are now in {now}" for now, group in groups.items()], 10)
            found["merged"] = f"self-labeling merges clusters that were separate before: {text}"
        return found


def is_dominant(sizes: torch.Tensor) -> bool:
    """Whether one of three or more clusters has more than half of the images, and twice its share.

    `sizes`: int64 (C,).
    """
    c = len(sizes)
    return c >= 3 and sizes.max().item() > max(0.5, 2 / c) * sizes.sum().item()


def find_merged(start: torch.Tensor, now: torch.Tensor, num_clusters: int) -> dict[int, list[int]]:
    """Which clusters have merged: cluster now -> the two or more clusters at the start that are in it.

    A cluster counts if it had at least half the mean size, and more than half of its images are now in the
    same cluster.
    """
    c = num_clusters
    table = torch.bincount(start * c + now, minlength=c * c).view(c, c)
    sizes = table.sum(1)
    most, place = table.max(1)
    counts = (2 * most > sizes) & (2 * sizes * c >= len(start))
    groups: dict[int, list[int]] = {}
    for cluster in counts.nonzero().flatten().tolist():
        groups.setdefault(int(place[cluster]), []).append(cluster)
    return {cluster: group for cluster, group in sorted(groups.items()) if len(group) > 1}


def join_some(things: Sequence[object], limit: int = MAX_LISTED) -> str:
    """Text that lists things; of many only the first."""
    text = ", ".join(map(str, things[:limit]))
    return text if len(things) <= limit else f"{text}, and {len(things) - limit} more"


def describe_counts(counts: torch.Tensor) -> str:
    """Text that lists an integer for each cluster, (C,), or summarizes them if there are many."""
    if len(counts) <= MAX_LISTED:
        return str(counts.tolist())
    return f"{counts.min()} to {counts.max()}, median {counts.median()}, {int((counts == 0).sum())} have none"


# --- before self-labeling ------------------------------------------------------------------------


def confident_counts(
    confidence: torch.Tensor, clusters: torch.Tensor, num_clusters: int, threshold: float
) -> torch.Tensor:
    """Images of each cluster whose confidence is above the threshold: float (N,), int64 (N,) -> (C,)."""
    return torch.bincount(clusters[confidence > threshold], minlength=num_clusters)


def require_confident(
    confidence: torch.Tensor, clusters: torch.Tensor, num_clusters: int, threshold: float
) -> None:
    """Log how many training images give a pseudo-label, for each cluster.

    Args:
        threshold: a confidence strictly above it makes a pseudo-label.

    Raises:
        UserError: no image does. If fewer than half of the clusters have one, there is a warning.
    """
    counts = confident_counts(confidence, clusters, num_clusters, threshold)
    n, confident, covered = len(confidence), int(counts.sum()), int((counts > 0).sum())
    if not confident:
        raise CannotTrainError(
            f"none of the {n} training images has a confidence above confidence_threshold {threshold:g}, the "
            f"highest is {confidence.max().item():.6f}, so there are no pseudo-labels to train on; "
            f"{SELFLABEL_ADVICE['uncovered']}"
        )
    log.info(
        f"{confident} of {n} training images ({100 * confident / n:.1f} %) have a confidence above "
        f"{threshold:g}; per cluster: {describe_counts(counts)}"
    )
    if 2 * covered < num_clusters:
        log.warning(
            f"pseudo-labels cover few clusters: {covered} of {num_clusters} have a confident training image; "
            f"{SELFLABEL_ADVICE['uncovered']}"
        )
