"""Write files of results so that a crash never damages the previous one."""

import csv
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def atomic(path):
    """Context of a temporary path beside `path` to write to; on success it replaces `path` atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content, path):
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; an empty dict if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_csv(header, rows, path):
    """Write a table in UTF-8; bytes in names that are not UTF-8 become escapes."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_array(array, path):
    """Write a NumPy array to an .npy file."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def digest(path):
    """SHA-256 of a file, shortened; "none" if it is not there."""
    if not Path(path).is_file():
        return "none"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
