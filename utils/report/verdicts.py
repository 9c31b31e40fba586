"""Can the clusters be trusted? What can be said without labels, in plain words."""

import torch

from utils.analysis import health
from utils.analysis.calibration import UNSURE

from .words import percent

MANY_UNSURE = 0.3
WORST = 3  # clusters that are named
ALIKE, UNLIKE = 0.8, 0.5  # share of the images on which another method agrees
OTHERS = {"kmeans": "k-means", "ward": "Ward's linkage", "umap": "k-means after UMAP"}


def verdicts(figures, advice):
    """Judge a clustering.

    Args:
        figures: dict with `cluster_sizes`, `neighbors` (see neighbor_quality), what `rows.figures_of`
            returns; and, if known, `troubles` of the training (names, see health.Watch) and `agreement` (see
            second_opinions.compare).
        advice: dict trouble -> what to do, health.SCAN_ADVICE or SELFLABEL_ADVICE.

    Returns:
        list of dicts: `level`, "good", "note", "warning" or "bad"; `text`; `advice`, what to do,
        or "".
    """
    return [*_features(figures), *_clusters(figures, advice), *_opinions(figures), *_copies(figures)]


def _verdict(level, text, advice=""):
    return {"level": level, "text": text, "advice": advice}


def _sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def _features(figures):
    if figures["neighbors"]["by_chance"] >= 1:
        yield _verdict("note", "There are too few images to judge the features.")
    elif figures["neighbors"]["verdict"] == "go":
        yield _verdict(
            "good", "The features show groups: an image's nearest neighbors are often each other's neighbors."
        )
    else:
        yield _verdict(
            "bad",
            "The features show hardly any groups in these images, so that no clusters can be good.",
            "Take other features: another --backbone or --from-scratch of cluster.py, or train the pretext "
            "longer.",
        )


def _clusters(figures, advice):
    sizes, troubles = torch.tensor(figures["cluster_sizes"]), figures.get("troubles", ())
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        which = f"cluster {empty[0]} is" if len(empty) == 1 else f"clusters {health.listed(empty, 10)} are"
        yield _verdict("warning", f"{which.capitalize()} empty.", _sentence(advice["dead"]))
    if health.is_dominant(sizes):
        share = percent(sizes.max().item() / sizes.sum().item())
        text = f"Cluster {sizes.argmax().item()} holds {share} of the images."
        yield _verdict("warning", text, _sentence(advice["dominant"]))
    if not empty and not health.is_dominant(sizes):
        smallest, largest = sizes.min().item(), sizes.max().item()
        range_ = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        yield _verdict("good", f"All clusters are in use: {range_} images each.")
    if "uncovered" in troubles:
        text = "Self-labeling had no confident image in most clusters to start from."
        yield _verdict("warning", text, _sentence(advice["uncovered"]))
    if "merged" in troubles:
        text = "Self-labeling merged clusters that were apart before it."
        yield _verdict("warning", text, _sentence(advice["merged"]))
    share = percent(figures["unsure"])
    unsure = f"The model is unsure of {share} of the images (confidence below {UNSURE:g})"
    if figures["unsure"] > MANY_UNSURE:
        shares = sorted(enumerate(figures["unsure_by_cluster"]), key=lambda entry: -entry[1])
        worst = [f"{cluster} ({percent(share)})" for cluster, share in shares[:WORST]]
        look = (
            f"Most so in clusters {', '.join(worst)}. Look at the borderline images: where both candidates "
            "are the same sort, give fewer clusters (--clusters, or num_classes); where neither fits, more."
        )
        yield _verdict("warning", f"{unsure}.", look)
    else:
        yield _verdict("good", f"{unsure}. Confidence is not correctness: look at the clusters.")


def _opinions(figures):
    for name, agreement in figures.get("agreement", {}).items():
        share = agreement["matched"]
        text = f"{OTHERS[name]} of the same features agrees on {percent(share)} of the images."
        level = "warning" if share < UNLIKE else "good"
        advice = ""
        if share < UNLIKE:
            advice = "The images can be grouped in several ways: compare other numbers of clusters."
        elif share < ALIKE:
            advice = "Where it disagrees (columns of clusters.csv) a person should look."
        yield _verdict(level, text[0].upper() + text[1:], advice)


def _copies(figures):
    copies, near = figures["copy"], figures["near_duplicate"]
    counts = {"exact copies of others": copies, "near duplicates": near}
    found = [f"{name}: {count:,}" for name, count in counts.items() if count]
    if found:
        text = f"Some images are there more than once ({', '.join(found)})."
        yield _verdict("note", text, "They count as images in all numbers.")
