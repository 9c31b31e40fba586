"""Step 2 of SCAN: train cluster heads so that an image and its neighbors agree.

python scan.py --config_exp configs/scan/scan_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import argparse
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import nn

import data
from losses import CRITERIA, ClusteringLoss
from models import ClusteringModel, build_model
from steps.clustering_inputs import (
    ClusteringInputs,
    ClusteringSplits,
    choose_splits,
    clustering_inputs,
    keep_training_features,
    start_heads,
)
from steps.evaluation import finish_clustering, log_clusters, validation_accuracy
from steps.load_model import read_checkpoint
from steps.options import StepOptions, build_splits, open_run
from steps.pretext_results import find_pretext
from utils.analysis import duplicates, health, metrics
from utils.analysis.neighbor_quality import neighbor_quality
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.run.machine import one_thread
from utils.run.script import file_argument, parse_arguments, run_script
from utils.run.weights import load_weights
from utils.training import engine
from utils.training.inference import dry_run, infer
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("scan")


def scan_step(
    model: Callable[[torch.Tensor], list[torch.Tensor]],
    criterion: ClusteringLoss,
    batch: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Semantic clustering (section 2.2): an image and its neighbor belong to the same cluster.

    Args:
        model: images -> list of logits (B, C), one per head.
        criterion: a losses.ClusteringLoss, such as SCANLoss.
        batch: anchors and neighbors, both (B, 3, S, S). Each gets a forward pass of its own, and with it its
            own BatchNorm statistics.
    """
    anchor_logits, neighbor_logits = (model(images) for images in batch)
    losses = [criterion(*pair) for pair in zip(anchor_logits, neighbor_logits, strict=True)]
    total, consistency, entropy = (sum(parts) for parts in zip(*losses, strict=True))  # summed over heads
    return {"loss": total, "consistency": consistency / len(losses), "entropy": entropy / len(losses)}


def main(argv: list[str] | None = None) -> None:
    help_ = "start from this pretext checkpoint (default: the pretext step's)"
    args = parse_arguments(argv, __doc__, add_arguments, pretrained_help=help_)
    run_step(load_config(args, ["scan"]), StepOptions.from_arguments(args))


def run_step(config: Config, options: StepOptions) -> None:
    """Train cluster heads, select the best epoch and head without labels, and evaluate them."""
    run = open_run(config, "scan", options)
    model = cast(ClusteringModel, build_model(config))
    pretext = find_pretext(config, options)
    load_weights(model, pretext.weights, pretext.model, "backbone.")
    train_set, test_set = build_splits(config, options)
    fingerprint = Fingerprint(config, {"train": train_set, "test": test_set}, pretext.inputs)
    mined = pretext.read_neighbors(fingerprint, train_set, test_set)
    quality = None
    if run.main:
        used = mined.train[:, : config.num_neighbors + 1]
        quality = neighbor_quality(duplicates.among_distinct(used, duplicates.first_copies(train_set)))

    model = run.machine.place(model)
    if config.update_cluster_head_only:
        model.freeze_backbone()
    loading = run.machine.loading(config)
    view = data.PlainView(data.build_train_transform(config))
    training_images = data.Loader(train_set, view, train=True, **loading)
    dry_run(model, data.eval_loader(test_set, config, **loading), training_images)
    splits = choose_splits(config.validation, train_set, test_set, mined)
    inputs = clustering_inputs(run, model, splits, pretext.folder)
    further: dict[str, Any] = {"train_neighbors": quality}
    if config.head_init != "random" and run.starts_untrained():
        further |= start_heads(run, model, inputs, splits)

    criterion: ClusteringLoss = CRITERIA[config.criterion](**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    step = partial(scan_step, for_training(run, inputs.network, inputs.train), criterion)
    selection = Selection(run, model, inputs, splits)
    small = one_thread() if config.trains_on != "images" else nullcontext()
    with small:
        engine.train(
            run, fingerprint, model, optimizer, inputs.train, step,
            checkpointed=[selection], after_epoch=selection,
        )  # fmt: skip

    weights, head = read_checkpoint(run.folder / "model.pth.tar", "clustering")
    load_weights(model, weights, run.folder / "model.pth.tar")
    log.info("best model: head %d, validation loss %.4f", head, selection.best_loss)
    predict = predictor(inputs.final)
    probabilities = infer(lambda batch: predict(batch)[head], inputs.test, "evaluation")  # in float32
    further["head"] = head
    if config.trains_on == "features" or config.features_file:
        keep_training_features(run, model, train_set, pretext.folder)
    finish_clustering(run, fingerprint, weights, probabilities, test_set, further)
    backbone = model.backbone if inputs.final is model else nn.Identity()
    log_clusters(run, test_set, backbone, inputs.test, probabilities)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pretext",
        metavar="FOLDER",
        type=file_argument,
        help="the pretext step's results (default: those of this --run, or else those without --run)",
    )


class Selection:
    """Saves the model whenever one of its heads reaches the lowest validation loss so far.

    Labels, if there are any, are used only to log the accuracy.

    Attributes:
        best_loss, best_head: the lowest loss, and which head has it.
    """

    def __init__(
        self, run: Run, model: ClusteringModel, inputs: ClusteringInputs, splits: ClusteringSplits
    ) -> None:
        self.run = run
        self.model = model
        self.inputs = inputs
        self.splits = splits
        self.best_loss = float("inf")
        self.best_head: int | None = None
        self.watch = health.ClusterMonitor(
            health.SCAN_ADVICE, patience=run.config.epochs // 4, history=run.read_epochs
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_loss_head": self.best_head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss, self.best_head = state["best_loss"], state["best_loss_head"]

    def __call__(self, epoch: int) -> dict[str, Any]:
        """Validate after an epoch; returns the values to log."""
        images, neighbors = self.splits.val_images, self.splits.val_neighbors
        with self.run.machine.autocast():
            of_heads = infer(predictor(self.inputs.network), self.inputs.validation, "validation")
        objectives = [metrics.validation_objective(p, neighbors, images) for p in of_heads]
        losses = [objective["loss"] for objective in objectives]
        head = losses.index(min(losses))
        new_best = losses[head] < self.best_loss
        if new_best:
            self.run.save({"model": self.model.state_dict(), "head": head}, "model.pth.tar")
            self.best_loss, self.best_head = losses[head], head
        values = {f"val_{name}": value for name, value in objectives[head].items()}
        probabilities = of_heads[head].cpu()
        clusters = probabilities.argmax(1)
        values["neighbor_agreement"] = metrics.neighbor_agreement(clusters, neighbors, images)
        values |= self.watch(epoch, probabilities[images]) | {"new_best": new_best, "val_losses": losses}
        return values | validation_accuracy(probabilities[images], self.splits.val_set, images)


def predictor(network: nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Function images -> tuple of probabilities (B, C), one for each head."""
    return lambda images: tuple(logits.softmax(1) for logits in network(images))


if __name__ == "__main__":
    run_script(main)
