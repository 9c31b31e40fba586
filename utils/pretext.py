"""What a pretext model is for: features, the nearest neighbors among them, and how good they are."""

import logging
from pathlib import Path

import torch.nn.functional as F

from . import engine, neighbors, report

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
    """Share of the top 1, 5 and 20 neighbors, mined within a split, that are of the image's class."""
    figures = {f"top{k}_neighbor_accuracy": neighbors.agreement(mined, labels, k) for k in (1, 5, TOP)}
    shares = ", ".join(f"{100 * share:.2f}" for share in figures.values())
    log.info("top-1, top-5 and top-%d neighbors of the same class: %s %%", TOP, shares)
    return figures


def finish(run, model, train, val, k_train, k_val, about):
    """Mine both splits' neighbors for the clustering step; write metrics.json.

    The features are computed in float32 under the evaluation transform, written to a file as they come,
    and removed when the neighbors are found.

    Args:
        run: the Run, whose folder takes topk-{train,val}-neighbors.npy and metrics.json.
        model: the pretext model, in eval mode.
        train, val: loaders of the splits.
        k_train, k_val: neighbors to mine besides the image itself.
        about: dict of what is evaluated, put first in metrics.json.
    """
    function = features_of(model, run.config.setup)
    figures, features = dict(about), []
    with run.scratch() as scratch:
        for name, loader, k in (("train", train, k_train), ("val", val, k_val)):
            found = engine.infer(function, loader, f"{name} features", Path(scratch) / f"{name}.npy")
            features.append(found)
            path = run.folder / f"topk-{name}-neighbors.npy"
            mined = neighbors.mine(found, max(k, min(TOP, len(found) - 1)), run.device)
            neighbors.save(mined[:, : k + 1], path)
            log.info("mined %d neighbors of each of %d images: %s", k, len(mined), path)
            labels = loader.dataset.labels
            if labels is not None:
                share = figures[f"{name}_neighbors_of_same_class"] = neighbors.agreement(mined, labels, k)
                log.info("%.2f %% of them are of the image's class", 100 * share)
        if labels is not None:
            figures.update(neighbor_accuracy(mined, labels))
        if labels is not None and train.dataset.labels is not None:
            temperature = run.config.get("temperature", 0.1)
            accuracy = knn_accuracy(*features, train.dataset, val.dataset, temperature, run.device)
            log.info("weighted k-NN accuracy on the test split: %.2f %%", 100 * accuracy)
            figures["knn_accuracy"] = accuracy
    report.write_json(figures, run.folder / "metrics.json")
