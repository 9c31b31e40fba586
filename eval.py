"""Evaluate a checkpoint: metrics, confusion matrix, prototypes; of a pretext checkpoint, nearest neighbors.

python eval.py --config_exp configs/scan/scan_cifar10.yml --model model.pth.tar --visualize_prototypes
python eval.py --config_exp configs/pretext/simclr_cifar10.yml --model model.pth.tar --kmeans

Without labels, everything but the accuracies is computed. Only --kmeans reads the train split.
--report adds clusters.csv and report.html, a page to look through the clusters in a browser.
"""

import argparse
import json
import logging
from pathlib import Path

import numpy as np

import data
from errors import UserError
from models import build_model
from utils import report
from utils.analysis import duplicates, health, kmeans, neighbors, plots, results
from utils.analysis.neighbor_quality import neighbor_quality
from utils.analysis.prototypes import find_prototypes
from utils.files import write_array, write_csv
from utils.run import distributed
from utils.run.config import load_config, read_yaml
from utils.run.fingerprint import FINGERPRINT
from utils.run.folder import Run, read_epochs
from utils.run.machine import Machine
from utils.run.script import file_argument, parse_arguments, run_script
from utils.run.weights import choose_head, load_weights, read_weights
from utils.training.inference import dry_run, infer

log = logging.getLogger("eval")

STEPS = ["pretext", "scan", "selflabel"]  # names of folders
ROWS = 10  # of neighbors.png, an image and its neighbors each


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_arguments)
    distributed.require_one_process("eval.py")
    config = load_config(args, ["simclr", "moco", "pretrained", "scan", "selflabel"], training=False)
    kind = "clustering" if config.setup in ("scan", "selflabel") else "pretext"
    if args.kmeans and kind != "pretext":
        raise UserError(f"--kmeans clusters a pretext model's features, but setup is {config.setup}")
    for flag in ("visualize_prototypes", "report"):
        if getattr(args, flag) and kind != "clustering":
            raise UserError(f"--{flag} needs clusters, but setup is {config.setup}")
    if args.output and any((Path(args.output) / name).exists() for name in (FINGERPRINT, "cluster.json")):
        raise UserError(f"--output {args.output}: holds the results of a training; give another folder")
    if args.features:
        args.features.parent.mkdir(parents=True, exist_ok=True)
    weights, head = read_weights(args.model, [kind])
    folder = Path(args.output or args.model.parent / "eval" / results_name(args, config))
    run = Run(config, folder, Machine.start(config))
    model = build_model(config)
    load_weights(model, weights, args.model)
    model = run.machine.place(model).eval()

    test = data.eval_loader(data.build_dataset(config, args.split), config, **run.machine.loading(config))
    dry_run(model, test)
    about = {
        "setup": config.setup,
        "dataset": config.train_db_name if args.split == "train" else config.val_db_name,
        "split": args.split,
        "model": str(args.model),
    }
    if kind == "pretext":
        features = evaluate_features(run, model, test, about, args.kmeans)
    else:
        about["head"] = choose_head(weights, head, args.model)
        features = evaluate_clusters(run, model, test, about, args)
    if args.features:
        save_features(features, test.dataset, args.features)


def add_arguments(parser):
    parser.add_argument("--model", required=True, type=file_argument, help="the checkpoint file")
    parser.add_argument(
        "--split", choices=["train", "test"], default="test", help="images to evaluate (default: %(default)s)"
    )
    parser.add_argument(
        "--visualize_prototypes", action="store_true", help="save a sheet of one image per cluster"
    )
    parser.add_argument(
        "--report", action="store_true", help="write report.html, all about the clusters, and clusters.csv"
    )
    parser.add_argument(
        "--kmeans", action="store_true", help="also cluster a pretext model's features by k-means, ten times"
    )
    parser.add_argument(
        "--features",
        metavar="FILE.npy",
        type=array_file,
        help="save the images' features, float32 (N, D); FILE.csv names the image of each row",
    )
    parser.add_argument(
        "--output",
        help="folder for the results (default, beside NAME.pth.tar: eval/NAME/, for the train split "
        "eval/NAME-train/, or eval/NAME-DATASET/ with another val_db_name than in its training)",
    )


def array_file(text):
    """argparse type of an .npy file to write."""
    path = file_argument(text)
    if path.suffix != ".npy" or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file FILE.npy, found {text!r}")
    return path


def results_name(args, config):
    """The model's name; with the split's or, of another dataset than in its training, the dataset's."""
    name = args.model.name.removesuffix(".tar").removesuffix(".pth")
    if args.split == "train":
        return f"{name}-train"
    try:
        own = read_yaml(args.model.parent / "config.yml")["val_db_name"]
    except (UserError, KeyError):  # the file came from elsewhere
        own = config.train_db_name
    return name if config.val_db_name == own else f"{name}-{config.val_db_name}"


def evaluate_features(run, model, test, about, with_kmeans):
    """Evaluate a split's nearest neighbors and, if asked for, k-means fitted on the train split.

    Returns the split's features, float32 (N, D).
    """
    dataset = test.dataset
    if with_kmeans:
        train = data.eval_loader(
            data.build_dataset(run.config, "train"), run.config, **run.machine.loading(run.config)
        )
        kmeans.require_enough(len(train.dataset), run.config.num_classes)
    function = model.features_from(run.config.features)
    features = infer(function, test, f"{about['split']} features").cpu()
    k = max(1, min(max(neighbors.TOP), len(dataset) - 1))
    mined = neighbors.mine(features, k, run.machine.device, run.config.search)
    figures = {**about, "num_images": len(dataset)}
    if dataset.labels is None:
        log.info("%d %s images without labels: no accuracies", len(dataset), about["split"])
    else:
        figures.update(neighbors.accuracy(mined, dataset.labels))
    if with_kmeans:
        with run.scratch() as scratch:
            fit_on = infer(function, train, "train features", scratch / "train.npy")
            figures["kmeans"], clusters = kmeans.repeat(fit_on, features, dataset, run.config.num_classes)
    results.write_figures(figures, run.folder)
    if with_kmeans:
        rows = zip(dataset.names(), clusters.tolist(), strict=True)
        write_csv(("image", "cluster"), rows, run.folder / "assignment.csv")
    save_sheet(neighbor_cells(dataset, mined), run.folder / "neighbors.png")
    return features


def neighbor_cells(dataset, mined):
    """Cells of plots.save_image_sheet: a row for each of ROWS evenly spaced images and its neighbors."""
    rows = []
    for anchor in np.unique(np.linspace(0, len(dataset) - 1, ROWS).astype(int)).tolist():
        nearest = [i for i in mined[anchor].tolist() if i != anchor]
        rows.append([anchor, *nearest[: plots.COLUMNS - 1]])
    names = dataset.names()
    images = {i for row in rows for i in row}
    shown = plots.drawable(tuple((i, names[i]) for i in images))
    for row in rows:
        for i in row:
            yield dataset.raw(i), f"neighbors of\n{shown[i]}" if i == row[0] else shown[i]
        yield from [(None, "")] * (plots.COLUMNS - len(row))


def evaluate_clusters(run, model, test, about, args):
    """Evaluate one head: metrics, confusion matrix and, if asked for, prototypes and the report.

    Returns the features, float32 (N, D), or None if nothing that `args` ask for needs them.
    """
    with_features = args.features or args.visualize_prototypes or args.report

    def describe(images):  # without features unless they are needed: on ImageNet they are large
        features = model.backbone(images)
        probabilities = model.cluster_head(features)[about["head"]].softmax(1)
        return (probabilities, features) if with_features else (probabilities,)

    outputs = [part.cpu() for part in infer(describe, test, "evaluation")]
    probabilities = outputs[0]
    features = outputs[1] if with_features else None
    if args.visualize_prototypes or args.report:
        about["prototypes"] = find_prototypes(features, probabilities)
    if args.report:
        inputs = test.dataset, features, probabilities, about["prototypes"]
        found = report.describe(*inputs, run.machine.device, run.config.search)
        about |= learned_by_others(args.model.parent.parent / "pretext")
        about |= report.figures_of(found, probabilities.size(1))
        about["neighbors"] = neighbor_quality(duplicates.among_distinct(found["neighbors"], found["first"]))
    figures = results.report_clusters(run.folder, probabilities, test.dataset, about)
    if args.visualize_prototypes:
        save_sheet(prototype_cells(test.dataset, figures), run.folder / "prototypes.png")
    if args.report:
        write_report(run, test.dataset, features, found, figures, args.model)
    return features


def learned_by_others(pretext):
    """Where the features of a pretext step come from, if they are pretrained, and whether labels had a part.

    `pretext`: pathlib.Path of its results. An empty dict for our own features, or if nothing is known.
    """
    path = pretext / "metrics.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {key: found[key] for key in ("weights", "labels_in_pretraining") if key in found}


def write_report(run, dataset, features, found, figures, model):
    """Write report.html and clusters.csv. `model`: pathlib.Path of the checkpoint."""
    config = run.config
    facts = {
        "images": f"{figures['dataset']}, {figures['split']} split",
        "model": model,
        "network": config.backbone,
    }
    own = model.parent.name
    steps = STEPS[: STEPS.index(own) + 1] if own in STEPS else [own]
    about = {
        "title": figures["dataset"],
        "results": model.parent if (model.parent / FINGERPRINT).exists() else None,
        "facts": [[term, str(text)] for term, text in facts.items()],
        "advice": health.ADVICE[config.setup],
        "epochs": {step: read_epochs(model.parent.parent / step) for step in steps},
        "folder": None,
    }
    truth = None if dataset.labels is None else (dataset.labels, dataset.classes, "true classes")
    report.write(run.folder, dataset, features, found, figures, about, truth, seed=config.seed)


def prototype_cells(dataset, figures):
    """Cells of plots.save_image_sheet: an image for each cluster, titled with its matched class and size."""
    class_of = dict(figures.get("matches", []))
    names = plots.drawable(tuple(enumerate(figures.get("classes") or dataset.classes or ())))
    for cluster, index in enumerate(figures["prototypes"]):
        name = f" = {names[class_of[cluster]]}" if cluster in class_of else ""
        title = f"cluster {cluster}{name}\n{figures['cluster_sizes'][cluster]} images"
        yield None if index is None else dataset.raw(index), title


def save_sheet(cells, path):
    plots.save_image_sheet(cells, path)
    if path.exists():
        log.info("%s in %s", path.stem, path)


def save_features(features, dataset, path):
    """Write the features (N, D) to `path`, and the name of each row's image to the .csv beside it."""
    write_array(features.numpy(), path)
    write_csv(("image",), zip(dataset.names(), strict=True), path.with_suffix(".csv"))
    log.info("features %s in %s", tuple(features.shape), path)


if __name__ == "__main__":
    run_script(main)
