"""How the pretext step ends: save its model, and mine the neighbors that the clustering step needs."""

import logging
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import data
from data import Dataset, Loader
from data.messages import say_once
from models import ContrastiveModel, PretrainedModel
from utils.analysis import duplicates, neighbors
from utils.files import write_array, write_json
from utils.run.fingerprint import Fingerprint
from utils.run.folder import FINGERPRINT, MINED_TEST, MINED_TRAIN, Run
from utils.training import resume
from utils.training.features import backbone_features, features_path, remove_stale_features
from utils.training.inference import dry_run, infer_to_file

from .options import StepOptions, build_splits

log = logging.getLogger(__name__)

TOP = max(neighbors.ACCURACY_AT)
# by setup: neighbors to mine of each train and each test image, without the image itself; with pretrained
# features fewer if there are not so many images
NUM_NEIGHBORS = {"simclr": (20, 5), "moco": (50, 5), "pretrained": (50, 5)}

PretextModel = ContrastiveModel | PretrainedModel


class PretextSplit(NamedTuple):
    """A split whose neighbors are mined. This step's variables and files call the test split `val`."""

    name: str  # "train" or "val"
    mined: str  # name of the file of neighbors
    dataset: Dataset
    images: Loader  # with the evaluation transform
    k: int  # neighbors to mine for each image, not counting the image itself


class PretextSplits(NamedTuple):
    """Both splits."""

    train: PretextSplit
    val: PretextSplit

    @property
    def datasets(self) -> dict[str, Dataset]:
        """For the Fingerprint."""
        return {"train": self.train.dataset, "test": self.val.dataset}


def pretext_splits(run: Run, model: PretextModel, options: StepOptions) -> PretextSplits:
    """The train and the test split, each tried on the model.

    Raises UserError if a split is too small for its NUM_NEIGHBORS or, with pretrained features, for one.
    """
    splits, setup = [], run.config.setup
    names = ("train", MINED_TRAIN), ("val", MINED_TEST)
    datasets = build_splits(run.config, options)
    for dataset, k, named in zip(datasets, NUM_NEIGHBORS[setup], names, strict=True):
        n = duplicates.count_distinct(duplicates.first_copies(dataset))
        if n < len(dataset):
            copies = f"{len(dataset) - n} of {len(dataset)} images are copies of others"
            say_once(log.info, f"{copies}; neighbors are mined without them")
        k = max(1, min(k, n - 1)) if setup == "pretrained" else k
        neighbors.require_candidates(n, k, len(dataset) - n)
        images = data.eval_loader(dataset, run.config, **run.machine.loading(run.config))
        splits.append(PretextSplit(*named, dataset, images, k))
    dry_run(model, *(split.images for split in splits))
    return PretextSplits(*splits)


def mine(
    run: Run,
    fingerprint: Fingerprint,
    model: PretextModel,
    splits: PretextSplits,
    pretrained: str | Path | None = None,
    further: dict[str, Any] | None = None,
) -> None:
    """Save the model; mine both splits' neighbors for the clustering step; write metrics.json.

    The features are computed in float32 with the evaluation transform, and written to files batch by batch.

    Args:
        run: model.pth.tar, topk-{train,val}-neighbors.npy and metrics.json go to its folder.
        pretrained: where the weights come from, if this run did not train them.
        further: what else metrics.json says.
    """
    if run.main:
        # no other model's neighbors may lie beside this model
        for name in (MINED_TRAIN, MINED_TEST, "metrics.json", FINGERPRINT):
            (run.folder / name).unlink(missing_ok=True)
    run.save(model.state_dict(), "model.pth.tar")
    with run.scratch() as scratch:
        model.eval()
        features = [_features_to_mine(run, model, split, scratch) for split in splits]
        if run.main:
            figures: dict[str, Any] = {"setup": run.config.setup, "dataset": run.config.train_db_name}
            if pretrained:
                figures["pretrained"] = str(pretrained)
            figures |= further or {}
            for found, split in zip(features, splits, strict=True):
                mined = _mine_split(run, found, split)
                labels = split.dataset.labels
                if labels is not None:
                    share = neighbors.label_agreement(mined, labels, split.k)
                    log.info("%.2f %% of them are of the image's class", 100 * share)
                    figures[f"{split.name}_neighbors_of_same_class"] = share
            if labels is not None:  # those of the test split
                figures |= neighbors.neighbor_accuracies(mined, labels)
            if can_vote(splits):
                accuracy = knn_accuracy(features, splits, run.config.temperature, run.machine.device)
                figures["knn_accuracy"] = accuracy
                log.info("weighted k-NN accuracy on the test split: %.2f %%", 100 * accuracy)
            write_json(figures, run.folder / "metrics.json")
            kept = [features_path(run, run.folder, model, split.dataset) for split in splits]
            remove_stale_features(run.folder, kept)
    resume.mark_finished(run, fingerprint, model.state_dict(), trained=pretrained is None)


def _mine_split(run: Run, features: torch.Tensor, split: PretextSplit) -> torch.Tensor:
    """Save k neighbors of each image, and the image itself; returns up to TOP of them, for the figures."""
    first = duplicates.first_copies(split.dataset)
    most = max(split.k, min(TOP, duplicates.count_distinct(first) - 1))
    mined = duplicates.mine_distinct(features, most, first, run.machine.device, run.config.search)
    path = run.folder / split.mined
    write_array(mined[:, : split.k + 1].numpy(), path)
    log.info("mined %d neighbors of each of %d images: %s", split.k, len(mined), path)
    return mined


def _features_to_mine(run: Run, model: PretextModel, split: PretextSplit, scratch: Path) -> torch.Tensor:
    """L2-normalized features (N, D) of a split, in a file; only the main process gets them.

    Those of a backbone that this step does not train are kept, since the clustering step needs them, too.
    """
    file, title = scratch / f"{split.name}.npy", f"{split.name} features"
    if run.config.setup != "pretrained":
        return infer_to_file(model.features_from(run.config.features), split.images, title, file)
    kept = backbone_features(run, run.folder, model, split.images, title)
    loader = data.feature_loader(kept, **run.machine.loading(run.config))
    return infer_to_file(partial(F.normalize, dim=1), loader, split.name, file)


def can_vote(splits: PretextSplits) -> bool:
    """Whether k-NN accuracy means something: both splits have labels, and no image votes for itself."""
    train, val = splits.train.dataset, splits.val.dataset
    labeled = train.labels is not None and val.labels is not None
    return labeled and train.fingerprint() != val.fingerprint()


def knn_accuracy(
    features: list[torch.Tensor],
    splits: PretextSplits,
    temperature: float,
    device: torch.device | None = None,
) -> float:
    """Weighted k-NN accuracy on the test split: the nearest features of the train split vote for the class.

    `features`: those of both splits, float32 (N, D) and (M, D).
    """
    bank, queries = features
    train, labels = splits.train.dataset, splits.val.dataset.labels
    if train.labels is None or train.classes is None or labels is None:
        raise ValueError("k-NN accuracy needs the labels of both splits")
    votes = neighbors.weighted_knn(
        bank, train.labels, queries, len(train.classes), temperature=temperature, device=device
    )
    return (votes.cpu() == labels).double().mean().item()
