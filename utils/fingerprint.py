"""What produced a step's results: written beside them, looked at before the next step uses them."""

import hashlib
import json
import logging

from errors import UserError

from . import checkpoint, neighbors, report
from .config import differences, listed

log = logging.getLogger(__name__)

NAME = "fingerprint.json"
SIGNED = ("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy", "metrics.json")


def of_backbone(weights):
    """Hash of a state dict's backbone, whatever file it is in."""
    sum_ = hashlib.sha256()
    for key, tensor in sorted(weights.items()):
        if key.startswith("backbone."):
            sum_.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sum_.hexdigest()[:16]


def write(folder, identity, weights):
    """Say in `folder` what made its results.

    Args:
        folder: pathlib.Path of a finished step.
        identity: dict, see Run.identity.
        weights: the state dict that the results come from.
    """
    files = {name: checkpoint.digest(folder / name) for name in SIGNED if (folder / name).exists()}
    report.write_json({**identity, "backbone_weights": of_backbone(weights), "files": files}, folder / NAME)


def read(folder):
    """What `write` wrote; an empty dict where it did not, as in folders of the original's files."""
    try:
        content = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(content, dict) and "backbone_weights" in content
    return content if whole and all(isinstance(content.get(key), dict) for key in ("data", "files")) else {}


def check_neighbors(folder, data, weights):
    """Compare what the pretext step worked with to what the clustering step is about to.

    Args:
        folder: of the pretext step.
        data: fingerprint of each split here and now.
        weights: the pretext model's state dict that the clustering step starts from.

    Raises:
        UserError: the neighbors are of other images. Files that were replaced, and another model, which may
            be meant, only log a warning.
    """
    there = read(folder)
    if not there:
        log.debug("%s: no %s, taken as they are", folder, NAME)
        return
    changed = differences({name: there["data"].get(name) for name in data}, data)
    if changed:
        raise UserError(
            f"{folder}: its neighbors were mined among other images ({listed(changed)}); "
            f"{neighbors.mine_again(folder, 'them')}"
        )
    for name, digest in there["files"].items():
        if name.endswith(".npy") and checkpoint.digest(folder / name) != digest:
            log.warning("%s: not the file that the pretext step wrote", folder / name)
    if there["backbone_weights"] != of_backbone(weights):
        log.warning("%s: its neighbors were mined with another model than this step starts from", folder)


def warn_if_unfinished(folder):
    """Warn of a result whose training has not come to its end."""
    signed = read(folder).get("files", {}).get("model.pth.tar")
    if (folder / "checkpoint.pth.tar").exists() and checkpoint.digest(folder / "model.pth.tar") != signed:
        log.warning(
            "%s: that step has not come to its end (or was made by an older version); its command, given "
            "again, finishes it",
            folder,
        )
