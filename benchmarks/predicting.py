"""How many new images a second predict.py takes, and how much memory, whatever their number.

python benchmarks/predicting.py [--images 10000 100000]
python benchmarks/predicting.py --runtimes torchvision/resnet50 ...   (ONNX Runtime beside torch)

The images are JPEGs of 64 x 64 pixels, a few hundred files under many names (hard links), so that the disk is
not what is measured; the network is resnet10_narrow at 32 pixels with random weights, so that decoding is.
Each number of images runs in a process of its own, whose peak memory is read at the end, and the largest of
its workers'. The table is also written to --output as JSON.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import predict
from models import build_model
from utils.files import write_json
from utils.run import checkpoint
from utils.training import runtimes

DISTINCT, SIDE, PER_FOLDER = 300, 64, 1000
NORMALIZE = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
CONFIG = {
    "setup": "scan", "backbone": "resnet10_narrow", "num_heads": 1, "num_classes": 20, "batch_size": 64,
    "train_db_name": "none", "val_db_name": "none",
    "transformation_kwargs": {"crop_size": 32, "normalize": NORMALIZE},
}  # fmt: skip


def write_results(folder):
    """The files of a finished clustering step that predict.py reads."""
    folder.mkdir()
    (folder / "config.yml").write_text(yaml.safe_dump(CONFIG))
    torch.manual_seed(0)
    checkpoint.save({"model": build_model(CONFIG).state_dict(), "head": 0}, folder / "model.pth.tar")
    write_json({"backbone_weights": "", "data": {}, "files": {}}, folder / "fingerprint.json")


def write_images(folder, count):
    """`count` JPEG files, of which DISTINCT differ."""
    random = np.random.default_rng(0)
    originals = folder / "000"
    originals.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number // PER_FOLDER:03}" / f"image-{number:07}.jpg"
        if number < DISTINCT:
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
            continue
        path.parent.mkdir(exist_ok=True)
        os.link(originals / f"image-{number % DISTINCT:07}.jpg", path)


def measure(root, count, workers):
    """Predict `count` images; returns the seconds and peak memory."""
    kilobyte = 1 if sys.platform == "darwin" else 1024
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
    start = time.perf_counter()
    images, output = root / f"{count} images", root / f"{count}.csv"
    argv = [str(root / "results"), str(images), "--output", str(output), "--num_workers", str(workers)]
    predict.main([*argv, "--device", "cpu"])
    seconds = time.perf_counter() - start
    with open(output, encoding="utf-8") as file:
        rows = sum(1 for _ in file) - 1
    peak, worker = (
        resource.getrusage(who).ru_maxrss * kilobyte
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {
        "images": rows,
        "seconds": seconds,
        "images per second": rows / seconds,
        "peak MB": peak / 1e6,
        "MB before": idle / 1e6,
        "peak MB of a worker": worker / 1e6,
    }


def _run(root, count, workers, sender):
    sender.send(measure(root, count, workers))


def in_a_process(*args):
    """`measure(*args)` in a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(*args, sender))
    process.start()
    sender.close()  # otherwise recv would block forever if the child is killed
    result = receiver.recv()
    process.join()
    return result


def compare_runtimes(name, pairs, size=224, batch=16):
    """How many times as fast as torch ONNX Runtime is: CPU seconds of `pairs` turns of both, lowest first."""
    torch.manual_seed(0)
    settings = {"setup": "pretrained", "backbone": name, "transformation_kwargs": {"crop_size": size}}
    network = build_model(settings).backbone.eval().to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    other = runtimes.onnx_features(network, images)
    turns = [[runtimes.timed_features(one, images)[1] for one in (network, other)] for _ in range(pairs + 1)]
    return sorted(ours / theirs for ours, theirs in turns[1:])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count() // 2)
    parser.add_argument("--scratch", help="folder for the images (default: the system's)")
    parser.add_argument("--output", default="results/benchmarks/predicting.json")
    parser.add_argument("--runtimes", nargs="+", default=[], metavar="NETWORK")
    args = parser.parse_args(argv)
    for name in args.runtimes:
        ratios = compare_runtimes(name, pairs=9)
        print(
            f"{name}: {ratios[4]:.2f} times as fast as torch, {ratios[0]:.2f} to {ratios[-1]:.2f}", flush=True
        )
    if args.runtimes:
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        root = Path(folder)
        write_results(root / "results")
        for count in args.images:
            write_images(root / f"{count} images", count)
            rows.append(in_a_process(root, count, args.workers))
    for row in rows:
        print("  ".join(f"{key} {value:,.4g}" for key, value in row.items()))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    about = {"cpu cores": os.cpu_count(), "workers": args.workers, "torch": torch.__version__}
    write_json({**about, "rows": rows}, Path(args.output))


if __name__ == "__main__":
    main()
