"""From a folder of results to a model that takes new images."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import data
from errors import UserError
from models import ClusteringModel
from steps.load_model import load_model
from utils.analysis.unlikeness import TrainingFeatures
from utils.files import digest, read_json, write_json
from utils.run.config import Config, read_resolved
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import TRAINING_FEATURES
from workflows.final_head import HASH_DIGITS, IDENTITY_DIGITS, Kept, head_of

log = logging.getLogger(__name__)

LEVELS_FILE = "levels.json"  # in the step's folder


@dataclass(frozen=True)
class TrainedModel:
    """The model of a finished clustering or self-labeling step."""

    folder: Path  # of the step
    config: Config
    model: ClusteringModel  # on the CPU, in eval mode
    head: int  # index of its best head
    side: int  # of its training images in pixels, before the evaluation's crop
    white_level: int | None  # of its training images, if they have 16 bits and it is known
    training: TrainingFeatures | None  # None in older results, and where the backbone was trained
    levels: list[dict[str, Any]]  # see `save_levels`
    clustering: str  # its identity
    said: dict[str, list[tuple[str, Kept]]]  # of each file name, the training images that the user moved

    def moved_by_user(self, name: str, file: str | int) -> Kept | None:
        """What the user said of a training image; None for others.

        It is known by its file name and its content, or a vector, of which `file` is the row, by its name.
        """
        images = self.said.get(os.path.basename(name), [])
        if images and isinstance(file, str):
            content = hashlib.sha256(data.read_file(file)).hexdigest()[:HASH_DIGITS]
            images = [(name, kept) for _, kept in images if kept.content == content]
        return next((kept for known, kept in images if known == name), None)

    @property
    def num_clusters(self) -> int:
        """The number of clusters."""
        return len(self.model.state_dict()[f"cluster_head.{self.head}.weight"])

    @property
    def vector_width(self) -> int | None:
        """Width of the vectors that it takes in place of images; None if it takes images."""
        if not self.config.features_file:
            return None
        return self.model.state_dict()["cluster_head.0.weight"].size(1)

    def decode(
        self, files: Sequence[str], num_workers: int = 0
    ) -> Iterator[tuple[Sequence[str], torch.Tensor, dict[str, str]]]:
        """`data.stream` of new files, resized and cropped as the training images were."""
        # older results do not say white_level: then the decoded training images do, if they are still beside
        # the results, wherever those were moved to
        dataset = self.folder.resolve().parent
        config = {**self.config, "root_dir": str(dataset.parent), "train_db_name": dataset.name}
        if self.white_level:
            config["white_level"] = self.white_level
        return data.stream(files, config, num_workers, self.side)


def load_trained_model(results: Path) -> TrainedModel:
    """The final model of a dataset's results, `results/NAME`, or the model of one step's folder.

    Raises UserError if there is no finished clustering or self-labeling, or if its files are of different
    runs.
    """
    folder = final_step(results)
    config = read_resolved(folder / "config.yml")
    if config.setup not in ("scan", "selflabel"):
        raise UserError(
            f"{folder}: holds the results of setup {config.setup}, which has no clusters; train them with "
            "scan.py, and give the folder of its results"
        )
    try:
        loaded = load_model(config, folder / "model.pth.tar")
    except UserError as error:
        raise UserError(
            f"{folder}: config.yml and model.pth.tar must be those of one run; copy both ({error})"
        ) from None
    metrics = read_json(folder / "metrics.json")
    # older results do not say the side: then a margin is assumed, which files have and arrays may lack
    side = metrics.get("image_side") or data.side(config)
    made_of = digest(folder / "model.pth.tar")
    final, clustering = head_of(folder.parent, made_of), made_of[:IDENTITY_DIGITS]
    if final:
        loaded.model.cluster_head[loaded.head] = final.linear()
        clustering = final.clustering
    said: dict[str, list[tuple[str, Kept]]] = {}
    for name, kept in final.images.items() if final else ():
        if kept.corrected:
            said.setdefault(os.path.basename(name), []).append((name, kept))
    training = TrainingFeatures.read(
        folder / TRAINING_FEATURES, loaded.model.cluster_head[loaded.head].in_features
    )
    white_level, levels = metrics.get("white_level"), read_levels(folder, clustering)
    model = loaded.model.eval()
    return TrainedModel(
        folder, config, model, loaded.head, side, white_level, training, levels, clustering, said
    )


def save_levels(levels: list[dict[str, Any]], folder: Path, clustering: str) -> None:
    """Write into which fewer ones the clusters of a step's final head, of that identity, are merged.

    `levels`: for each number of clusters, rising, `of_cluster`: the merged cluster of each of the head's.
    """
    write_json({"clustering": clustering, "levels": levels}, folder / LEVELS_FILE)


def read_levels(folder: Path, clustering: str) -> list[dict[str, Any]]:
    """What `save_levels` wrote for a clustering; nothing if it did not."""
    content = read_json(folder / LEVELS_FILE)
    written_for = content.get("clustering") or content.get("model", "")[:IDENTITY_DIGITS]  # in older ones
    return content["levels"] if written_for == clustering else []


def final_step(results: Path) -> Path:
    """Folder of the last finished step with clusters: `results` itself, or selflabel/ or scan/ in it."""
    if not results.is_dir():
        found = "is a file; give the folder that holds it" if results.exists() else "no such folder"
        raise UserError(f"{results}: {found}; expected results of scan.py or selflabel.py")
    if (results / "config.yml").is_file():
        steps = [results]
    else:
        steps = [step for step in (results / "selflabel", results / "scan") if step.is_dir()]
    finished = next((step for step in steps if read_fingerprint(step)), None)
    if finished:
        if finished != steps[0]:
            log.warning("%s: not finished, so the model in %s is used", steps[0], finished)
        return finished
    if steps:
        raise UserError(
            f"{steps[0]}: has no complete fingerprint.json: its training has not finished; give the same "
            "command again. If this is a copy of a finished one, copy that file, too"
        )
    within = sorted(path.parent.parent for path in results.glob("*/*/config.yml"))
    hint = f"; did you mean {within[0]}?" if within else ""
    raise UserError(f"{results}: holds no results of scan.py or selflabel.py{hint}")
