"""Evaluate a checkpoint: metrics, confusion matrix, prototypes; of a pretext checkpoint, nearest neighbors.

python eval.py --config_exp configs/scan/scan_cifar10.yml --model model.pth.tar --visualize_prototypes
python eval.py --config_exp configs/pretext/simclr_cifar10.yml --model model.pth.tar --kmeans

Without labels, everything but the accuracies is computed. Only --kmeans reads the train split.
--report adds clusters.csv and report.html, a page to look through the clusters in a browser.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import data
from errors import UserError
from models import ClusteringModel, ContrastiveModel, PretrainedModel, build_model
from steps import sheets
from steps.evaluation import describe_clusters
from steps.load_model import read_checkpoint
from steps.options import BuildDataset
from utils import report
from utils.analysis import duplicates, health, kmeans, neighbors, results
from utils.analysis.neighbor_quality import neighbor_quality
from utils.analysis.prototypes import find_prototypes
from utils.files import write_array, write_csv
from utils.run.config import Config, load_config, read_yaml
from utils.run.folder import FINGERPRINT, Run
from utils.run.machine import Machine, one_thread
from utils.run.processes import require_one_process
from utils.run.script import CommandOptions, file_argument, parse_arguments, run_script
from utils.run.weights import load_weights
from utils.training.inference import dry_run, infer, infer_to_file

log = logging.getLogger("eval")


@dataclass(frozen=True)
class EvalOptions(CommandOptions):
    """What to evaluate, and what to write besides the figures; `add_arguments` says more."""

    model: Path
    split: str = "test"
    visualize_prototypes: bool = False
    report: bool = False
    kmeans: bool = False
    features: Path | None = None
    output: Path | None = None
    build_dataset: BuildDataset = data.build_dataset


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__, add_arguments)
    require_one_process("eval.py")
    config = load_config(args, ["simclr", "moco", "pretrained", "scan", "selflabel"], training=False)
    evaluate_checkpoint(config, EvalOptions.from_arguments(args))


def evaluate_checkpoint(config: Config, options: EvalOptions) -> None:
    """Evaluate the model of a checkpoint file, and write what `options` ask for.

    Raises UserError for a checkpoint of another kind, or options that do not fit its kind.
    """
    kind = "clustering" if config.setup in ("scan", "selflabel") else "pretext"
    check_options(options, config, kind)
    weights, head = read_checkpoint(options.model, kind)
    folder = options.output or options.model.parent / "eval" / results_name(options, config)
    run = Run(config, folder, Machine.start(config))
    model: Any = build_model(config)
    load_weights(model, weights, options.model)  # the run's log lists what does not fit
    model = run.machine.place(model).eval()

    dataset = options.build_dataset(config, options.split)
    test = data.eval_loader(dataset, config, **run.machine.loading(config))
    dry_run(model, test)
    about: dict[str, Any] = {
        "setup": config.setup,
        "dataset": config.train_db_name if options.split == "train" else config.val_db_name,
        "split": options.split,
        "model": str(options.model),
    }
    if kind == "pretext":
        evaluate_features(run, model, test, about, options)
    else:
        about["head"] = head
        evaluate_clusters(run, model, test, about, options)


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        metavar="FOLDER",
        type=file_argument,
        help="folder for the results (default, beside NAME.pth.tar: eval/NAME/, for the train split "
        "eval/NAME-train/, or eval/NAME-DATASET/ with another val_db_name than in its training)",
    )


def array_file(text: str) -> Path:
    """argparse type of an .npy file to write."""
    path = file_argument(text)
    if path.suffix != ".npy" or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file FILE.npy, found {text!r}")
    return path


def check_options(options: EvalOptions, config: Config, kind: str) -> None:
    """Raise UserError for options that do not fit the kind of the checkpoint, or an --output in use."""
    if options.kmeans and kind == "clustering":
        raise UserError(f"--kmeans clusters a pretext model's features, but setup is {config.setup}")
    for flag in ("visualize_prototypes", "report"):
        if getattr(options, flag) and kind == "pretext":
            raise UserError(f"--{flag} needs clusters, but setup is {config.setup}")
    output = options.output
    if output and any((output / name).exists() for name in (FINGERPRINT, "cluster.json")):
        raise UserError(f"--output {output}: holds the results of a training; give another folder")
    if options.features:
        options.features.parent.mkdir(parents=True, exist_ok=True)


def results_name(options: EvalOptions, config: Config) -> str:
    """The model's name; with the split's or, of another dataset than in its training, the dataset's."""
    name = options.model.name.removesuffix(".tar").removesuffix(".pth")
    if options.split == "train":
        return f"{name}-train"
    try:
        own = read_yaml(options.model.parent / "config.yml")["val_db_name"]
    except (UserError, KeyError):  # the file came from elsewhere
        own = config.train_db_name
    return name if config.val_db_name == own else f"{name}-{config.val_db_name}"


def evaluate_features(
    run: Run,
    model: ContrastiveModel | PretrainedModel,
    test: data.Loader,
    about: dict[str, Any],
    options: EvalOptions,
) -> None:
    """Evaluate a split's nearest neighbors and, if asked for, k-means that is fitted on the train split."""
    config, dataset = run.config, test.dataset
    if options.kmeans:
        train_set = options.build_dataset(config, "train")
        train = data.eval_loader(train_set, config, **run.machine.loading(config))
        kmeans.require_one_per_cluster(len(train_set), config.num_classes)
    function = model.features_from(config.features)
    features = infer(function, test, f"{about['split']} features").cpu()
    k = max(1, min(max(neighbors.ACCURACY_AT), len(dataset) - 1))
    mined = neighbors.nearest_neighbors(features, k, run.machine.device, config.search)
    figures = {**about, "num_images": len(dataset)}
    if dataset.labels is None:
        log.info("%d %s images without labels: no accuracies", len(dataset), about["split"])
    else:
        figures.update(neighbors.neighbor_accuracies(mined, dataset.labels))
    if options.kmeans:
        with run.scratch() as scratch:
            fit_on = infer_to_file(function, train, "train features", scratch / "train.npy")
            figures["kmeans"], clusters = kmeans.repeat(fit_on, features, dataset, config.num_classes)
    results.write_figures(figures, run.folder)
    if options.kmeans:
        rows = zip(dataset.names(), clusters.tolist(), strict=True)
        write_csv(("image", "cluster"), rows, run.folder / "assignment.csv")
    sheets.save_neighbors(dataset, mined, run.folder / "neighbors.png")
    if options.features:
        save_features(features, dataset, options.features)


def evaluate_clusters(
    run: Run, model: ClusteringModel, test: data.Loader, about: dict[str, Any], options: EvalOptions
) -> None:
    """Evaluate the head `about["head"]`: metrics, confusion matrix and what the options ask for."""
    dataset = test.dataset
    # without features unless they are needed: on ImageNet they are large
    with_features = options.features or options.visualize_prototypes or options.report

    def outputs(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = model.backbone(images)
        probabilities = model.cluster_head(features)[about["head"]].softmax(1)
        return (probabilities, features) if with_features else (probabilities,)

    probabilities, *rest = (part.cpu() for part in infer(outputs, test, "evaluation"))
    features = rest[0] if with_features else torch.empty(0)
    if options.report:
        pretext = options.model.parent.parent / "pretext"
        assignment, described = describe_clusters(run, dataset, features, probabilities, pretext)
        about |= described
        distinct = duplicates.among_distinct(assignment.neighbors, assignment.first)
        about["neighbors"] = neighbor_quality(distinct)
    elif options.visualize_prototypes:
        about["prototypes"] = find_prototypes(features, probabilities)
    figures = results.save_clustering(run.folder, probabilities, dataset, about)
    if options.visualize_prototypes:
        sheets.save_prototypes(dataset, figures, run.folder / "prototypes.png")
    if options.report:
        context = report_context(run.config, figures, dataset, options.model)
        with one_thread():
            report.write_report(run.folder, dataset, features, assignment, figures, context)
    if options.features:
        save_features(features, dataset, options.features)


def report_context(
    config: Config, figures: dict[str, Any], dataset: data.Dataset, model: Path
) -> report.ReportContext:
    """What the report says of the evaluation of the checkpoint file `model`."""
    images = f"{figures['dataset']}, {figures['split']} split"
    labels, classes = dataset.labels, dataset.classes
    return report.ReportContext(
        title=figures["dataset"],
        results=model.parent if (model.parent / FINGERPRINT).exists() else None,
        facts={"images": images, "model": model, "network": config.backbone},
        advice=health.advice_for(config),
        truth=None if labels is None else report.GroundTruth(labels, classes or [], "true classes"),
        seed=config.seed,
    )


def save_features(features: torch.Tensor, dataset: data.Dataset, path: Path) -> None:
    """Write the features (N, D) to `path`, and the name of each row's image to the .csv beside it."""
    write_array(features.numpy(), path)
    write_csv(("image",), zip(dataset.names(), strict=True), path.with_suffix(".csv"))
    log.info("features %s in %s", tuple(features.shape), path)


def command() -> None:
    run_script(main)


if __name__ == "__main__":
    command()
