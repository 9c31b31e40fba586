"""Is the clustering healthy? What can be told without labels, as numbers, warnings and refusals.

Nothing here changes a training; the refusal of `require_confident` comes before one.
"""

import logging
import math

import numpy as np
import torch

from errors import UserError

log = logging.getLogger(__name__)

LISTED = 50  # more clusters than this are summed up in messages, not listed

# trouble: what to do, the likeliest cause first
SCAN_ADVICE = {
    "dominant": "if one class has most of your images, leave it, or lower criterion_kwargs.entropy_weight; "
    "if not, train the pretext longer, or raise num_heads or criterion_kwargs.entropy_weight",
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


# --- the clusters of an epoch --------------------------------------------------------------------


class Watch:
    """The clusters' numbers of each epoch, and a warning when something is wrong with them.

    Each trouble logs a warning once per run, when it begins, however often the run is stopped and resumed;
    the numbers tell how it goes on. The troubles:

        dominant   one cluster of three or more holds more than half of the images, and twice its share
        dead       clusters without an image
        uncovered  fewer than half of the clusters have a confident image, so the others get no pseudo-labels
        merged     clusters that were apart at the start, each of at least half the mean size, have the
                   majority of their images in one and the same cluster now

    Args:
        advice: dict trouble -> what to do; SCAN_ADVICE or SELFLABEL_ADVICE.
        threshold: confidence that makes a pseudo-label; None where there are none.
        start: int64 (N,), the images' clusters before the training; None where clusters only form.
        patience: epochs at the start in which clusters may still form, without a warning.
        history: function () -> list of what was logged of the earlier epochs, dicts; see Run.read_epochs.
    """

    def __init__(self, advice, threshold=None, start=None, patience=0, history=list):
        self.advice = advice
        self.threshold = threshold
        self.start = start
        self.patience = patience
        self.history = history
        self.told = None  # the troubles; read at the first call, when a resumed run knows its epochs

    def __call__(self, epoch, probabilities):
        """Look at an epoch's clusters.

        Args:
            epoch: number of epochs done, for the warnings.
            probabilities: float (N, C), of the validation images.

        Returns:
            dict to log: `cluster_sizes`, C counts; `dead_clusters`, how many of them are 0;
            `mean_confidence`; with a threshold `confident_shares`, for each cluster the share of its images
            above it, 0 for a dead one; `warned_of`, the troubles that a warning was given of, if any.
        """
        if self.told is None:
            self.told = {trouble for line in self.history() for trouble in line.get("warned_of", ())}
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
            return values  # the network is broken, which is not the clusters' fault; the engine stops the run

        share, largest = sizes.max().item() / len(clusters), sizes.argmax().item()
        troubles = {}
        if c >= 3 and share > max(0.5, 2 / c):
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
        new = [trouble for trouble in troubles if trouble not in self.told and epoch > self.patience]
        for trouble in new:
            log.warning("epoch %d: %s; %s", epoch, troubles[trouble], self.advice[trouble])
        self.told.update(new)
        return {**values, "warned_of": new} if new else values


def merged(start, now, num_clusters):
    """The clusters of two assignments' first, int64 (N,) both, that share a cluster in the second.

    Only those count that hold at least half the mean cluster size and have more than half of their images
    in that cluster.

    Returns:
        dict cluster -> list of two or more of the first assignment's clusters.
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
    """The first of many things, for a line of text."""
    shown = ", ".join(map(str, things[:limit]))
    return shown if len(things) <= limit else f"{shown}, and {len(things) - limit} more"


# --- before self-labeling ------------------------------------------------------------------------


def confident_counts(confidence, clusters, num_clusters, threshold):
    """Images of each cluster whose confidence is above the threshold: float (N,), int64 (N,) -> (C,)."""
    return torch.bincount(clusters[confidence > threshold], minlength=num_clusters)


def require_confident(confidence, clusters, num_clusters, threshold):
    """Say how many training images give a pseudo-label, and of which clusters.

    Args:
        confidence, clusters: float and int64 (N,), the training images' largest probability and its cluster.
        threshold: confidence that makes a pseudo-label, strictly above.

    Raises:
        UserError: there is none. Few clusters with one log a warning.
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
        "%d of %d training images (%.1f %%) have a confidence above %g; per cluster: %s",
        *(confident, n, 100 * confident / n, threshold, counted(counts)),
    )
    if 2 * covered < num_clusters:
        log.warning(
            "pseudo-labels cover few clusters: %d of %d have a confident training image; %s",
            *(covered, num_clusters, SELFLABEL_ADVICE["uncovered"]),
        )


def counted(counts):
    """Integers (C,), one for each cluster, or their summary where there are many; for a line of text."""
    if len(counts) <= LISTED:
        return str(counts.tolist())
    return f"{counts.min()} to {counts.max()}, median {counts.median()}, {int((counts == 0).sum())} have none"


# --- the neighbors, before clustering ------------------------------------------------------------

# on the way from chance to 1, see neighbor_quality
MIN_MUTUAL, MIN_TRANSITIVE, MAX_NOBODYS = 0.1, 0.05, 0.5
SAMPLE = 1000  # images whose neighbors' neighbors are looked at
NEIGHBOR_ADVICE = "train the pretext longer, or check its augmentation and lower its optimizer_kwargs.lr"


def neighbor_quality(neighbors):
    """How much structure is in mined neighbors? Logs the figures and whether to go on; never stops a run.

    Where k neighbors of each of N images are drawn at random,

        a neighbor is mutual with probability                          c = k / (N - 1)
        a neighbor's neighbor is one's own, i.e. transitive, with      c, too
        an image is nobody's neighbor with                             z = (1 - c) ^ (N - 1), about e^-k

    and the verdict is "go" if the images are, on the way from there to 1, for

        mutual       at MIN_MUTUAL or more. Below are lists that are no nearest neighbors at all. All features
                     reach it, even noise (0.75 for k = 5), since similarity is symmetric.
        transitive   at MIN_TRANSITIVE or more. Below are features that say nothing of the images: normalised
                     noise of 128 dimensions is at 0.007 to 0.025 for k = 5 to 50 (10 000 images), digits'
                     pixels are at 0.3 to 0.5. A cluster is made of neighbors that know each other. Of a
                     single neighbor (k = 1) nothing can be told.
        nobody's     at MAX_NOBODYS or less. Above, most images are in no list but their own: the feature
                     space has collapsed, and everybody has the same few neighbors.

    so that neither N nor k matters much. The skewness of the in-degrees (about k^-1/2 at random) shows hubs,
    but is not judged, since it grows with N. "go" means that there is structure, not that it is the wanted
    one: that takes labels, or eyes.

    Args:
        neighbors: int64 (N, 1 + k) on the CPU; entries that are the image itself do not count, nor do, except
            for the transitive ones, repeated ones.

    Returns:
        dict: `mutual`, share of the neighbors; `transitive`, share of the neighbors of theirs, of SAMPLE
        images; `by_chance`, both at random; `nobodys`, share of the images that are nobody's neighbor;
        `in_degree_skewness`; and `verdict`, "go" or "no-go".

    1.28 million images with 50 neighbors take 7 seconds and 1 GB besides the neighbors (0.5 GB).
    """
    n = len(neighbors)
    itself, neighbors = np.arange(n)[:, None], neighbors.numpy()
    pairs = (itself * n + neighbors)[neighbors != itself]  # "i has j" as one number
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    degree = np.bincount(pairs % n, minlength=n)
    either = np.minimum(pairs, pairs % n * n + pairs // n)  # the same for "j has i": there twice if mutual
    either.sort()
    mutual = 2 * int(np.count_nonzero(either[1:] == either[:-1])) / max(1, len(pairs))
    transitive = _transitive(neighbors)
    nobodys = int(np.count_nonzero(degree == 0)) / n
    deviation = degree - degree.mean()
    skewness = float((deviation**3).mean() / max(1e-12, (deviation**2).mean()) ** 1.5)

    chance = len(pairs) / n / max(1, n - 1)
    lonely = (1 - chance) ** (n - 1)
    log.info(
        "neighbors: %.1f %% are mutual and %.1f %% transitive (by chance %.1f %%), %.1f %% of the images are "
        "nobody's (by chance %.1f %%), skewness of the in-degrees %.2f",
        *(100 * mutual, 100 * transitive, 100 * chance, 100 * nobodys, 100 * lonely, skewness),
    )
    wrong = None
    if _beyond(nobodys, lonely) > MAX_NOBODYS:
        wrong = "most images are nobody's neighbor, as if the features had collapsed"
    elif _beyond(mutual, chance) < MIN_MUTUAL:
        wrong = "hardly more of them are mutual than of random ones"
    elif neighbors.shape[1] > 2 and _beyond(transitive, chance) < MIN_TRANSITIVE:
        wrong = "an image's neighbors are hardly each other's, as if the features were noise"
    if wrong:
        log.warning("neighbors: no-go: %s; %s", wrong, NEIGHBOR_ADVICE)
    else:
        log.info("neighbors: go")
    return {
        "mutual": mutual,
        "transitive": transitive,
        "by_chance": chance,
        "nobodys": nobodys,
        "in_degree_skewness": skewness,
        "verdict": "no-go" if wrong else "go",
    }


def _beyond(share, chance):
    """How far a share is on the way from chance to 1; 0 where chance is 1 and nothing can be told."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def _transitive(neighbors):
    """Share of the neighbors' neighbors, the image and the neighbor itself apart, that are the image's."""
    found = possible = 0
    for i in np.unique(np.linspace(0, len(neighbors) - 1, SAMPLE).astype(np.int64)):
        own = neighbors[i][neighbors[i] != i]
        theirs = neighbors[own]  # (k, 1 + k)
        theirs = theirs[(theirs != own[:, None]) & (theirs != i)]
        found += int(np.isin(theirs, own).sum())
        possible += theirs.size
    return found / max(1, possible)
