"""Decode every image once: find those that cannot be read, and keep the others in memory if they fit."""

import hashlib
import logging
import os
from typing import NamedTuple

import torch
from tqdm import tqdm

from . import alike
from .arrays import ArrayImages
from .decoding import decoding_loader, reason
from .memory import fits_in_memory
from .messages import shown

log = logging.getLogger(__name__)

NOTES = ("unreadable-train.txt", "unreadable-test.txt", "unreadable.txt")
BATCH = 16  # images that a worker process decodes at a time


class Found(NamedTuple):
    """What is known about the images of a folder."""

    digest: str  # of the list of files
    unreadable: dict  # path within the folder, as `shown` gives it -> reason
    squares: ArrayImages | None  # the other images, decoded, in order; None if they do not fit in memory


_found = {}  # (folder, side of the squares): Found; a cache of this process


def look_at(images, notes, num_workers):
    """Decode the images of an OwnImages unless that was done before; returns Found.

    The unreadable ones are written to `notes`, with a digest of the list of files, so that all steps leave
    out the same images: the neighbors' indices count only those that are left. The splits of one folder, and
    all loaders of a process, share the squares.

    Args:
        images: the OwnImages, with all files.
        notes: pathlib.Path of the text file.
        num_workers: processes that decode.

    Raises:
        UserError: an image that an earlier process could read, but this one cannot.
    """
    names = [shown(path) for path in images.within()]
    digest = _digest(images, names)
    key = os.path.realpath(images.folder), images.size
    if key not in _found or _found[key].digest != digest:
        known = _read_notes(notes, digest)
        keep = fits_in_memory(len(images) * 3 * images.size**2)
        rest = [i for i, name in enumerate(names) if name not in (known or ())]
        squares, found = None, {}
        if known is None or keep:
            reasons, squares = _decode(images, rest, keep, num_workers)
            found = {i: why for i, why in zip(rest, reasons, strict=True) if why}
        if known is None:
            known = {names[i]: why for i, why in found.items()}
            _write_notes(notes, digest, known, f"{count(known, images)} cannot be read")
        elif found:
            raise images.unreadable(*next(iter(found.items())))
        if known:
            where, how_many = shown(str(images.folder)), count(known, images)
            log.warning("%s: %s cannot be read and are left out: %s", where, how_many, shown(str(notes)))
        _found[key] = Found(digest, known, squares)
    return _found[key]


def count(unreadable, images):
    """How many images cannot be read, in words."""
    share = 100 * len(unreadable) / len(images)
    return f"{len(unreadable)} of {len(images)} images ({share:{'.2g' if share < 99 else '.3g'}} %)"


# --- the pass ------------------------------------------------------------------------------------


class Decoding(torch.utils.data.Dataset):
    """For a list of indices: the decoded images that can be read, their looks, and a reason for each index.

    The images are None unless `keep`; the looks are what `alike.look` returns; the reason is why an image
    cannot be read, "" if it can.
    """

    def __init__(self, images, keep):
        self.images = images
        self.keep = keep

    def __getitem__(self, indices):
        squares, looks, reasons = [], [], []
        for index in indices:
            try:
                square = self.images.decode(index)
            except Exception as error:  # a damaged file can break a decoder in any way
                reasons.append(reason(error))
                continue
            reasons.append("")
            looks.append(alike.look(square))
            if self.keep:
                squares.append(square)
        return torch.stack(squares) if squares else None, looks, reasons


def _decode(images, indices, keep, num_workers):
    """Decode images once.

    Returns:
        a list of why each of `indices` cannot be read, "" for those that can; and, with `keep`, the
        ArrayImages of those that can, else None.
    """
    why = "to keep them in memory" if keep else "to find those that cannot be read"
    log.info("decoding %d images once, %s", len(indices), why)
    batches = [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]
    loader = decoding_loader(
        Decoding(images, keep), num_workers, batch_size=None, sampler=batches, collate_fn=tuple
    )
    kept = torch.empty(len(indices) if keep else 0, 3, images.size, images.size, dtype=torch.uint8)
    looks, reasons = [], []
    for squares, some_looks, some_reasons in tqdm(
        loader, desc="decoding", unit="batch", leave=False, disable=None
    ):
        if squares is not None:
            kept[len(looks) : len(looks) + len(squares)] = squares
        looks += some_looks
        reasons += some_reasons
    alike.warn(looks, shown(str(images.folder)))
    return reasons, ArrayImages(kept[: len(looks)]) if keep else None


# --- the notes -----------------------------------------------------------------------------------


def _digest(images, names):
    """Hash of the files' names, sizes and times of modification."""
    sum_ = hashlib.sha256()
    for path, name in zip(images.files.tolist(), names, strict=True):
        try:
            status = os.stat(path)
            about = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a broken link
            about = "none"
        sum_.update(f"{name} {about}\n".encode())
    return sum_.hexdigest()


def _read_notes(notes, digest):
    """The dict that `_write_notes` wrote, or None if there is none about exactly these files."""
    try:
        first, *lines = notes.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest not in first:
        return None
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def _write_notes(notes, digest, found, title):
    temporary = notes.with_name(f".{notes.name}.{os.getpid()}")
    lines = [f"# {title}; files {digest}; remove this file to look at all files again"]
    lines += [f"{path}\t{reason}" for path, reason in found.items()]
    try:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(notes)
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s), so each step will look for unreadable images again",
            notes,
            error.strerror,
        )
