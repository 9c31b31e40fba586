"""Nearest neighbors in feature space: the search, what it found in a file, votes and accuracies.

Features may be mapped from a file (see inference.infer_to_file): apart from faiss's index, nothing here
copies all of them, or holds more than one block of similarities.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from errors import UserError

log = logging.getLogger(__name__)

QUERIES, BANK = 1024, 131072  # the block of similarities that is in memory at a time: 0.5 GiB

# Images at most for an exact search on a CPU; more would take hours if the features are wide (2048). Only one
# published experiment is larger, that on the whole of ImageNet.
EXACT_ON_CPU = 300_000
RECALL = 0.99  # that the approximate search should reach
RECALL_SAMPLE = 1000  # images on which it is measured
ACCURACY_AT = 1, 5, 20  # numbers of neighbors for which an evaluation gives the accuracy


def search(
    queries: torch.Tensor, bank: torch.Tensor, k: int, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best matches of each query by inner product, exactly.

    Args:
        queries: float32 (M, D).
        bank: float32 (N, D), N >= k.
        device: where to compute; by default where the bank is.

    Returns:
        similarities float32 (M, k), best first, and indices int64 (M, k), on that device.
    """
    device = bank.device if device is None else device
    chunks = queries.split(QUERIES)
    best: list[tuple[torch.Tensor, torch.Tensor]] = []
    # one block for all: freed ones, with results between them, fragment memory that the C library keeps
    block = torch.empty(min(QUERIES, len(queries)), min(BANK, len(bank)), dtype=bank.dtype, device=device)
    for start in tqdm(
        range(0, len(bank), BANK), desc="search", leave=False, disable=len(bank) <= BANK or None
    ):
        part = bank[start : start + BANK].to(device)
        for i, chunk in enumerate(chunks):
            product = block[: len(chunk), : len(part)]
            torch.matmul(chunk.to(device), part.T, out=product)
            similarity, index = product.topk(min(k, len(part)))
            index += start
            if start == 0:
                best.append((similarity, index))
                continue
            similarity, place = torch.cat([best[i][0], similarity], 1).topk(k)
            best[i] = similarity, torch.cat([best[i][1], index], 1).gather(1, place)
    similarities, indices = zip(*best, strict=True)
    return torch.cat(similarities), torch.cat(indices)


def nearest_neighbors(
    features: torch.Tensor,
    k: int,
    device: torch.device | str = "cpu",
    library: str = "auto",
    tell: Callable[..., None] = log.info,
) -> torch.Tensor:
    """Each row's k + 1 best matches by inner product, the first of them normally the row itself.

    Both libraries search exactly (faiss with a flat index), with one exception: above EXACT_ON_CPU rows,
    faiss on the CPU searches only the most similar of 2 sqrt(N) cells. The recall is measured and logged.

    Args:
        features: float32 (N, D), normalized.
        k: neighbors to find, not counting the image itself; see `require_candidates`.
        library: "faiss"; "torch"; or "auto": faiss if it works on `device`, else torch. torch also takes over
            if the GPU's memory is too small for faiss.
        tell: logging function for what searches, and why.

    Returns:
        int64 tensor (N, k + 1) on the CPU.

    Raises:
        UserError: `library` is "faiss", which does not work on `device`; or too few images.
    """
    require_candidates(len(features), k)
    device = torch.device(device)
    faiss, reason = (None, None) if library == "torch" else _faiss_for(device)
    if library == "faiss" and faiss is None:
        raise UserError(f"search: faiss was asked for, but {reason}; set search to auto or torch")
    if reason:
        tell("%s: torch searches instead, also exactly", reason)
    # logged before the search: a faiss error on a GPU may end the process, which nothing here can catch
    advice = "; if it ends the program, set search: torch" if faiss and device.type == "cuda" else ""
    tell("%s searches %d features on %s%s", "faiss" if faiss else "torch", len(features), device, advice)
    if faiss is None:
        return search(features, features, k + 1, device)[1].cpu()
    features = features.cpu()
    if device.type == "cpu" and len(features) > EXACT_ON_CPU:
        return _search_in_cells(faiss, features, k + 1)
    index = faiss.IndexFlatIP(features.size(1))
    if device.type == "cpu":
        return _query(_filled(index, features), features, k + 1)
    try:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
        return _query(_filled(index, features), features, k + 1)
    except RuntimeError as error:  # the GPU's memory is full
        reason = str(error).strip().splitlines()[-1]
        tell("faiss cannot search on the GPU, so torch does (%s)", reason)
        return search(features, features, k + 1, device)[1].cpu()


def require_candidates(n: int, k: int, copies: int = 0) -> None:
    """Raise UserError unless each of n images, of which there are also copies, can have k neighbors."""
    if k >= n:
        more = f" (and {copies} copies of them)" if copies else ""
        raise UserError(f"cannot mine {k} neighbors among {n} images{more}; the split is too small")


def _faiss_for(device: torch.device) -> tuple[ModuleType | None, str | None]:
    """The faiss module and None if it works on the device; otherwise None and the reason."""
    try:
        import faiss
    except ImportError:
        return None, "faiss is not installed (pip install faiss-cpu or faiss-gpu)"
    if device.type == "mps":
        return None, "faiss does not search on mps"
    if device.type == "cuda" and faiss.get_num_gpus() <= (device.index or 0):
        return None, f"faiss does not see {device} (pip install faiss-gpu)"
    return faiss, None


def _filled(index: Any, features: torch.Tensor) -> Any:
    """A faiss index with the features."""
    for chunk in tqdm(features.split(BANK), desc="index", leave=False, disable=None):
        index.add(chunk.numpy())
    return index


def _query(index: Any, queries: torch.Tensor, k: int) -> torch.Tensor:
    """The k best matches in a faiss index, int64 (M, k)."""
    chunks = tqdm(queries.split(16 * QUERIES), desc="mining", leave=False, disable=None)
    return torch.cat([torch.from_numpy(index.search(chunk.numpy(), k)[1]) for chunk in chunks])


def _search_in_cells(faiss: ModuleType, features: torch.Tensor, k: int) -> torch.Tensor:
    """Approximate search: each row visits only its nearest cells, as many as give RECALL on a sample."""
    n, d = features.shape
    cells = int(2 * n**0.5)
    log.info("%d images without a GPU: approximate mining in %d cells", n, cells)
    index = faiss.IndexIVFScalarQuantizer(  # half precision, to be half as large
        faiss.IndexFlatIP(d), d, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    index.train(features[order[: 64 * cells].sort().values].numpy())
    _filled(index, features)
    queries = features[order[:RECALL_SAMPLE].sort().values]
    exact = search(queries, features, k)[1]
    index.nprobe, recall = 4, 0.0
    while recall < RECALL and index.nprobe < cells // 16:  # more would be slower than exact
        index.nprobe *= 2
        found = _query(index, queries, k)
        recall = (exact.unsqueeze(2) == found.unsqueeze(1)).any(2).double().mean().item()
    measured = (
        f"{index.nprobe} cells per image: recall {100 * recall:.2f} % of the {k} exact neighbors, "
        f"measured on {len(queries)} images"
    )
    if recall >= RECALL:
        log.info(measured)
    else:
        log.warning(f"{measured}; on a GPU the search is exact")
    mined = _query(index, features, k)
    short = (mined < 0).any(1)  # rows whose cells hold fewer than k images
    if short.any():
        mined[short] = search(features[short], features, k)[1]
    return mined


# --- what neighbors say --------------------------------------------------------------------------


def without_itself(mined: torch.Tensor) -> torch.Tensor:
    """Neighbors int64 (N, 1 + k) without the image itself, or without the last one if it is not there."""
    others = mined != torch.arange(len(mined)).unsqueeze(1)
    others[others.all(1), -1] = False
    return mined[others].view(len(mined), -1)


def similarities(features: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
    """Inner products of each row of `features` (N, D) with its neighbors, int64 (N, k): float (N, k)."""
    parts = zip(features.split(QUERIES), neighbors.split(QUERIES), strict=True)
    return torch.cat([(features[index] @ part[:, :, None]).squeeze(2) for part, index in parts])


def vote(neighbors: torch.Tensor, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image, what it and its neighbors vote for.

    Returns:
        the cluster of the highest mean probability, int64 (N,); the share of the k + 1 images whose own most
        probable cluster it is, float32 (N,).
    """
    clusters, votes, agreement = probabilities.argmax(1), [], []
    for index in neighbors.split(QUERIES):
        votes.append(probabilities[index].mean(1).argmax(1))
        agreement.append((clusters[index] == votes[-1].unsqueeze(1)).float().mean(1))
    return torch.cat(votes), torch.cat(agreement)


def label_agreement(neighbors: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Fraction of the first k neighbors, the image itself excluded, that carry the image's label."""
    same = labels[neighbors[:, 1 : k + 1]] == labels.unsqueeze(1)
    return same.count_nonzero().item() / same.numel()


def neighbor_accuracies(neighbors: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """For k = 1, 5, 20, if k neighbors exist: the share of the nearest k that are of the image's class."""
    figures = {}
    for k in ACCURACY_AT:
        if k < neighbors.size(1):
            share = figures[f"top{k}_neighbor_accuracy"] = label_agreement(neighbors, labels, k)
            log.info("top-%d neighbors of the image's class: %.2f %%", k, 100 * share)
    return figures


def weighted_knn(
    features: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    k: int = 100,
    temperature: float = 0.1,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Class of each query by a vote of its k nearest features, weighted by exp(similarity / temperature).

    Args:
        features: float32 (N, D), normalized; if there are fewer than k, all of them vote.
        queries: float32 (M, D), normalized.

    Returns:
        int64 (M,), on the device that computed: `device`, or the features' own.
    """
    similarity, index = search(queries, features, min(k, len(features)), device)  # (M, k)
    votes = similarity.new_zeros(len(queries), num_classes)
    votes.scatter_add_(1, labels.to(index.device)[index], (similarity / temperature).exp())
    return votes.argmax(1)


# --- files of neighbors --------------------------------------------------------------------------


def mine_again(folder: Path, what: str = "the neighbors") -> str:
    """Advice for a message about neighbors that cannot be used; following it loses no training."""
    return (
        f"mine {what} again with the trained network, in seconds to minutes: simclr.py (or moco.py) with "
        f"--pretrained {folder / 'model.pth.tar'}"
    )


def read_neighbors(path: Path, dataset_size: int) -> torch.Tensor:
    """Load mined neighbors, int64 (N, 1 + mined), and check them against the split they belong to."""
    again = mine_again(path.parent)
    try:
        neighbors = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run the pretext step first (simclr.py or moco.py, "
            "with --pretrained FILE to mine with given weights)"
        ) from None
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path}: not a readable .npy file; {again}") from None
    if not isinstance(neighbors, np.ndarray) or neighbors.ndim != 2 or neighbors.dtype.kind not in "iu":
        raise UserError(f"{path}: expected a table of whole numbers; {again}")
    if len(neighbors) != dataset_size or neighbors.shape[1] < 2:
        raise UserError(
            f"{path}: {neighbors.shape[1] - 1} neighbors of {len(neighbors)} images, "
            f"but the split has {dataset_size} images; {again}"
        )
    if neighbors.min() < 0 or neighbors.max() >= dataset_size:
        raise UserError(f"{path}: holds indices outside 0..{dataset_size - 1}; {again}")
    return torch.from_numpy(neighbors.astype(np.int64))
