"""Files of weights: saving one never damages the previous one, and loading one never runs code."""

import argparse
import logging
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import UserError, first_line
from utils.files import atomic

log = logging.getLogger(__name__)

# Besides tensors and plain Python, a file may hold only the NumPy scalars that the original program
# wrote: the index of the best head (int64) and the best loss (float64). And the parsed command line, which
# DINO's, MAE's and timm's training programs put beside the weights.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (np.int64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # NumPy 1's name
    (np.int64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Int64DType,
    np.dtypes.Float64DType,
]


def save(content: Any, path: Path) -> None:
    """torch.save, atomically. Raises UserError, the previous file intact, when it cannot be written."""
    try:
        with atomic(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be written ({first_line(error)}); free some space, or move the results folder "
            "to a larger disk and set root_dir to its new place; the previous one, if any, is intact"
        ) from None


def load(path: str | Path, hint: str = "") -> Any:
    """Read a checkpoint onto the CPU, whatever device and version of torch (1.4 or newer) wrote it.

    `hint` says what to do when there is no such file. Raises UserError for anything that is not a
    checkpoint, saying what it is instead. Nothing in the file is executed.
    """
    path = Path(path)
    if path.is_dir():
        unpacked = [*path.glob("data.pkl"), *path.glob("*/data.pkl")]
        cause = "; it was unpacked from one: download that again, and do not untar it, whatever its name says"
        raise UserError(f"{path}: a folder, not a checkpoint file" + (cause if unpacked else ""))
    if not path.exists():
        raise UserError(f"{path}: no such file" + (f"; {hint}" if hint else ""))
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        _check_sums(path)
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged file can break the unpickler in any way
        log.debug("%s: %s", path, error)
        raise UserError(f"{path}: not a readable checkpoint: {_explain(path, error)}") from None


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: safetensors is not installed; pip install safetensors") from None
    return load_file(path, device="cpu")


# first bytes of what a failed download or a mix-up leaves in place of a checkpoint: what it is
NOT_A_CHECKPOINT = {
    rb"\s*<(!doctype|html|head|\?xml)": "a web page, saved in its place; download the file itself",
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    rb"\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar": "an archive; unpack it and give the file inside",
    rb"\x93NUMPY": "a NumPy array",
    rb"\x89HDF": "an HDF5 file",
}


def _check_sums(path: Path) -> None:
    """Raise if the content of a zip file (torch 1.6 and newer) is damaged, which torch does not check."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"checksum of {damaged}")


def _explain(path: Path, error: Exception) -> str:
    """Why torch could not read the file, in words for the user."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty; download or copy it again"
    for pattern, meaning in NOT_A_CHECKPOINT.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"it is {meaning}"
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # its table of contents may be damaged, too
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            return "it is a zip archive of something else; unpack it and give the file inside"
    code = re.search(r"GLOBAL (\S+)|but got <class '(\S+)'>", str(error))
    if code:
        found = code[1] or code[2]
        return f"it holds more than weights ({found}), and reading that could run code; save weights only"
    return "it is something else, or damaged, or its download or copy was cut short; get it again"
