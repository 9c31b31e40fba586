"""Nearest neighbors in feature space: mining, their quality, and classification by them."""

import logging

import numpy as np
import torch

from errors import UserError

from .checkpoint import atomic

log = logging.getLogger(__name__)

CHUNK = 1024  # queries at a time: bounds the memory at CHUNK x N similarities


def mine(features, k):
    """Each row's k + 1 best matches by inner product, the first of them normally the row itself.

    faiss does an exact (flat) search, on the GPUs that it sees or on the CPU; without faiss, torch
    does, on the features' device.

    Args:
        features: float32 (N, D), normalised.
        k: neighbors to mine, besides the image itself; see `require_enough`.

    Returns:
        int64 tensor (N, k + 1) on the CPU.
    """
    require_enough(len(features), k)
    try:
        import faiss
    except ImportError:
        log.info(
            "faiss is not installed: mining with torch, exact as well (pip install faiss-cpu or faiss-gpu)"
        )
        return torch.cat([(chunk @ features.T).topk(k + 1).indices.cpu() for chunk in features.split(CHUNK)])
    index = faiss.IndexFlatIP(features.size(1))
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    vectors = features.cpu().numpy()
    index.add(vectors)
    return torch.from_numpy(index.search(vectors, k + 1)[1])


def require_enough(n, k):
    """Raise UserError unless each of n images can have k neighbors."""
    if k >= n:
        raise UserError(f"cannot mine {k} neighbors among {n} images; the split is too small")


def mine_and_save(features, labels, k, path):
    """Mine, write the .npy file and, with labels, say how many neighbors share the image's class.

    Returns that fraction, or None without labels.
    """
    mined = mine(features, k)
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, mined.numpy())
    log.info("mined %d neighbors of each of %d images: %s", k, len(mined), path)
    if labels is None:
        return None
    share = agreement(mined, labels, k)
    log.info("%.2f %% of them are of the image's class", 100 * share)
    return share


def agreement(neighbors, labels, k):
    """Fraction of the first k neighbors, the image itself excluded, that carry the image's label."""
    return (labels[neighbors[:, 1 : k + 1]] == labels.unsqueeze(1)).double().mean().item()


def weighted_knn(features, labels, queries, num_classes, k=100, temperature=0.1):
    """Class of each query by a vote of its k nearest features, weighted by exp(similarity / temperature).

    Args:
        features: (N, D) normalised, with int64 labels (N,); fewer than k: all of them vote.
        queries: (M, D) normalised.

    Returns:
        int64 (M,), on the features' device.
    """
    labels = labels.to(features.device)
    predictions = []
    for chunk in queries.split(CHUNK):
        similarity, index = (chunk @ features.T).topk(min(k, len(features)))  # (m, k)
        votes = similarity.new_zeros(len(chunk), num_classes)
        votes.scatter_add_(1, labels[index], (similarity / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def read(path, dataset_size):
    """Load mined neighbors, int64 (N, 1 + mined), and check them against the split they belong to."""
    try:
        neighbors = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the pretext step (simclr.py or moco.py) first") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from None
    if neighbors.ndim != 2 or neighbors.dtype.kind not in "iu" or len(neighbors) != dataset_size:
        raise UserError(
            f"{path}: neighbors of {neighbors.shape[0] if neighbors.ndim else 0} images "
            f"({neighbors.dtype} {neighbors.shape}), but the split has {dataset_size}; mine them again"
        )
    if neighbors.min() < 0 or neighbors.max() >= dataset_size:
        raise UserError(f"{path}: holds indices outside 0..{dataset_size - 1}; mine the neighbors again")
    return torch.from_numpy(neighbors.astype(np.int64))
