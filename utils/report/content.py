"""What the report shows, as plain values: lists of images to look at, counts, and where labels disagree."""

import datetime
import hashlib
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from utils.analysis import calibration, duplicates, metrics
from utils.analysis.calibration import UNSURE_BELOW
from utils.analysis.neighbors import without_itself

from .assignment import Assignment, mine_for_report
from .context import GroundTruth, ReportContext, told
from .verdicts import verdicts
from .words import percent

# The most entries of each list
MAX_IMAGES = 10_000  # on the page
MOST, LEAST = 12, 6  # images of a cluster: the most and the least confident
BORDERLINE, PAIRS, OUTLIERS, WRONG = 120, 60, 40, 60
COPY_GROUPS, COPIES = 60, 12  # groups of copies; images in each
MERGEABLE_PAIRS, BETWEEN = 12, 8  # pairs of clusters; images shown between them

MERGEABLE = 0.1  # share of neighbors in another cluster
HISTOGRAM_BINS = 20  # of confidence

# by whether labels had a part in the features: True, False, or None if that is unknown
HOW_FOUND = {
    True: "found without labels, by features that were learned with labels",
    False: "found without labels",
    None: "found without labels; it is unknown whether the features were learned with labels",
}


def page_head(
    names: list[str], assignment: Assignment, figures: dict[str, Any], context: ReportContext
) -> dict[str, Any]:
    """What the page says about all images."""
    levels = [level["of_cluster"] for level in figures.get("levels", [])[:-1]]
    sizes = figures["cluster_sizes"]
    return {
        "title": context.title,
        "how": HOW_FOUND[figures.get("labels_in_pretraining", False)],
        "results": None if context.results is None else shlex.quote(told(context.results)),
        "clustering": context.clustering,
        "names": context.names,
        "id": hashlib.sha256(repr((names, assignment.cluster.tolist())).encode()).hexdigest()[:16],
        "made": datetime.date.today().isoformat(),
        "about": [
            [term, value.name if isinstance(value, Path) else str(value)]
            for term, value in context.facts.items()
        ],
        "num_images": len(names),
        "num_copies": figures["copy"],
        "num_near": figures["near_duplicate"],
        "unsure": {"below": UNSURE_BELOW, "count": int((assignment.confidence < UNSURE_BELOW).sum())},
        "verdicts": [verdict._asdict() for verdict in verdicts(figures, context.advice)],
        "folder": context.image_url,
        "groups": grouped(list(range(len(sizes))), levels, sizes) if levels else [],
        "numbers": figures.get("numbers"),
    }


def grouped(clusters: list[int], levels: list[list[int]], sizes: list[int]) -> list[Any]:
    """Clusters as a tree: of each group of `levels[0]` its `number`, `size`, and `members`."""
    if not levels:
        return clusters
    groups: dict[int, list[int]] = {}
    for cluster in clusters:
        groups.setdefault(levels[0][cluster], []).append(cluster)
    return [
        {"number": number, "size": sum(sizes[c] for c in of), "members": grouped(of, levels[1:], sizes)}
        for number, of in sorted(groups.items())
    ]


def page_lists(assignment: Assignment, figures: dict[str, Any], context: ReportContext) -> dict[str, Any]:
    """The lists of the page, with indices of all images."""
    clusters = cluster_cards(assignment, figures["prototypes"], context.columns.get("part"))
    compared, truth = None, context.truth
    if truth:
        compared, class_of = compare_with_labels(assignment, figures, truth)
        for cluster, class_index in class_of.items():
            clusters[cluster]["name"] = truth.classes[class_index]
    return {
        "clusters": clusters,
        "borderline": borderline(assignment),
        "pairs": mergeable(assignment, clusters),
        "copies": copy_groups(assignment),
        "near": near_duplicate_pairs(assignment),
        "outliers": outliers(assignment),
        "labels": compared,
    }


def cluster_cards(
    assignment: Assignment, prototypes: list[int | None], part: list[int] | None = None
) -> list[dict[str, Any]]:
    """A dict for each of C clusters: its size, how confident the model is, and images to show.

    Args:
        prototypes: C image indices, None for an empty cluster.
        part: of each image, 0 or 1: which of its cluster's two finer parts it is in, if that is known.
    """
    c = len(prototypes)
    most, least = min(MOST, MAX_IMAGES // 4 // c), min(LEAST, MAX_IMAGES // 8 // c)
    cards = []
    for cluster, prototype in enumerate(prototypes):
        members = (assignment.cluster == cluster).nonzero().squeeze(1)
        confidence, order = assignment.confidence[members].sort(descending=True, stable=True)
        ranked = members[order].tolist()
        second = sum(part[index] for index in ranked) if part else 0
        bins = (confidence * HISTOGRAM_BINS).long().clamp(max=HISTOGRAM_BINS - 1)
        cards.append(
            {
                "cluster": cluster,
                "name": None,
                "size": len(members),
                "parts": [len(members) - second, second],
                "confidence": confidence.mean().item() if len(members) else None,
                "unsure": int((confidence < UNSURE_BELOW).sum()),
                "prototype": prototype,
                "histogram": bins.bincount(minlength=HISTOGRAM_BINS).tolist(),
                "most": ranked[:most],
                "least": ranked[most:][::-1][:least],
            }
        )
    return cards


def borderline(assignment: Assignment) -> list[int]:
    """The unsure images, those between two clusters first."""
    margin = assignment.confidence - assignment.runner_up_confidence
    order = margin.argsort(stable=True)
    return order[assignment.confidence[order] < UNSURE_BELOW][:BORDERLINE].tolist()


def mergeable(assignment: Assignment, clusters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of clusters that share many neighbors, those that share most first.

    Returns:
        list of dicts: `clusters` (a, b), `share` of the neighbors of a's images that are in b, `text`,
        `between`: images of either with most neighbors in the other, and `most` of both clusters.
    """
    c, k = len(clusters), assignment.neighbors.size(1)
    theirs = assignment.cluster[assignment.neighbors]  # (N, k)
    pairs, counts = (assignment.cluster[:, None] * c + theirs).unique(return_counts=True)  # sorted
    sizes = k * assignment.cluster.bincount(minlength=c)
    shares = (counts.double() / sizes[pairs // c]).tolist()
    found: dict[tuple[int, int], float] = {}
    for share, pair in sorted(zip(shares, pairs.tolist(), strict=True), key=lambda entry: -entry[0]):
        a, b = divmod(pair, c)
        if a != b and share >= MERGEABLE and (b, a) not in found:
            found[a, b] = share
    shown = list(found.items())[:MERGEABLE_PAIRS]
    return [_pair(assignment, clusters, theirs, *pair, share) for pair, share in shown]


def _pair(
    assignment: Assignment, clusters: list[dict[str, Any]], theirs: torch.Tensor, a: int, b: int, share: float
) -> dict[str, Any]:
    across = torch.zeros(len(theirs), dtype=torch.int64)
    for own, other in ((a, b), (b, a)):
        mask = assignment.cluster == own
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


def copy_groups(assignment: Assignment) -> list[list[int]]:
    """Groups of images with the same content, the largest group first."""
    groups: dict[int, list[int]] = {}
    for index in (assignment.copy_of >= 0).nonzero().flatten().tolist():
        first = int(assignment.first[index])
        groups.setdefault(first, [first]).append(index)
    largest = sorted(groups.values(), key=len, reverse=True)
    return [group[:COPIES] for group in largest[:COPY_GROUPS]]


def near_duplicate_pairs(assignment: Assignment) -> list[list[Any]]:
    """Pairs of nearly equal images with their similarity, the highest first."""
    indices, similarity = assignment.near_duplicate_of, assignment.near_duplicate_similarity
    order = similarity.argsort(descending=True, stable=True)
    order = order[indices[order] >= 0][:PAIRS]
    return [[indices[i].item(), i, similarity[i].item()] for i in order.tolist()]


def outliers(assignment: Assignment) -> list[list[Any]]:
    """The images most unlike the others, with the share of those that are less so."""
    if not assignment.neighbors.size(1):
        return []
    order = assignment.unlike.argsort(descending=True, stable=True)[:OUTLIERS]
    return [[i, assignment.unlike[i].item() / 100] for i in order.tolist()]


def compare_with_labels(
    assignment: Assignment, figures: dict[str, Any], truth: GroundTruth
) -> tuple[dict[str, Any], dict[int, int]]:
    """What labels say: figures, confusion matrix, and the most confident images of another class.

    Args:
        figures: see metrics.clustering_metrics; and `cluster_sizes`.

    Returns:
        dict for the page, and dict cluster -> its class: the matched one; for a cluster without a match, the
        class of most of its images.
    """
    labels, classes, matches = truth.labels, truth.classes, figures["matches"]
    c, labeled = len(figures["cluster_sizes"]), truth.labels >= 0
    clusters, known = assignment.cluster[labeled], labels[labeled]
    table = metrics.contingency(clusters.numpy(), known.numpy(), c, len(classes))
    class_of = {cluster: int(row.argmax()) for cluster, row in enumerate(table) if row.any()}
    class_of |= dict(matches)
    matrix, columns = metrics.confusion_matrix(table, matches)
    expected = torch.tensor([class_of.get(cluster, -1) for cluster in range(c)])[assignment.cluster]
    order = assignment.confidence.argsort(descending=True, stable=True)
    wrong = order[(labeled & (expected != labels))[order]][:WRONG].tolist()
    right = calibration.judged_class(table, matches)[clusters] == known
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
        "what": truth.source,
        "classes": classes,
        "figures": [
            *([name, f"{100 * figures[key]:.1f} %"] for key, name in names.items()),
            *_calibration_figures(assignment.confidence[labeled], right),
        ],
        "columns": ["none" if cluster is None else str(cluster) for cluster in columns],
        "matrix": [[round(share, 4) for share in row] for row in matrix.tolist()],
        "wrong": [[i, f"{classes[labels[i]]}, not {classes[expected[i]]}"] for i in wrong],
        "note": " ".join(notes),
    }
    return page, class_of


def _calibration_figures(confidence: torch.Tensor, right: torch.Tensor) -> Iterator[list[str]]:
    """Whether confidence can be believed: [name, value] pairs; `right`: see utils/analysis/calibration.py."""
    error = calibration.expected_calibration_error(confidence, right)
    yield ["expected calibration error", f"{100 * error:.1f} %"]
    whose = f"sure images (≥ {UNSURE_BELOW}) that are right", "other images that are right"
    for name, part in zip(whose, calibration.sure_and_unsure(confidence, right), strict=True):
        if part["accuracy"] is not None:
            yield [name, f"{100 * part['accuracy']:.1f} %"]


def map_indices(page: dict[str, Any], convert: Callable[[int], Any]) -> dict[str, Any]:
    """A copy of the page's content with `convert(index)` in the place of each index of an image."""

    # only indices are integers; beside them there are floats and texts
    def converted(value: Any) -> Any:
        if isinstance(value, list):
            return [converted(entry) for entry in value]
        return convert(value) if isinstance(value, int) else value

    def in_lists(part: dict[str, Any], *names: str) -> dict[str, Any]:
        return part | {name: converted(part[name]) for name in names}

    return in_lists(page, "borderline", "copies", "near", "outliers") | {
        "clusters": [in_lists(cluster, "prototype", "most", "least") for cluster in page["clusters"]],
        "pairs": [in_lists(pair, "between", "most") for pair in page["pairs"]],
        "labels": page["labels"] and in_lists(page["labels"], "wrong"),
    }


class Sample(NamedTuple):
    """The S images on the page: all N, or MAX_IMAGES of them."""

    indices: torch.Tensor  # int64 (S,), in order
    row_of: torch.Tensor  # int64 (N + 1,), the row of each image on the page, or -1; row_of[-1] is -1


def choose_sample(n: int, lists: dict[str, Any], seed: int = 0) -> Sample:
    """Draw the images of the page at random, after all that are in the lists."""
    indices = torch.arange(n)
    if n > MAX_IMAGES:
        rank = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        listed: list[int] = []
        map_indices(lists, listed.append)
        rank[listed] = -1
        indices = rank.argsort(stable=True)[:MAX_IMAGES].sort().values
    row_of = torch.full((n + 1,), -1)
    row_of[indices] = torch.arange(len(indices))
    return Sample(indices, row_of)


def image_columns(
    names: list[str],
    features: torch.Tensor,
    assignment: Assignment,
    sample: Sample,
    places: torch.Tensor,
    context: ReportContext,
) -> dict[str, list]:
    """The columns of the images on the page; `places`: float32 (S, 2), on the map."""
    indices, row_of = sample
    shown = assignment[indices]
    neighbors = shown.neighbors
    if len(indices) < len(names):  # the nearest of those that are on the page
        first = duplicates.first_of(shown.first.tolist())
        normalized = F.normalize(features[indices].float(), dim=1)
        neighbors = indices[
            without_itself(mine_for_report(normalized, first, context.kept, "neighbors on the page"))
        ]
    images = {
        "name": [names[i] for i in indices.tolist()],
        "neighbors": row_of[neighbors].tolist(),
        "copy_of": row_of[assignment.copy_of[indices]].tolist(),
        "near_duplicate_of": row_of[shown.near_duplicate_of].tolist(),
        "x": _rounded(places[:, 0]),
        "y": _rounded(places[:, 1]),
        "cluster": shown.cluster.tolist(),
        "runner_up": shown.runner_up.tolist(),
        "confidence": _rounded(shown.confidence),
        "runner_up_confidence": _rounded(shown.runner_up_confidence),
    }
    truth = context.truth
    return images | {"label": truth.labels[indices].tolist()} if truth else images


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
