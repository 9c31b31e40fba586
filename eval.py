"""Evaluate a checkpoint: metrics, confusion matrix, prototypes; for a pretext one, its neighbors.

python eval.py --config_exp configs/scan/scan_cifar10.yml --model model.pth.tar --visualize_prototypes
python eval.py --config_exp configs/pretext/simclr_cifar10.yml --model model.pth.tar --kmeans
"""

import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from errors import UserError
from models import build_model
from utils import distributed, engine, kmeans, neighbors, plots, pretext, pretrained, prototypes, report
from utils.config import load_config, parse_arguments
from utils.run import Run, file_argument, run_script

log = logging.getLogger("eval")

KMEANS_SEEDS = range(10)


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_arguments)
    if distributed.launched():
        raise UserError("eval.py works in one process: start it with python, not with torchrun")
    config = load_config(args, ["simclr", "moco", "scan", "selflabel"], training=False)
    kind = "pretext" if config.setup in ("simclr", "moco") else "clustering"
    if args.kmeans and kind != "pretext":
        raise UserError(f"--kmeans clusters a pretext model's features, but setup is {config.setup}")
    if args.visualize_prototypes and kind != "clustering":
        raise UserError(f"--visualize_prototypes needs clusters, but setup is {config.setup}")
    weights, head = pretrained.read(args.model, [kind])
    name = args.model.name.removesuffix(".tar").removesuffix(".pth")
    run = Run(config, Path(args.output or args.model.parent / "eval" / name))
    model = build_model(config)
    pretrained.fit(model, weights, args.model)
    model = run.place(model).eval()

    test = data.build_eval_loader(config, "test", **run.loading)
    about = {"setup": config.setup, "dataset": config.val_db_name, "split": "test", "model": str(args.model)}
    if kind == "pretext":
        evaluate_features(run, model, test, about, args.kmeans)
    else:
        about["head"] = pretrained.choose_head(weights, head, args.model)
        evaluate_clusters(run, model, test, about, args.visualize_prototypes)


def add_arguments(parser):
    parser.add_argument("--model", required=True, type=file_argument, help="the checkpoint file")
    parser.add_argument(
        "--visualize_prototypes", action="store_true", help="save a sheet of one image per cluster"
    )
    parser.add_argument(
        "--kmeans", action="store_true", help="also score k-means on a pretext model's features, ten times"
    )
    parser.add_argument("--output", help="folder for the results (default: eval/NAME/ beside NAME.pth.tar)")


def evaluate_features(run, model, test, about, with_kmeans):
    """Accuracy of the test split's nearest neighbors, and of k-means fitted on the train split."""
    dataset = test.dataset
    if dataset.labels is None:
        raise UserError("the test split has no labels: nothing to compare its neighbors with")
    function = pretext.features_of(model, run.config.setup)
    features = engine.infer(function, test, "test features").cpu()
    k = max(1, min(pretext.TOP, len(dataset) - 1))
    mined = neighbors.mine(features, k, run.device, run.config.search)
    figures = {**about, **pretext.neighbor_accuracy(mined, dataset.labels)}
    if with_kmeans:
        train = data.build_eval_loader(run.config, "train", **run.loading)
        with run.scratch() as scratch:
            figures["kmeans"] = score_kmeans(
                engine.infer(function, train, "train features", scratch / "train.npy"),
                *(features, dataset, run.config.num_classes),
            )
    report.write_json(figures, run.folder / "metrics.json")


def score_kmeans(train, test, dataset, num_clusters):
    """Mean, standard deviation and values of ACC, NMI, ARI on the test split over KMEANS_SEEDS."""
    runs = [
        kmeans.score(train, test, dataset.labels, num_clusters, len(dataset.classes), seed)
        for seed in tqdm(KMEANS_SEEDS, desc="k-means", leave=False, disable=None)
    ]
    figures = {}
    for name in ("acc", "nmi", "ari"):
        values = [run[name] for run in runs]
        figures[name] = {"mean": np.mean(values), "std": np.std(values), "values": values}
    shown = [f"{name.upper()} {100 * f['mean']:.2f} ± {100 * f['std']:.2f}" for name, f in figures.items()]
    log.info("k-means on the features, %d initialisations: %s %%", len(runs), "  ".join(shown))
    return figures


def evaluate_clusters(run, model, test, about, with_prototypes):
    """Metrics and confusion matrix of one head, and the sheet of prototypes."""

    def describe(images):  # the features only where they are needed: many, on ImageNet
        features = model.backbone(images)
        probabilities = model.cluster_head(features)[about["head"]].softmax(1)
        return (probabilities, features) if with_prototypes else (probabilities,)

    dataset = test.dataset
    outputs = engine.infer(describe, test, "evaluation")
    probabilities, *features = (part.cpu() for part in outputs)
    figures = report.report_clusters(run.folder, probabilities, dataset, about)
    if with_prototypes:
        figures["prototypes"] = show_prototypes(run.folder, dataset, *features, probabilities, figures)
        report.write_json(figures, run.folder / "metrics.json")


def show_prototypes(folder, dataset, features, probabilities, figures):
    """Save prototypes.png, an image per cluster with its matched class and size; returns their indices."""
    found = prototypes.find_prototypes(features, probabilities)
    class_of = dict(figures.get("matches", []))
    images, titles = [], []
    for cluster, index in enumerate(found):
        name = f" = {dataset.classes[class_of[cluster]]}" if cluster in class_of else ""
        titles.append(f"cluster {cluster}{name}\n{figures['cluster_sizes'][cluster]} images")
        images.append(None if index is None else dataset.raw(index))
    plots.save_image_sheet(images, titles, folder / "prototypes.png")
    log.info("prototypes in %s", folder / "prototypes.png")
    return found


if __name__ == "__main__":
    run_script(main)
