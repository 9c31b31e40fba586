"""All steps on a dataset, seed by seed, then one table beside the published figures.

python reproduce.py DATASET [--seeds 0 1 2] [--minutes 8] [--rehearse] [--set KEY=VALUE ...]

If it is interrupted, give the same command again: finished steps are skipped, and an interrupted one resumes
within its epoch. The results of a seed are in ROOT_DIR/seed-N/DATASET/, the table in ROOT_DIR/DATASET.md,
.csv (a row for each seed and method) and .json; those of cifar-10-cpu, which is CIFAR-10 with other files, in
ROOT_DIR/cifar-10-cpu/. assignment.csv of the clustering and self-labeling steps lists the cluster of each
test image, so that the figures can be computed again. --record keeps table and clusters in docs/records/, of
which docs/RESULTS.md is made. --ablation NAME compares variants instead, see workflows/ablations.py.
"""

import argparse
import csv
import json
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import torch

import data
from errors import UserError, did_you_mean
from models import build_model
from utils.analysis import kmeans
from utils.files import atomic, digest, write_json
from utils.run import distributed, machine
from utils.run.config import load_config
from utils.run.fingerprint import FINGERPRINT
from utils.run.folder import read_epochs
from utils.run.script import add_overrides, parse_arguments, run_script, yaml_text
from utils.run.weights import load_weights, read_weights
from utils.training import inference
from workflows import ablations, provenance, run_steps, tables
from workflows.tables import METHODS, spread

# DATASET: names of its files in configs/pretext/, configs/scan/ and configs/selflabel/
EXPERIMENTS = {
    "digits": ("simclr_digits", "scan_digits", "selflabel_digits"),
    "mnist": ("simclr_mnist", "scan_mnist", "selflabel_mnist"),
    "fashion-mnist": ("simclr_fashion_mnist", "scan_fashion_mnist", "selflabel_fashion_mnist"),
    "cifar-10": ("simclr_cifar10", "scan_cifar10", "selflabel_cifar10"),
    "cifar-10-cpu": ("simclr_cifar10_cpu", "scan_cifar10_cpu", "selflabel_cifar10_cpu"),
    "cifar-20": ("simclr_cifar20", "scan_cifar20", "selflabel_cifar20"),
    "stl-10": ("simclr_stl10", "scan_stl10", "selflabel_stl10"),
    "imagenet_50": ("moco_imagenet50", "scan_imagenet_50", "selflabel_imagenet_50"),
    "imagenet_100": ("moco_imagenet100", "scan_imagenet_100", "selflabel_imagenet_100"),
    "imagenet_200": ("moco_imagenet200", "scan_imagenet_200", "selflabel_imagenet_200"),
}
# DATASET: CPU threads, where the network is so small that more threads would only wait for each other
THREADS = {"digits": 1}

PIXELS, FEATURES = "k-means on pixels", "k-means on features"
# ACC, NMI, ARI in %, as published with SCAN (ECCV 2020): of the released models, which are the best ones, and
# on CIFAR-10 also the paper's means over ten runs
BEST, MEAN = "best model", "mean of 10 runs"
PUBLISHED = {
    "cifar-10": [
        (FEATURES, MEAN, 65.9),
        ("SCAN loss", BEST, 81.6, 71.5, 66.5),
        ("SCAN loss", f"{MEAN}, ± 0.3", 81.8),
        ("self-labeling", BEST, 88.3, 79.7, 77.2),
        ("self-labeling", f"{MEAN}, ± 0.4", 87.6),
    ],
    "cifar-20": [("SCAN loss", BEST, 44.0, 44.9, 28.3), ("self-labeling", BEST, 50.7, 48.6, 33.3)],
    "stl-10": [("SCAN loss", BEST, 79.2, 67.3, 61.8), ("self-labeling", BEST, 80.9, 69.8, 64.6)],
    "imagenet_50": [("SCAN loss", BEST, 75.1, 80.5, 63.5), ("self-labeling", BEST, 76.8, 82.2, 66.1)],
    "imagenet_100": [("SCAN loss", BEST, 66.2, 78.7, 54.4), ("self-labeling", BEST, 68.9, 80.8, 57.6)],
    "imagenet_200": [("SCAN loss", BEST, 56.3, 75.7, 44.1), ("self-labeling", BEST, 58.1, 77.2, 47.0)],
}

# --rehearse: a narrow network, few images, few epochs
FEW = {"train": 2000, "test": 1000}
REHEARSAL = {
    "pretext": ["epochs=4", "batch_size=128", "optimizer_kwargs.lr=0.06"],
    "scan": ["epochs=3", "update_cluster_head_only=True", "optimizer_kwargs.lr=0.001"],
    "selflabel": ["epochs=2", "batch_size=250", "confidence_threshold=0.2"],
}
# k-means keeps the best of INITIALISATIONS by inertia. If values x clusters exceed LARGE, ten would take
# hours: then it runs once. Pixels are clustered only if the train split has at most MODERATE values (1.2 GB).
INITIALISATIONS, LARGE, MODERATE = 10, 4e9, 3e8
RECORDS = Path(__file__).parent / "docs/records"
# settings that have an argument of their own
RESERVED = {
    "root_dir": "--root_dir",
    "data_dir": "--data_dir",
    "seed": "--seeds",
    "train_db_name": "DATASET",
    "val_db_name": "DATASET",
}


def main(argv=None):
    args = read_arguments(argv)
    if args.dataset in THREADS:
        torch.set_num_threads(THREADS[args.dataset])
    if args.minutes:
        stop_after(args.minutes)
    files = experiment_files(args.dataset)
    root, settings, step_settings = settings_of(args, files)
    plans = {}
    for seed in args.seeds:  # report mistakes now, not after the first seed
        plans[seed] = run_steps.plan_steps(files, settings[seed], step_settings)
    configs = {seed: run_steps.configs_of(plan) for seed, plan in plans.items()}
    require_labels(configs[seed]["pretext"])
    if args.ablation:
        ablations.run(args, files, settings, step_settings, configs[seed], root)
        return

    runs = []
    for seed in args.seeds:
        build_dataset = run_steps.DatasetCache()
        folders = run_steps.run_steps(plans[seed], build_dataset)
        report = run_steps.make_report(plans[seed]["selflabel"], build_dataset)
        baselines = k_means_figures(configs[seed], folders["pretext"])
        runs.append(read_results(seed, folders, baselines))
    summary = summarize(args, configs[seed], runs)
    tables.write(summary, root / args.dataset)
    if args.record:
        record(summary, runs, data.build_dataset(configs[seed]["scan"], "test").labels, args.record)
    print("", *tables.console(summary), "", f"Pictures of seed {seed}:", sep="\n")
    for path in sorted(folders["pretext"].parent.rglob("*.png")):
        print(f"  {path}")
    if report.exists():
        print(f"\nTo look through the clusters of seed {seed}, open {report} in a browser.")
    print(f"\nThis table: {root / args.dataset}.md, .csv, .json")


def experiment_files(dataset):
    """Dict step -> path of the experiment file of a dataset of EXPERIMENTS, as text."""
    names = zip(run_steps.SCRIPTS, EXPERIMENTS[dataset], strict=True)
    return {step: f"configs/{step}/{name}.yml" for step, name in names}


def settings_of(args, files):
    """The folder of the results, and the settings of each seed and of each step.

    Returns:
        pathlib.Path; dict seed -> KEY=VALUE strings for all steps; dict step -> those for this step only.
    """
    environment = load_config(parse_arguments(["--config_exp", files["scan"]], ""), ["scan"])
    root, dataset = Path(args.root_dir or environment.root_dir).expanduser(), environment.train_db_name
    data_dir = args.data_dir
    if args.dataset != dataset:  # other files of the same dataset
        root /= args.dataset
    if args.rehearse:
        root /= "rehearsal"
        write_few(dataset, Path(data_dir or environment.data_dir).expanduser(), root)
        data_dir = root
    shared = [f"data_dir={yaml_text(data_dir)}"] if data_dir else []
    shared += ["backbone=resnet10_narrow"] if args.rehearse else []
    settings = {
        seed: [f"root_dir={yaml_text(root / f'seed-{seed}')}", f"seed={seed}", *shared] for seed in args.seeds
    }
    rehearsal = REHEARSAL if args.rehearse else {}
    given = {
        step: [text for of, text in map(split_step, args.overrides) if of in (step, None)] for step in files
    }
    return root, settings, {step: [*rehearsal.get(step, ()), *given[step]] for step in files}


def split_step(override):
    """scan.epochs=9 -> ("scan", "epochs=9"), epochs=9 -> (None, "epochs=9")."""
    step, _, setting = override.partition(".")
    return (step, setting) if step in run_steps.SCRIPTS else (None, override)


def read_arguments(argv):
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, help="save and stop after so many (exit status 143)")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="check in minutes, on any machine, that everything runs: a few epochs of a narrow network on "
        "few images, in ROOT_DIR/rehearsal/; the figures mean nothing",
    )
    parser.add_argument("--root_dir", help="results go to ROOT_DIR/seed-N (default: that of configs/env.yml)")
    parser.add_argument("--data_dir", help="folder of the datasets (default: that of configs/env.yml)")
    parser.add_argument(
        "--ablation", metavar="NAME", help=f"compare variants: {', '.join(ablations.ABLATIONS)}"
    )
    parser.add_argument(
        "--record", metavar="NAME", help=f"also keep the results as {RECORDS}/NAME, for docs/RESULTS.md"
    )
    add_overrides(parser, "override a key of all three experiment files, or of one: scan.epochs=9")
    args = parser.parse_args(argv)
    distributed.require_one_process("reproduce.py")
    files = f"{args.dataset}: configs/ holds no experiment files of all three steps for this dataset"
    require_known(args.dataset, EXPERIMENTS, files)
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: give each seed once")
    if args.minutes is not None and args.minutes <= 0:
        raise UserError(f"--minutes {args.minutes:g}: must be above 0")
    if args.record and args.rehearse:
        raise UserError(f"--record {args.record}: a rehearsal is no result")
    if args.record and not re.fullmatch(r"\w[\w.-]*", args.record):
        raise UserError(f"--record {args.record}: use letters, digits, '_', '-' and '.'")
    if args.ablation:
        require_known(args.ablation, ablations.ABLATIONS, f"--ablation {args.ablation}: unknown")
    if args.ablation and args.record:
        raise UserError(f"--record {args.record}: not with --ablation")
    if args.rehearse and EXPERIMENTS[args.dataset][0].startswith("moco"):
        raise UserError(f"--rehearse: only for images in arrays, not for the image files of {args.dataset}")
    for override in args.overrides:
        key = split_step(override)[1].partition("=")[0]
        if key in RESERVED:
            raise UserError(f"--set {override}: give it by {RESERVED[key]}")
    return args


def require_known(name, known, problem):
    if name not in known:
        question = did_you_mean(name, known, str)
        raise UserError(f"{problem}; {question + ' ' if question else ''}there are {', '.join(known)}")


def stop_after(minutes):
    """Send this process SIGTERM after so many minutes, as a scheduler would: it saves and stops."""
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()


def write_few(dataset, data_dir, folder):
    """Write an .npz file with a few of the dataset's images, unless there is one."""
    path = folder / f"{dataset}.npz"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {"train_db_name": dataset, "val_db_name": dataset, "data_dir": data_dir}
    arrays = {}
    for split, count in FEW.items():
        images = data.build_dataset(config, split)
        arrays[f"{split}_images"] = images.images[:count].permute(0, 2, 3, 1).numpy()
        if images.labels is not None:
            arrays[f"{split}_labels"] = images.labels[:count].numpy()
            arrays["classes"] = images.classes
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def require_labels(config):
    if data.build_dataset(config, "test").labels is None:
        raise UserError(f"{config.val_db_name}: its test split has no labels, and figures need them")


# --- figures -------------------------------------------------------------------------------------


def k_means_figures(configs, folder):
    """The baselines: k-means on pixels and on pretext features, fitted on the train split.

    Args:
        configs: dict step -> configuration.
        folder: pathlib.Path of the pretext step's results. kmeans.json beside this folder caches the figures,
            for as long as the pretext model and the number of clusters are the same.

    Returns:
        dict method -> figures on the test split.
    """
    path, config, clusters = folder.parent / "kmeans.json", configs["pretext"], configs["scan"].num_classes
    made_of = {"pretext": digest(folder / FINGERPRINT), "clusters": clusters}
    kept = json.loads(path.read_text()) if path.exists() else {}
    figures = kept["figures"] if kept.items() >= made_of.items() else {}
    missing = {PIXELS: pixels, FEATURES: features}
    missing = {method: function for method, function in missing.items() if method not in figures}
    if missing:
        train, test = (data.build_dataset(config, split) for split in ("train", "test"))
    for method, representation in missing.items():
        print(f"{method}, seed {config.seed} ...", flush=True)
        found = representation(config, folder, train, test)
        figures[method] = None if found is None else k_means(*found, test, clusters, config.seed)
        write_json({**made_of, "figures": figures}, path)
    return {method: found for method, found in figures.items() if found}


def k_means(train, test, dataset, clusters, seed):
    """Figures of so many clusters; `dataset`: the test split, for its labels."""
    initialisations = INITIALISATIONS if train.numel() * clusters <= LARGE else 1
    classes = len(dataset.classes)
    figures = kmeans.score(train, test, dataset.labels, clusters, classes, seed, initialisations)
    return {**figures, "initialisations": initialisations}


def pixels(config, folder, train, test):
    """The pixels of both splits, uint8 (N, D) and (M, D); None for image files, or above MODERATE values."""
    if not hasattr(train, "images") or train.images.numel() > MODERATE:
        return None
    return [split.images.flatten(1) for split in (train, test)]


def features(config, folder, train, test):
    """The pretext features of both splits, as the mining uses them, float32 (N, D) and (M, D)."""
    model = build_model(config)
    source = folder / "model.pth.tar"
    load_weights(model, read_weights(source, ["pretext"])[0], source)
    device = machine.choose_device(config.device)
    function = model.to(device).eval().features_from(config.features)
    loading = {"batch_size": 512, "device": device, "num_workers": config.num_workers}
    loaders = [data.eval_loader(split, config, **loading) for split in (train, test)]
    return [inference.infer(function, loader, "features").cpu() for loader in loaders]


def read_results(seed, folders, figures):
    """Collect the results of one seed: figures by method and by step, times, the steps' folders."""
    steps = {}
    for step, folder in folders.items():
        epochs = read_epochs(folder)
        content = json.loads((folder / "metrics.json").read_text())
        if step in METHODS:
            figures = {**figures, METHODS[step]: content}
        speeds = [epoch["images_per_second"] for epoch in epochs]
        steps[step] = {
            "epochs": len(epochs),
            "training_minutes": sum(epoch["seconds"] for epoch in epochs) / 60,
            "images_per_second": float(np.median(speeds)) if speeds else None,
            **{key: value for key, value in content.items() if isinstance(value, (int, float))},
        }
    return {
        "seed": seed,
        "figures": figures,
        "steps": steps,
        "folders": folders,
    }


def summarize(args, configs, runs):
    """The content of the table as plain values.

    Our figures are shares in [0, 1]; the published figures, and the differences from them, are in %.
    """
    folders = [folder for run in runs for folder in run["folders"].values()]
    methods = {
        method: {name: spread([run["figures"][method][name] for run in runs]) for name in tables.METRICS}
        for method in runs[0]["figures"]
    }
    published = []
    entries = [] if args.rehearse else PUBLISHED.get(args.dataset, [])
    for method, of, *figures in entries:
        figures = dict(zip(tables.METRICS, figures, strict=False))
        here = methods[method]
        difference = {name: 100 * here[name]["mean"] - value for name, value in figures.items()}
        published.append({"method": method, "of": of, "figures": figures, "difference": difference})
    return {
        **provenance.summary_of(args, folders, protocol(configs, runs[0]["figures"])),
        "methods": methods,
        "published": published,
        "steps": {step: [{"seed": run["seed"], **run["steps"][step]} for run in runs] for step in configs},
    }


def protocol(configs, figures):
    """How the figures, by method, of a seed were obtained: a list of lines."""
    scan = configs["scan"]
    held_out = scan.get("validation") == "train_holdout"
    tries = [
        f"{found['initialisations']} ({method.split()[-1]})"
        for method, found in figures.items()
        if "initialisations" in found
    ]
    return [
        "Pretext: the official MoCo v2 weights." if configs["pretext"].setup == "moco" else "",
        f"Network: {scan.backbone}. Self-labeling: {configs['selflabel'].criterion}.",
        "Model: after the SCAN loss, the epoch and head of the lowest loss on the images of "
        f"{'a held-out tenth of the train split' if held_out else 'the test split'}, without labels; after "
        "self-labeling, the last epoch.",
        "ACC: after one-to-one matching of clusters to classes.",
        f"k-means: fitted on the train split, the best by inertia of {' and '.join(tries)} initialisations.",
        "" if PIXELS in figures else "Not on pixels, which are image files or too many numbers.",
    ]


# --- what is written -----------------------------------------------------------------------------


def record(summary, runs, labels, name):
    """Keep the summary and the clusters of the test images in RECORDS; write docs/RESULTS.md of all kept.

    Args:
        runs: list of what `read_results` returned.
        labels: int64 (N,), of the test images.
        name: of the files: NAME.json, and for each seed NAME-seedN.npz with an array `labels` and, for each
            step of METHODS, one of clusters.
    """
    for run in runs:
        found = {"labels": labels.numpy()}
        for step in METHODS:
            with open(run["folders"][step] / "assignment.csv", encoding="utf-8") as file:
                found[step] = np.array([int(row["cluster"]) for row in csv.DictReader(file)])
        small = {key: values.astype(np.min_scalar_type(values.max())) for key, values in found.items()}
        with atomic(RECORDS / f"{name}-seed{run['seed']}.npz") as path, open(path, "wb") as file:
            np.savez_compressed(file, **small)
    write_json(summary, RECORDS / f"{name}.json")
    kept = [json.loads(path.read_text()) for path in sorted(RECORDS.glob("*.json"))]
    with atomic(RECORDS.parent / "RESULTS.md") as path:
        path.write_text(tables.results_page(kept), encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
