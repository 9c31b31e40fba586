"""What a step's results were made from: written beside them, and compared before they are used."""

import hashlib
import json
import logging
from pathlib import Path

from errors import UserError
from utils.files import digest, write_json

from .config import differences, experiment_of, listed

log = logging.getLogger(__name__)

FINGERPRINT = "fingerprint.json"
# Settings that may change when a training is resumed, if the user says so (--accept_changes).
TUNABLE = (
    "epochs",
    "optimizer_kwargs",
    "scheduler",
    "batch_size",
    "augmentation_kwargs",
    "criterion_kwargs",
    "temperature",
    "confidence_threshold",
    "data.train",
)
# Results whose digests the fingerprint holds, so that a file that was replaced is noticed.
SIGNED = ("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy", "metrics.json")


class Fingerprint:
    """What the results of a step depend on: the experiment, the images, and the files of earlier steps.

    Args:
        config: the checked configuration.
        datasets: dict split -> dataset, whose `fingerprint()` identifies its images.
        inputs: dict role -> path of a file that the step starts from; `role` names it in messages.

    Attributes:
        content: dict of plain values: the experiment's keys, `inputs` and `data`.
        files: list of pathlib.Path, the inputs that exist.
    """

    def __init__(self, config, datasets, inputs=None):
        inputs = inputs or {}
        self.content = {
            **experiment_of(config),
            "inputs": {role: digest(path) for role, path in inputs.items()},
            "data": {split: dataset.fingerprint() for split, dataset in datasets.items()},
        }
        self.files = [path for path in map(Path, inputs.values()) if path.exists()]

    def write(self, folder, weights):
        """Write FINGERPRINT of a finished step: `content`, and digests of its files and its backbone.

        `weights`: state dict of the step's model.
        """
        files = {name: digest(folder / name) for name in SIGNED if (folder / name).exists()}
        content = {**self.content, "backbone_weights": of_backbone(weights), "files": files}
        write_json(content, folder / FINGERPRINT)


def of_backbone(weights):
    """Hash of a state dict's backbone, the same in whatever file it is saved."""
    sum_ = hashlib.sha256()
    for key, tensor in sorted(weights.items()):
        if key.startswith("backbone."):
            sum_.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sum_.hexdigest()[:16]


def read_fingerprint(folder):
    """What `Fingerprint.write` wrote; an empty dict if it did not, as for files of the original program."""
    try:
        content = json.loads((folder / FINGERPRINT).read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and "backbone_weights" in content
    return content if whole and all(isinstance(content.get(key), dict) for key in ("data", "files")) else {}


def check_neighbors(folder, fingerprint, weights, remedy):
    """Check that the mined neighbors fit the images and weights that the clustering step starts from.

    Args:
        folder: of the pretext step.
        fingerprint: the Fingerprint of the clustering step.
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
    if there["backbone_weights"] != of_backbone(weights):
        log.warning("%s: its neighbors were mined with another model than this step starts from", folder)


def warn_if_unfinished(folder):
    """Log a warning if the training that wrote this folder is not finished."""
    signed = read_fingerprint(folder).get("files", {}).get("model.pth.tar")
    if (folder / "checkpoint.pth.tar").exists() and digest(folder / "model.pth.tar") != signed:
        log.warning(
            "%s: that step is not finished (or was made by an older version); its command, given "
            "again, finishes it",
            folder,
        )
