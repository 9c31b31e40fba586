"""ImageNet's size on an ordinary machine: how long mining and evaluation take, and how much memory they need.

python benchmarks/imagenet_scale.py [--images 1281167] [--dim 128] [--k 50]

Features are synthetic (1000 classes of 1300 points each, spread along 16 directions and by noise), since only
their number and width matter for memory; the recall of the approximate search holds for them only. Each part
runs in a process of its own, whose peak memory is read at the end; it includes resident pages of the
features' file. The table is also written to --output as JSON.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import ClusteringModel
from utils.analysis import metrics, neighbors
from utils.files import write_json
from utils.training import inference

CLASSES, HEADS, VAL_IMAGES, BATCH = 1000, 10, 50_000, 4096


class Batches:
    """In place of a data.Loader: batches of image indices, int64 (B,)."""

    batch_size = BATCH

    def __init__(self, n):
        self.dataset = range(n)

    def __iter__(self):
        return iter(torch.arange(len(self.dataset)).split(self.batch_size))


def synthetic(dim):
    """Function indices (B,) -> normalized features (B, dim) that form CLASSES clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = F.normalize(torch.randn(CLASSES, dim, generator=generator), dim=1)
    directions = F.normalize(torch.randn(16, dim, generator=generator), dim=1)

    def features(index):
        spread = torch.randn(len(index), 16, generator=generator) @ directions
        noise = torch.randn(len(index), dim, generator=generator)
        near = 0.6 * F.normalize(spread, dim=1) + 0.4 * F.normalize(noise, dim=1)
        return F.normalize(centers[index % CLASSES] + near, dim=1)

    return features


def mining(args):
    """Write the features of the train split to a file, then mine the neighbors of each."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        start = time.perf_counter()
        found = inference.infer_to_file(
            synthetic(args.dim), Batches(args.images), "features", Path(folder) / "f.npy"
        )
        middle = time.perf_counter()
        neighbors.nearest_neighbors(found, args.k)
        seconds = time.perf_counter() - middle
        return {
            "features to a file": {"seconds": middle - start, "GB": found.nbytes / 1e9},
            "mining": {
                "seconds": seconds,
                "images per second": args.images / seconds,
                "seconds of the exact search": exact_seconds(found, args.k),
            },
        }


def exact_seconds(features, k, sample=500):
    """Seconds of the exact search, extrapolated from `sample` queries."""
    start = time.perf_counter()
    neighbors.search(features[:sample], features, k + 1)
    return (time.perf_counter() - start) * len(features) / sample


def evaluation(args):
    """What scan.py does after an epoch: ten heads of 1000 clusters on ResNet-50's 2048 features."""
    model = ClusteringModel(torch.nn.Identity(), 2048, CLASSES, HEADS).eval()
    features = synthetic(2048)
    mined = torch.randint(VAL_IMAGES, (VAL_IMAGES, 6))
    labels = torch.arange(VAL_IMAGES) % CLASSES
    figures = {}

    def measure(name, function):
        start = time.perf_counter()
        result = function()
        figures[name] = {"seconds": time.perf_counter() - start}
        return result

    def predict(index):
        return tuple(logits.softmax(1) for logits in model(features(index)))

    heads = measure("predictions, 10 heads", lambda: inference.infer(predict, Batches(VAL_IMAGES), "heads"))
    measure("objective, 10 heads", lambda: [metrics.validation_objective(p, mined) for p in heads])
    measure("matching and metrics", lambda: metrics.clustering_metrics(heads[0], labels, CLASSES))
    figures["predictions, 10 heads"]["GB"] = sum(p.nbytes for p in heads) / 1e9
    return figures


def in_a_process(function, args):
    """Run `function(args)` in a new process; returns its figures and the process's peak memory in GB."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(function, args, sender))
    process.start()
    sender.close()  # otherwise recv would block forever if the child is killed
    result = receiver.recv()
    process.join()
    return result


def _run(function, args, sender):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the imported libraries
    figures = function(args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kilobyte = 1 if sys.platform == "darwin" else 1024
    sender.send({**figures, "peak memory": {"GB": peak * kilobyte / 1e9, "GB before": idle * kilobyte / 1e9}})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=50, help="neighbors to mine")
    parser.add_argument("--scratch", help="folder for the file of features (default: the system's)")
    parser.add_argument("--output", default="results/benchmarks/imagenet_scale.json")
    args = parser.parse_args()
    table = {
        f"mining {args.images} x {args.dim}": in_a_process(mining, args),
        f"evaluating {VAL_IMAGES} x {HEADS} heads x {CLASSES} clusters": in_a_process(evaluation, args),
    }
    for part, rows in table.items():
        print(part)
        for name, values in rows.items():
            print(f"  {name:24}" + "".join(f"  {key} {value:,.4g}" for key, value in values.items()))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    about = {"cpu cores": torch.get_num_threads(), "torch": torch.__version__}
    write_json({**about, **table}, Path(args.output))


if __name__ == "__main__":
    main()
