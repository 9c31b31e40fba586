"""The pretext step's results, from which the clustering step starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from data import Dataset
from errors import UserError
from utils.analysis import neighbors
from utils.run.config import Config
from utils.run.fingerprint import Fingerprint, check_neighbors
from utils.run.folder import MINED_TEST, MINED_TRAIN, earlier_folder
from utils.run.weights import read_weights

from .options import StepOptions


class MinedNeighbors(NamedTuple):
    """Indices of each image's nearest neighbors in its split, normally the image itself first."""

    train: torch.Tensor  # int64 (N, 1 + mined)
    test: torch.Tensor  # int64 (M, 1 + mined)


@dataclass(frozen=True)
class PretextResults:
    """What the clustering step takes of a pretext step."""

    folder: Path  # holds the mined neighbors
    model: Path  # the checkpoint, which may lie elsewhere
    weights: dict[str, torch.Tensor]  # its state dict

    @property
    def inputs(self) -> dict[str, Path]:
        """The files by their role, for the Fingerprint."""
        neighbor_files = {f"pretext/{name}": self.folder / name for name in (MINED_TRAIN, MINED_TEST)}
        return {"pretext/model.pth.tar": self.model, **neighbor_files}

    def read_neighbors(
        self, fingerprint: Fingerprint, train_set: Dataset, test_set: Dataset
    ) -> MinedNeighbors:
        """Read both splits' neighbors; raise UserError if they are of other images than the fingerprint's."""
        remedy = neighbors.mine_again(self.folder, "them")
        check_neighbors(self.folder, fingerprint, self.weights, remedy)
        return MinedNeighbors(
            neighbors.read_neighbors(self.folder / MINED_TRAIN, len(train_set)),
            neighbors.read_neighbors(self.folder / MINED_TEST, len(test_set)),
        )


def find_pretext(config: Config, options: StepOptions) -> PretextResults:
    """The results that the options name, or else those of the same experiment.

    Raises UserError if --pretext is not a folder, or the checkpoint is not of a pretext step.
    """
    folder = options.pretext
    if folder and not folder.is_dir():
        raise UserError(f"--pretext {folder}: no such folder; give the folder that holds model.pth.tar")
    folder = folder or earlier_folder(config, "pretext", options.run)
    hint = "run simclr.py, moco.py or pretrained.py first, or name its folder with --pretext"
    model = options.pretrained or folder / "model.pth.tar"
    weights, _ = read_weights(model, ["pretext"], "" if options.pretrained else hint)
    return PretextResults(folder, model, weights)
