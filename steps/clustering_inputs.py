"""What the clustering step trains, and on what: images, or features of a backbone that does not train."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

import data
from data import Dataset, Loader
from data.dataset import BatchSource
from data.views import Transform
from errors import UserError
from models import ClusteringModel
from utils.analysis import duplicates, graph
from utils.analysis.groups import find_groups
from utils.analysis.unlikeness import TrainingFeatures
from utils.files import writing
from utils.run.folder import TRAINING_FEATURES, Run
from utils.run.machine import threads_for
from utils.training.features import backbone_features
from utils.training.inference import infer

from .judged_clusters import FeatureSpace
from .pretext_results import MinedNeighbors

log = logging.getLogger(__name__)


# --- which images train, and which select the model ----------------------------------------------


class ClusteringSplits(NamedTuple):
    """The images to train on, and those whose loss selects the epoch and the head, without labels."""

    train_set: Dataset  # N images
    test_set: Dataset
    anchors: torch.Tensor | None  # int64, indices of the images to train on; None: the whole train split
    neighbors: torch.Tensor  # int64 (N, 1 + mined), of the whole train split
    val_set: Dataset  # either split; it contains the M images that select
    val_images: torch.Tensor | slice  # their indices in val_set
    val_neighbors: torch.Tensor  # int64 (M, k), their neighbors among all images of val_set


def choose_splits(
    validation: str, train_set: Dataset, test_set: Dataset, mined: MinedNeighbors
) -> ClusteringSplits:
    """Select by the test split or, if `validation` is "train_holdout", by a tenth of the train split.

    A held-out image never trains: where it is a neighbor, the anchor itself replaces it. The held-out images
    keep the first entries of their rows, whichever images these are.
    """
    if validation != "train_holdout":
        return ClusteringSplits(train_set, test_set, None, mined.train, test_set, slice(None), mined.test)
    n, k = len(mined.train), mined.test.size(1)
    held = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: max(1, n // 10)].sort().values
    is_held = torch.zeros(n, dtype=torch.bool).index_fill_(0, held, True)
    itself = torch.arange(n).unsqueeze(1)
    kept = torch.where(is_held[mined.train], itself, mined.train)
    anchors = (~is_held).nonzero().squeeze(1)
    log.info("%d images held out of the training split choose the model", len(held))
    return ClusteringSplits(train_set, test_set, anchors, kept, train_set, held, mined.train[held, :k])


# --- the network to train, and its batches -------------------------------------------------------


class ClusteringInputs(NamedTuple):
    """A network, and the batches that it takes: the model and images, or its heads and cached features."""

    network: nn.Module  # what trains, and is validated
    train: Loader  # pairs of an anchor and a neighbor
    validation: Loader  # of the splits' val_set
    final: nn.Module  # what the final evaluation takes for `network`
    test: Loader  # of the test split, for `final`


def clustering_inputs(
    run: Run, model: ClusteringModel, splits: ClusteringSplits, pretext: Path
) -> ClusteringInputs:
    """The model and augmented images, or its heads and features of the frozen backbone.

    The features are those of `cache_features` augmented views of each image, in float16; or, if that is 0, of
    the images themselves, in float32, kept in the folder `pretext` of the pretext step. With these, the heads
    predict what the whole model does on the images.

    Raises:
        UserError: the features do not fit in memory.
    """
    if run.config.trains_on == "images":
        return _augmented_images(run, model, splits)
    if run.config.trains_on == "features":
        return _frozen_features(run, model, splits, pretext)
    return _augmented_features(run, model, splits)


def _augmented_images(run: Run, model: ClusteringModel, splits: ClusteringSplits) -> ClusteringInputs:
    train = _pairs(run, splits.train_set, data.build_train_transform(run.config), splits)
    validation, test = (_images(run, dataset) for dataset in (splits.val_set, splits.test_set))
    return ClusteringInputs(model, train, validation, model, test)


def _frozen_features(
    run: Run, model: ClusteringModel, splits: ClusteringSplits, pretext: Path
) -> ClusteringInputs:
    def features_of(dataset: Dataset) -> Loader:
        features = backbone_features(run, pretext, model.eval(), _images(run, dataset), "features")
        return data.feature_loader(features, **run.machine.loading(run.config))

    heads, in_order, test = model.cluster_head, features_of(splits.train_set), features_of(splits.test_set)
    train = _pairs(run, in_order.dataset, nn.Identity(), splits)
    validation = in_order if splits.val_set is splits.train_set else test
    return ClusteringInputs(heads, train, validation, heads, test)


def _augmented_features(run: Run, model: ClusteringModel, splits: ClusteringSplits) -> ClusteringInputs:
    loading, num_views = run.machine.loading(run.config), run.config.cache_features or 0
    view = data.PlainView(data.build_train_transform(run.config))
    augmented = Loader(splits.train_set, view, train=False, **loading)
    run.seed()
    model.eval()

    def half(images: torch.Tensor) -> torch.Tensor:
        return model.backbone(images).half()

    with run.machine.autocast():
        val_features = infer(half, _images(run, splits.val_set), "validation features")
        shape = (num_views, len(splits.train_set), val_features.size(1))
        try:
            views = val_features.new_empty(shape)
        except RuntimeError:
            raise UserError(
                f"cache_features {num_views}: {2 * math.prod(shape) / 1e9:.1f} GB of features find no room "
                f"in the memory of {run.machine.device}; lower it"
            ) from None
        for number, place in enumerate(views, start=1):
            place.copy_(infer(half, augmented, f"features of view {number}/{num_views}"))
    log.info("features of %d views of %d images, %.2f GB", *shape[:2], views.nbytes / 1e9)
    train = _pairs(run, data.CachedFeatures(views), nn.Identity(), splits)
    validation = data.feature_loader(val_features, **loading)
    return ClusteringInputs(model.cluster_head, train, validation, model, _images(run, splits.test_set))


def _pairs(run: Run, images: BatchSource, transform: Transform, splits: ClusteringSplits) -> Loader:
    view = data.AnchorNeighborView(transform, splits.neighbors, run.config.num_neighbors)
    return Loader(images, view, train=True, anchors=splits.anchors, **run.machine.loading(run.config))


def _images(run: Run, dataset: Dataset) -> Loader:
    return data.eval_loader(dataset, run.config, **run.machine.loading(run.config))


def keep_training_features(run: Run, model: ClusteringModel, train_set: Dataset, pretext: Path) -> None:
    """Write the file by which predict.py tells how unlike the training images a new one is."""
    features = backbone_features(run, pretext, model.eval(), _images(run, train_set), "features")
    if run.main:
        first = duplicates.first_copies(train_set)
        kept = TrainingFeatures.choose(features, first, run.machine.device)
        with writing(run.folder / TRAINING_FEATURES, "free some space, and give the same command again"):
            kept.write(run.folder / TRAINING_FEATURES)


def start_heads(
    run: Run, model: ClusteringModel, inputs: ClusteringInputs, splits: ClusteringSplits
) -> dict[str, Any]:
    """Start the heads from clusters of the training images, without copies, as `head_init` says.

    They are fitted on the features of `inputs.train`: cached ones, or those of the evaluation transform.

    Returns:
        what metrics.json says of it: with `head_init: judged`, `candidates` and `groups`, see find_groups.
    """
    backbone: nn.Module = nn.Identity()
    transform: Transform = nn.Identity()
    if inputs.network is model:
        backbone, transform = model.backbone, data.build_eval_transform(run.config)
    model.eval()
    with run.machine.autocast():
        view, loading = data.PlainView(transform), run.machine.loading(run.config)
        loader = Loader(inputs.train.dataset, view, train=False, **loading)
        features = infer(backbone, loader, "features to start from")
    heads = cast(Sequence[nn.Linear], model.cluster_head)
    if run.config.head_init == "judged":
        first = duplicates.first_copies(splits.train_set)
        distinct = inputs.train.anchors[first[inputs.train.anchors] == inputs.train.anchors]
        features = features[distinct.to(features.device)]
        space = FeatureSpace.of(features, run.config.seed, run.machine.device, run.config.search)
        candidates = space.cluster(run.config.num_classes)
        with threads_for(len(features)):
            graph.set_heads(heads, features, candidates[0].probabilities.expand(len(heads), -1, -1))
            groups = find_groups(features, run.config.seed)
        return {"candidates": [candidate.figures() for candidate in candidates], "groups": groups}
    neighbors = splits.neighbors[:, : run.config.num_neighbors + 1]
    graph.initialize_heads(heads, features, neighbors, inputs.train.anchors, run.config.seed)
    return {}
