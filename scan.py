"""Step 2 of SCAN: train cluster heads so that an image and its neighbors agree.

python scan.py --config_exp configs/scan/scan_cifar10.yml [--pretrained simclr_cifar10.pth.tar]
"""

import logging
import math
from functools import cache, partial
from typing import NamedTuple

import torch

import data
from errors import UserError
from losses import CRITERIA
from models import build_model
from steps.load_model import load_model
from steps.options import DEFAULT_OPTIONS, BuildDataset, StepOptions, open_run
from utils.analysis import duplicates, graph, health, metrics, neighbors, plots, results
from utils.analysis.neighbor_quality import neighbor_quality
from utils.run import distributed
from utils.run.config import Config, load_config
from utils.run.fingerprint import Fingerprint, check_neighbors
from utils.run.folder import earlier_folder
from utils.run.machine import Machine
from utils.run.script import file_argument, parse_arguments, run_script, start_arguments
from utils.run.weights import load_weights, read_weights
from utils.training import engine, resume
from utils.training.features import backbone_features
from utils.training.inference import dry_run, infer
from utils.training.network import for_training
from utils.training.optim import build_optimizer

log = logging.getLogger("scan")

NEIGHBORS = "topk-train-neighbors.npy", "topk-val-neighbors.npy"


def scan_step(model, criterion, batch):
    """Semantic clustering (section 2.2): an image and its neighbor belong to the same cluster.

    Args:
        model: images -> list of logits (B, C), one per head.
        criterion: losses.SCANLoss.
        batch: anchors and neighbors, both (B, 3, S, S). Each gets a forward pass of its own, and with it its
            own BatchNorm statistics.
    """
    anchor_logits, neighbor_logits = (model(images) for images in batch)
    losses = [criterion(*pair) for pair in zip(anchor_logits, neighbor_logits, strict=True)]
    total, consistency, entropy = (sum(parts) for parts in zip(*losses, strict=True))  # summed over heads
    return {"loss": total, "consistency": consistency / len(losses), "entropy": entropy / len(losses)}


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv, __doc__, add_arguments)
    run_step(load_config(args, ["scan"]), StepOptions.of(args))


def run_step(
    config: Config,
    options: StepOptions = DEFAULT_OPTIONS,
    build_dataset: BuildDataset = data.build_dataset,
    machine: Machine | None = None,
) -> None:
    """Train cluster heads, select the best epoch and head without labels, and evaluate them."""
    run = open_run(config, "scan", options, machine)
    model = build_model(config)
    pretext = pretext_files(config, options)
    weights = load_backbone(model, pretext["model.pth.tar"], options)

    with distributed.main_first():
        train_set, test_set = (build_dataset(config, split) for split in ("train", "test"))
    log.info("%d train and %d test images", len(train_set), len(test_set))
    inputs = {f"pretext/{name}": path for name, path in pretext.items()}
    fingerprint = Fingerprint(config, {"train": train_set, "test": test_set}, inputs)
    train_neighbors, val_neighbors = read_neighbors(pretext, fingerprint, weights, train_set, test_set)
    quality = None
    if run.main:
        used = train_neighbors[:, : config.num_neighbors + 1]
        quality = neighbor_quality(duplicates.among_distinct(used, duplicates.first_copies(train_set)))

    model = run.machine.place(model)
    if config.update_cluster_head_only:
        model.freeze_backbone()
    test = data.eval_loader(test_set, config, **run.machine.loading(config))
    view = data.PlainView(data.build_train_transform(config))
    dry_run(model, test, data.Loader(train_set, view, train=True, **run.machine.loading(config)))
    if config.validation == "train_holdout":
        split = hold_out(train_set, train_neighbors, val_neighbors.size(1))
    else:
        split = Split(None, train_neighbors, test_set, slice(None), val_neighbors)

    features = cache(partial(kept_features, run, model, pretext[NEIGHBORS[0]].parent))
    prepare = partial(cached_features, features) if config.trains_on != "images" else whole_images
    network, train, validation = prepare(run, model, train_set, split)
    if config.head_init == "graph" and run.begins():
        start_heads(run, model, network, train, split)
    criterion = CRITERIA[config.criterion](**config.criterion_kwargs)
    optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
    step = partial(scan_step, for_training(run, network, train), criterion)
    selection = Selection(run, model, network, validation, split)
    engine.train(
        run, fingerprint, model, optimizer, train, step, checkpointed=[selection], after_epoch=selection
    )
    final = (model.cluster_head, features(test_set)) if config.trains_on == "features" else (model, test)
    evaluate(run, fingerprint, model, *final, test_set, selection.best_loss, quality)


def add_arguments(parser):
    start_arguments("start from this pretext checkpoint (default: the pretext step's)")(parser)
    parser.add_argument(
        "--pretext",
        metavar="FOLDER",
        type=file_argument,
        help="the pretext step's results (default: those of this --run, or else those without --run)",
    )


# --- results of the pretext step -----------------------------------------------------------------


def pretext_files(config, options):
    """Paths of the pretext step's model and neighbors, by file name.

    Raises UserError if --pretext is not a folder.
    """
    if options.pretext and not options.pretext.is_dir():
        raise UserError(
            f"--pretext {options.pretext}: no such folder; give the folder that holds model.pth.tar"
        )
    folder = options.pretext or earlier_folder(config, "pretext", options.run)
    files = {name: folder / name for name in ("model.pth.tar", *NEIGHBORS)}
    return {**files, "model.pth.tar": options.pretrained} if options.pretrained else files


def load_backbone(model, source, options):
    """Load the backbone from the pretext checkpoint `source`; returns the checkpoint's whole state dict."""
    hint = "run simclr.py, moco.py or pretrained.py first, or name its folder with --pretext"
    weights, _ = read_weights(source, ["pretext"], "" if options.pretrained else hint)
    load_weights(model, weights, source, "backbone.")
    return weights


def read_neighbors(pretext, fingerprint, weights, train_set, test_set):
    """Read the mined neighbors of both splits, int64 (N, 1 + mined).

    Raises UserError if they were mined among other images.
    """
    train, test = (pretext[name] for name in NEIGHBORS)
    check_neighbors(train.parent, fingerprint, weights, neighbors.mine_again(train.parent, "them"))
    return neighbors.read(train, len(train_set)), neighbors.read(test, len(test_set))


# --- which images train, and which select the model ----------------------------------------------


class Split(NamedTuple):
    """The images to train on, and the images whose loss selects the epoch and the head, without labels."""

    anchors: torch.Tensor | None  # int64, indices of the images to train on; None: the whole train split
    train_neighbors: torch.Tensor  # int64 (N, 1 + mined), of the whole train split
    val_set: object  # dataset that contains the M images that select
    val_images: torch.Tensor | slice  # their indices in val_set
    val_neighbors: torch.Tensor  # int64 (M, k), their neighbors among all images of val_set


def hold_out(train_set, train_neighbors, k):
    """Hold out a tenth of the train split to select the model, and train on the rest.

    A held-out image never trains: where it is a neighbor, the anchor itself replaces it. The held-out images
    keep the first k entries of their rows, whichever images these are.
    """
    n = len(train_neighbors)
    held = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: max(1, n // 10)].sort().values
    is_held = torch.zeros(n, dtype=torch.bool).index_fill_(0, held, True)
    itself = torch.arange(n).unsqueeze(1)
    kept = torch.where(is_held[train_neighbors], itself, train_neighbors)
    log.info("%d images held out of the training split choose the model", len(held))
    return Split((~is_held).nonzero().squeeze(1), kept, train_set, held, train_neighbors[held, :k])


# --- the network to train, and its batches -------------------------------------------------------


def whole_images(run, model, train_set, split):
    """Train the whole model on augmented images.

    Returns:
        the module to train, its training Loader, and the evaluation Loader of `split.val_set`.
    """
    config = run.config
    pairs = data.AnchorNeighborView(
        data.build_train_transform(config), split.train_neighbors, config.num_neighbors
    )
    train = data.Loader(train_set, pairs, train=True, anchors=split.anchors, **run.machine.loading(config))
    return model, train, data.eval_loader(split.val_set, config, **run.machine.loading(config))


def cached_features(features, run, model, train_set, split):
    """Train the heads alone, on the frozen backbone's features.

    The features are of `cache_features` augmented views of each image, in float16; of none, if it is 0, but
    of the images themselves, in float32. Returns the same as `whole_images`, but the Loaders give features.

    Args:
        features: function dataset -> Loader of its images' features, see `kept_features`.

    Raises:
        UserError: the features do not fit in memory.
    """
    config = run.config
    if config.trains_on == "features":
        views, validation = features(train_set).dataset.views, features(split.val_set)
    else:
        views, validation = augmented_features(run, model, train_set, split.val_set)
    pairs = data.AnchorNeighborView(torch.nn.Identity(), split.train_neighbors, config.num_neighbors)
    train = data.Loader(
        data.CachedFeatures(views), pairs, train=True, anchors=split.anchors, **run.machine.loading(config)
    )
    return model.cluster_head, train, validation


def augmented_features(run, model, train_set, val_set):
    """float16 features (V, N, D) of V augmented views of the training images; a Loader of `val_set`'s."""
    config = run.config
    view = data.PlainView(data.build_train_transform(config))
    augmented = data.Loader(train_set, view, train=False, **run.machine.loading(config))
    run.seed()
    model.eval()

    def half(images):
        return model.backbone(images).half()

    with run.machine.autocast():
        val_features = infer(
            half, data.eval_loader(val_set, config, **run.machine.loading(config)), "validation features"
        )
        shape = (config.cache_features, len(train_set), val_features.size(1))
        try:
            views = val_features.new_empty(shape)
        except RuntimeError:
            raise UserError(
                f"cache_features {shape[0]}: {2 * math.prod(shape) / 1e9:.1f} GB of features find no room "
                f"in the memory of {run.machine.device}; lower it"
            ) from None
        for number, place in enumerate(views, start=1):
            place.copy_(infer(half, augmented, f"features of view {number}/{len(views)}"))
    log.info("features of %d views of %d images, %.2f GB", *shape[:2], views.nbytes / 1e9)
    return views, data.feature_loader(val_features, **run.machine.loading(config))


def kept_features(run, model, folder, dataset):
    """Loader of the images' features without augmentation, which are kept in the pretext step's `folder`.

    With these, the heads predict what the whole model does on the images.
    """
    loader = data.eval_loader(dataset, run.config, **run.machine.loading(run.config))
    features = backbone_features(run, folder, model.eval(), loader, "features")
    return data.feature_loader(features, **run.machine.loading(run.config))


def start_heads(run, model, network, train, split):
    """Start the heads from clusters of the training images' neighbor graph; see utils/analysis/graph.py.

    They are fitted on the features of `train`: the cached ones, or those of the evaluation transform.
    """
    if network is model.cluster_head:
        part, view = torch.nn.Identity(), data.PlainView(torch.nn.Identity())
    else:
        part, view = model.backbone, data.PlainView(data.build_eval_transform(run.config))
    model.eval()
    with run.machine.autocast():
        loader = data.Loader(train.dataset, view, train=False, **run.machine.loading(run.config))
        features = infer(part, loader, "features to start from")
    chosen = split.train_neighbors[:, : run.config.num_neighbors + 1]
    graph.start(model.cluster_head, features, chosen, train.anchors, run.config.seed)


# --- after each epoch, and at the end ------------------------------------------------------------


class Selection:
    """Saves the model whenever one of its heads reaches the lowest validation loss so far.

    Labels, if there are any, are used only to log the accuracy.

    Args:
        run: the Run.
        model: the model to save.
        network: the module to validate: the model on images, or its heads on cached features.
        validation: Loader of the images, or the cached features, of `split.val_set`.
        split: the Split.

    Attributes:
        best_loss, best_head: the lowest loss, and which head has it; a part of the checkpoint.
    """

    def __init__(self, run, model, network, validation, split):
        self.run = run
        self.model = model
        self.network = network
        self.validation = validation
        self.split = split
        self.best_loss, self.best_head = float("inf"), None
        self.watch = health.Watch(
            health.SCAN_ADVICE, patience=run.config.epochs // 4, history=run.read_epochs
        )

    def state_dict(self):
        return {"best_loss": self.best_loss, "best_loss_head": self.best_head}

    def load_state_dict(self, state):
        self.best_loss, self.best_head = state["best_loss"], state["best_loss_head"]

    def __call__(self, epoch):
        """Validate after an epoch; returns the values to log."""
        split = self.split
        with self.run.machine.autocast():
            probabilities = infer(predict(self.network), self.validation, "validation")
        objectives = [
            metrics.validation_objective(p, split.val_neighbors, split.val_images) for p in probabilities
        ]
        head = min(range(len(objectives)), key=lambda i: objectives[i]["loss"])
        new_best = objectives[head]["loss"] < self.best_loss
        if new_best:
            self.run.save({"model": self.model.state_dict(), "head": head}, "model.pth.tar")
            self.best_loss, self.best_head = objectives[head]["loss"], head
        values = {f"val_{name}": value for name, value in objectives[head].items()}
        clusters = probabilities[head].argmax(1).cpu()
        values["neighbor_agreement"] = metrics.neighbor_agreement(
            clusters, split.val_neighbors, split.val_images
        )
        chosen = probabilities[head].cpu()[split.val_images]
        values.update(self.watch(epoch, chosen), new_best=new_best)
        labels = split.val_set.labels
        if labels is not None:
            num_classes = len(split.val_set.classes)
            values["val_acc"] = metrics.clustering_accuracy(chosen, labels[split.val_images], num_classes)
        return values


def predict(network):
    """Function images -> tuple of probabilities (B, C), one for each head."""
    return lambda images: tuple(logits.softmax(1) for logits in network(images))


def evaluate(run, fingerprint, model, network, test, test_set, best_loss, quality):
    """Evaluate the best epoch's model with its best head on the test split, in float32; write the results.

    `network` is the part of `model` that takes the batches of the loader `test`.
    """
    loaded = load_model(run.config, run.folder / "model.pth.tar", into=model)
    head = loaded.head
    log.info("best model: head %d, validation loss %.4f", head, best_loss)
    probabilities = infer(lambda batch: predict(network)(batch)[head], test, "evaluation").cpu()
    about = {"setup": run.config.setup, "dataset": run.config.val_db_name, "split": "test", "head": head}
    if run.main:
        about["train_neighbors"] = quality
        results.report_clusters(run.folder, probabilities, test_set, about)
        plots.save_curves(run.read_epochs(), run.folder / "curves.png")
    resume.mark_finished(run, fingerprint, loaded.weights)


if __name__ == "__main__":
    run_script(main)
