"""Step 1 of SCAN: learn features by instance discrimination, then mine nearest neighbors.

python simclr.py --config_exp configs/pretext/simclr_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging
import math
from functools import partial

import data
from losses import CRITERIA
from models import build_model
from steps.load_model import load_model
from steps.mining import can_vote, eval_loaders, knn_accuracy, mine
from steps.options import DEFAULT_OPTIONS, BuildDataset, StepOptions, open_run
from utils.analysis import plots
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint
from utils.run.machine import Machine
from utils.run.script import parse_arguments, run_script, start_arguments
from utils.training import engine, resume
from utils.training.inference import dry_run, infer
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("simclr")

TRAIN_NEIGHBORS, VAL_NEIGHBORS = 20, 5  # to mine for each image, not counting the image itself
SMALL = 0.005  # difference of cosine similarities, see has_collapsed


def simclr_step(model, criterion, images):
    """Instance discrimination (section 2.1): the two views of an image match each other and no other image.

    Args:
        model: images -> L2-normalized features (2B, D).
        criterion: losses.SimCLRLoss.
        images: (2B, 3, S, S), the two views of image i in rows 2i and 2i + 1; one forward pass for all.
    """
    features = model(images)
    return {"loss": criterion(features.unflatten(0, (-1, 2)))}


def main(argv: list[str] | None = None) -> None:
    arguments = start_arguments("mine the neighbors with this checkpoint's weights instead of training")
    args = parse_arguments(argv, __doc__, arguments)
    run_step(load_config(args, ["simclr"]), StepOptions.of(args))


def run_step(
    config: Config,
    options: StepOptions = DEFAULT_OPTIONS,
    build_dataset: BuildDataset = data.build_dataset,
    machine: Machine | None = None,
) -> None:
    """Learn features, or take those of `options.pretrained`, and mine the neighbors of both splits."""
    given = options.pretrained
    run = open_run(config, "pretext", options, machine)
    model = load_model(config, given, "pretext").model if given else build_model(config)
    model = run.machine.place(model)
    train, val = eval_loaders(run, model, TRAIN_NEIGHBORS, VAL_NEIGHBORS, build_dataset)
    if given:
        fingerprint = Fingerprint(config, {"train": train.dataset, "test": val.dataset})
        resume.use_given_weights(run, fingerprint, given, model)
        about = {}
    else:
        fingerprint = learn(run, model, train, val, build_dataset)
        about = {"collapsed": True} if has_collapsed(run) else {}
    mine(run, fingerprint, model, train, val, TRAIN_NEIGHBORS, VAL_NEIGHBORS, given, about)
    if run.main:
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")


def learn(run, model, train, val, build_dataset):
    """Train by instance discrimination; returns the Identity of the training.

    Every `knn_every` epochs, k-NN accuracy on `train` and `val`, the evaluation loaders, monitors the
    features, if `can_vote`.
    """
    config, images = run.config, train.dataset
    datasets = {"train": train.dataset, "test": val.dataset}
    if config.train_db_name in data.WITH_UNLABELED:
        images = datasets["unlabeled"] = build_dataset(config, "train+unlabeled")
        log.info("%d images to learn from", len(images))
    fingerprint = Fingerprint(config, datasets)
    loader = data.Loader(
        images, data.TwoViews(data.build_train_transform(config)), train=True, **run.machine.loading(config)
    )
    dry_run(model, loader)
    criterion = CRITERIA[config.criterion](**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    network = for_training(run, model, loader)

    def monitor(epoch):
        if epoch % config.knn_every and epoch < config.epochs:
            return {}
        with run.machine.autocast():
            function = model.features_from(config.features)
            features = [infer(function, split, "features") for split in (train, val)]
        return {"knn_accuracy": knn_accuracy(features, train, val, config.temperature)}

    step = partial(simclr_step, network, criterion)
    after_epoch = monitor if can_vote(train.dataset, val.dataset) else None
    engine.train(run, fingerprint, model, optimizer, loader, step, after_epoch=after_epoch)
    return fingerprint


def has_collapsed(run):
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
