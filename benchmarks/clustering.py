"""How well frozen features are clustered: k-means, Ward's linkage, UMAP, and our heads from two starts.

python benchmarks/clustering.py [--features FILE.npy --labels FILE.npy] [--clusters K] [--seeds 3]

Rows of the two files belong together; without them, the pixels of scikit-learn's digits are clustered. Labels
only score. The heads train as scan.py trains them on cached features, on the settings below, and the one with
the lowest validation objective on the same images is scored. --output writes the table as JSON, too.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
from losses import SCANLoss
from models.heads import ClusterHeads
from utils.analysis import baselines, graph, metrics, neighbors
from utils.files import write_json

HEADS, MINED, NEIGHBORS, EPOCHS, BATCH = 10, 20, {"random": 10, "graph": 20}, 40, 128
LR = {"random": 1e-3, "graph": 1e-4}  # random heads hardly move at the lower one


def train_heads(features, mined, num_clusters, head_init, weight, seed):
    """Probabilities (N, C) of the best of HEADS heads, without labels."""
    torch.manual_seed(seed)
    heads = ClusterHeads(features.size(1), num_clusters, HEADS)
    mined_of_start = mined[:, : NEIGHBORS[head_init] + 1]
    if head_init == "graph":
        graph.start(heads, features, mined_of_start, torch.arange(len(features)), 100 * seed)
    pairs = data.AnchorNeighborView(data.unchanged, mined, NEIGHBORS[head_init])
    views = data.FeatureViews(features.unsqueeze(0))
    loader = data.Loader(views, pairs, min(BATCH, len(features)), train=True)
    criterion = SCANLoss(weight)
    optimizer = torch.optim.Adam(heads.parameters(), LR[head_init], weight_decay=1e-4)
    for _ in range(EPOCHS):
        for anchors, partners in loader:
            logits = zip(heads(anchors), heads(partners), strict=True)
            loss = sum(criterion(*pair)[0] for pair in logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        probabilities = [logits.softmax(1) for logits in heads(features)]
    return min(probabilities, key=lambda p: metrics.validation_objective(p, mined[:, :6])["loss"])


def figures(features, labels, num_clusters, seeds, weight):
    """Yield (method, list of metrics.clustering_metrics, seconds per seed)."""
    num_classes = int(labels.max()) + 1
    mined = neighbors.mine(F.normalize(features, dim=1), MINED, library="torch")

    def scored(probabilities):
        return metrics.clustering_metrics(probabilities, labels, num_classes)

    opinions = {}
    for seed in range(seeds):
        for name, clusters in baselines.cluster(features, num_clusters, seed).items():
            opinions.setdefault(name, []).append(scored(F.one_hot(clusters, num_clusters).float()))
    for name, scores in opinions.items():
        yield name, scores, None
    for head_init in LR:
        start = time.perf_counter()
        found = [
            scored(train_heads(features, mined, num_clusters, head_init, weight, s)) for s in range(seeds)
        ]
        yield f"heads, {head_init}", found, (time.perf_counter() - start) / seeds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--clusters", type=int, help="default: as many as there are classes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weight", type=float, default=5, help="entropy weight")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if args.features:
        features, labels = (np.load(path) for path in (args.features, args.labels))
    else:
        features, labels = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(features).float(), torch.from_numpy(labels).long()
    num_clusters = args.clusters or int(labels.max()) + 1
    print(
        f"{len(features)} x {features.size(1)} features, {num_clusters} clusters; "
        f"%, mean ± std of {args.seeds} seeds"
    )
    table = {}
    for method, scores, seconds in figures(features, labels, num_clusters, args.seeds, args.weight):
        table[method] = {name: [score[name] for score in scores] for name in ("acc", "nmi", "ari")}
        cells = [
            f"{name.upper()} {100 * np.mean(v):5.1f} ± {100 * np.std(v):4.1f}"
            for name, v in table[method].items()
        ]
        print(f"{method:15}", *cells, f"{seconds:6.1f} s" if seconds else "", sep="  ", flush=True)
    if args.output:
        write_json(table, args.output)


if __name__ == "__main__":
    main()
