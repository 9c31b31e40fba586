"""Decoded images of a folder, kept in a file for the later steps.

`{stem}-*.npy` holds the squares of the images that can be read, uint8 (N, 3, S, S), and `{stem}.tsv` what is
known of every file. The first line of the latter names the former, so that both change at once.
"""

import contextlib
import glob
import hashlib
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..messages import amount, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What decoding found out about a file: `decoding.Facts`, what `alike.look` returns, or why it failed."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    brightest: int = -1
    one_color: int = 0
    checksum: int = 0
    highest: int = 0
    reason: str = ""


class Listed(NamedTuple):
    """A file as the file system lists it."""

    name: str  # path within the folder, as `shown` gives it
    bytes: int  # -1: a broken link
    modified: int  # nanoseconds


class Content(NamedTuple):
    """What a Kept holds."""

    files: str  # digest of the list of files; "" if decoding was interrupted
    white: int  # see decoding.How
    noted: bool  # whether the unreadable files were also listed beside the images
    entries: dict  # Listed: (Seen, row of its square or None)
    squares: np.ndarray  # mapped into memory, read-only


def read_only(squares):
    """A tensor of an array that is mapped read-only. Writing to it would end the process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(squares)


class Kept:
    """The two files for one folder and one way to make squares.

    Args:
        folder: where they are.
        stem: start of their names.
    """

    def __init__(self, folder, stem):
        self.folder = Path(folder)
        self.stem = stem
        self.index = self.folder / f"{stem}.tsv"

    def read(self):
        """The Content, or None if there is none, or it is damaged."""
        try:
            with open(self.index, encoding="utf-8", newline="\n") as file:
                first = json.loads(next(file))
                lines = [line.rstrip("\n").split("\t") for line in file]
            squares = np.load(self.folder / first["squares"], mmap_mode="r")
            entries, row = {}, 0
            for name, size, modified, sha256, *numbers, reason in lines:
                seen = Seen(sha256, *map(int, numbers), reason)
                entries[Listed(name, int(size), int(modified))] = seen, None if reason else row
                row += not reason
            if squares.dtype != np.uint8 or squares.ndim != 4 or len(squares) != row:
                return None
            return Content(first["files"], first["white"], first["noted"], entries, squares)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return None

    def white(self):
        """The value of 16-bit files that is shown white; None without such files, or if not known."""
        try:
            with open(self.index, encoding="utf-8", newline="\n") as file:
                first = json.loads(next(file))
            return first["white"] if first["files"] and first["gray_16"] else None
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return None

    @contextlib.contextmanager
    def alone(self):
        """Context that one process at a time is in. Raises OSError if the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that decodes images", self.folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:  # a network drive without locks
                pass
            yield
        finally:
            os.close(descriptor)

    def write(self, count, side):
        """A Writer of up to `count` squares. Raises OSError if there is no room for them."""
        for path in self._others(f".{glob.escape(self.stem)}.*.tmp"):  # left by a killed process
            path.unlink()
        needed, free = count * 3 * side**2, shutil.disk_usage(self.folder).free
        if needed > 0.99 * free:
            raise OSError(0, f"{amount(needed)} are needed, {amount(free)} are free")
        return Writer(self, count, side)

    def _others(self, pattern, but=None):
        return [path for path in self.folder.glob(pattern) if path.name != but]


class Writer:
    """Squares on their way to the file, which replaces the earlier one when it is complete."""

    def __init__(self, kept, count, side):
        self.kept = kept
        self.shape = 3, side, side
        self.path = kept.folder / f".{kept.stem}.{os.getpid()}.tmp"
        self.file = open(self.path, "wb")  # noqa: SIM115
        try:
            self._write_header(count)
        except OSError:
            self.abandon()
            raise
        self.start = self.file.tell()

    def _write_header(self, count):
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def put(self, row, squares):
        """Write squares, uint8 (n, 3, S, S), from a row on. Raises OSError; the file is then of no use."""
        self.file.seek(self.start + row * int(np.prod(self.shape)))
        self.file.write(squares.contiguous().numpy().data)

    def abandon(self):
        with contextlib.suppress(OSError):
            self.file.close()
        self.path.unlink(missing_ok=True)

    def finish(self, files, white, noted, listing, seen):
        """Make the file the one that `Kept.read` reads. Raises OSError.

        Args:
            files, white, noted: see Content.
            listing, seen: a Listed and a Seen for each file, in order.

        Returns:
            its pathlib.Path, and the squares, uint8 tensor mapped into memory.
        """
        kept, count = self.kept, sum(not file.reason for file in seen)
        lines = []
        for file, facts in zip(listing, seen, strict=True):
            lines.append("\t".join([*map(str, (*file, *facts[:-1])), shown(facts.reason)]) + "\n")
        # the name changes with the content, so that a process never reads another one's squares by its index
        name = f"{kept.stem}-{hashlib.sha256(f'{white}{lines}'.encode()).hexdigest()[:12]}.npy"
        gray_16 = any(facts.brightest >= 0 for facts in seen)
        first = {"files": files, "squares": name, "white": white, "gray_16": gray_16, "noted": noted}
        try:
            self._write_header(count)  # as long as before: NumPy leaves room for the number
            self.file.truncate(self.start + count * int(np.prod(self.shape)))
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            squares = np.load(self.path, mmap_mode="r") if count else np.empty((0, *self.shape), np.uint8)
            os.replace(self.path, kept.folder / name)
            with open(self.path, "w", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(first) + "\n")
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self.path, kept.index)
        except BaseException:
            self.abandon()
            raise
        for path in kept._others(f"{glob.escape(kept.stem)}-*.npy", but=name):
            with contextlib.suppress(OSError):  # Windows: another process maps it
                path.unlink()
        return kept.folder / name, read_only(squares)
