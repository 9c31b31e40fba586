"""From a checkpoint of this program to a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import build_model
from utils.run.config import Config
from utils.run.weights import StateDict, load_weights, read_best_head, read_weights


@dataclass(frozen=True)
class LoadedModel:
    """A model with the weights of a checkpoint."""

    model: Any  # what `build_model` builds, on the CPU and in train mode
    head: int  # index of the best cluster head; 0 for a pretext model


def load_model(
    config: Config,
    path: Path,
    kind: str = "clustering",
    *,
    hint: str = "",
    best_head_only: bool = False,
) -> LoadedModel:
    """Build the model of a configuration, and load the weights of a checkpoint.

    Args:
        kind: "clustering" or "pretext", which the checkpoint must be.
        hint: what to do when there is no such file, for the message.
        best_head_only: load the best head of several as the only one, number 0.

    Raises:
        UserError: no checkpoint of that kind, it does not say which head is the best, or it does not fit.
    """
    weights, head = read_checkpoint(path, kind, hint)
    if best_head_only:
        weights, head = keep_head(weights, head), 0
    model = build_model(config)
    load_weights(model, weights, path)
    return LoadedModel(model, head)


def read_checkpoint(path: Path, kind: str, hint: str = "") -> tuple[StateDict, int]:
    """The state dict in a checkpoint, and the index of its best head; see `load_model`."""
    weights, named = read_weights(path, [kind], hint)
    return weights, read_best_head(weights, named, path) if kind == "clustering" else 0


def keep_head(weights: StateDict, head: int) -> StateDict:
    """The state dict with a single cluster head: number `head`, renamed to head 0."""
    chosen = f"cluster_head.{head}."
    return {
        key.replace(chosen, "cluster_head.0."): value
        for key, value in weights.items()
        if key.startswith(chosen) or not key.startswith("cluster_head.")
    }
