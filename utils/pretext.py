"""What a pretext model is for: features, the nearest neighbors among them, and how good they are."""

import logging

import torch.nn.functional as F

from . import engine, fingerprint, neighbors, report

log = logging.getLogger(__name__)

TOP = 20  # neighbors whose classes an evaluation looks at


def features_of(model, setup):
    """Function images -> L2-normalised features: the head's (simclr), or the backbone's (moco)."""
    if setup == "moco":
        return lambda images: F.normalize(model.backbone(images), dim=1)
    return model


def knn_accuracy(bank, queries, train_set, val_set, temperature, device=None):
    """Share of the validation images whose class the train split's features vote for."""
    votes = neighbors.weighted_knn(
        *(bank, train_set.labels, queries, len(train_set.classes)), temperature=temperature, device=device
    )
    return (votes.cpu() == val_set.labels).double().mean().item()


def neighbor_accuracy(mined, labels):
    """Share of the top 1, 5 and 20 neighbors, mined within a split, that are of the image's class.

    A split with fewer neighbors gives fewer figures.
    """
    ks = [k for k in (1, 5, TOP) if k < mined.shape[1]]
    figures = {f"top{k}_neighbor_accuracy": neighbors.agreement(mined, labels, k) for k in ks}
    for k, share in zip(ks, figures.values(), strict=True):
        log.info("top-%d neighbors of the image's class: %.2f %%", k, 100 * share)
    return figures


def finish(run, model, train, val, k_train, k_val, about):
    """Save the model; mine both splits' neighbors for the clustering step; write metrics.json.

    The features are computed in float32 under the evaluation transform, written to a file as they come,
    and removed when the neighbors are found.

    Args:
        run: the Run, whose folder takes model.pth.tar, topk-{train,val}-neighbors.npy and metrics.json.
        model: the pretext model.
        train, val: loaders of the splits.
        k_train, k_val: neighbors to mine besides the image itself.
        about: dict of what is evaluated, put first in metrics.json.
    """
    splits = {"train": (train, k_train), "val": (val, k_val)}
    paths = {name: run.folder / f"topk-{name}-neighbors.npy" for name in splits}
    if run.main:
        for path in (*paths.values(), run.folder / "metrics.json", run.folder / fingerprint.NAME):
            path.unlink(missing_ok=True)  # never another model's neighbors beside this one
    run.save(model.state_dict(), "model.pth.tar")
    function = features_of(model.eval(), run.config.setup)
    with run.scratch() as scratch:
        features = [
            engine.infer(function, loader, f"{name} features", scratch / f"{name}.npy")
            for name, (loader, _) in splits.items()
        ]
        if run.main:
            figures = _mine(run, features, splits, paths)
            report.write_json({**about, **figures}, run.folder / "metrics.json")
    run.sign(model.state_dict())


def _mine(run, features, splits, paths):
    figures, labels = {}, []
    for found, (name, (loader, k)) in zip(features, splits.items(), strict=True):
        labels.append(loader.dataset.labels)
        mined = neighbors.mine(found, max(k, min(TOP, len(found) - 1)), run.device, run.config.search)
        neighbors.save(mined[:, : k + 1], paths[name])
        log.info("mined %d neighbors of each of %d images: %s", k, len(mined), paths[name])
        if labels[-1] is not None:
            share = figures[f"{name}_neighbors_of_same_class"] = neighbors.agreement(mined, labels[-1], k)
            log.info("%.2f %% of them are of the image's class", 100 * share)
    if labels[1] is not None:
        figures.update(neighbor_accuracy(mined, labels[1]))
        if labels[0] is not None:
            datasets = (loader.dataset for loader, _ in splits.values())
            temperature = run.config.get("temperature", 0.1)
            accuracy = knn_accuracy(*features, *datasets, temperature, run.device)
            log.info("weighted k-NN accuracy on the test split: %.2f %%", 100 * accuracy)
            figures["knn_accuracy"] = accuracy
    return figures
