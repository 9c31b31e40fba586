"""Do mined neighbors have structure? A check before clustering, without using labels."""

import logging
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

# of the verdict, on a scale where chance is 0, see `_beyond`
MIN_MUTUAL, MIN_TRANSITIVE, MAX_ANTIHUBS = 0.1, 0.05, 0.5
TRANSITIVE_SAMPLE = 1000  # images whose neighbors' neighbors are examined
NEIGHBOR_ADVICE = "train the pretext longer, or check its augmentation and lower its optimizer_kwargs.lr"


def neighbor_quality(neighbors: torch.Tensor) -> dict[str, Any]:
    """How much structure do mined neighbors have? Logs the figures and a verdict; never stops a run.

    Three shares are compared with those of neighbors drawn at random, see `_beyond`: mutual and transitive
    neighbors, and antihubs, which are in no other image's list. docs/RUNS.md explains the verdict.

    Args:
        neighbors: on the CPU. Repeated entries are ignored, except in the transitive share.

    Returns:
        dict: `mutual`, share of the neighbors; `transitive`, share of the neighbors' neighbors, of
        TRANSITIVE_SAMPLE images; `by_chance`, either at random; `nobodys`, share of the images that are
        antihubs; `in_degree_skewness`; and `verdict`, "go" or "no-go".
    """
    n = len(neighbors)
    itself, table = np.arange(n)[:, None], neighbors.numpy()
    pairs = (itself * n + table)[table != itself]  # "j is a neighbor of i" as one number
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    degree = np.bincount(pairs % n, minlength=n)
    either = np.minimum(pairs, pairs % n * n + pairs // n)  # the same number for (i, j) and (j, i)
    either.sort()
    mutual = 2 * int(np.count_nonzero(either[1:] == either[:-1])) / max(1, len(pairs))
    transitive = _transitive(table)
    antihubs = int(np.count_nonzero(degree == 0)) / n
    deviation = degree - degree.mean()
    skewness = float((deviation**3).mean() / max(1e-12, (deviation**2).mean()) ** 1.5)

    chance = len(pairs) / n / max(1, n - 1)
    antihubs_by_chance = (1 - chance) ** (n - 1)
    log.info(
        f"neighbors: {100 * mutual:.1f} % are mutual and {100 * transitive:.1f} % transitive (by chance "
        f"{100 * chance:.1f} %), {100 * antihubs:.1f} % of the images are neighbors of none (by chance "
        f"{100 * antihubs_by_chance:.1f} %), skewness of the in-degrees {skewness:.2f}"
    )
    wrong = None
    if _beyond(antihubs, antihubs_by_chance) > MAX_ANTIHUBS:
        wrong = "most images are no other image's neighbor, as if the features had collapsed"
    elif _beyond(mutual, chance) < MIN_MUTUAL:
        wrong = "hardly more are mutual than by chance"
    elif table.shape[1] > 2 and _beyond(transitive, chance) < MIN_TRANSITIVE:
        wrong = "an image's neighbors are hardly each other's, as if the features were noise"
    if wrong:
        log.warning("neighbors: no-go: %s; %s", wrong, NEIGHBOR_ADVICE)
    else:
        log.info("neighbors: go")
    return {
        "mutual": mutual,
        "transitive": transitive,
        "by_chance": chance,
        "nobodys": antihubs,
        "in_degree_skewness": skewness,
        "verdict": "no-go" if wrong else "go",
    }


def _beyond(share: float, chance: float) -> float:
    """A share on a scale where chance is 0 and the maximum 1; 0 if chance is 1, which means nothing."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def _transitive(neighbors: np.ndarray) -> float:
    """Share of the neighbors' neighbors, except the image and the neighbor, that are the image's own."""
    found = possible = 0
    for i in np.unique(np.linspace(0, len(neighbors) - 1, TRANSITIVE_SAMPLE).astype(np.int64)):
        own = neighbors[i][neighbors[i] != i]
        theirs = neighbors[own]  # (k, 1 + k)
        theirs = theirs[(theirs != own[:, None]) & (theirs != i)]
        found += int(np.isin(theirs, own).sum())
        possible += theirs.size
    return found / max(1, possible)
