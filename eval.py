"""Evaluate a checkpoint: metrics, confusion matrix, prototypes; for a pretext one, its neighbors.

python eval.py --config_exp configs/scan/scan_cifar10.yml --model model.pth.tar --visualize_prototypes
"""

import logging
from pathlib import Path

import torch.nn.functional as F

import data
from errors import UserError
from models import build_model
from utils import checkpoint, engine, neighbors, plots, prototypes, report
from utils.config import load_config, parse_arguments
from utils.run import Run, run_script

log = logging.getLogger("eval")


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_arguments)
    config = load_config(args, ["simclr", "moco", "scan", "selflabel"], training=False)
    weights, head = checkpoint.read_weights(args.model)
    run = Run(config, Path(args.output or Path(args.model).parent / "eval"))

    val_set = data.build_dataset(config, "test")
    view = data.PlainView(data.build_eval_transform(config))
    loading = {"batch_size": config.batch_size, "device": run.device, "num_workers": config.num_workers}
    val = data.Loader(val_set, view, train=False, **loading)
    model = build_model(config)
    checkpoint.load_weights(model, weights, args.model)
    model = run.place(model).eval()
    about = {"setup": config.setup, "dataset": config.val_db_name, "split": "test", "model": str(args.model)}

    if config.setup in ("simclr", "moco"):
        features = engine.infer(pretext_features(model, config.setup), val, "features")
        evaluate_neighbors(run, features, val_set.labels, about)
        return

    head = checkpoint.choose_head(weights, head, args.model)

    def describe(images):
        features = model.backbone(images)
        return features, model.classify(features)[head].softmax(1)

    features, probabilities = (part.cpu() for part in engine.infer(describe, val, "evaluation"))
    figures = report.report_clusters(
        run.folder, probabilities, val_set.labels, val_set.classes, {**about, "head": head}
    )
    if args.visualize_prototypes:
        show_prototypes(run.folder, val_set, features, probabilities, figures)


def add_arguments(parser):
    parser.add_argument("--model", required=True, help="the checkpoint file")
    parser.add_argument(
        "--visualize_prototypes", action="store_true", help="save a sheet of one image per cluster"
    )
    parser.add_argument("--output", help="folder for the results (default: eval/ beside the checkpoint)")


def pretext_features(model, setup):
    """Function images -> normalised features: the head's, or for MoCo the backbone's, as in mining."""
    if setup == "moco":
        return lambda images: F.normalize(model.backbone(images), dim=1)
    return model


def evaluate_neighbors(run, features, labels, about):
    """Accuracy of the top 1, 5 and 20 neighbors within the split: features (N, D), labels (N,)."""
    if labels is None:
        raise UserError("the test split has no labels: nothing to compare its neighbors with")
    mined = neighbors.mine(features, min(20, len(labels) - 1))
    figures = dict(about)
    for k in (1, 5, 20):
        figures[f"top{k}_neighbor_accuracy"] = neighbors.agreement(mined, labels, k)
        log.info("top-%d neighbors of the same class: %.2f %%", k, 100 * figures[f"top{k}_neighbor_accuracy"])
    report.write_json(figures, run.folder / "metrics.json")


def show_prototypes(folder, dataset, features, probabilities, figures):
    """Save prototypes.png: one image per cluster, titled with cluster, matched class and size."""
    found = prototypes.find_prototypes(features, probabilities)
    class_of = dict(figures.get("matches", []))
    images, titles = [], []
    for cluster, index in enumerate(found):
        name = f" = {dataset.classes[class_of[cluster]]}" if cluster in class_of else ""
        titles.append(f"cluster {cluster}{name}\n{figures['cluster_sizes'][cluster]} images")
        images.append(None if index is None else dataset.raw(index))
    plots.save_image_sheet(images, titles, folder / "prototypes.png")
    log.info("prototypes, test images %s, in %s", found, folder / "prototypes.png")


if __name__ == "__main__":
    run_script(main)
