"""Step 1 of SCAN: learn features by instance discrimination, then mine nearest neighbors.

python simclr.py --config_exp configs/pretext/simclr_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging

import data
from losses import SimCLRLoss
from models import build_model
from utils import distributed, engine, neighbors, plots, pretext, pretrained
from utils.config import load_config, parse_arguments
from utils.optim import build_optimizer
from utils.run import Run, results_folder, run_script, start_arguments

log = logging.getLogger("simclr")

TRAIN_NEIGHBORS, VAL_NEIGHBORS = 20, 5  # mined, besides the image itself


def main(argv=None):
    args = parse_arguments(
        argv,
        __doc__,
        start_arguments("take this checkpoint's weights instead of training, and mine their neighbors"),
    )
    config = load_config(args, ["simclr"])
    run = Run(config, results_folder(config, "pretext"), args.fresh, args.accept_changes)
    model = build_model(config)
    about = {"setup": config.setup, "dataset": config.train_db_name}
    if args.pretrained:
        weights, _ = pretrained.read(args.pretrained, ["pretext"])
        pretrained.fit(model, weights, args.pretrained)
        about["pretrained"] = str(args.pretrained)
    model = run.place(model)

    with distributed.main_first():
        train, val = (data.build_eval_loader(config, split, **run.loading) for split in ("train", "test"))
    for loader, k in ((train, TRAIN_NEIGHBORS), (val, VAL_NEIGHBORS)):
        neighbors.require_enough(len(loader.dataset), k)
    run.works_on(train=train.dataset, test=val.dataset)
    log.info("%d train and %d test images", len(train.dataset), len(val.dataset))
    engine.rehearse(model, train, val)

    if args.pretrained:
        run.take_instead_of_training(args.pretrained, model)
    else:
        learn(run, model, train, val)
    pretext.finish(run, model, train, val, TRAIN_NEIGHBORS, VAL_NEIGHBORS, about)
    if run.main:
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")


def learn(run, model, train, val):
    """Train by instance discrimination; `train` and `val` monitor the features by k-NN accuracy."""
    config, images = run.config, train.dataset
    if config.train_db_name in data.WITH_UNLABELED:
        images = data.build_dataset(config, "train+unlabeled")
        run.works_on(unlabeled=images)
        log.info("%d images to learn from", len(images))
    two_views = data.TwoViews(data.build_train_transform(config))
    loader = data.Loader(images, two_views, train=True, **run.loading)
    engine.rehearse(model, loader)
    criterion = SimCLRLoss(**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)

    network = run.for_training(model, loader, images_per_anchor=2)

    def step(images):  # (2B, 3, S, S), the two views of an image beside each other
        with run.autocast():
            features = distributed.gather(network(images))
        return {"loss": criterion(features.unflatten(0, (-1, 2)))}

    def monitor(epoch):
        if train.dataset.labels is None or val.dataset.labels is None:
            return {}
        with run.autocast():
            bank, queries = (engine.infer(model, split, "features") for split in (train, val))
        accuracy = pretext.knn_accuracy(bank, queries, train.dataset, val.dataset, config.temperature)
        return {"knn_accuracy": accuracy}

    engine.train(run, model, optimizer, loader, step, after_epoch=monitor)


if __name__ == "__main__":
    run_script(main)
