"""What the report shows, as plain values: lists of images to look at, counts, and where labels disagree."""

import math

import torch

from utils.analysis import calibration, metrics
from utils.analysis.calibration import UNSURE
from utils.analysis.plots import curves_of

from .rows import copies_of
from .words import percent

SHOWN = 10_000  # images on the page at most
MOST, LEAST = 12, 6  # images of a cluster: the most and the least confident
BORDERLINE, GROUPS, GROUP, PAIRS, OUTLIERS, WRONG = 120, 60, 12, 60, 40, 60  # in lists, at most
MERGEABLE, BETWEEN = 0.1, 8  # share of neighbors in another cluster; images shown between two clusters
MERGEABLE_PAIRS = 12
BINS = 20  # of the histograms of confidence


def clusters_of(found, prototypes):
    """A dict for each cluster: its size, how confident the model is, and images to show.

    Args:
        found: see rows.describe.
        prototypes: list of C image indices, None for an empty cluster.
    """
    c = len(prototypes)
    most, least = min(MOST, SHOWN // 4 // c), min(LEAST, SHOWN // 8 // c)
    for cluster, prototype in enumerate(prototypes):
        members = (found["cluster"] == cluster).nonzero().squeeze(1)
        confidence, order = found["confidence"][members].sort(descending=True, stable=True)
        ranked = members[order].tolist()
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        yield {
            "cluster": cluster,
            "size": len(members),
            "confidence": confidence.mean().item() if len(members) else None,
            "unsure": int((confidence < UNSURE).sum()),
            "prototype": prototype,
            "histogram": bins.bincount(minlength=BINS).tolist(),
            "most": ranked[:most],
            "least": ranked[most:][::-1][:least],
        }


def borderline(found):
    """The unsure images, those between two clusters first."""
    margin = found["confidence"] - found["runner_up_confidence"]
    order = margin.argsort(stable=True)
    return order[found["confidence"][order] < UNSURE][:BORDERLINE].tolist()


def mergeable(found, clusters):
    """Pairs of clusters of which one has many of its images' neighbors in the other, most first.

    Returns:
        list of dicts: `clusters` (a, b), `share` of the neighbors of a's images that are in b, `text`,
        `between`: images of either with most neighbors in the other, and `most` of both clusters.
    """
    c, k = len(clusters), found["neighbors"].size(1)
    theirs = found["cluster"][found["neighbors"]]  # (N, k)
    pairs, counts = (found["cluster"][:, None] * c + theirs).unique(return_counts=True)
    sizes = k * found["cluster"].bincount(minlength=c)
    shares = sorted(
        (
            (count / sizes[pair // c].item(), divmod(pair, c))
            for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
        ),
        key=lambda entry: (-entry[0], entry[1]),
    )
    best = {}
    for share, (a, b) in shares:
        if a != b and share >= MERGEABLE and (b, a) not in best:
            best[a, b] = share
    shown = list(best.items())[:MERGEABLE_PAIRS]
    return [_pair(found, clusters, theirs, *pair, share) for pair, share in shown]


def _pair(found, clusters, theirs, a, b, share):
    across = torch.zeros(len(theirs), dtype=torch.int64)
    for own, other in ((a, b), (b, a)):
        mask = found["cluster"] == own
        across[mask] = (theirs[mask] == other).sum(1)
    between = across.argsort(descending=True, stable=True)[:BETWEEN]
    where = f"Of the images most similar to those of cluster {a}, {percent(share)} are in cluster {b}"
    return {
        "clusters": [a, b],
        "share": share,
        "text": f"{where} ({theirs.size(1)} for each image).",
        "between": between[across[between] > 0].tolist(),
        "most": [clusters[a]["most"][:4], clusters[b]["most"][:4]],
    }


def copies(found):
    """Groups of images with the same content, the largest first, each cut to GROUP images."""
    groups = {}
    for index in (copies_of(found) >= 0).nonzero().flatten().tolist():
        first = found["first"][index].item()
        groups.setdefault(first, [first]).append(index)
    groups = sorted(groups.values(), key=len, reverse=True)
    return [group[:GROUP] for group in groups[:GROUPS]]


def near_duplicates(found):
    """Pairs of nearly equal images with their similarity, the highest first."""
    indices, similarity = found["near_duplicate_of"], found["near_duplicate_similarity"]
    order = similarity.argsort(descending=True, stable=True)
    order = order[indices[order] >= 0][:PAIRS].tolist()
    return [[indices[i].item(), i, similarity[i].item()] for i in order]


def outliers(found):
    """The images least similar to their neighbors, with that similarity."""
    if not found["neighbors"].size(1):
        return []
    similarity = found["neighbor_similarity"]
    return [[i, similarity[i].item()] for i in similarity.argsort(stable=True)[:OUTLIERS].tolist()]


def curves(epochs):
    """The training curves of several steps; `epochs`: dict step -> logged lines, see Run.read_epochs."""
    found = []
    for step, lines in epochs.items():
        for name, points in curves_of(lines).items():
            finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
            found.append({"step": step, "name": name, "points": finite})
    return found


def compare(found, figures, labels, classes, what):
    """What labels say: figures, confusion matrix, and the most confident images of another class.

    Args:
        figures: see metrics.clustering_metrics; and `cluster_sizes`.
        labels: int64 (N,), -1 for an image without one.
        classes: list of names.
        what: where the labels come from, for the page.

    Returns:
        dict for the page, and dict cluster -> its class: the matched one, or, for a cluster without, that of
        most of its images.
    """
    c = len(figures["cluster_sizes"])
    labeled = labels >= 0
    clusters, truth = found["cluster"][labeled].numpy(), labels[labeled].numpy()
    table = metrics.contingency(clusters, truth, c, len(classes))
    class_of = {cluster: int(row.argmax()) for cluster, row in enumerate(table) if row.any()}
    class_of |= dict(figures["matches"])
    matrix, columns = metrics.confusion_matrix(clusters, truth, figures["matches"], c, len(classes))
    expected = torch.tensor([class_of.get(cluster, -1) for cluster in range(c)])[found["cluster"]]
    order = found["confidence"].argsort(descending=True, stable=True)
    wrong = order[(labeled & (expected != labels))[order]][:WRONG].tolist()
    right = calibration.correct(
        found["cluster"][labeled], labels[labeled], figures["matches"], c, len(classes)
    )
    names = {"acc": "ACC", "nmi": "NMI", "ari": "ARI"}
    notes = []
    if not labeled.all():
        notes.append(
            f"{int(labeled.sum()):,} of the {len(labels):,} images have a class; the others do not count."
        )
    if c != len(classes):
        names["majority_vote_acc"] = "ACC by majority vote"
        notes.append(f"{c} clusters for {len(classes)} classes: ACC is after one-to-one matching.")
    page = {
        "what": what,
        "classes": classes,
        "figures": [
            *([name, f"{100 * figures[key]:.1f} %"] for key, name in names.items()),
            *trust(found["confidence"][labeled], right),
        ],
        "columns": ["none" if cluster is None else str(cluster) for cluster in columns],
        "matrix": [[round(share, 4) for share in row] for row in matrix.tolist()],
        "wrong": [[i, f"{classes[labels[i]]}, not {classes[expected[i]]}"] for i in wrong],
        "note": " ".join(notes),
    }
    return page, class_of


def trust(confidence, right):
    """Whether confidence can be believed, for the page: list of [name, value], see calibration.correct."""
    error = calibration.expected_calibration_error(confidence, right)
    yield ["expected calibration error", f"{100 * error:.1f} %"]
    whose = f"sure images (≥ {UNSURE}) that are right", "other images that are right"
    for name, (_, accuracy) in zip(whose, calibration.sure_and_unsure(confidence, right), strict=True):
        if accuracy is not None:
            yield [name, f"{100 * accuracy:.1f} %"]


def with_rows(content, row):
    """`content` with `row(index)` in the place of each index of an image."""

    def changed(value):
        if isinstance(value, list):
            return [changed(entry) for entry in value]
        return row(value) if isinstance(value, int) else value  # beside indices there are floats and texts

    def lists(part, *names):
        return {**part, **{name: changed(part[name]) for name in names}}

    return {
        **lists(content, "borderline", "copies", "near", "outliers"),
        "clusters": [lists(cluster, "prototype", "most", "least") for cluster in content["clusters"]],
        "pairs": [lists(pair, "between", "most") for pair in content["pairs"]],
        "labels": content["labels"] and lists(content["labels"], "wrong"),
    }


def choose_sample(n, content, seed=0):
    """Indices of the images on the page, in order: all N, or SHOWN of them, with all that `content` lists."""
    if n <= SHOWN:
        return torch.arange(n)
    rank = torch.rand(n, generator=torch.Generator().manual_seed(seed))

    def prefer(index):
        rank[index] = -1
        return index

    with_rows(content, prefer)
    return rank.argsort(stable=True)[:SHOWN].sort().values
