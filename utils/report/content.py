"""What the report shows, as plain values: lists of images to look at, counts, and where labels disagree."""

import torch

from utils.analysis import calibration, metrics
from utils.analysis.calibration import UNSURE
from utils.analysis.plots import curves_of

SHOWN = 10_000  # images on the page at most
MOST, LEAST = 12, 6  # images of a cluster: the most and the least confident
BORDERLINE, GROUPS, PAIRS, OUTLIERS, WRONG = 120, 60, 60, 40, 60  # images in lists, at most
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
    most, least = max(1, min(MOST, SHOWN // 4 // c)), min(LEAST, SHOWN // 8 // c)
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
    table = (found["cluster"][:, None] * c + theirs).flatten().bincount(minlength=c * c).view(c, c)
    shares = (table / table.sum(1, keepdim=True).clamp(min=1)).fill_diagonal_(0)
    pairs, seen = [], set()
    for place in shares.flatten().argsort(descending=True, stable=True).tolist():
        a, b = divmod(place, c)
        share = shares[a, b].item()
        if share < MERGEABLE or len(pairs) == MERGEABLE_PAIRS:
            break
        if (b, a) in seen:
            continue
        seen.add((a, b))
        across = torch.zeros(len(theirs), dtype=torch.int64)
        for own, other in ((a, b), (b, a)):
            mask = found["cluster"] == own
            across[mask] = (theirs[mask] == other).sum(1)
        between = across.argsort(descending=True, stable=True)[:BETWEEN]
        where = f"the {k} nearest neighbors of cluster {a}'s images are in cluster {b}"
        pairs.append({
            "clusters": [a, b],
            "share": share,
            "text": f"{100 * share:.0f} % of {where}.",
            "between": between[across[between] > 0].tolist(),
            "most": [clusters[a]["most"][:4], clusters[b]["most"][:4]],
        })  # fmt: skip
    return pairs


def copies(found):
    """Groups of images with the same content, the largest first."""
    groups = {}
    for index in (found["copy_of"] >= 0).nonzero().flatten().tolist():
        groups.setdefault(found["copy_of"][index].item(), []).append(index)
    groups = [[first, *others][:GROUPS] for first, others in groups.items()]
    return sorted(groups, key=len, reverse=True)[:GROUPS]


def near_duplicates(found):
    """Pairs of nearly equal images with their similarity, the highest first."""
    indices, similarity = found["near_duplicate_of"], found["near_duplicate_similarity"]
    order = similarity.argsort(descending=True, stable=True)
    order = order[indices[order] >= 0][:PAIRS].tolist()
    return [[indices[i].item(), i, similarity[i].item()] for i in order]


def outliers(found):
    """The images least similar to their neighbors, with that similarity."""
    similarity = found["neighbor_similarity"]
    return [[i, similarity[i].item()] for i in similarity.argsort(stable=True)[:OUTLIERS].tolist()]


def curves(epochs):
    """The training curves of several steps; `epochs`: dict step -> logged lines, see Run.read_epochs."""
    return [
        {"step": step, "name": name, "points": points}
        for step, lines in epochs.items()
        for name, points in curves_of(lines).items()
    ]


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
    note = ""
    if c != len(classes):
        names["majority_vote_acc"] = "ACC by majority vote"
        note = f"{c} clusters for {len(classes)} classes: ACC is after one-to-one matching."
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
        "note": note,
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
