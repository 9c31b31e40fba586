"""Is the clustering healthy? Figures, warnings and an error, all without using labels.

Nothing here changes a training; the error, of `require_confident`, comes before it starts.
"""

import logging
import math

import torch

from errors import UserError

log = logging.getLogger(__name__)

LISTED = 50  # messages list at most so many clusters, and summarize more

# trouble: what to do, the likeliest cause first
SCAN_ADVICE = {
    "dominant": "if one class has most of your images, leave it, or lower criterion_kwargs.entropy_weight "
    "(right if neighbor_agreement then rises and no cluster is dead); if not, train the pretext longer, or "
    "raise num_heads or criterion_kwargs.entropy_weight",
    "dead": "if they stay so, train the pretext or this step longer, raise num_heads, lower num_classes if "
    "there are fewer sorts of images, or raise criterion_kwargs.entropy_weight",
}
SELFLABEL_ADVICE = {
    "dominant": "if one class has most of your images, leave it; if not, set "
    "criterion_kwargs.apply_class_balancing True, or lower optimizer_kwargs.lr",
    "dead": "if they were so before this step, improve the clustering (scan.py); if not, set "
    "criterion_kwargs.apply_class_balancing True, or lower optimizer_kwargs.lr or confidence_threshold",
    "uncovered": "lower confidence_threshold, or train the clustering step longer (scan.py, epochs)",
    "merged": "set criterion_kwargs.apply_class_balancing True, lower optimizer_kwargs.lr, "
    "or raise confidence_threshold",
}
ADVICE = {"scan": SCAN_ADVICE, "selflabel": SELFLABEL_ADVICE}


# --- the clusters of an epoch --------------------------------------------------------------------


class Watch:
    """Figures of the clusters after each epoch, and a warning when something is wrong.

    Each trouble logs a warning once per run, when it begins, however often the run is stopped and resumed;
    the figures show how it develops. The troubles:

        dominant   one cluster of three or more holds more than half of the images, and twice its share
        dead       clusters are without an image
        uncovered  fewer than half of the clusters have a confident image, so the rest gets no pseudo-labels
        merged     clusters that were separate at the start, each of at least half the mean size, now have
                   most of their images in the same cluster

    Args:
        advice: dict trouble -> what to do; SCAN_ADVICE or SELFLABEL_ADVICE.
        threshold: confidence that makes a pseudo-label; None without pseudo-labels.
        start: int64 (N,), the images' clusters before the training; None if the training forms the clusters.
        patience: number of epochs at the start without warnings, while clusters form.
        history: function () -> list of dicts, the logged metrics of the earlier epochs; see Run.read_epochs.
    """

    def __init__(self, advice, threshold=None, start=None, patience=0, history=list):
        self.advice = advice
        self.threshold = threshold
        self.start = start
        self.patience = patience
        self.history = history
        self.warned = None  # set of troubles; read at the first call, after the run has resumed

    def __call__(self, epoch, probabilities):
        """Check the clusters after an epoch.

        Args:
            epoch: number of epochs done, for the warnings.
            probabilities: float (N, C), of the validation images.

        Returns:
            dict to log: `cluster_sizes`, C counts; `dead_clusters`, how many of them are 0;
            `mean_confidence`; with a threshold `confident_shares`, for each cluster the share of its images
            above it, 0 for a dead one; `warned_of`, the troubles of new warnings, if any.
        """
        if self.warned is None:
            self.warned = {trouble for line in self.history() for trouble in line.get("warned_of", ())}
        confidence, clusters = (part.cpu() for part in probabilities.float().max(1))
        c = probabilities.size(1)
        sizes = torch.bincount(clusters, minlength=c)
        dead = int((sizes == 0).sum())
        values = {
            "cluster_sizes": sizes.tolist(),
            "dead_clusters": dead,
            "mean_confidence": confidence.mean().item(),
        }
        if self.threshold is not None:
            confident = confident_counts(confidence, clusters, c, self.threshold)
            shares = confident / sizes.clamp(min=1)
            values["confident_shares"] = [round(share, 4) for share in shares.tolist()]
        if not math.isfinite(values["mean_confidence"]):
            return values  # the network has diverged; the engine stops the run

        share, largest = sizes.max().item() / len(clusters), sizes.argmax().item()
        troubles = {}
        if is_dominant(sizes):
            troubles["dominant"] = (
                f"cluster {largest} of {c} takes {100 * share:.0f} % of the validation images"
            )
        if dead:
            troubles["dead"] = f"{dead} of {c} clusters are dead: no validation image is in them"
        if self.threshold is not None:
            covered = int((confident > 0).sum())
            if 2 * covered < c:
                troubles["uncovered"] = (
                    f"pseudo-labels cover few clusters: {covered} of {c} have a validation image of "
                    f"confidence above {self.threshold:g}"
                )
        if self.start is not None:
            groups = merged(self.start, clusters, c).items()
            if groups:
                shown = listed([f"{listed(group, 4)} are now in {now}" for now, group in groups], 10)
                troubles["merged"] = f"self-labeling merges clusters that were apart at its start: {shown}"
        new = [trouble for trouble in troubles if trouble not in self.warned and epoch > self.patience]
        for trouble in new:
            log.warning("epoch %d: %s; %s", epoch, troubles[trouble], self.advice[trouble])
        self.warned.update(new)
        return {**values, "warned_of": new} if new else values


def is_dominant(sizes):
    """Whether one of three or more clusters has more than half of the images, and twice its share.

    `sizes`: int64 (C,).
    """
    c = len(sizes)
    return c >= 3 and sizes.max().item() > max(0.5, 2 / c) * sizes.sum().item()


def merged(start, now, num_clusters):
    """Which clusters have merged.

    A cluster counts if it had at least half the mean size, and more than half of its images are now in the
    same cluster.

    Args:
        start, now: int64 (N,), the images' clusters before and after.
        num_clusters: of both.

    Returns:
        dict cluster now -> list of the two or more clusters at the start that are in it.
    """
    c = num_clusters
    table = torch.bincount(start * c + now, minlength=c * c).view(c, c)
    sizes = table.sum(1)
    most, place = table.max(1)
    counts = (2 * most > sizes) & (2 * sizes * c >= len(start))
    groups = {}
    for cluster in counts.nonzero().flatten().tolist():
        groups.setdefault(place[cluster].item(), []).append(cluster)
    return {cluster: group for cluster, group in sorted(groups.items()) if len(group) > 1}


def listed(things, limit=LISTED):
    """Text that lists things, of many only the first."""
    shown = ", ".join(map(str, things[:limit]))
    return shown if len(things) <= limit else f"{shown}, and {len(things) - limit} more"


# --- before self-labeling ------------------------------------------------------------------------


def confident_counts(confidence, clusters, num_clusters, threshold):
    """Images of each cluster whose confidence is above the threshold: float (N,), int64 (N,) -> (C,)."""
    return torch.bincount(clusters[confidence > threshold], minlength=num_clusters)


def require_confident(confidence, clusters, num_clusters, threshold):
    """Log how many training images give a pseudo-label, for each cluster.

    Args:
        confidence, clusters: float and int64 (N,), the training images' largest probability and its cluster.
        threshold: a confidence strictly above it makes a pseudo-label.

    Raises:
        UserError: no image does. If fewer than half of the clusters have one, there is a warning.
    """
    counts = confident_counts(confidence, clusters, num_clusters, threshold)
    n, confident, covered = len(confidence), int(counts.sum()), int((counts > 0).sum())
    if not confident:
        raise UserError(
            f"none of the {n} training images has a confidence above confidence_threshold {threshold:g}, the "
            f"highest is {confidence.max().item():.6f}, so there are no pseudo-labels to train on; "
            f"{SELFLABEL_ADVICE['uncovered']}"
        )
    log.info(
        f"{confident} of {n} training images ({100 * confident / n:.1f} %) have a confidence above "
        f"{threshold:g}; per cluster: {counted(counts)}"
    )
    if 2 * covered < num_clusters:
        log.warning(
            f"pseudo-labels cover few clusters: {covered} of {num_clusters} have a confident training image; "
            f"{SELFLABEL_ADVICE['uncovered']}"
        )


def counted(counts):
    """Text that lists an integer for each cluster, (C,), or summarizes them if there are many."""
    if len(counts) <= LISTED:
        return str(counts.tolist())
    return f"{counts.min()} to {counts.max()}, median {counts.median()}, {int((counts == 0).sum())} have none"
