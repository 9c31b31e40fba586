"""Files of weights: written so that a crash never costs the previous one, read without running code."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from errors import UserError

# Published clustering checkpoints carry the index of the best head as a NumPy int64 scalar.
NUMPY_SCALAR = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Int64DType,
]


@contextmanager
def atomic(path):
    """Give a temporary path beside `path` to write to; on success it takes `path`'s place at once."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(content, path):
    """torch.save, atomically. Raises UserError, the previous file intact, when it cannot be written."""
    try:
        with atomic(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be written ({_first_line(error)}); the previous one is intact"
        ) from None


def load(path, hint=""):
    """Read a checkpoint onto the CPU. Raises UserError for anything that is not one.

    `hint` says what to do when there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; {hint}" if hint else ""))
    try:
        with torch.serialization.safe_globals(NUMPY_SCALAR):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can break the unpickler in any way
        raise UserError(
            f"{path}: not a readable checkpoint ({_first_line(error)}); was its download or copy cut short?"
        ) from None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def digest(path):
    """SHA-256 of a file, shortened; "none" if it is not there."""
    if not Path(path).is_file():
        return "none"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_weights(path, hint=""):
    """State dict and head index of a checkpoint file; see `load` and `unwrap`."""
    return unwrap(load(path, hint), path)


def unwrap(content, source):
    """State dict and head index in any checkpoint that this method's programs write.

    A plain state dict; `{'model', 'head'}` as the clustering step saves; or a training checkpoint
    `{'model', 'optimizer', ...}`, whose keys may start with `module.`.

    Returns:
        (state dict, head index or None). Raises UserError if there is no state dict in it.
    """
    head = None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        head = content.get("head")
        content = content["model"]
    if not isinstance(content, dict) or not content or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{source}: holds no state dict; expected weights of simclr.py, scan.py or selflabel.py"
        )
    weights = {key.removeprefix("module."): value for key, value in content.items()}
    return weights, None if head is None else int(head)


def choose_head(weights, head, source):
    """The head to use: the one that the checkpoint names, or its only one. Raises UserError otherwise."""
    count = len({key.split(".")[1] for key in weights if key.startswith("cluster_head.")})
    if count == 0:
        raise UserError(f"{source}: has no cluster head; expected weights of scan.py or selflabel.py")
    if head is None and count > 1:
        raise UserError(
            f"{source}: does not say which of its {count} heads is the best; use scan's model.pth.tar"
        )
    if head is not None and not 0 <= head < count:
        raise UserError(f"{source}: names head {head} as the best, but has {count}")
    return head or 0


def load_weights(model, weights, source, skip=(), keep=()):
    """Load `weights` into `model`; refuse unless every weight finds its place.

    Args:
        model: the module to fill.
        weights: state dict.
        source: where they come from, for the message.
        skip: prefixes of keys in `weights` that are left out (another step's head).
        keep: prefixes of keys in `model` that stay as initialised (this step's own head).

    Raises:
        UserError: missing, unexpected or differently shaped weights, which are listed.
    """
    own = model.state_dict()
    given = {key: value for key, value in weights.items() if not key.startswith(tuple(skip))}
    missing = [key for key in own if key not in given and not key.startswith(tuple(keep))]
    unexpected = [key for key in given if key not in own]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f"{source}: does not fit this model: {'; '.join(problems)}; "
            "check backbone, num_classes, num_heads and model_kwargs, and that the file is of this step"
        )
    model.load_state_dict(given, strict=False)
