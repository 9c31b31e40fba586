"""Decode every image once: find those that cannot be read, and keep the others, in memory or in a file."""

import contextlib
import hashlib
import logging
import os
import re
from typing import NamedTuple

import torch
from tqdm import tqdm

from ..messages import amount, shown
from ..sets.arrays import ArrayImages
from . import sanity_checks
from .cache import Listed, Seen, read_only
from .decode import decoding_loader, reason
from .memory import fits_in_memory

log = logging.getLogger(__name__)

NOTES = ("unreadable-train.txt", "unreadable-test.txt", "unreadable-val.txt", "unreadable.txt")
BATCH = 8  # images that a worker process decodes at a time


class Found(NamedTuple):
    """What is known about the images of a folder."""

    digest: str  # of the list of files
    unreadable: dict  # path within the folder, as `shown` gives it -> reason
    white: int  # see decoding.How
    squares: ArrayImages | None = None  # the other images, in order; None: they are decoded when needed
    hashes: list | None = None  # SHA-256 of the other images' files
    gray_16: bool = False  # whether some are known to have 16 bits


class Noted(NamedTuple):
    """What the notes say: as Found."""

    unreadable: dict
    white: int | None  # None: written by an earlier version


_found = {}  # (folder, how, white, file of the squares): Found; a cache of this process


def look_at(images, notes, num_workers, kept=None, white=None):
    """Decode the images of an OwnImages unless that was done before; returns Found.

    The unreadable ones are written to `notes`, with a digest of the list of files, so that all steps leave
    out the same images: the neighbors' indices count only those that are left. The splits of one folder, and
    all loaders of a process, share the squares.

    Args:
        images: the OwnImages, with all files.
        notes: pathlib.Path of the text file.
        num_workers: processes that decode.
        kept: the Kept that the squares are found in by later steps; None: they stay in memory, if they fit.
        white: value of 16-bit files that is shown white; None: see `sanity_checks.white_of`.

    Raises:
        UserError: an image that an earlier process could read, but this one cannot.
    """
    listing = _listing(images)
    digest = _digest(listing)
    key = os.path.realpath(images.folder), images.how, white, kept and kept.index
    if key not in _found or _found[key].digest != digest:
        with _alone(kept):
            found = _look_at(images, listing, digest, notes, num_workers, kept, white)
        if found.unreadable:
            where, how_many = shown(str(images.folder)), count(found.unreadable, images)
            log.warning("%s: %s cannot be read and are left out: %s", where, how_many, shown(str(notes)))
        _found[key] = found
    return _found[key]


def count(unreadable, images):
    """How many images cannot be read, in words."""
    share = 100 * len(unreadable) / len(images)
    return f"{len(unreadable)} of {len(images)} images ({share:{'.2g' if share < 99 else '.3g'}} %)"


def _look_at(images, listing, digest, notes, num_workers, kept, white):
    where = shown(str(images.folder))
    noted, content = _read_notes(notes, digest), kept.read() if kept else None
    first = white or (content and content.white) or (noted and noted.white) or images.how.white
    known = _known(listing, noted, content, first)
    seen = [facts for facts, _ in known]
    room = fits_in_memory(len(images) * 3 * images.size**2)
    if content and content.files == digest and None not in seen:
        rows = [row for _, row in known if row is not None]
        if rows == list(range(len(content.squares))) and first == (
            white or sanity_checks.white_of(seen, first)
        ):
            log.info("%s: %d decoded images are in %s", where, len(rows), shown(str(kept.index.parent)))
            sanity_checks.tell_white(seen, first, white, where)
            if noted is None:
                _write_notes(notes, digest, _result(digest, seen, listing, first, None), images)
            squares = read_only(content.squares)
            return _result(digest, seen, listing, first, squares.clone() if room else squares)
    target = _Target(kept, images, room)
    settled = white or (noted and noted.white)
    if not target and noted and settled:
        return Found(digest, noted.unreadable, settled, gray_16=settled < sanity_checks.WHITES[-1])
    seen, outdated = [], None
    try:
        _decode(images.with_white(first), known, content, target, num_workers, seen)
        if noted:
            for i, (file, facts) in enumerate(zip(listing, seen, strict=True)):
                if facts.reason and file.name not in noted.unreadable:
                    raise images.unreadable(i, facts.reason)
        chosen = white or sanity_checks.white_of(seen, first)
        if chosen != first:
            outdated = {i for i, facts in enumerate(seen) if facts.brightest >= 0}
            _decode_again(images.with_white(chosen), target, num_workers, seen, outdated)
    except BaseException:
        target.stop(listing, seen, first if outdated is None else chosen, content, outdated)
        raise
    sanity_checks.warn(
        [(facts.one_color, facts.checksum, facts.highest) for facts in seen if not facts.reason], where
    )
    sanity_checks.tell_white(seen, chosen, white, where)
    sanity_checks.warn_of_crop(seen, images.how.resize, where)
    there = noted is not None and noted.white == chosen
    there = there or _write_notes(notes, digest, _result(digest, seen, listing, chosen, None), images)
    squares = target.finish(digest, chosen, there, listing, seen)
    return _result(digest, seen, listing, chosen, squares)


def _result(digest, seen, listing, white, squares):
    reasons = {file.name: facts.reason for file, facts in zip(listing, seen, strict=True) if facts.reason}
    hashes = [facts.sha256 for facts in seen if not facts.reason]
    squares = None if squares is None else ArrayImages(squares)
    return Found(digest, reasons, white, squares, hashes, any(facts.brightest >= 0 for facts in seen))


def _known(listing, noted, content, white):
    """For each file, its Seen and the row of its square, if that is known and need not be looked at again."""
    entries = content.entries if content else {}
    # somebody who removes the notes wants the unreadable ones to be looked at again
    believed = content and not content.noted and noted is None
    known = []
    for file in listing:
        seen, row = entries.get(file, (None, None))
        if noted and file.name in noted.unreadable:
            seen, row = Seen(reason=noted.unreadable[file.name]), None
        elif seen and (not believed if seen.reason else seen.brightest >= 0 and content.white != white):
            seen, row = None, None
        known.append((seen, row))
    return known


@contextlib.contextmanager
def _alone(kept):
    """Context that one process at a time is in, if they share a folder that lets them know of each other."""
    with contextlib.ExitStack() as stack:
        if kept:
            with contextlib.suppress(OSError):
                stack.enter_context(kept.alone())
        yield


# --- the pass ------------------------------------------------------------------------------------


class Decoding(torch.utils.data.Dataset):
    """For a list of indices: the squares of the images that can be read, one tensor, and a Seen for each.

    The squares are None unless `keep`.
    """

    def __init__(self, images, keep=True):
        self.images = images
        self.keep = keep

    def __getitem__(self, indices):
        squares, seen = [], []
        for index in indices:
            try:
                square, facts = self.images.examine(index)
            except Exception as error:  # a damaged file can break a decoder in any way
                seen.append(Seen(reason=reason(error)))
                continue
            seen.append(Seen(*facts, *map(int, sanity_checks.look(square))))
            if self.keep:
                squares.append(square)
        return torch.stack(squares) if squares else None, seen

    def loader(self, batches, num_workers):
        """What __getitem__ returns, for each of a list of lists of indices."""
        return decoding_loader(self, num_workers, batch_size=None, sampler=batches, collate_fn=tuple)


class _Target:
    """Where the squares go: into memory, into a file, into both or nowhere, which is then False."""

    def __init__(self, kept, images, room):
        shape = 3, images.size, images.size
        self.memory = torch.empty(len(images), *shape, dtype=torch.uint8) if room else None
        self.kept = kept
        self.writer = None
        with self._or_not():
            self.writer = kept and kept.write(len(images), images.size)

    def __bool__(self):
        return self.memory is not None or self.writer is not None

    @contextlib.contextmanager
    def _or_not(self):
        """Context that stops writing if that fails."""
        try:
            yield
        except OSError as error:
            if self.writer:
                self.writer.abandon()
            self.writer = None
            instead = "decoded again in every epoch" if self.memory is None else "kept in memory only"
            why = error.strerror or error
            log.warning(
                "%s: decoded images cannot be stored there (%s); they are %s", self.kept.folder, why, instead
            )

    def put(self, row, squares):
        """Store squares, uint8 (n, 3, S, S), from a row on."""
        if self.memory is not None:
            self.memory[row : row + len(squares)] = squares
        if self.writer:
            with self._or_not():
                self.writer.put(row, squares)

    def finish(self, *about):
        """The squares, or None if they are not kept; `about`: arguments of `Writer.finish`."""
        squares = None
        if self.writer:
            with self._or_not():
                path, squares = self.writer.finish(*about)
                log.info("decoded images are kept in %s (%s)", shown(str(path)), amount(squares.nbytes))
        if self.memory is None:
            return squares
        return self.memory[: sum(not facts.reason for facts in about[-1])]

    def stop(self, listing, seen, white, before, outdated):
        """Keep what is done for the next time, unless there is more of it from before.

        `outdated`: indices of the images that are not yet decoded with this `white`; None in the first pass.
        """
        if not self.writer:
            return
        listing = list(listing)
        for i in outdated or ():
            listing[i] = listing[i]._replace(bytes=-1)  # as no file is listed, so it will be decoded again
        done = sum(file.bytes >= 0 and not facts.reason for file, facts in zip(listing, seen, strict=False))
        entries = before.entries.items() if before else ()
        earlier = sum(file.bytes >= 0 and row is not None for file, (_, row) in entries)
        if (len(seen) < len(listing) or outdated is not None) and done > earlier:
            with self._or_not():
                self.writer.finish("", white, False, listing[: len(seen)], seen)
        else:
            self.writer.abandon()


def _decode(images, known, content, target, num_workers, seen):
    """Decode the images that are not `known`, copy the others, and append a Seen of each to `seen`."""
    missing = [i for i, (facts, _) in enumerate(known) if facts is None]
    why = "to keep them" if target else "to find those that cannot be read"
    log.info("decoding %d images once, %s", len(missing), why)
    num_workers *= bool(missing)
    batches = [range(i, min(i + BATCH, len(known))) for i in range(0, len(known), BATCH)]
    missing = [[i for i in batch if known[i][0] is None] for batch in batches]
    decoded = iter(Decoding(images, bool(target)).loader(list(filter(None, missing)), num_workers))
    before, row = read_only(content.squares) if content else None, 0
    with tqdm(total=len(known), desc="decoding", unit="image", leave=False, disable=None) as bar:
        for batch, new in zip(batches, missing, strict=True):
            squares, facts = next(decoded) if new else (None, ())
            fresh, pixels = iter(facts), iter(() if squares is None else squares)
            facts, squares = [], []
            for i in batch:
                old, at = known[i]
                facts.append(old or next(fresh))
                if target and not facts[-1].reason:
                    squares.append(next(pixels) if at is None else before[at])
            if squares:
                target.put(row, torch.stack(squares))
                row += len(squares)
            seen += facts
            bar.update(len(batch))


def _decode_again(images, target, num_workers, seen, outdated):
    """Decode the `outdated` images of 16 bits again, now that it is known which value is white.

    What is done is removed from `outdated`.
    """
    rows, row = {}, 0
    for i, facts in enumerate(seen):
        if i in outdated:
            rows[i] = row
        row += not facts.reason
    indices = list(rows)
    batches = [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]
    for batch, (squares, facts) in zip(batches, Decoding(images).loader(batches, num_workers), strict=True):
        for i, found in zip(batch, facts, strict=True):
            if found.reason:
                raise images.unreadable(i, found.reason)
        for i, found, square in zip(batch, facts, squares, strict=True):
            target.put(rows[i], square[None])
            seen[i] = found
            outdated.remove(i)


# --- the notes -----------------------------------------------------------------------------------


def _listing(images):
    """A Listed for each file."""
    listing = []
    for path, name in zip(images.files.tolist(), images.within(), strict=True):
        try:
            status = os.stat(path)
            listing.append(Listed(shown(name), status.st_size, status.st_mtime_ns))
        except OSError:  # a broken link
            listing.append(Listed(shown(name), -1, -1))
    return listing


def _digest(listing):
    """Hash of the files' names, sizes and times of modification."""
    sum_ = hashlib.sha256()
    for name, size, modified in listing:
        about = "none" if size < 0 else f"{size} {modified}"
        sum_.update(f"{name} {about}\n".encode())
    return sum_.hexdigest()


def _read_notes(notes, digest):
    """The Noted that `_write_notes` wrote, or None if there is none about exactly these files."""
    try:
        first, *lines = notes.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest not in first:
        return None
    white = re.search(r"white of 16 bits (\d+)", first)
    return Noted(dict(line.split("\t", 1) for line in lines if "\t" in line), white and int(white[1]))


def _write_notes(notes, digest, found, images):
    """Write the Found's unreadable images; returns whether that was possible."""
    temporary = notes.with_name(f".{notes.name}.{os.getpid()}")
    about = f"files {digest}; white of 16 bits {found.white}"
    title = f"{count(found.unreadable, images)} cannot be read"
    lines = [f"# {title}; {about}; remove this file to look at all files again"]
    lines += [f"{path}\t{reason}" for path, reason in found.unreadable.items()]
    try:
        notes.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(notes)
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s), so each step may look for unreadable images again",
            notes,
            error.strerror,
        )
        return False
    return True
