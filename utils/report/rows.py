"""What is known of each image of a clustering: the rows of clusters.csv, and of the report."""

import torch
import torch.nn.functional as F

from utils.analysis import duplicates, neighbors
from utils.analysis.calibration import UNSURE

NEIGHBORS = 8  # of each image


def describe(dataset, features, probabilities, prototypes, device="cpu", library="auto"):
    """Look at each image: its clusters, its neighbors, and whether it is there more than once.

    A copy is the same file under another name; see `duplicates`.

    Args:
        dataset: the N images; `content_hashes` is used, if there is one.
        features: float (N, D), normalized here.
        probabilities: float (N, C), C >= 2.
        prototypes: list of C image indices, None for an empty cluster.
        device, library: of the mining, see `neighbors.mine`.

    Returns:
        dict of tensors on the CPU, (N,) each but for `neighbors`: `cluster`, `runner_up` int64; `confidence`,
        `runner_up_confidence` float32, to four decimals; `prototype_similarity`, the cosine similarity with
        the prototype; `neighbors` int64 (N, k), the nearest first, NEIGHBORS or all other distinct images;
        `neighbor_similarity`, their mean cosine similarity; `first` int64, the first image of this content;
        `near_duplicate_of` int64, or -1, and `near_duplicate_similarity`.
    """
    features = F.normalize(features.float().cpu(), dim=1)
    probabilities = probabilities.float().cpu()
    confidence, clusters = probabilities.max(1)
    second, runners_up = probabilities.scatter(1, clusters[:, None], -1.0).max(1)
    of_cluster = torch.tensor([-1 if index is None else index for index in prototypes])
    first = duplicates.first_copies(dataset)
    mined = duplicates.mine_distinct(features, count_neighbors(first), first, device, library)
    similarity = neighbors.similarities(features, mined)
    near, near_similarity = duplicates.near_duplicates(mined, similarity, first)
    others = others_of(mined)
    return {
        "cluster": clusters,
        "confidence": confidence.round(decimals=4),  # as in the table, so that counts agree with it
        "runner_up": runners_up,
        "runner_up_confidence": second.round(decimals=4),
        "prototype_similarity": neighbors.similarities(features, of_cluster[clusters][:, None])[:, 0],
        "neighbors": mined[others].view(len(mined), -1),
        "neighbor_similarity": similarity[others].view(len(mined), -1).sum(1) / max(1, mined.size(1) - 1),
        "first": first,
        "near_duplicate_of": near,
        "near_duplicate_similarity": near_similarity,
    }


def count_neighbors(first):
    """The number of an image's neighbors; `first`: see duplicates.first_copies."""
    return min(NEIGHBORS, duplicates.count_distinct(first) - 1)


def others_of(mined):
    """Which of the mined neighbors (N, 1 + k) are not the image itself: bool, k in a row.

    Where the image is missing, the last one is left out.
    """
    itself = mined == torch.arange(len(mined))[:, None]
    itself[:, -1] |= ~itself.any(1)
    return ~itself


def copies_of(found):
    """The first image of which each is a copy, int64 (N,), or -1."""
    return found["first"].where(found["first"] != torch.arange(len(found["first"])), -1)


def figures_of(found, num_clusters):
    """Shares and counts of what `describe` returned, for metrics.json."""
    unsure = found["confidence"] < UNSURE
    counts = [found["cluster"][chosen].bincount(minlength=num_clusters) for chosen in (unsure, slice(None))]
    return {
        "cluster_sizes": counts[1].tolist(),
        "empty_clusters": (counts[1] == 0).nonzero().flatten().tolist(),
        "mean_confidence": found["confidence"].mean().item(),
        "unsure": unsure.double().mean().item(),
        "unsure_by_cluster": [round(share, 4) for share in (counts[0] / counts[1].clamp(min=1)).tolist()],
        "copy": len(found["first"]) - duplicates.count_distinct(found["first"]),
        "near_duplicate": int((found["near_duplicate_of"] >= 0).sum()),
    }


def table(names, found):
    """The columns of clusters.csv: dict of lists, from what `describe` returned and the images' names."""

    def named(indices):
        return [names[i] if i >= 0 else "" for i in indices.tolist()]

    return {
        "file": names,
        "cluster": found["cluster"].tolist(),
        "confidence": rounded(found["confidence"]),
        "runner_up": found["runner_up"].tolist(),
        "runner_up_confidence": rounded(found["runner_up_confidence"]),
        "prototype_similarity": rounded(found["prototype_similarity"]),
        "copy_of": named(copies_of(found)),
        "near_duplicate_of": named(found["near_duplicate_of"]),
    }


def rounded(values):
    return [f"{value:.4f}" for value in values.tolist()]
