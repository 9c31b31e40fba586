"""What a step's results were made from: written beside them, and compared before they are used."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from errors import UserError
from utils.files import digest, read_json, write_json

from .config import differences, experiment_of, listed
from .folder import CHECKPOINT, FINGERPRINT, MODEL, SIGNED
from .schema import Config
from .version import VERSION, warn_if_newer

log = logging.getLogger(__name__)


class Identified(Protocol):
    """Anything with `fingerprint()`, such as a dataset."""

    def fingerprint(self) -> str: ...


class Fingerprint:
    """What the results of a step depend on: the experiment, the images, and the files of earlier steps.

    Args:
        config: the checked configuration.
        datasets: by split.
        inputs: the files that the step starts from by their role, which names them in messages.

    Attributes:
        content: plain values: the experiment's keys, `inputs` and `data`.
        files: the inputs that exist.
    """

    def __init__(
        self, config: Config, datasets: Mapping[str, Identified], inputs: Mapping[str, Path] | None = None
    ) -> None:
        inputs = inputs or {}
        self.content: dict[str, Any] = {
            **experiment_of(config),
            "inputs": {role: digest(path) for role, path in inputs.items()},
            "data": {split: dataset.fingerprint() for split, dataset in datasets.items()},
        }
        self.files = [path for path in map(Path, inputs.values()) if path.exists()]

    def write(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write FINGERPRINT of a finished step: `content`, and digests of its files and its backbone.

        `weights`: state dict of the step's model.
        """
        files = {name: digest(folder / name) for name in SIGNED if (folder / name).exists()}
        content = {**self.content, "backbone_weights": backbone_hash(weights), "files": files}
        content["version"] = VERSION
        write_json(content, folder / FINGERPRINT)


def backbone_hash(weights: dict[str, torch.Tensor]) -> str:
    """Hash of a state dict's backbone, the same in whatever file it is saved."""
    sum_ = hashlib.sha256()
    for key, tensor in sorted(weights.items()):
        if key.startswith("backbone."):
            sum_.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sum_.hexdigest()[:16]


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """What `Fingerprint.write` wrote; empty if it did not, as for files of the original program.

    Results of a newer major version are warned of. Those before 1.0 have no `version`.
    """
    content = read_json(folder / FINGERPRINT)
    warn_if_newer(str(content.get("version", "")), folder.parent)
    whole = "backbone_weights" in content and all(
        isinstance(content.get(key), dict) for key in ("data", "files")
    )
    return content if whole else {}


def check_neighbors(
    folder: Path, fingerprint: Fingerprint, weights: dict[str, torch.Tensor], remedy: str
) -> None:
    """Check that the mined neighbors fit the images and weights that the clustering step starts from.

    Args:
        folder: of the pretext step.
        fingerprint: of the clustering step.
        weights: the pretext model's state dict that the clustering step starts from.
        remedy: what to do about neighbors of other images, for the message.

    Raises:
        UserError: the neighbors were mined among other images. Replaced files or another model may be
            intended, and only log a warning.
    """
    there, here = read_fingerprint(folder), fingerprint.content["data"]
    if not there:
        log.debug("%s: no %s, so the neighbors are not checked", folder, FINGERPRINT)
        return
    changed = differences({split: there["data"].get(split) for split in here}, here)
    if changed:
        raise UserError(
            f"{folder}: its neighbors were mined among other images ({listed(changed)}); {remedy}"
        )
    for name, content in there["files"].items():
        if name.endswith(".npy") and digest(folder / name) != content:
            log.warning("%s: not the file that the pretext step wrote", folder / name)
    networks = [content.get("backbone") for content in (there, fingerprint.content)]
    if networks[0] != networks[1]:  # some have weights of the same shapes
        log.warning("%s: made with backbone %s, here it is %s", folder, *networks)
    if there["backbone_weights"] != backbone_hash(weights):
        log.warning("%s: its neighbors were mined with another model than this step starts from", folder)


def warn_if_unfinished(folder: Path) -> None:
    """Log a warning if the training that wrote this folder is not finished."""
    signed = read_fingerprint(folder).get("files", {}).get(MODEL)
    if (folder / CHECKPOINT).exists() and digest(folder / MODEL) != signed:
        log.warning(
            "%s: that step is not finished (or was made by an older version); its command, given "
            "again, finishes it",
            folder,
        )
