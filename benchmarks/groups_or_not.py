"""How often are groups found that are not there, and not found where they are? See utils/analysis/groups.py.

python benchmarks/groups_or_not.py --half chosen|once [--data datasets/features] [--seeds 3]

Prints a row for each kind of set: the share of the sets that get each verdict. The thresholds were chosen on
the kinds of the first half. Of the features of networks, which benchmarks/data/features.py makes, those are
used that are in --data.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets

sys.path.insert(0, str(Path(__file__).parents[1]))

from utils.analysis.groups import find_groups
from utils.run.machine import one_thread

VERDICTS = "groups", "unclear", "series", "none", "few"
SIZES = {"chosen": (60, 400, 2000), "once": (40, 150, 1000, 5000)}
Sets = Iterator[tuple[str, np.ndarray]]


def tail(random: np.random.RandomState, degrees: int, n: int) -> np.ndarray:
    """Factors that make normal rows those of a t-distribution."""
    return np.sqrt(degrees / random.chisquare(degrees, (n, 1)))


def clouds_chosen(random: np.random.RandomState, n: int) -> Sets:
    for d in (2, 5, 16, 64, 384):
        yield "normal, 2 to 384 dimensions", random.randn(n, d)
    yield "normal, uneven spectrum", random.randn(n, 5) @ random.randn(5, 384) + 0.5 * random.randn(n, 384)
    yield "normal, uneven spectrum", random.randn(n, 384) / np.arange(1, 385)
    yield "heavy tails", random.randn(n, 10) * tail(random, 3, n)
    yield "heavy tails", random.standard_t(3, (n, 10))
    yield "skewed", np.maximum(0, random.randn(n, 20) @ random.randn(20, 384) - 2)
    yield "skewed", np.exp(0.2 * random.randn(n, 16) @ random.randn(16, 16))
    for d in (2, 10):
        yield "uniform cube", random.rand(n, d)
    t = random.rand(n, 1)
    yield "line, circle", t @ random.randn(1, 64) + 0.02 * random.randn(n, 64)
    circle = np.hstack([np.cos(2 * np.pi * t), np.sin(2 * np.pi * t)])
    yield "line, circle", circle @ random.randn(2, 64) + 0.05 * random.randn(n, 64)
    yield "curve of images", np.exp(-(((t - np.linspace(0, 1, 64)) / 0.1) ** 2)) + 0.02 * random.randn(n, 64)
    yield "curved surface", datasets.make_swiss_roll(n, noise=0.5, random_state=random)[0]
    yield "curved surface", datasets.make_s_curve(n, noise=0.05, random_state=random)[0]


def clouds_once(random: np.random.RandomState, n: int) -> Sets:
    for d in (3, 8, 30, 128, 768):
        yield "normal, 3 to 768 dimensions", random.randn(n, d) @ random.randn(d, d)
    for rate in (0.05, 0.3):
        yield "normal, falling spectrum", random.randn(n, 256) * np.exp(-rate * np.arange(256))
    yield "heavy tails", random.randn(n, 40) * tail(random, 2, n)
    yield "heavy tails", random.laplace(size=(n, 20))
    yield "skewed", random.exponential(size=(n, 12))
    yield "skewed", np.maximum(0, random.randn(n, 50) @ random.randn(50, 200))
    sphere = random.randn(n, 4)
    yield "ball, sphere", sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    yield "ball, sphere", sphere / np.linalg.norm(sphere, axis=1, keepdims=True) * random.rand(n, 1) ** 0.25
    t = random.rand(n, 1)
    helix = np.hstack([np.cos(12 * t), np.sin(12 * t), 3 * t])
    yield "helix", helix @ random.randn(3, 100) + 0.05 * random.randn(n, 100)
    x = np.linspace(0, 3, 100)
    yield "sweep of a wave", np.sin(2 * np.pi * (x + t) * (1 + t)) + 0.05 * random.randn(n, 100)
    u, v = 2 * np.pi * random.rand(2, n)
    yield "torus", np.stack([(2 + np.cos(u)) * np.cos(v), (2 + np.cos(u)) * np.sin(v), np.sin(u)], 1)


def mixture(
    random: np.random.RandomState, n: int, d: int, k: int, apart: float, shares: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Normal groups, their nearest centers so many standard deviations apart (median); and whose group."""
    centers = random.randn(k, d)
    distances = np.linalg.norm(centers[:, None] - centers, axis=2)
    centers *= apart / np.median((distances + np.diag([np.inf] * k)).min(1))
    group = random.choice(k, n, p=shares)
    return centers[group] + random.randn(n, d), group


def groups_chosen(random: np.random.RandomState, n: int) -> Sets:
    for k in (2, 3, 5, 10, 20):
        if n < 12 * k:
            continue
        for d in (2, 8, 32):
            for apart in (4, 6):
                yield f"groups {apart} σ apart", mixture(random, n, d, k, apart)[0]
        yield "groups in 384 dimensions, 8 σ apart", mixture(random, n, 384, k, 8)[0]
        flat = mixture(random, n, 8, k, 6)[0] @ np.linalg.qr(random.randn(384, 8))[0].T
        yield "groups of 8 within 384 dimensions", flat + 0.3 * random.randn(n, 384)
        shares = 9.0 ** -(np.arange(k) / k)
        yield "uneven groups", mixture(random, n, 8, k, 6, shares / shares.sum())[0]


def groups_once(random: np.random.RandomState, n: int) -> Sets:
    for k in (2, 4, 7, 15):
        if n < 12 * k:
            continue
        for d in (3, 12, 48):
            for apart in (5, 7):
                yield f"groups {apart} σ apart", mixture(random, n, d, k, apart)[0]
        x, group = mixture(random, n, 10, k, 9)
        spread = 0.5 + random.rand(k, 10)
        yield "groups of different shape", x + spread[group] * random.randn(n, 10)
        shares = np.r_[0.6, np.full(k - 1, 0.4 / (k - 1))]
        yield "one of 60 %", mixture(random, n, 12, k, 7, shares)[0]
        flat = mixture(random, n, 12, k, 7)[0] @ np.linalg.qr(random.randn(512, 12))[0].T
        yield (
            "groups within 512 dimensions, as of a network",
            np.maximum(0, flat + 0.3 * random.randn(n, 512)),
        )
    scenes = random.randint(4, size=n)
    yield "four series", 6 * np.eye(4)[scenes] @ random.randn(4, 50) + random.rand(n, 1) * random.randn(1, 50)


def bundled(half: str, random: np.random.RandomState) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Sets of images or tables that scikit-learn has."""
    x, y = datasets.load_digits(return_X_y=True)
    if half == "chosen":
        yield "digits, iris, wine", True, x[random.permutation(len(x))[:900]]
        for load in (datasets.load_iris, datasets.load_wine):
            table = load(return_X_y=True)[0]
            yield "digits, iris, wine", True, (table - table.mean(0)) / table.std(0)
    else:
        for classes in ((0, 1), (3, 8, 9), range(10)):
            yield "two, three and ten digits", True, x[np.isin(y, classes)]
    for digit in range(half == "once", 10, 2):
        yield "one digit", False, x[y == digit]


def of_networks(
    half: str, folder: Path, random: np.random.RandomState
) -> Iterator[tuple[str, bool, np.ndarray]]:
    for path in sorted(folder.glob("*.npz")):
        if ("mobilenet" in path.stem) != (half == "chosen"):
            continue
        with np.load(path) as content:
            x, y = content["features"], content["labels"]
        kind = "series" if path.stem.startswith(("line", "circle")) else "noise"
        if y.max() == 0:
            yield f"networks: {kind} images", False, x
            continue
        for n in (200, 1000):
            yield f"networks: {n} images of classes", True, x[random.permutation(len(x))[:n]]
        for label in np.flatnonzero(np.bincount(y) >= 90):
            yield "networks: one class", False, x[y == label]


def sets(half: str, seeds: int, folder: Path) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Yield kind, whether there are groups, and features of each set."""
    clouds, groups = (clouds_chosen, groups_chosen) if half == "chosen" else (clouds_once, groups_once)
    for seed in range(seeds):
        random = np.random.RandomState(seed + 1000 * (half == "once"))
        for n in SIZES[half]:
            size = "up to 60 images" if n <= 60 else f"{SIZES[half][1]} and more"
            for there, kinds in ((False, clouds), (True, groups)):
                for name, features in kinds(random, n):
                    yield f"{name}; {size}", there, features
    random = np.random.RandomState(0)
    yield from bundled(half, random)
    yield from of_networks(half, folder, random)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[1] / "datasets/features")
    parser.add_argument("--half", choices=list(SIZES), required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    counts: dict[tuple[bool, str], Counter[str]] = {}
    with one_thread():
        for name, there, features in sets(args.half, args.seeds, args.data):
            verdict = find_groups(torch.from_numpy(features).float())["verdict"]
            for kind in (name, "all"):
                counts.setdefault((there, kind), Counter())[verdict] += 1
    print("| groups | kind | sets |", " | ".join(VERDICTS), "|")
    print("|---" * (3 + len(VERDICTS)), "|", sep="")
    for (there, kind), count in sorted(counts.items()):
        shares = [
            f"{100 * count[verdict] / count.total():.0f} %" if count[verdict] else "" for verdict in VERDICTS
        ]
        print(f"| {'yes' if there else 'no'} | {kind} | {count.total()} |", " | ".join(shares), "|")


if __name__ == "__main__":
    main()
