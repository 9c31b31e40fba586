"""Which row of a file of vectors is of which image, and rows that say nothing."""

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from errors import UserError

from ..csv_tables import rows_of_images
from ..dataset import Dataset
from ..messages import say_once

log = logging.getLogger(__name__)

COMPARED = 1000  # images whose pixels are compared with their vectors
DECISIVE = 5.0  # standard deviations between two orders
GIVE_NAMES = "give names: an .npz with features and names, or a table {} beside it with a column file"


def say_nothing(vectors: np.ndarray) -> dict[int, str]:
    """The rows of float32 (N, D) that say nothing about an image, and why."""
    broken = ~np.isfinite(vectors).all(1)
    constant = (vectors == vectors[:, :1]).all(1) & (vectors.shape[1] > 1)
    why = np.where(
        broken, "NaN or infinity", np.where(vectors[:, 0] == 0, "all zeros", "one number throughout")
    )
    return {row: str(why[row]) for row in np.flatnonzero(broken | constant).tolist()}


def rows_by_name(path: Path, names: Sequence[str], images: Sequence[str]) -> np.ndarray:
    """The row of each of N images, int64 (N,), by the names of a file's rows, see `rows_of_images`.

    Raises UserError if an image has no row, or two.
    """
    found = rows_of_images(names, images)
    missing = [image for image, rows in zip(images, found, strict=True) if not rows]
    used = set(itertools.chain.from_iterable(found))
    others = [name for row, name in enumerate(names) if row not in used]
    first = "".join(others[:1])
    extra = f"; {len(others)} of its {len(names)} names are no image here, first {first}" * bool(others)
    if missing:
        raise UserError(
            f"{path}: no vector for {len(missing)} of {len(images)} images, first {missing[0]}{extra}"
        )
    for image, rows in zip(images, found, strict=True):
        if len(rows) > 1:
            raise UserError(f"{path}: rows {rows[0]} and {rows[1]} are both of {image}")
    say_once(log.info, f"{path}: vectors of {len(images)} images, by name{extra}")
    return np.array(found)[:, 0]


# --- without names -------------------------------------------------------------------------------


def rows_in_order(path: Path, vectors: np.ndarray, images: Dataset, start: int = 0) -> np.ndarray | None:
    """The row of each of N images, int64 (N,), where the rows have no names; None: in the images' order.

    They are taken in the images' order, unless that of numbers (1, 2, 10) is another and clearly fits better:
    copies of a file have one vector, and images that look alike have similar ones. What is not clear is
    logged as a warning.

    Args:
        path: file of the vectors.
        vectors: float32 (N, D), its rows from `start` on.
    """
    names, hashes, given = images.names(), images.content_hashes(), np.arange(len(images))
    if hashes is None:  # not files
        return None
    natural = np.empty_like(given)
    natural[sorted(given, key=lambda i: _natural_key(names[i]))] = given
    first: dict[str, int] = {}
    copies = [(first[sum_], i) for i, sum_ in enumerate(hashes) if first.setdefault(sum_, i) != i][:COMPARED]
    sample = np.unique(np.linspace(0, len(given) - 1, COMPARED).astype(int))
    near = _look_alikes(images, sample)
    (alike, fit), (natural_alike, natural_fit) = (
        _fit(vectors, rows, sample, near, copies) for rows in (given, natural)
    )
    lead = natural_fit - fit + 100 * (natural_alike - alike)  # copies decide
    rows, way, other = given, "sorted (1, 10, 2)", "numbers (1, 2, 10)"
    if lead > DECISIVE:
        rows, way, other, alike, fit = natural, other, way, natural_alike, natural_fit
    pairs = ", ".join(f"{names[i]} <- row {start + rows[i]}" for i in np.flatnonzero(given != natural)[:3])
    how = GIVE_NAMES.format(path.with_suffix(".csv"))
    if pairs and lead > -DECISIVE:
        why = "that fits the images better" if lead > DECISIVE else "nothing shows whether that is right"
        say_once(log.warning, f"{path}: rows taken in the order {way}, not {other}; {why}: {pairs}; {how}")
    if alike < 0.9 or (fit < 2 and len(sample) >= 50):
        what = "copies of a file" if alike < 0.9 else "images that look alike"
        say_once(log.warning, f"{path}: {what} have unlike vectors; if the rows are in another order, {how}")
    return natural if lead > DECISIVE else None


def _natural_key(name: str) -> list[str | int]:
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts


def _look_alikes(images: Dataset, sample: np.ndarray) -> torch.Tensor:
    """For each image of a sample the places in it of the five with the most similar pixels, (M, 5)."""
    batches = images.fetch(torch.from_numpy(sample).split(100), "cpu")
    pixels = torch.cat([F.adaptive_avg_pool2d(batch.float(), 8).flatten(1) for batch in batches])
    similarity = _cosines(pixels).fill_diagonal_(-2)
    return similarity.topk(min(5, len(sample) - 1)).indices


def _fit(
    vectors: np.ndarray,
    rows: np.ndarray,
    sample: np.ndarray,
    near: torch.Tensor,
    copies: list[tuple[int, int]],
) -> tuple[float, float]:
    """How well an order of rows fits the images.

    Returns:
        the share of pairs of copies that have one vector, and by how many standard deviations the vectors of
        images that look alike are more similar than if the rows were shuffled.
    """
    compared = rows[sample], rows[np.array(copies, int).reshape(-1, 2)]  # (M,), (P, 2)
    sampled, pairs = (torch.from_numpy(vectors[of]).nan_to_num(posinf=0, neginf=0) for of in compared)
    centered = sampled - sampled.mean(0)
    close = (pairs[:, 0] - pairs[:, 1]).square().sum(1) <= 0.01 * centered.square().sum(1).mean()
    similarity, generator = _cosines(sampled), torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(near), generator=generator) for _ in range(100)]
    orders.append(torch.arange(len(near)))
    likeness = torch.stack([similarity[order[:, None], order[near]].mean() for order in orders]).double()
    shuffled = likeness[:-1]
    fit = (likeness[-1] - shuffled.mean()) / shuffled.std().clamp(min=1e-9)
    return close.double().mean().item() if copies else 1.0, fit.item()


def _cosines(table: torch.Tensor) -> torch.Tensor:
    """Cosine similarities (N, N) of the rows of (N, D), from their mean."""
    unit = F.normalize(table - table.mean(0), dim=1)
    return unit @ unit.T
