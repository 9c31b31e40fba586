"""Step 1 of SCAN: learn features by instance discrimination, then mine nearest neighbors.

python simclr.py --config_exp configs/pretext/simclr_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

import data
from losses import CRITERIA, ContrastiveLoss
from models import ContrastiveModel, build_model
from steps.load_model import load_model
from steps.mining import PretextSplits, can_vote, knn_accuracy, mine, pretext_splits
from steps.options import StepOptions, open_run
from utils.analysis import plots
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.run.script import parse_arguments, run_script
from utils.training import engine, resume
from utils.training.inference import dry_run, infer
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("simclr")

SMALL = 0.005  # difference of cosine similarities, see has_collapsed


def simclr_step(
    model: Callable[[torch.Tensor], torch.Tensor], criterion: ContrastiveLoss, images: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Instance discrimination (section 2.1): the two views of an image match each other and no other image.

    Args:
        model: images -> L2-normalized features (2B, D).
        criterion: such as losses.SimCLRLoss.
        images: (2B, 3, S, S), the two views of image i in rows 2i and 2i + 1; one forward pass for all.
    """
    features = model(images)
    return {"loss": criterion(features.unflatten(0, (-1, 2)))}


def main(argv: list[str] | None = None) -> None:
    help_ = "mine the neighbors with this checkpoint's weights instead of training"
    args = parse_arguments(argv, __doc__, pretrained_help=help_)
    run_step(load_config(args, ["simclr"]), StepOptions.from_arguments(args))


def run_step(config: Config, options: StepOptions) -> None:
    """Learn features, or take those of `options.pretrained`, and mine the neighbors of both splits."""
    given = options.pretrained
    run = open_run(config, "pretext", options)
    model = load_model(config, given, "pretext").model if given else build_model(config)
    model = run.machine.place(cast(ContrastiveModel, model))
    splits = pretext_splits(run, model, options)
    further: dict[str, Any] = {}
    if given:
        fingerprint = Fingerprint(config, splits.datasets)
        resume.use_given_weights(run, fingerprint, given, model)
    else:
        fingerprint = learn(run, model, splits, options)
        if has_collapsed(run):
            further["collapsed"] = True
    mine(run, fingerprint, model, splits, given, further)
    if run.main:
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")


def learn(run: Run, model: ContrastiveModel, splits: PretextSplits, options: StepOptions) -> Fingerprint:
    """Train by instance discrimination; returns the Fingerprint of the training.

    Every `knn_every` epochs, k-NN accuracy monitors the features, if `can_vote`.
    """
    config, images = run.config, splits.train.dataset
    datasets = splits.datasets
    if config.train_db_name in data.WITH_UNLABELED:
        images = datasets["unlabeled"] = options.build_dataset(config, "train+unlabeled")
        log.info("%d images to learn from", len(images))
    fingerprint = Fingerprint(config, datasets)
    views = data.TwoViews(data.build_train_transform(config))
    loader = data.Loader(images, views, train=True, **run.machine.loading(config))
    dry_run(model, loader)
    criterion: ContrastiveLoss = CRITERIA[config.criterion](**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    network = for_training(run, model, loader)

    def monitor(epoch: int) -> dict[str, float]:
        if epoch % config.knn_every and epoch < config.epochs:
            return {}
        with run.machine.autocast():
            function = model.features_from(config.features)
            features = [infer(function, split.images, "features") for split in splits]
        return {"knn_accuracy": knn_accuracy(features, splits, config.temperature)}

    step = partial(simclr_step, network, criterion)
    after_epoch = monitor if can_vote(splits) else None
    engine.train(run, fingerprint, model, optimizer, loader, step, after_epoch=after_epoch)
    return fingerprint


def has_collapsed(run: Run) -> bool:
    """Whether the training ended with features that are the same for all images; logs a warning then.

    Their loss is ln(2 * batch_size - 1). What a loss is below it, times the temperature, is about how much
    more similar two views of an image are than two images.
    """
    epochs, config = run.read_epochs(), run.config
    if not epochs:  # removed
        return False
    below = math.log(2 * config.batch_size - 1) - epochs[-1]["loss"]
    collapsed = below * config.criterion_kwargs.temperature < SMALL
    if collapsed:
        log.warning(
            "the loss is no lower than that of features which are the same for all images: nothing was "
            "learned; start over (--fresh) with a lower optimizer_kwargs.lr, with "
            "scheduler_kwargs.warmup_epochs, or with more epochs"
        )
    return collapsed


if __name__ == "__main__":
    run_script(main)
