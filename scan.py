"""Step 2 of SCAN: train cluster heads so that an image and its neighbors agree.

python scan.py --config_exp configs/scan/scan_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging
import math

import torch

import data
from errors import UserError
from losses import SCANLoss
from models import build_model
from utils import distributed, engine, fingerprint, health, metrics, neighbors, plots, pretrained, report
from utils.config import load_config, parse_arguments
from utils.optim import build_optimizer
from utils.run import Run, earlier_folder, file_argument, results_folder, run_script, start_arguments

log = logging.getLogger("scan")


def main(argv=None):
    args = parse_arguments(argv, __doc__, add_arguments)
    config = load_config(args, ["scan"])
    run = Run(config, results_folder(config, "scan"), args.fresh, args.accept_changes)
    if args.pretext and not args.pretext.is_dir():
        raise UserError(f"--pretext {args.pretext}: no such folder; give the folder that holds model.pth.tar")
    pretext = args.pretext or earlier_folder(config, "pretext", args.run)
    model = build_model(config)
    source = run.uses(args.pretrained or pretext / "model.pth.tar", "pretext/model.pth.tar")
    hint = "" if args.pretrained else "run simclr.py or moco.py first, or name its folder with --pretext"
    weights, _ = pretrained.read(source, ["pretext"], hint)
    pretrained.fit(model, weights, source, "backbone.")

    with distributed.main_first():
        val = data.build_eval_loader(config, "test", **run.loading)
        train_set, val_set = data.build_dataset(config, "train"), val.dataset
    run.works_on(train=train_set, test=val_set)
    fingerprint.check_neighbors(pretext, run.data, weights)
    train_neighbors, val_neighbors = (
        neighbors.read(run.uses(pretext / name, f"pretext/{name}"), len(split))
        for name, split in (("topk-train-neighbors.npy", train_set), ("topk-val-neighbors.npy", val_set))
    )
    log.info("%d train and %d test images", len(train_set), len(val_set))
    quality = health.neighbor_quality(train_neighbors[:, : config.num_neighbors + 1]) if run.main else None

    model = run.place(model)
    if config.update_cluster_head_only:
        model.freeze_backbone()
    transform = data.build_train_transform(config)
    engine.rehearse(model, val, data.Loader(train_set, data.PlainView(transform), train=True, **run.loading))
    # The images that choose the epoch and the head, by the loss: as published, or others. No label chooses.
    trained, validation, choosing, anchors = model, val, slice(None), None
    if config.get("validation") == "train_holdout":
        anchors, choosing, train_neighbors, val_neighbors = hold_out(train_neighbors, val_neighbors.size(1))
        validation = data.build_eval_loader(config, "train", **run.loading)
        log.info("%d images held out of the training split choose the model", len(choosing))
    labels, classes = validation.dataset.labels, validation.dataset.classes
    if "cache_features" in config:
        trained, transform = model.cluster_head, data.unchanged
        train_set, validation = cache_features(run, model.eval(), train_set, validation)
    pairs = data.AnchorNeighborView(transform, train_neighbors, config.num_neighbors)
    train = data.Loader(train_set, pairs, train=True, anchors=anchors, **run.loading)
    criterion = SCANLoss(**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)

    network = run.for_training(trained, train)

    def step(batch):
        with run.autocast():  # two passes: anchors and neighbors have their own BatchNorm statistics
            anchor_logits, neighbor_logits = (map(distributed.gather, network(images)) for images in batch)
        losses = [criterion(*pair) for pair in zip(anchor_logits, neighbor_logits, strict=True)]
        total, consistency, entropy = (sum(parts) for parts in zip(*losses, strict=True))  # over the heads
        return {"loss": total, "consistency": consistency / len(losses), "entropy": entropy / len(losses)}

    best = {"best_loss": float("inf"), "best_loss_head": None}
    watch = health.Watch(health.SCAN_ADVICE, patience=config.epochs // 4, history=run.read_epochs)

    def validate(epoch):
        """Choose by the objective on the validation split, without labels; labels only tell the accuracy."""
        with run.autocast():
            probabilities = engine.infer(predict(trained), validation, "validation")
        objectives = [metrics.validation_objective(p, val_neighbors, choosing) for p in probabilities]
        head = min(range(len(objectives)), key=lambda i: objectives[i]["loss"])
        if objectives[head]["loss"] < best["best_loss"]:
            run.save({"model": model.state_dict(), "head": head}, "model.pth.tar")
            best.update(best_loss=objectives[head]["loss"], best_loss_head=head)
        values = {f"val_{name}": value for name, value in objectives[head].items()}
        chosen = probabilities[head].cpu()[choosing]
        values.update(watch(epoch, chosen))
        if labels is not None:
            values["val_acc"] = metrics.clustering_metrics(chosen, labels[choosing], len(classes))["acc"]
        return values

    engine.train(run, model, optimizer, train, step, state=best, after_epoch=validate)

    source = run.folder / "model.pth.tar"
    weights, head = pretrained.read(source, ["clustering"])
    head = pretrained.choose_head(weights, head, source)
    pretrained.fit(model, weights, source)
    log.info("best model: head %d, validation loss %.4f", head, best["best_loss"])
    probabilities = engine.infer(lambda images: predict(model)(images)[head], val, "evaluation").cpu()
    about = {"setup": config.setup, "dataset": config.val_db_name, "split": "test", "head": head}
    about["train_neighbors"] = quality
    if run.main:
        report.report_clusters(run.folder, probabilities, val_set, about)
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    run.sign(weights)


def add_arguments(parser):
    start_arguments("start from this pretext checkpoint (default: the pretext step's)")(parser)
    parser.add_argument(
        "--pretext",
        metavar="FOLDER",
        type=file_argument,
        help="the pretext step's results (default: those of this --run, or else those without --run)",
    )


def predict(model):
    """Function images -> one (B, C) of probabilities per head."""
    return lambda images: tuple(logits.softmax(1) for logits in model(images))


def hold_out(train_neighbors, k):
    """Split the training images in those that train, nine of ten, and those that choose the model.

    Args:
        train_neighbors: int64 (N, 1 + mined).
        k: entries of a row that the objective looks at.

    Returns:
        the indices of both parts; the neighbors with each image itself in the place of one held out; and the
        first k neighbors of those held out, which may be any image.
    """
    n = len(train_neighbors)
    held = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: max(1, n // 10)].sort().values
    is_held = torch.zeros(n, dtype=torch.bool).index_fill_(0, held, True)
    itself = torch.arange(n).unsqueeze(1)
    kept = torch.where(is_held[train_neighbors], itself, train_neighbors)
    return (~is_held).nonzero().squeeze(1), held, kept, train_neighbors[held, :k]


def cache_features(run, model, train_set, val):
    """The frozen backbone's features, float16, in the place of the images.

    Returns:
        FeatureViews of `cache_features` augmented views of the training images, and a loader of the
        validation features. Raises UserError when they do not fit in memory.
    """
    config, view = run.config, data.PlainView(data.build_train_transform(run.config))
    augmented = data.Loader(train_set, view, train=False, **run.loading)
    run.seed()

    def features(images):
        return model.backbone(images).half()

    with run.autocast():
        validation = engine.infer(features, val, "validation features")
        shape = (config.cache_features, len(train_set), validation.size(1))
        try:
            views = validation.new_empty(shape)
        except RuntimeError:
            raise UserError(
                f"cache_features {shape[0]}: {2 * math.prod(shape) / 1e9:.1f} GB of features find no room "
                f"in the memory of {run.device}; lower it"
            ) from None
        for number, place in enumerate(views, start=1):
            place.copy_(engine.infer(features, augmented, f"features of view {number}/{len(views)}"))
    log.info("features of %d views of %d images, %.2f GB", *shape[:2], views.nbytes / 1e9)
    unchanged = data.PlainView(data.unchanged)
    cached = data.FeatureViews(validation.unsqueeze(0))
    return data.FeatureViews(views), data.Loader(cached, unchanged, train=False, **run.loading)


if __name__ == "__main__":
    run_script(main)
