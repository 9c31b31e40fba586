"""Can the clusters be trusted? What can be said without labels, in plain words."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from utils.analysis import health
from utils.analysis.calibration import UNSURE_BELOW

from .words import percent

MANY_UNSURE = 0.3
MOST_UNSURE = 3  # clusters that are named
HIGH_AGREEMENT, LOW_AGREEMENT = 0.8, 0.5  # share of the images on which another method agrees
PROBLEMS = {  # of self-labeling
    "uncovered": "During self-labeling, most clusters had no confident image.",
    "merged": "Self-labeling merged clusters that were separate before.",
}
# of groups.find_groups: level, text, and what to do
GROUP_VERDICTS = {
    "groups": ("good", "The features show groups: few images are between them.", ""),
    "unclear": (
        "warning",
        "The features do not show clear groups: hardly fewer images are between the clusters than in them.",
        "Look at the borderline images: the clusters may be kinds of things, or parts of one kind.",
    ),
    "series": (
        "warning",
        "The features show a series, in which each image is like the next, more than groups.",
        "Take the clusters as sections of the series; where one ends and the next begins means little.",
    ),
    "none": (
        "bad",
        "The features show no groups: a cloud without groups of the same spread would look like this.",
        "If the images are of different kinds, use other features (another --backbone, or --from-scratch of "
        "cluster.py); if they are of one kind, the clusters are only parts of it.",
    ),
}
BASELINES = {"kmeans": "k-means", "ward": "Ward's linkage"}


class Verdict(NamedTuple):
    level: str  # "good", "note", "warning" or "bad"
    text: str
    advice: str = ""  # what to do about it


def verdicts(figures: dict[str, Any], advice: dict[str, str]) -> list[Verdict]:
    """Judge a clustering.

    Args:
        figures: as in metrics.json: `neighbors` (see neighbor_quality), what `Assignment.figures` returns;
            and, if known, `groups` (see groups.find_groups), `troubles` of the training (names, see
            health.ClusterMonitor) and `agreement` (see baselines.measure_agreement).
        advice: problem -> what to do about it, see health.advice_for.
    """
    return [
        *_features(figures), *_clusters(figures, advice), *_baselines(figures), *_copies(figures),
    ]  # fmt: skip


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _features(figures: dict[str, Any]) -> Iterator[Verdict]:
    groups = (figures.get("groups") or {}).get("verdict")
    if figures["neighbors"]["by_chance"] >= 1 or groups == "few":
        yield Verdict("note", "There are too few images to judge the features.")
    elif figures["neighbors"]["verdict"] != "go":
        yield Verdict(
            "bad",
            "The features show hardly any groups in these images. Clusters of such features cannot be good.",
            "Use other features: another --backbone or --from-scratch of cluster.py, or train the pretext "
            "longer.",
        )
    elif groups:
        yield Verdict(*GROUP_VERDICTS[groups])
    else:  # learned together with the clusters, so that they would show groups anyway
        yield Verdict(
            "good", "Near images are alike: an image's nearest neighbors are often each other's neighbors."
        )


def _clusters(figures: dict[str, Any], advice: dict[str, str]) -> Iterator[Verdict]:
    sizes, troubles = torch.tensor(figures["cluster_sizes"]), figures.get("troubles", ())
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        which = f"cluster {empty[0]} is" if len(empty) == 1 else f"clusters {health.join_some(empty, 10)} are"
        yield Verdict("warning", f"{which.capitalize()} empty.", _sentence(advice["dead"]))
    if health.is_dominant(sizes):
        share = percent(sizes.max().item() / sizes.sum().item())
        text = f"Cluster {sizes.argmax().item()} holds {share} of the images."
        yield Verdict("warning", text, _sentence(advice["dominant"]))
    if not empty and not health.is_dominant(sizes):
        smallest, largest = sizes.min().item(), sizes.max().item()
        range_ = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        yield Verdict("good", f"All clusters are in use: {range_} images each.")
    for problem, text in PROBLEMS.items():
        if problem in troubles:
            yield Verdict("warning", text, _sentence(advice[problem]))
    share = percent(figures["unsure"])
    unsure = f"The model is unsure of {share} of the images (confidence below {UNSURE_BELOW:g})"
    if figures["unsure"] > MANY_UNSURE:
        shares = sorted(enumerate(figures["unsure_by_cluster"]), key=lambda entry: -entry[1])
        worst = [f"{cluster} ({percent(share)})" for cluster, share in shares[:MOST_UNSURE]]
        look = (
            f"Most unsure are clusters {', '.join(worst)}. Look at the borderline images. If both candidates "
            "are the same kind of thing, use fewer clusters (--clusters, or num_classes); if neither fits, "
            "use more."
        )
        yield Verdict("warning", f"{unsure}.", look)
    else:
        yield Verdict("good", f"{unsure}. A confident model can still be wrong: look at the clusters.")


def _baselines(figures: dict[str, Any]) -> Iterator[Verdict]:
    for name, agreement in figures.get("agreement", {}).items():
        share = agreement["matched"]
        text = f"{BASELINES[name]} on the same features agrees for {percent(share)} of the images."
        level, advice = "good", ""
        if share < LOW_AGREEMENT:
            level, advice = (
                "warning",
                "The images can be grouped in several ways. Compare other numbers of clusters.",
            )
        elif share < HIGH_AGREEMENT:
            advice = "Look at the images where it disagrees (columns of clusters.csv)."
        yield Verdict(level, text[0].upper() + text[1:], advice)


def _copies(figures: dict[str, Any]) -> Iterator[Verdict]:
    counts = {"exact copies of others": figures["copy"], "near duplicates": figures["near_duplicate"]}
    found = [f"{name}: {count:,}" for name, count in counts.items() if count]
    if found:
        text = f"Some images occur more than once ({', '.join(found)})."
        yield Verdict("note", text, "All numbers count them as separate images.")
