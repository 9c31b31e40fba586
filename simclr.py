"""Step 1 of SCAN: learn features by instance discrimination, then mine nearest neighbors.

python simclr.py --config_exp configs/pretext/simclr_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging
import math
from functools import partial

import torch.nn.functional as F

import data
from data.messages import say_once
from losses import CRITERIA
from models import build_model
from utils.analysis import duplicates, neighbors, plots
from utils.files import write_json
from utils.run import distributed
from utils.run.config import load_config
from utils.run.folder import Run, results_folder
from utils.run.identity import FINGERPRINT, Identity
from utils.run.script import parse_arguments, run_script, start_arguments
from utils.run.weights import load_weights, read_weights
from utils.training import engine, resume
from utils.training.features import backbone_features, kept_file, remove_others
from utils.training.inference import infer, rehearse
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("simclr")

TRAIN_NEIGHBORS, VAL_NEIGHBORS = 20, 5  # to mine for each image, not counting the image itself
TOP = max(neighbors.TOP)
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


def main(argv=None):
    arguments = start_arguments("mine the neighbors with this checkpoint's weights instead of training")
    args = parse_arguments(argv, __doc__, arguments)
    config = load_config(args, ["simclr"])
    run = Run(config, results_folder(config, "pretext"), args.fresh, args.accept_changes)
    model = build_model(config)
    if args.pretrained:
        load_weights(model, read_weights(args.pretrained, ["pretext"])[0], args.pretrained)
    model = run.place(model)
    train, val = eval_loaders(run, model, TRAIN_NEIGHBORS, VAL_NEIGHBORS)

    if args.pretrained:
        identity = Identity(config, {"train": train.dataset, "test": val.dataset})
        resume.take_instead_of_training(run, identity, args.pretrained, model)
        about = {}
    else:
        identity = learn(run, model, train, val)
        about = {"collapsed": True} if has_collapsed(run) else {}
    mine(run, identity, model, train, val, TRAIN_NEIGHBORS, VAL_NEIGHBORS, args.pretrained, about)
    if run.main:
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")


def eval_loaders(run, model, k_train, k_val):
    """Loaders of the train and the test split with the evaluation transform, each tried on the model.

    This step's variables and files call the test split `val`. Raises UserError if a split is too small for
    that many neighbors.
    """
    with distributed.main_first():
        datasets = [data.build_dataset(run.config, split) for split in ("train", "test")]
    log.info("%d train and %d test images", *map(len, datasets))
    for dataset, k in zip(datasets, (k_train, k_val), strict=True):
        n = duplicates.count_distinct(duplicates.first_copies(dataset))
        if n < len(dataset):
            copies = f"{len(dataset) - n} of {len(dataset)} images are copies of others"
            say_once(log.info, f"{copies}; neighbors are mined without them")
        neighbors.require_enough(n, k, len(dataset) - n)
    loaders = [data.eval_loader(dataset, run.config, **run.loading) for dataset in datasets]
    rehearse(model, *loaders)
    return loaders


def learn(run, model, train, val):
    """Train by instance discrimination; returns the Identity of the training.

    Every `knn_every` epochs, k-NN accuracy on `train` and `val`, the evaluation loaders, monitors the
    features, if `can_vote`.
    """
    config, images = run.config, train.dataset
    datasets = {"train": train.dataset, "test": val.dataset}
    if config.train_db_name in data.WITH_UNLABELED:
        images = datasets["unlabeled"] = data.build_dataset(config, "train+unlabeled")
        log.info("%d images to learn from", len(images))
    identity = Identity(config, datasets)
    loader = data.Loader(images, data.TwoViews(data.build_train_transform(config)), train=True, **run.loading)
    rehearse(model, loader)
    criterion = CRITERIA[config.criterion](**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    network = for_training(run, model, loader)

    def monitor(epoch):
        if epoch % config.knn_every and epoch < config.epochs:
            return {}
        with run.autocast():
            function = model.features_from(config.features)
            features = [infer(function, split, "features") for split in (train, val)]
        return {"knn_accuracy": knn_accuracy(features, train, val, config.temperature)}

    step = partial(simclr_step, network, criterion)
    after_epoch = monitor if can_vote(train.dataset, val.dataset) else None
    engine.train(run, identity, model, optimizer, loader, step, after_epoch=after_epoch)
    return identity


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


def mine(run, identity, model, train, val, k_train, k_val, pretrained=None, about=None):
    """Save the model; mine both splits' neighbors for the clustering step; write metrics.json.

    The features are computed in float32 with the evaluation transform, written to files batch by batch, and
    removed after the mining, or kept; see `features_to_mine`.

    Args:
        run: the Run; model.pth.tar, topk-{train,val}-neighbors.npy and metrics.json go to its folder.
        identity: the Identity of the step.
        model: the pretext model.
        train, val: evaluation loaders of the train and the test split.
        k_train, k_val: neighbors to mine for each image, not counting the image itself.
        pretrained: the file of the weights, if this run did not train them.
        about: dict of what else metrics.json shall say.
    """
    config = run.config
    splits = {"train": (train, k_train), "val": (val, k_val)}
    paths = {name: run.folder / f"topk-{name}-neighbors.npy" for name in splits}
    if run.main:
        for path in (*paths.values(), run.folder / "metrics.json", run.folder / FINGERPRINT):
            path.unlink(missing_ok=True)  # so that no other model's neighbors lie beside this model
    run.save(model.state_dict(), "model.pth.tar")
    with run.scratch() as scratch:
        model.eval()
        features = [features_to_mine(run, model, splits[name][0], name, scratch) for name in splits]
        if run.main:
            figures = {"setup": config.setup, "dataset": config.train_db_name}
            if pretrained:
                figures["pretrained"] = str(pretrained)
            figures |= about or {}
            for found, (name, (loader, k)) in zip(features, splits.items(), strict=True):
                first = duplicates.first_copies(loader.dataset)
                most = max(k, min(TOP, duplicates.count_distinct(first) - 1))
                all_mined = duplicates.mine_distinct(found, most, first, run.device, config.search)
                mined = all_mined[:, : k + 1]
                neighbors.save(mined, paths[name])
                log.info("mined %d neighbors of each of %d images: %s", k, len(mined), paths[name])
                if loader.dataset.labels is not None:
                    share = neighbors.agreement(mined, loader.dataset.labels, k)
                    log.info("%.2f %% of them are of the image's class", 100 * share)
                    figures[f"{name}_neighbors_of_same_class"] = share
            figures |= feature_figures(run, features, all_mined, train, val)
            write_json(figures, run.folder / "metrics.json")
    if run.main:
        kept = [kept_file(run, run.folder, model, loader.dataset) for loader, _ in splits.values()]
        remove_others(run.folder, kept)
    resume.sign(run, identity, model.state_dict(), trained=pretrained is None)


def features_to_mine(run, model, loader, name, scratch):
    """L2-normalized features (N, D) of a split by its `name`, in a file; only the main process gets them.

    Those of a backbone that this step does not train are kept, since the clustering step needs them, too.
    """
    file = scratch / f"{name}.npy"
    if run.config.setup != "pretrained":
        return infer(model.features_from(run.config.features), loader, f"{name} features", file)
    kept = backbone_features(run, run.folder, model, loader, f"{name} features")
    return infer(partial(F.normalize, dim=1), data.feature_loader(kept, **run.loading), name, file)


def feature_figures(run, features, mined, train, val):
    """Neighbor and k-NN accuracy, as far as there are labels; `mined`: the test split's neighbors."""
    if val.dataset.labels is None:
        return {}
    figures = neighbors.accuracy(mined, val.dataset.labels)
    if can_vote(train.dataset, val.dataset):
        accuracy = knn_accuracy(features, train, val, run.config.temperature, run.device)
        figures["knn_accuracy"] = accuracy
        log.info("weighted k-NN accuracy on the test split: %.2f %%", 100 * accuracy)
    return figures


def can_vote(train, val):
    """Whether k-NN accuracy means something: both splits have labels, and no image votes for itself."""
    labeled = train.labels is not None and val.labels is not None
    return labeled and train.fingerprint() != val.fingerprint()


def knn_accuracy(features, train, val, temperature, device=None):
    """Weighted k-NN accuracy on the test split: the nearest features of the train split vote for the class.

    `features`: those of both splits, float32 (N, D) and (M, D).
    """
    bank, queries = features
    labels, num_classes = train.dataset.labels, len(train.dataset.classes)
    votes = neighbors.weighted_knn(bank, labels, queries, num_classes, temperature=temperature, device=device)
    return (votes.cpu() == val.dataset.labels).double().mean().item()


if __name__ == "__main__":
    run_script(main)
