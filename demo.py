"""The whole method on scikit-learn's handwritten digits: three steps, then one table.

python demo.py [--seeds 0 1 2 3 4]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import data
import eval as evaluation
import scan
import selflabel
import simclr
from models import build_model
from utils.analysis import kmeans
from utils.files import write_json
from utils.run.config import load_config
from utils.run.script import parse_arguments, run_script
from utils.run.weights import load_weights, read_weights
from utils.training import inference

PRETEXT = "configs/pretext/simclr_digits.yml"
SCAN = "configs/scan/scan_digits.yml"
SELFLABEL = "configs/selflabel/selflabel_digits.yml"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--root_dir", default="results", help="results go to ROOT_DIR/seed-N")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the network is too small for more, which only wait for each other
    rows, minutes = {}, []
    for seed in args.seeds:
        root = Path(args.root_dir) / f"seed-{seed}"
        for name, figures in run(root, seed).items():
            rows.setdefault(name, []).append(figures)
        minutes.append(training_minutes(root))
    print(table(rows, args.seeds))
    print(f"\ntraining, three steps: {', '.join(f'{value:.1f}' for value in minutes)} minutes")
    print(f"pictures, for seed {args.seeds[-1]}:")
    for path in sorted((root / "digits").rglob("*.png")):
        print(f"  {path}")
    write_json({"seeds": args.seeds, "minutes": minutes, **rows}, Path(args.root_dir) / "demo.json")


def run(root, seed):
    """Run the four scripts as their commands would; returns {row of the table: figures on the test split}."""
    changes = ["--set", f"root_dir={root}", f"seed={seed}"]
    for step, config in ((simclr, PRETEXT), (scan, SCAN), (selflabel, SELFLABEL)):
        print(f"\n--- {step.__name__}.py --config_exp {config} --set root_dir={root} seed={seed}", flush=True)
        step.main(["--config_exp", config, *changes])
    final = root / "digits/selflabel/model.pth.tar"
    evaluation.main(["--config_exp", SELFLABEL, "--model", str(final), "--visualize_prototypes", *changes])
    config = load_config(parse_arguments(["--config_exp", PRETEXT, *changes], ""), ["simclr"])
    train, test = (data.build_dataset(config, split) for split in ("train", "test"))

    def k_means(*features):
        classes = config.num_classes
        return kmeans.score(*features, test.labels, classes, classes, seed, initialisations=10)

    return {
        "k-means on pixels": k_means(*(split.images.flatten(1) for split in (train, test))),
        "k-means on SimCLR features": k_means(*simclr_features(config, root)),
        **{
            name: json.loads((root / f"digits/{step}/metrics.json").read_text())
            for name, step in (("SCAN loss", "scan"), ("self-labeling", "selflabel"))
        },
    }


def simclr_features(config, root):
    model = build_model(config)
    source = root / "digits/pretext/model.pth.tar"
    load_weights(model, read_weights(source, ["pretext"])[0], source)
    model.eval()
    datasets = (data.build_dataset(config, split) for split in ("train", "test"))
    loaders = (data.eval_loader(dataset, config, batch_size=512) for dataset in datasets)
    return [inference.infer(model, loader, "features") for loader in loaders]


def table(rows, seeds):
    """Mean over the seeds of ACC, NMI, ARI in percent, and ACC of each seed."""
    lines = [f"{'test split, %':28}{'ACC':>7}{'NMI':>7}{'ARI':>7}"]
    if len(seeds) > 1:
        lines[0] += f"    {'worst ACC':>9}   ACC of seeds {', '.join(map(str, seeds))}"
    for name, figures in rows.items():
        means = "".join(f"{100 * np.mean([f[key] for f in figures]):7.1f}" for key in ("acc", "nmi", "ari"))
        lines.append(f"{name:28}{means}")
        if len(seeds) > 1:
            acc = [100 * f["acc"] for f in figures]
            lines[-1] += f"    {min(acc):9.1f}   {', '.join(f'{value:.1f}' for value in acc)}"
    return "\n".join(["", *lines])


def training_minutes(root):
    """Minutes that the epochs of the three steps took, monitoring included."""
    files = (root / "digits").glob("*/metrics.jsonl")
    return sum(json.loads(line)["seconds"] for f in files for line in f.read_text().splitlines()) / 60


if __name__ == "__main__":
    run_script(main)
