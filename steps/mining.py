"""How the pretext step ends: save its model, and mine the neighbors that the clustering step needs."""

import logging
from functools import partial

import torch.nn.functional as F

import data
from data.messages import say_once
from utils.analysis import duplicates, neighbors
from utils.files import write_array, write_json
from utils.run import distributed
from utils.run.folder import FINGERPRINT
from utils.training import resume
from utils.training.features import backbone_features, features_path, remove_stale_features
from utils.training.inference import dry_run, infer_to_file

log = logging.getLogger(__name__)

TOP = max(neighbors.ACCURACY_AT)


def eval_loaders(run, model, k_train, k_val, build_dataset):
    """Loaders of the train and the test split with the evaluation transform, each tried on the model.

    This step's variables and files call the test split `val`. Raises UserError if a split is too small for
    that many neighbors.
    """
    with distributed.main_first():
        datasets = [build_dataset(run.config, split) for split in ("train", "test")]
    log.info("%d train and %d test images", *map(len, datasets))
    for dataset, k in zip(datasets, (k_train, k_val), strict=True):
        n = duplicates.count_distinct(duplicates.first_copies(dataset))
        if n < len(dataset):
            copies = f"{len(dataset) - n} of {len(dataset)} images are copies of others"
            say_once(log.info, f"{copies}; neighbors are mined without them")
        neighbors.require_candidates(n, k, len(dataset) - n)
    loaders = [
        data.eval_loader(dataset, run.config, **run.machine.loading(run.config)) for dataset in datasets
    ]
    dry_run(model, *loaders)
    return loaders


def mine(run, fingerprint, model, train, val, k_train, k_val, pretrained=None, about=None):
    """Save the model; mine both splits' neighbors for the clustering step; write metrics.json.

    The features are computed in float32 with the evaluation transform, written to files batch by batch, and
    removed after the mining, or kept; see `_features_to_mine`.

    Args:
        run: the Run; model.pth.tar, topk-{train,val}-neighbors.npy and metrics.json go to its folder.
        fingerprint: the Fingerprint of the step.
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
        features = [_features_to_mine(run, model, splits[name][0], name, scratch) for name in splits]
        if run.main:
            figures = {"setup": config.setup, "dataset": config.train_db_name}
            if pretrained:
                figures["pretrained"] = str(pretrained)
            figures |= about or {}
            mined = {}
            for found, (name, (loader, k)) in zip(features, splits.items(), strict=True):
                mined[name] = _mine_split(run, found, loader.dataset, k, paths[name])
                if loader.dataset.labels is not None:
                    share = neighbors.label_agreement(mined[name], loader.dataset.labels, k)
                    log.info("%.2f %% of them are of the image's class", 100 * share)
                    figures[f"{name}_neighbors_of_same_class"] = share
            figures |= _feature_figures(run, features, mined["val"], train, val)
            write_json(figures, run.folder / "metrics.json")
    if run.main:
        kept = [features_path(run, run.folder, model, loader.dataset) for loader, _ in splits.values()]
        remove_stale_features(run.folder, kept)
    resume.mark_finished(run, fingerprint, model.state_dict(), trained=pretrained is None)


def _mine_split(run, features, dataset, k, path):
    """Save k neighbors of each image, and the image itself; returns up to TOP of them, for the figures."""
    first = duplicates.first_copies(dataset)
    most = max(k, min(TOP, duplicates.count_distinct(first) - 1))
    mined = duplicates.mine_distinct(features, most, first, run.machine.device, run.config.search)
    write_array(mined[:, : k + 1].numpy(), path)
    log.info("mined %d neighbors of each of %d images: %s", k, len(mined), path)
    return mined


def _features_to_mine(run, model, loader, name, scratch):
    """L2-normalized features (N, D) of a split by its `name`, in a file; only the main process gets them.

    Those of a backbone that this step does not train are kept, since the clustering step needs them, too.
    """
    file = scratch / f"{name}.npy"
    if run.config.setup != "pretrained":
        return infer_to_file(model.features_from(run.config.features), loader, f"{name} features", file)
    kept = backbone_features(run, run.folder, model, loader, f"{name} features")
    return infer_to_file(
        partial(F.normalize, dim=1), data.feature_loader(kept, **run.machine.loading(run.config)), name, file
    )


def _feature_figures(run, features, mined, train, val):
    """Neighbor and k-NN accuracy, as far as there are labels; `mined`: the test split's neighbors."""
    if val.dataset.labels is None:
        return {}
    figures = neighbors.neighbor_accuracies(mined, val.dataset.labels)
    if can_vote(train.dataset, val.dataset):
        accuracy = knn_accuracy(features, train, val, run.config.temperature, run.machine.device)
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
