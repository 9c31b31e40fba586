"""The pretext step's results, from which the clustering step starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from data import Dataset
from errors import UserError
from utils.analysis import neighbors
from utils.run.config import Config
from utils.run.fingerprint import Fingerprint, check_neighbors
from utils.run.folder import earlier_folder
from utils.run.weights import load_weights, read_weights

from .options import StepOptions

MODEL = "model.pth.tar"
TRAIN_NEIGHBORS, VAL_NEIGHBORS = "topk-train-neighbors.npy", "topk-val-neighbors.npy"


class MinedNeighbors(NamedTuple):
    """Indices of each image's nearest neighbors in its split, normally the image itself first."""

    train: torch.Tensor  # int64 (N, 1 + mined)
    test: torch.Tensor  # int64 (M, 1 + mined)


@dataclass(frozen=True)
class PretextResults:
    """Where the pretext step's results are."""

    folder: Path  # holds the mined neighbors
    model: Path  # the checkpoint, which may lie elsewhere
    hint: str  # what to do when there is no such checkpoint

    @classmethod
    def find(cls, config: Config, options: StepOptions) -> "PretextResults":
        """Those that the options name, or else those of the same experiment.

        Raises UserError if --pretext is not a folder.
        """
        folder = options.pretext
        if folder and not folder.is_dir():
            raise UserError(f"--pretext {folder}: no such folder; give the folder that holds {MODEL}")
        folder = folder or earlier_folder(config, "pretext", options.run)
        if options.pretrained:
            return cls(folder, options.pretrained, "")
        hint = "run simclr.py, moco.py or pretrained.py first, or name its folder with --pretext"
        return cls(folder, folder / MODEL, hint)

    def inputs(self) -> dict[str, Path]:
        """The files by their role, for the Fingerprint."""
        neighbor_files = {f"pretext/{name}": self.folder / name for name in (TRAIN_NEIGHBORS, VAL_NEIGHBORS)}
        return {f"pretext/{MODEL}": self.model, **neighbor_files}

    def load_backbone(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Load the backbone's weights into `model`; returns the checkpoint's whole state dict."""
        weights, _ = read_weights(self.model, ["pretext"], self.hint)
        load_weights(model, weights, self.model, "backbone.")
        return weights

    def read_neighbors(
        self,
        fingerprint: Fingerprint,
        weights: dict[str, torch.Tensor],
        train_set: Dataset,
        test_set: Dataset,
    ) -> MinedNeighbors:
        """Read the mined neighbors; raise UserError if they were mined among other images.

        Args:
            fingerprint: of the clustering step.
            weights: the state dict that the clustering step starts from.
            train_set, test_set: the images.
        """
        check_neighbors(self.folder, fingerprint, weights, neighbors.mine_again(self.folder, "them"))
        return MinedNeighbors(
            neighbors.read_neighbors(self.folder / TRAIN_NEIGHBORS, len(train_set)),
            neighbors.read_neighbors(self.folder / VAL_NEIGHBORS, len(test_set)),
        )
