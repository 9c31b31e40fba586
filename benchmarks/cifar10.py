"""CIFAR-10 as published, from images to figures, in slices: make cifar10 [MINUTES=8]

python benchmarks/cifar10.py [--minutes 8] [--rehearse] [--seed 0]

The three published files, then eval.py; no label is used but for the figures. Give the same command again
until it prints its table: each time it goes on where it stopped, within an epoch if need be. --minutes ends a
slice in order (exit status 143). Leaves in ROOT_DIR/cifar-10/ each step's results and summary.json: figures,
minutes and images per second by step, machine, versions, commit. The cluster of each test image, from which
the figures can be computed again, is in selflabel/assignment.csv.

--rehearse shows on any machine in minutes that all of it runs: a narrow network, 2 000 + 1 000 of the
images, a few epochs. Its figures mean nothing.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import data
import eval as evaluation
import scan
import selflabel
import simclr
from utils.files import write_json
from utils.run import identity
from utils.run.script import run_script

ROOT = Path(__file__).parents[1]
STEPS = {
    "pretext": (simclr, "configs/pretext/simclr_cifar10.yml"),
    "scan": (scan, "configs/scan/scan_cifar10.yml"),
    "selflabel": (selflabel, "configs/selflabel/selflabel_cifar10.yml"),
}
REHEARSAL = {
    "pretext": ["epochs=4", "batch_size=128", "optimizer_kwargs.lr=0.06"],
    "scan": ["epochs=3", "update_cluster_head_only=True", "optimizer_kwargs.lr=0.001"],
    "selflabel": ["epochs=2", "batch_size=250", "confidence_threshold=0.2"],
}
PUBLISHED = {"scan": "81.6 / 71.5 / 66.5", "selflabel": "88.3 / 79.7 / 77.2"}  # ACC / NMI / ARI, best models


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, help="stop, saved, after so many")
    parser.add_argument(
        "--rehearse", action="store_true", help="a few epochs of a small network on few images"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default="datasets", help="holds cifar-10.npz, or takes the download")
    parser.add_argument("--root_dir", default="results")
    args = parser.parse_args()
    if args.minutes:
        timer = threading.Timer(60 * args.minutes, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    root, data_dir = Path(args.root_dir), Path(args.data_dir)
    if args.rehearse:
        root = root / "rehearsal"
        write_few(data_dir, root)
        data_dir = root
    settings = [f"root_dir={root}", f"data_dir={data_dir}", f"seed={args.seed}"]
    settings += ["backbone=resnet10_narrow"] if args.rehearse else []
    folder = root / "cifar-10"
    for step, (script, config) in STEPS.items():
        if not identity.read_fingerprint(folder / step):  # written when a step is done
            script.main(arguments(config, settings, REHEARSAL[step] if args.rehearse else []))
    config = arguments(STEPS["selflabel"][1], settings, [])
    model = folder / "selflabel/model.pth.tar"
    evaluation.main([*config, "--model", str(model), "--visualize_prototypes"])
    summary = summarise(folder, args)
    write_json(summary, folder / "summary.json")
    show(summary)
    print(f"\nall of it in {folder}")


def arguments(config, settings, more):
    return ["--config_exp", config, "--set", *settings, *more]


def write_few(data_dir, folder):
    """cifar-10.npz with a few of the images."""
    path = folder / "cifar-10.npz"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {"train_db_name": "cifar-10", "val_db_name": "cifar-10", "data_dir": data_dir}
    arrays = {}
    for split, count in (("train", 2000), ("test", 1000)):
        dataset = data.build_dataset(config, split)
        arrays[f"{split}_images"] = dataset.images[:count].permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = dataset.labels[:count].numpy()
    np.savez(path, **arrays)


def summarise(folder, args):
    steps = {}
    for step in STEPS:
        epochs = [json.loads(line) for line in (folder / step / "metrics.jsonl").read_text().splitlines()]
        figures = json.loads((folder / step / "metrics.json").read_text())
        steps[step] = {
            "epochs": len(epochs),
            "training_minutes": sum(epoch["seconds"] for epoch in epochs) / 60,
            "images_per_second": float(np.median([epoch["images_per_second"] for epoch in epochs])),
            **{key: value for key, value in figures.items() if isinstance(value, (int, float))},
        }
    gpu = torch.cuda.is_available()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "rehearsal": args.rehearse,
        "seed": args.seed,
        "machine": torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": git.stdout.strip() or "unknown",
        "steps": steps,
    }


def show(summary):
    if summary["rehearsal"]:
        print("\na rehearsal: the figures mean nothing")
    print(f"\n{'':12}{'minutes':>9}{'images/s':>10}   test split, %")
    for step, values in summary["steps"].items():
        if step == "pretext":
            figures = f"k-NN {100 * values['knn_accuracy']:.1f}, neighbors of the same class "
            figures += f"{100 * values['train_neighbors_of_same_class']:.1f}"
        else:
            figures = " / ".join(f"{100 * values[key]:.1f}" for key in ("acc", "nmi", "ari"))
            figures = f"ACC / NMI / ARI {figures} (published, best: {PUBLISHED[step]})"
        print(f"{step:12}{values['training_minutes']:>9.1f}{values['images_per_second']:>10.0f}   {figures}")


if __name__ == "__main__":
    run_script(main)
