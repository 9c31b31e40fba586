"""Decoded images of a folder, kept in files for the later steps.

`{stem}.tsv` is the manifest: a line for each file of the folder. `{stem}-*.npy` holds the decoded images,
uint8 (N, 3, S, S), of the N files that can be read. The manifest's first line names it, so that both change
at once.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..messages import amount, shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


class FileStat(NamedTuple):
    """A file as the file system lists it. While this stays the same, its content is assumed to."""

    name: str  # path within the folder, as `shown` gives it
    size: int  # bytes; -1: a broken link
    modified: int  # nanoseconds


class FileRecord(NamedTuple):
    """What decoding found out about a file, or why it failed."""

    reason: str = ""  # why the image cannot be read; "": it can
    sha256: str = ""  # of the content
    width: int = 0  # -1: not because of the content
    height: int = 0
    brightest: int = -1  # highest value of an image of 16-bit gray; -1: another kind of image
    one_color: int = 0  # 1: the decoded image has only one color
    checksum: int = 0  # of the decoded image
    highest: int = 0  # value of the decoded image
    pages: int = 0  # of the file; 0: not known, as in caches of earlier versions
    channels: int = 0  # of the file, if some of them are not used


Records = dict[FileStat, FileRecord]


class Manifest(NamedTuple):
    """What is known of a folder's files.

    Attributes:
        records: in the order of the files.
        white: the value that is white in the decoded images of 16 bits; None without such images.
        pixels: uint8 (N, 3, S, S), mapped into memory, of the files that can be read; None: not kept.
    """

    records: Records
    white: int | None = None
    pixels: torch.Tensor | None = None

    def holds(self, stat: FileStat, white: int, with_pixels: bool = True) -> bool:
        """Whether what is known of a file is here, with the pixels in which `white` is shown white."""
        record = self.records.get(stat)
        if record is None or record.reason or not with_pixels:
            return record is not None
        return self.pixels is not None and (record.brightest < 0 or self.white == white)

    def without_unreadable(self) -> "Manifest":
        """What is known of the files that can be read."""
        return self._replace(records={s: record for s, record in self.records.items() if not record.reason})

    def rows(self) -> dict[FileStat, int]:
        """Where each file that can be read is in `pixels`."""
        readable = (stat for stat, record in self.records.items() if not record.reason)
        return {stat: row for row, stat in enumerate(readable)}


class DecodedCache:
    """The manifest and the decoded images of one folder and one ResizeSpec.

    Args:
        folder: where the two files are.
        stem: start of their names.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder = folder
        self.stem = stem
        self.path = folder / f"{stem}.tsv"

    def load(self) -> Manifest:
        """The manifest, without records if it is missing or damaged, without pixels if these are."""
        records: Records = {}
        try:
            with open(self.path, encoding="utf-8", newline="\n") as file:
                header = json.loads(next(file))
                for line in file:
                    name, size, modified, sha256, *numbers, reason = line.rstrip("\n").split("\t")
                    if len(numbers) != header.get("numbers", 6):  # 6 in earlier versions
                        raise ValueError
                    record = FileRecord(reason, sha256, *map(int, numbers))
                    records[FileStat(name, int(size), int(modified))] = record
            white = header["white"] if header["gray_16"] else None
            return Manifest(records, white, self._map(header["squares"], records))
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            return Manifest({})

    def _map(self, name: str | None, records: Records) -> torch.Tensor | None:
        """The decoded images, mapped into memory read-only; None if there are none or they are damaged."""
        if name is None:
            return None
        try:
            pixels = np.load(self.folder / name, mmap_mode="r")
        except (OSError, ValueError):
            return None
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != _count_readable(records):
            return None
        with warnings.catch_warnings():  # writing to the tensor would end the process
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(pixels)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Context manager that locks the folder; it does nothing where the file system has no locks."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                if fcntl is not None:
                    descriptor = os.open(self.folder, os.O_RDONLY)
                    stack.callback(os.close, descriptor)
                    try:
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        log.info("%s: waiting for another process that decodes images", self.folder)
                        fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    def new_file(self, count: int, side: int) -> "PixelFile":
        """A file for up to `count` images of a side. Raises OSError if there is no room for them."""
        for path in self.folder.glob(f".{self.stem}.*.tmp"):  # left by a killed process
            path.unlink()
        needed, free = count * 3 * side**2, shutil.disk_usage(self.folder).free
        if needed > 0.99 * free:
            raise OSError(0, f"{amount(needed)} are needed, {amount(free)} are free")
        return PixelFile(self._temporary(), side)

    def save(self, records: Records, white: int, file: "PixelFile | None" = None) -> torch.Tensor | None:
        """Replace the files; returns the images of `file`, mapped into memory. Raises OSError."""
        lines = [
            "\t".join(map(str, (*stat, *record[1:], record.reason))) + "\n"
            for stat, record in records.items()
        ]
        name = None
        if file:
            # its name changes with the content, so that no process reads another one's images by its manifest
            name = f"{self.stem}-{hashlib.sha256(f'{white}{lines}'.encode()).hexdigest()[:12]}.npy"
            file.close(_count_readable(records))
            os.replace(file.path, self.folder / name)
        has_16_bits = any(record.brightest >= 0 for record in records.values())
        numbers = len(FileRecord._fields) - 2
        header = {"squares": name, "white": white, "gray_16": has_16_bits, "numbers": numbers}
        with open(self._temporary(), "w", encoding="utf-8", newline="\n") as manifest:
            manifest.writelines([json.dumps(header) + "\n", *lines])
            manifest.flush()
            os.fsync(manifest.fileno())
        os.replace(self._temporary(), self.path)
        for path in self.folder.glob(f"{self.stem}-*.npy"):
            if path.name != name:
                with contextlib.suppress(OSError):  # Windows: another process maps it
                    path.unlink()
        pixels = self._map(name, records)
        if name and pixels is not None:
            log.info(
                "decoded images are kept in %s (%s)", shown(str(self.folder / name)), amount(pixels.numel())
            )
        return pixels

    def _temporary(self) -> Path:
        return self.folder / f".{self.stem}.{os.getpid()}.tmp"


class PixelFile:
    """An .npy file that decoded images are appended to. Its methods raise OSError on a full disk."""

    def __init__(self, path: Path, side: int) -> None:
        self.path = path
        self.side = side
        self.file = open(path, "wb")  # noqa: SIM115
        self._write_header(0)

    def _write_header(self, count: int) -> int:
        """Write the header, which is as long for any count; returns the length of the whole file."""
        self.file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3, self.side, self.side)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell() + count * 3 * self.side**2

    def append(self, pixels: torch.Tensor) -> None:
        """Append an image, uint8 (3, S, S)."""
        self.file.write(pixels.contiguous().numpy().data)

    def close(self, count: int) -> None:
        """Finish the file with its first `count` images."""
        self.file.truncate(self._write_header(count))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def abandon(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.file.close()
        self.path.unlink(missing_ok=True)


def _count_readable(records: Records) -> int:
    """The number of images that can be read."""
    return sum(not record.reason for record in records.values())
