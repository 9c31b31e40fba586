"""Clusters of frozen features, ours beside what people would use instead: sets x methods x seeds.

python benchmarks/clustering.py --data FOLDER --half chosen|once [--seeds 5] [--only SET|METHOD] [--table]

FOLDER holds what benchmarks/data/features.py made: NAME.npz with features and labels. Each result is a row
of docs/records/clustering-HALF.csv, and a row that is there is not computed again. The settings of our method
were chosen on the sets of the first half; those of the second were looked at once, after that. Labels only
score. UMAP, Leiden and HDBSCAN: pip install umap-learn leidenalg igraph.
"""

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans, SpectralClustering
from sklearn.metrics import normalized_mutual_info_score
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from steps.judged_clusters import FeatureSpace
from utils.analysis import calibration, graph, metrics
from utils.run.machine import one_thread

ROOT = Path(__file__).parents[1]
COLUMNS = ("set", "method", "seed", "images", "clusters", "acc", "nmi", "ece", "seconds", "note")

# --- the sets ------------------------------------------------------------------------------------

# what images are made of the classes of CIFAR-10 and Fashion-MNIST; None: all images, as they are
MERGED = {
    ("cifar", 5): [0, 1, 2, 3, 4, 3, 2, 4, 0, 1],  # sky and sea, roads, birds and frogs, pets, hoofs
    ("cifar", 3): [0, 1, 2, 2, 2, 2, 2, 2, 0, 1],
    ("fashion", 5): [0, 1, 0, 0, 0, 2, 0, 2, 3, 2],  # four kinds: tops, trousers, shoes, bags
    ("fashion", 3): [0, 0, 0, 0, 0, 1, 0, 1, 2, 1],
}
CHOSEN = {
    "cifar-mobilenet": "even big60 tail10 tail50 merged5 merged3 over20 tiny60",
    "fashion-mobilenet": "even tail10 tail50 merged5 small200 over20",
    "mnist-efficientnet": "even tail50 big60",
    "digits-own": "even tail10",
    "orl-efficientnet": "all",
    "solar-efficientnet": "all",
}
ONCE = {
    "cifar-efficientnet": "even big60 tail10 merged5 merged3 over20 small200",
    "fashion-own": "even big60 tail50 merged3 tiny60",
    "mnist-own": "even tail10 tail50",
    "fashion-efficientnet": "even tail10 big60",
    "orl-mobilenet": "all",
    "solar-mobilenet": "all",
    "many-mobilenet": "all",
    "cifar-mobilenet-test": "all",
}


def variant(
    x: np.ndarray, y: np.ndarray, base: str, kind: str, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Images of a set in some proportion: features, labels, number of clusters. The seed draws them."""
    if kind == "all":
        return x, y, int(y.max()) + 1
    random, classes = np.random.RandomState(seed), int(y.max()) + 1
    order = np.random.RandomState(100 + seed).permutation(classes)  # which classes are large
    available = np.bincount(y)[order]
    least, rank = int(available.min()), np.arange(classes)
    counts = {
        "even": np.full(classes, min(150, least)),
        "tiny60": np.full(classes, 6),
        "small200": np.full(classes, 20),
        "tail10": min(350, least) * 10.0 ** (-rank / (classes - 1)),
        "tail50": min(600, least) * 50.0 ** (-rank / (classes - 1)),
        "big60": np.where(
            rank == 0, min(600, available[0]), min(600, available[0]) * 0.4 / 0.6 / (classes - 1)
        ),
    }
    wanted = counts.get(kind, counts["even"]).round().astype(int).clip(1)
    chosen = np.concatenate(
        [random.permutation(np.flatnonzero(y == c))[:count] for c, count in zip(order, wanted, strict=True)]
    )
    chosen = random.permutation(chosen)
    x, y = x[chosen], y[chosen]
    if kind.startswith("merged"):
        y = np.array(MERGED[base.split("-")[0], int(kind[6:])])[y]
    return x, y, 20 if kind == "over20" else int(y.max()) + 1


# --- the methods ---------------------------------------------------------------------------------


def ours(x: torch.Tensor, c: int, seed: int, labels: np.ndarray) -> tuple[torch.Tensor, str]:
    """As cluster.py does it: the judged clusters, and the linear head that is kept of them.

    Returns the probabilities, and what a judge with labels would have reached among the candidates.
    """
    candidates = FeatureSpace(x, seed).cluster(c)
    weights, biases = graph.fit_heads(x, candidates[0].probabilities.unsqueeze(0))
    scores = {
        candidate.name: score(candidate.probabilities.argmax(1).numpy(), labels) for candidate in candidates
    }
    best = max(scores, key=lambda name: sum(scores[name]))
    note = f"{candidates[0].name}; best {scores[best][0]:.4f} {scores[best][1]:.4f} {best}"
    return F.linear(x, weights[0], biases[0]).softmax(1), note


def k_means(x: np.ndarray, c: int, seed: int) -> np.ndarray:
    return KMeans(c, n_init=10, random_state=seed).fit_predict(x)


def umap_k_means(dimensions: int) -> Callable[[np.ndarray, int, int], np.ndarray]:
    def cluster(x: np.ndarray, c: int, seed: int) -> np.ndarray:
        import umap

        k = min(15, len(x) - 2)
        reducer = umap.UMAP(
            n_components=min(dimensions, len(x) - 3),
            n_neighbors=k,
            min_dist=0.0,
            metric="cosine",
            random_state=seed,
            init="spectral" if len(x) > 3 * dimensions else "random",
            n_jobs=1,
        )
        return k_means(reducer.fit_transform(x), c, seed)

    return cluster


def hdbscan_of_umap(x: np.ndarray, c: int, seed: int) -> np.ndarray:
    """The number of clusters is its own; what it calls noise is one more."""
    import umap

    embedded = umap.UMAP(
        n_components=10, n_neighbors=15, min_dist=0.0, metric="cosine", random_state=seed, n_jobs=1
    ).fit_transform(x)
    return HDBSCAN(min_cluster_size=max(5, len(x) // (5 * c))).fit_predict(embedded) + 1


def spectral(x: np.ndarray, c: int, seed: int) -> np.ndarray:
    return SpectralClustering(
        c, affinity="nearest_neighbors", n_neighbors=min(15, len(x) - 1), random_state=seed
    ).fit_predict(x)


def leiden(x: np.ndarray, c: int, seed: int) -> np.ndarray:
    """Communities of the neighbor graph, at the resolution that gives c of them, or nearly."""
    import igraph
    import leidenalg
    from sklearn.neighbors import kneighbors_graph

    near = kneighbors_graph(x, min(15, len(x) - 1)).tocoo()
    network = igraph.Graph(len(x), list(zip(near.row.tolist(), near.col.tolist(), strict=True))).simplify()
    low, high = 0.01, 20.0
    for _ in range(14):
        middle = (low * high) ** 0.5
        found = np.array(
            leidenalg.find_partition(
                network, leidenalg.RBConfigurationVertexPartition, resolution_parameter=middle, seed=seed
            ).membership
        )
        if found.max() + 1 == c:
            break
        low, high = (middle, high) if found.max() + 1 < c else (low, middle)
    return found


def turtle(x: np.ndarray, c: int, seed: int, outer: int = 300, inner: int = 10) -> np.ndarray:
    """TURTLE (Gadetsky et al., 2024): one space, cold starts, gamma 10; theirs has 6000 outer iterations."""
    torch.manual_seed(seed)
    features = torch.from_numpy(x)
    features = features / features.square().sum(1).mean().sqrt() * features.size(1) ** 0.5
    encoder = nn.utils.parametrizations.weight_norm(nn.Linear(x.shape[1], c))
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-3)
    for _ in range(outer):
        labels = encoder(features).softmax(1)
        head = nn.Linear(x.shape[1], c)
        fit = torch.optim.Adam(head.parameters(), 1e-3)
        for _ in range(inner):
            fit.zero_grad()
            F.cross_entropy(head(features), labels.detach()).backward()
            fit.step()
        mean = labels.mean(0)
        loss = F.cross_entropy(head(features).detach(), labels) + 10 * (mean * mean.log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder(features).argmax(1).numpy()


# on L2-normalized features; name -> method, seeds, images at most
OPPONENTS: dict[str, tuple[Callable[[np.ndarray, int, int], np.ndarray], int, int]] = {
    "k-means": (k_means, 5, 10**6),
    "Ward": (lambda x, c, seed: AgglomerativeClustering(c).fit_predict(x), 5, 20_000),
    "UMAP-10 + k-means": (umap_k_means(10), 5, 10**6),
    "UMAP-50 + k-means": (umap_k_means(50), 5, 10**6),
    "UMAP-10 + HDBSCAN": (hdbscan_of_umap, 1, 10**6),
    "spectral": (spectral, 3, 5000),
    "Leiden": (leiden, 3, 5000),
    "TURTLE": (turtle, 1, 5000),
}


# --- the table -----------------------------------------------------------------------------------


def score(clusters: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """ACC and NMI."""
    table = metrics.contingency(clusters, labels, int(clusters.max()) + 1, int(labels.max()) + 1)
    acc = metrics.matched_share(table, metrics.hungarian_match(table))
    return acc, float(normalized_mutual_info_score(labels, clusters))


def calibration_error(probabilities: torch.Tensor, labels: np.ndarray) -> float:
    clusters = probabilities.argmax(1)
    table = metrics.contingency(clusters.numpy(), labels, probabilities.size(1), int(labels.max()) + 1)
    right = calibration.judged_class(table, metrics.hungarian_match(table))[clusters] == torch.from_numpy(
        labels
    )
    return calibration.expected_calibration_error(probabilities.max(1).values, right)


def run(args: argparse.Namespace, path: Path) -> None:
    """Compute the rows that are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(row["set"], row["method"], row["seed"]) for row in read(path)}
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS)
        for name, seed, method in wanted(args):
            if (name, method, str(seed)) in done:
                continue
            base, kind = name.split()
            with np.load(args.data / f"{base}.npz") as content:
                x, y = content["features"], content["labels"].astype(np.int64)
            features, labels, c = variant(x, y, base, kind, seed)
            if (
                len(features) > 5000
                and seed > 1
                or method in OPPONENTS
                and len(features) > OPPONENTS[method][2]
            ):
                continue
            row = [name, method, seed, len(labels), c, *evaluate(method, features, labels, c, seed)]
            writer.writerow(row)
            file.flush()
            print(*row, flush=True)


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """Yield set, seed and method of the rows."""
    for base, kinds in (CHOSEN if args.half == "chosen" else ONCE).items():
        for kind in kinds.split():
            for seed in range(args.seeds):
                for method in ["ours", *(name for name, (_, seeds, _) in OPPONENTS.items() if seed < seeds)]:
                    if not args.only or args.only in (method, f"{base} {kind}"):
                        yield f"{base} {kind}", seed, method


def evaluate(method: str, features: np.ndarray, labels: np.ndarray, c: int, seed: int) -> list[str]:
    """ACC, NMI, the calibration error, seconds, and a note."""
    error, note, start = "", "", time.perf_counter()
    if method == "ours":
        probabilities, note = ours(torch.from_numpy(features), c, seed, labels)
        found, error = probabilities.argmax(1).numpy(), f"{calibration_error(probabilities, labels):.4f}"
    else:
        found = OPPONENTS[method][0](F.normalize(torch.from_numpy(features), dim=1).numpy(), c, seed)
    seconds = time.perf_counter() - start
    acc, nmi = score(found, labels)
    return [f"{acc:.4f}", f"{nmi:.4f}", error, f"{seconds:.1f}", note]


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tell(path: Path) -> None:
    """Print a table of the means, ACC / NMI in %, ours with the difference from the best other."""
    rows = read(path)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    print("| set | images | clusters |", " | ".join(methods), "| ours - best |")
    print("|---" * (len(methods) + 4), "|", sep="")
    means = {}
    for name in sets:
        cells = []
        for method in methods:
            found = [r for r in rows if r["set"] == name and r["method"] == method]
            if not found:
                cells.append("")
                continue
            values = 100 * np.array([[float(r["acc"]), float(r["nmi"])] for r in found])
            means[name, method] = values.mean(0)
            spread = "".join(f" ± {s:.1f}" for s in values.std(0)[:1]) if len(found) > 1 else ""
            cells.append(f"{values.mean(0)[0]:.1f}{spread} / {values.mean(0)[1]:.1f}")
        others = [means[name, m] for m in methods if m != "ours" and (name, m) in means]
        gap = means[name, "ours"] - np.max(others, 0)
        first = next(r for r in rows if r["set"] == name)
        print(
            f"| {name} | {first['images']} | {first['clusters']} |",
            " | ".join(cells),
            f"| {gap[0]:+.1f} / {gap[1]:+.1f} |",
        )
    cells = []
    for method in methods:  # on the sets where the method has results; the difference is on the same sets
        common = [name for name in sets if (name, method) in means]
        theirs, own = (np.mean([means[name, m] for name in common], 0) for m in (method, "ours"))
        cells.append(
            f"{theirs[0]:.1f} / {theirs[1]:.1f} ({own[0] - theirs[0]:+.1f} / {own[1] - theirs[1]:+.1f})"
        )
    print("| mean (ours - it) | | |", " | ".join(cells), "| |")
    own = [row for row in rows if row["method"] == "ours"]
    lost = [
        100
        * sum(
            float(best) - float(row[key])
            for best, key in zip(row["note"].split("; best ")[1].split(), ("acc", "nmi"), strict=False)
        )
        / 2
        for row in own
    ]
    errors = [float(row["ece"]) for row in own]
    print(
        f"\nthe judge loses {np.mean(lost):.1f} points against the best candidate, {max(lost):.1f} at most "
        "(mean of ACC and NMI)"
    )
    print(f"expected calibration error: mean {np.mean(errors):.3f}, worst {max(errors):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "datasets/features")
    parser.add_argument("--half", choices=["chosen", "once"], required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="one set, or one method, as in the table")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    path = ROOT / f"docs/records/clustering-{args.half}.csv"
    if not args.table:
        with one_thread():
            run(args, path)
    tell(path)


if __name__ == "__main__":
    main()
