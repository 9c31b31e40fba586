"""All steps on a dataset, seed by seed, then one table beside the published figures.

python reproduce.py DATASET [--seeds 0 1 2] [--minutes 8] [--rehearse] [--set KEY=VALUE ...]

If it is interrupted, give the same command again: finished steps are skipped, and an interrupted one resumes
within its epoch. The results of a seed are in ROOT_DIR/seed-N/DATASET/, the table in ROOT_DIR/DATASET.md,
.csv (a row for each seed and method) and .json; those of cifar-10-cpu, which is CIFAR-10 with other files, in
ROOT_DIR/cifar-10-cpu/. assignment.csv of the clustering and self-labeling steps lists the cluster of each
test image, so that the figures can be computed again. --record keeps table and clusters in docs/records/, of
which docs/RESULTS.md is made. --ablation NAME compares variants instead, see workflows/ablations.py.
"""

import os
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data
from errors import UserError, did_you_mean
from steps.load_model import load_model
from steps.options import BuildDataset
from utils.analysis import kmeans
from utils.analysis.metrics import spread
from utils.files import atomic, digest, read_json, write_json
from utils.run.config import load_config
from utils.run.folder import FIGURES, FINGERPRINT, read_epochs
from utils.run.machine import choose_device
from utils.run.processes import require_one_process
from utils.run.script import add_overrides, add_version, is_name, parse_arguments, run_script, yaml_text
from utils.training.inference import infer
from workflows import records, tables
from workflows.ablations import ABLATIONS, run_ablation
from workflows.experiments import (
    EXPERIMENTS,
    Configs,
    DatasetExperiment,
    Plan,
    experiment_files,
    settings_of,
    split_step,
)
from workflows.provenance import origin_of
from workflows.run_steps import DatasetCache, PlannedStep, configs_of, make_report, run_steps
from workflows.tables import METHODS, METRICS, Published, Summary

Metrics = dict[str, Any]  # of a step or method, as in its metrics.json
# DATASET: CPU threads, where the network is so small that more threads are slower
THREADS = {"digits": 1}

ON_PIXELS = "k-means on pixels"
ON_FEATURES = {"head": "k-means on head outputs", "backbone": "k-means on backbone features"}
# ACC, NMI, ARI in %, as published with SCAN (ECCV 2020): of the released models, which are the best ones, and
# on CIFAR-10 also the paper's means over ten runs
BEST, TEN_RUNS = "best model", "mean of 10 runs"
PUBLISHED: dict[str, list[tuple]] = {  # method, of which runs, figures
    "cifar-10": [
        ("SCAN loss", BEST, 81.6, 71.5, 66.5),
        ("SCAN loss", f"{TEN_RUNS}, ± 0.3", 81.8),
        ("self-labeling", BEST, 88.3, 79.7, 77.2),
        ("self-labeling", f"{TEN_RUNS}, ± 0.4", 87.6),
    ],
    "cifar-20": [("SCAN loss", BEST, 44.0, 44.9, 28.3), ("self-labeling", BEST, 50.7, 48.6, 33.3)],
    "stl-10": [("SCAN loss", BEST, 79.2, 67.3, 61.8), ("self-labeling", BEST, 80.9, 69.8, 64.6)],
    "imagenet_50": [("SCAN loss", BEST, 75.1, 80.5, 63.5), ("self-labeling", BEST, 76.8, 82.2, 66.1)],
    "imagenet_100": [("SCAN loss", BEST, 66.2, 78.7, 54.4), ("self-labeling", BEST, 68.9, 80.8, 57.6)],
    "imagenet_200": [("SCAN loss", BEST, 56.3, 75.7, 44.1), ("self-labeling", BEST, 58.1, 77.2, 47.0)],
}

# of k-means: what is known of it are the authors' and others' answers in the issues that are named here
K_MEANS_PUBLISHED = {
    "cifar-10": "k-means on pretext features is published as 65.9 (mean of 10 runs), its protocol is not. "
    "The authors' answers name the head's outputs, normalized, fitted on the train split; others report 20 "
    "and 33.3 from the published weights (github.com/wvangansbeke/Unsupervised-Classification, issues 38 and "
    "126) and 34.7 from weights that they trained in full. So there is no difference to give."
}

# --rehearse: a narrow network, few images, few epochs
REHEARSAL_IMAGES = {"train": 2000, "test": 1000}
REHEARSAL = {
    "pretext": ["epochs=4", "batch_size=128", "optimizer_kwargs.lr=0.06"],
    "scan": ["epochs=3", "update_cluster_head_only=True", "optimizer_kwargs.lr=0.001"],
    "selflabel": ["epochs=2", "batch_size=250", "confidence_threshold=0.2"],
}
# k-means keeps the best of N_INIT by inertia, or runs once if values x clusters exceed SLOW, as more
# would take hours. Pixels are clustered only if the train split has at most MOST_PIXELS values (1.2 GB).
N_INIT, SLOW, MOST_PIXELS = 10, 4e9, 3e8
RECORDS = Path(__file__).parent / "docs/records"
# settings that have an argument of their own
RESERVED = {"root_dir": "--root_dir", "data_dir": "--data_dir", "seed": "--seeds"}
RESERVED |= dict.fromkeys(("train_db_name", "val_db_name"), "DATASET")


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    if args.dataset in THREADS:
        torch.set_num_threads(THREADS[args.dataset])
    if args.minutes:
        stop_after(args.minutes)
    experiment = chosen_experiment(args)
    plans = {seed: experiment.plan(seed) for seed in args.seeds}  # of all seeds first, which shows mistakes
    configs = configs_of(plans[args.seeds[0]])
    build_dataset = DatasetCache()
    labels = build_dataset(configs["pretext"], "test").labels
    if labels is None:
        raise UserError(f"{args.dataset}: its test split has no labels, and figures need them")
    if args.ablation:
        run_ablation(args, experiment, configs)
        return

    baselines = []
    for plan in plans.values():
        run_steps(plan, build_dataset)
        report = make_report(plan["selflabel"], build_dataset)
        baselines.append(k_means_figures(plan, build_dataset))
    summary = summary_of(args, plans, baselines)
    tables.write_tables(summary, experiment.root / args.dataset)
    if args.record:
        records.keep(args.record, summary, plans, labels, baselines, RECORDS)
    seed = args.seeds[-1]
    print("", *tables.console(summary), "", f"Pictures of seed {seed}:", sep="\n")
    for path in sorted(plan["pretext"].folder.parent.rglob("*.png")):
        print(f"  {path}")
    if report.exists():
        print(f"\nTo look through the clusters of seed {seed}, open {report} in a browser.")
    print(f"\nThis table: {experiment.root / args.dataset}.md, .csv, .json")


def read_arguments(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", metavar="DATASET", help=", ".join(EXPERIMENTS))
    add("--seeds", type=int, nargs="+", default=[0])
    add("--minutes", type=float, help="save and stop after this many minutes (exit status 143)")
    add(
        "--rehearse", action="store_true",
        help="check in minutes, on any machine, that everything runs: a few epochs of a narrow network on "
        "few images, in ROOT_DIR/rehearsal/; the figures mean nothing",
    )  # fmt: skip
    add("--root_dir", help="results go to ROOT_DIR/seed-N (default: that of configs/env.yml)")
    add("--data_dir", help="folder of the datasets (default: that of configs/env.yml)")
    add("--ablation", metavar="NAME", help=f"compare variants: {', '.join(ABLATIONS)}")
    add("--record", metavar="NAME", help=f"also keep the results as {RECORDS}/NAME, for docs/RESULTS.md")
    add_overrides(parser, "override a key of all three experiment files, or of one: scan.epochs=9")
    add_version(parser)
    args = parser.parse_args(argv)
    require_one_process("reproduce.py")
    files = f"{args.dataset}: configs/ holds no experiment files of all three steps for this dataset"
    require_known_name(args.dataset, EXPERIMENTS, files)
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds {' '.join(map(str, args.seeds))}: give each seed once")
    if args.minutes is not None and args.minutes <= 0:
        raise UserError(f"--minutes {args.minutes:g}: must be above 0")
    if args.record and not RECORDS.is_dir():
        raise UserError(f"--record {args.record}: only in a checkout, which has {RECORDS}")
    if args.record and args.rehearse:
        raise UserError(f"--record {args.record}: --rehearse runs cannot be recorded")
    if args.record and not is_name(args.record):
        raise UserError(f"--record {args.record}: use letters, digits, '_', '-' and '.'")
    if args.ablation:
        require_known_name(args.ablation, ABLATIONS, f"--ablation {args.ablation}: unknown")
    if args.ablation and args.record:
        raise UserError(f"--record {args.record}: not with --ablation")
    if args.rehearse and EXPERIMENTS[args.dataset][0].startswith("moco"):
        raise UserError(f"--rehearse: only for images in arrays, not for the image files of {args.dataset}")
    for override in args.overrides:
        key = split_step(override)[1].partition("=")[0]
        if key in RESERVED:
            raise UserError(f"--set {override}: give it by {RESERVED[key]}")
    return args


def require_known_name(name: str, known: Iterable[str], problem: str) -> None:
    if name not in known:
        question = did_you_mean(name, known, str)
        raise UserError(f"{problem}; {question + ' ' if question else ''}there are {', '.join(known)}")


def stop_after(minutes: float) -> None:
    """Send this process SIGTERM after so many minutes, as a scheduler would: it saves and stops."""
    # os.kill would end the process at once on Windows; elsewhere it also wakes a process that waits
    send = signal.raise_signal if sys.platform == "win32" else partial(os.kill, os.getpid())
    timer = threading.Timer(60 * minutes, send, (signal.SIGTERM,))
    timer.daemon = True
    timer.start()


def chosen_experiment(args: Namespace) -> DatasetExperiment:
    """The experiment files with the settings of the command line."""
    files = experiment_files(args.dataset)
    environment = load_config(parse_arguments(["--config_exp", files["scan"]], ""), ["scan"])
    root, dataset = Path(args.root_dir or environment.root_dir).expanduser(), environment.train_db_name
    data_dir = args.data_dir
    if args.dataset != dataset:  # other files of the same dataset
        root /= args.dataset
    if args.rehearse:
        root /= "rehearsal"
        write_few_images(dataset, Path(data_dir or environment.data_dir).expanduser(), root)
        data_dir = root
    shared = [f"data_dir={yaml_text(data_dir)}"] if data_dir else []
    settings = {}
    for step in files:
        rehearsal = ["backbone=resnet10_narrow", *REHEARSAL[step]] if args.rehearse else []
        settings[step] = [*shared, *rehearsal, *settings_of(step, args.overrides)]
    return DatasetExperiment(root, files, settings)


def write_few_images(dataset: str, data_dir: Path, folder: Path) -> None:
    """Write an .npz file with a few of the dataset's images, unless there is one."""
    path = folder / f"{dataset}.npz"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {"train_db_name": dataset, "val_db_name": dataset, "data_dir": data_dir}
    arrays: dict[str, Any] = {}
    for split, most in REHEARSAL_IMAGES.items():
        images = data.build_dataset(config, split)
        few = torch.stack([images.raw(index) for index in range(min(most, len(images)))])
        arrays[f"{split}_images"] = few.permute(0, 2, 3, 1).numpy()
        if images.labels is not None:
            arrays[f"{split}_labels"] = images.labels[:most].numpy()
            arrays["classes"] = images.classes
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


# --- figures -------------------------------------------------------------------------------------


def k_means_figures(plan: Plan, build_dataset: BuildDataset) -> dict[str, Metrics]:
    """The baselines' figures on the test split, and their clusters, by method: k-means on pixels and on both
    parts' features, first on those that mining uses.

    kmeans.json beside the pretext step's folder caches them, for as long as the pretext model and the number
    of clusters are the same.
    """
    pretext, clusters = plan["pretext"], plan["scan"].config.num_classes
    path = pretext.folder.parent / "kmeans.json"
    made_of = {"pretext": digest(pretext.folder / FINGERPRINT), "clusters": clusters}
    kept = read_json(path)
    figures = kept["figures"] if kept.items() >= made_of.items() else {}
    used = pretext.config.features
    parts = [used, *(part for part in ON_FEATURES if part != used and pretext.config.setup != "pretrained")]
    representations: dict[str, Callable[[list[data.Dataset]], list[torch.Tensor] | None]] = {
        ON_PIXELS: pixels_of,
        **{ON_FEATURES[part]: partial(features_of, pretext, part) for part in parts},
    }
    for method, representation in representations.items():
        known = figures.get(method, {})  # None: too many pixels
        if known is not None and "assigned" not in known:
            print(f"{method}, seed {pretext.config.seed} ...", flush=True)
            splits = [build_dataset(pretext.config, split) for split in ("train", "test")]
            points = representation(splits)
            figures[method] = points and k_means(points, splits[1], clusters, pretext.config.seed)
            write_json({**made_of, "figures": figures}, path)
    return {method: figures[method] for method in representations if figures[method]}


def k_means(points: list[torch.Tensor], test_set: data.Dataset, clusters: int, seed: int) -> Metrics:
    """So many clusters of the test split's points, fitted on the train split's, and their figures."""
    labels, classes = test_set.labels, test_set.classes
    assert labels is not None and classes is not None  # which main() has checked
    train, test = points
    times = N_INIT if train.numel() * clusters <= SLOW else 1
    assigned, _ = kmeans.fit_predict(train, test, clusters, seed, times)
    figures = kmeans.score(assigned, labels, clusters, len(classes))
    return {**figures, "initialisations": times, "assigned": assigned.tolist()}


def pixels_of(splits: list[data.Dataset]) -> list[torch.Tensor] | None:
    """The pixels of both splits, uint8 (N, D) and (M, D); None for image files, or too many values."""
    images = [split.images for split in splits if isinstance(split, data.ArrayImages)]
    if not images or images[0].numel() > MOST_PIXELS:
        return None
    return [part.flatten(1).cpu() for part in images]


def features_of(step: PlannedStep, part: str, splits: list[data.Dataset]) -> list[torch.Tensor]:
    """The pretext step's normalized features of a part, head or backbone: float32 (N, D) and (M, D)."""
    config, device = step.config, choose_device(step.config.device)
    model: Any = load_model(config, step.folder / "model.pth.tar", "pretext").model
    function = model.to(device).eval().features_from(part)
    loading = {"batch_size": 512, "device": device, "num_workers": config.num_workers}
    loaders = [data.eval_loader(split, config, **loading) for split in splits]
    return [infer(function, loader, "features").cpu() for loader in loaders]


def step_figures(step: PlannedStep) -> Metrics:
    """What the table says of a step: epochs, times, and the numbers of metrics.json."""
    epochs = read_epochs(step.folder)
    speeds = [epoch["images_per_second"] for epoch in epochs]
    figures = read_json(step.folder / FIGURES)
    return {
        "epochs": len(epochs),
        "training_minutes": sum(epoch["seconds"] for epoch in epochs) / 60,
        "images_per_second": float(np.median(speeds)) if speeds else None,
        **{key: value for key, value in figures.items() if isinstance(value, int | float)},
    }


def summary_of(args: Namespace, plans: dict[int, Plan], baselines: list[dict[str, Metrics]]) -> Summary:
    """What the table shows.

    Our figures are shares in [0, 1]; the published figures, and the differences from them, are in %.

    Args:
        plans: by seed.
        baselines: of each seed, what `k_means_figures` returned.
    """
    found = {method: [figures[method] for figures in baselines] for method in baselines[0]}
    for step, method in METHODS.items():
        found[method] = [read_json(plan[step].folder / FIGURES) for plan in plans.values()]
    methods = {
        method: {metric: spread([one[metric] for one in figures]) for metric in METRICS}
        for method, figures in found.items()
    }
    published: list[Published] = []
    for method, of, *values in [] if args.rehearse else PUBLISHED.get(args.dataset, []):
        theirs = dict(zip(METRICS, values, strict=False))
        difference = {name: 100 * methods[method][name]["mean"] - value for name, value in theirs.items()}
        published.append({"method": method, "of": of, "figures": theirs, "difference": difference})
    plan = plans[args.seeds[0]]
    folders = [step.folder for plan in plans.values() for step in plan.values()]
    return {
        **origin_of(args, folders, protocol(configs_of(plan), baselines[0], args)),
        "methods": methods,
        "published": published,
        "steps": {
            name: [{"seed": seed, **step_figures(steps[name])} for seed, steps in plans.items()]
            for name in plan
        },
    }


def protocol(configs: Configs, baselines: dict[str, Metrics], args: Namespace) -> list[str]:
    """Sentences on how the figures of a seed were obtained."""
    scan = configs["scan"]
    held_out = scan.validation == "train_holdout"
    tries = [
        f"{found['initialisations']} ({method.removeprefix('k-means on ')})"
        for method, found in baselines.items()
    ]
    return [
        "Pretext: the official MoCo v2 weights." if configs["pretext"].setup == "moco" else "",
        f"Network: {scan.backbone}. Self-labeling: {configs['selflabel'].criterion}.",
        "Model: after the SCAN loss, the epoch and head of the lowest loss on the images of "
        f"{'a held-out tenth of the train split' if held_out else 'the test split'}, without labels; after "
        "self-labeling, the last epoch.",
        "ACC: after one-to-one matching of clusters to classes.",
        f"k-means: fitted on the train split, the best by inertia of {' and '.join(tries)} initializations.",
        "" if ON_PIXELS in baselines else "Not on pixels, which are image files or too many numbers.",
        "" if args.rehearse else K_MEANS_PUBLISHED.get(args.dataset, ""),
    ]


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
