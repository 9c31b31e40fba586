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
        `runner_up_confidence` float32; `prototype_similarity`, the cosine similarity with the prototype;
        `neighbors` int64 (N, k), the nearest first, k = NEIGHBORS or all other distinct images;
        `neighbor_similarity`, their mean cosine similarity; `copy_of`, `near_duplicate_of` int64, the first
        such image, or -1; `near_duplicate_similarity`, their cosine similarity.
    """
    features = F.normalize(features.float().cpu(), dim=1)
    best, ranked = probabilities.float().cpu().topk(2, 1)
    of_cluster = torch.tensor([-1 if index is None else index for index in prototypes])
    first = duplicates.first_copies(dataset)
    k = min(NEIGHBORS, duplicates.count_distinct(first) - 1)
    mined = duplicates.mine_distinct(features, k, first, device, library)
    others = without_itself(mined)
    near = duplicates.near_duplicates(features, mined, first)
    return {
        "cluster": ranked[:, 0],
        "confidence": best[:, 0],
        "runner_up": ranked[:, 1],
        "runner_up_confidence": best[:, 1],
        "prototype_similarity": (features * features[of_cluster[ranked[:, 0]]]).sum(1),
        "neighbors": others,
        "neighbor_similarity": neighbors.similarities(features, others).sum(1) / max(k, 1),
        "copy_of": first.where(first != torch.arange(len(first)), -1),
        "near_duplicate_of": near,
        "near_duplicate_similarity": (features * features[near]).sum(1),
    }


def figures_of(found):
    """Shares and counts of what `describe` returned, for metrics.json."""
    return {
        "unsure": (found["confidence"] < UNSURE).double().mean().item(),
        "copy": int((found["copy_of"] >= 0).sum()),
        "near_duplicate": int((found["near_duplicate_of"] >= 0).sum()),
    }


def without_itself(mined):
    """Mined neighbors int64 (N, 1 + k) without the image itself, or without the last one: int64 (N, k)."""
    itself = mined == torch.arange(len(mined))[:, None]
    itself[:, -1] |= ~itself.any(1)
    return mined[~itself].view(len(mined), -1)


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
        "copy_of": named(found["copy_of"]),
        "near_duplicate_of": named(found["near_duplicate_of"]),
    }


def rounded(values):
    return [f"{value:.4f}" for value in values.tolist()]
