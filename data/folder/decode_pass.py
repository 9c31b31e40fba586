"""One pass over a folder: decode once what the cache lacks, and find the images that cannot be read.

The cache's manifest is the only record of what was found. `unreadable.txt` is written from it for people and
never read. So all steps of a results folder leave out the same images, and the neighbors' indices, which
count only those that are left, stay valid. When the folder has changed, the changed files are decoded, and
those that could not be read are tried again; so they are when one that could not be opened can be. Without a
cache, each process makes its own pass.

An interrupted pass keeps what it has decoded, unless the cache already holds more images. The next pass
continues from there.
"""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from ..messages import shown
from ..sets.arrays import ArrayImages
from . import sanity_checks
from .cache import DecodedCache, FileRecord, FileStat, Manifest, PixelFile, Records
from .containers import stat_file
from .decode import ResizeSpec, brightest_value, decode_image, reason_of, unreadable_error
from .image_files import decoding_loader
from .memory import fits_in_memory

log = logging.getLogger(__name__)

BATCH = 8  # images that a worker process decodes at a time
T = TypeVar("T")


class DecodedFolder(NamedTuple):
    """What is known of a folder's files, in their order."""

    stats_hash: int  # of their FileStats
    spec: ResizeSpec
    readable: list[bool]  # for each file
    unreadable: dict[str, str]  # name, as `shown` gives it: reason
    hashes: list[str]  # SHA-256 of each file that can be read
    white: int  # value of 16-bit files that is shown white
    has_16_bits: bool  # whether there are such files
    pixels: ArrayImages | None  # the images that can be read; None: they are decoded when needed


_finished: dict[Any, DecodedFolder] = {}  # what this process knows already


def decode_folder(
    files: Sequence[str],
    names: Sequence[str],
    where: str,
    spec: ResizeSpec,
    unreadable_list: Path,
    num_workers: int,
    cache: DecodedCache | None = None,
    white: int | None = None,
) -> DecodedFolder:
    """Decode the images of a split unless that was done before. Splits of the same files share them.

    Args:
        files: paths of the images.
        names: by which the cache knows them.
        where: what they are the images of, for messages.
        unreadable_list: text file that the unreadable ones are written to.
        num_workers: processes that decode.
        cache: where later steps find the decoded images; None: they stay in memory, if they fit.
        white: value of 16-bit files that is shown white; None: see `sanity_checks.white_of`.

    Raises:
        UserError: an image that an earlier process could read, but this one cannot.
    """
    stats = _file_stats(files, names)
    stats_hash = hash(tuple(stats))
    key = os.path.realpath(where), spec, white, cache and cache.path
    if key in _finished and _finished[key].stats_hash == stats_hash:
        return _finished[key]
    with cache.exclusive() if cache else contextlib.nullcontext():
        manifest = cache.load() if cache else Manifest({})
        known = zip(files, manifest.records.values(), strict=False)
        opens = any(record.width < 0 and os.access(path, os.R_OK) for path, record in known)
        if opens or stats != list(manifest.records):
            manifest = manifest.without_unreadable()  # they may have been repaired
        chosen = white or _white_of_all(files, stats, spec, manifest, num_workers)
        records, pixels = manifest.records, manifest.pixels
        complete = stats == list(records) and all(manifest.holds(stat, chosen) for stat in stats)
        if cache and pixels is not None and complete:
            log.info("%s: %d decoded images are in %s", where, len(pixels), shown(str(cache.folder)))
            pixels = pixels.clone() if fits_in_memory(pixels.numel()) else pixels
        else:
            with PassOutput(cache, manifest, chosen, len(files), spec.size) as output:
                _run_pass(files, stats, spec, num_workers, output)
            records, pixels = output.records, output.pixels
            sanity_checks.warn_of_images(records.values(), spec, where)
        sanity_checks.warn_of_white(records.values(), chosen, white, where)
        unreadable = {stat.name: record.reason for stat, record in records.items() if record.reason}
        _export(unreadable, len(files), unreadable_list, cache)
    if unreadable:
        share = share_of(unreadable, len(files))
        log.warning("%s: %s cannot be read and are left out: %s", where, share, shown(str(unreadable_list)))
    _finished[key] = DecodedFolder(
        stats_hash,
        spec,
        [not record.reason for record in records.values()],
        unreadable,
        [record.sha256 for record in records.values() if not record.reason],
        chosen,
        any(record.brightest >= 0 for record in records.values()),
        None if pixels is None else ArrayImages(pixels),
    )
    return _finished[key]


def share_of(unreadable: dict[str, str], count: int) -> str:
    """How many of `count` images cannot be read, in words."""
    share = 100 * len(unreadable) / count
    return f"{len(unreadable)} of {count} images ({share:{'.2g' if share < 99 else '.3g'}} %)"


def _file_stats(files: Sequence[str], names: Sequence[str]) -> list[FileStat]:
    stats = []
    for path, name in zip(files, names, strict=True):
        try:
            stats.append(FileStat(shown(name), *stat_file(path)))
        except OSError:  # a broken link
            stats.append(FileStat(shown(name), -1, -1))
    return stats


def _export(unreadable: dict[str, str], count: int, path: Path, cache: DecodedCache | None) -> None:
    """Write the list of unreadable images, for people; log a warning if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    again = f"; to look at all files again, delete {shown(str(cache.folder))}" if cache else ""
    lines = [f"# {share_of(unreadable, count)} cannot be read{again}"]
    lines += [f"{name}\t{reason}" for name, reason in unreadable.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        log.warning("%s: cannot be written (%s)", path, error.strerror)


# --- in worker processes ---------------------------------------------------------------------------


class DecodedBatch(NamedTuple):
    """What is known of a few files, and the pixels of those that can be read."""

    records: list[FileRecord]
    pixels: torch.Tensor | None  # uint8 (n, 3, S, S); None: n is 0, or they are not wanted


def decode_batches(
    files: Sequence[str], spec: ResizeSpec, white: int, num_workers: int, keep_pixels: bool = True
) -> Iterator[DecodedBatch]:
    """Decode files, a few at a time."""
    decode = partial(_decode_batch, spec=spec, white=white, keep_pixels=keep_pixels)
    return _in_batches(decode, files, num_workers)


def _decode_batch(files: list[str], spec: ResizeSpec, white: int, keep_pixels: bool) -> DecodedBatch:
    records, pixels = [], []
    for path in files:
        try:
            image, record = decode_image(path, spec, white)
            pixels += [image] * keep_pixels
        except Exception as error:  # a damaged file can break a decoder in any way
            outside = isinstance(error, OSError) and error.errno  # no permission, a drive that failed, ...
            record = FileRecord(width=-1 if outside else 0, reason=shown(reason_of(error)))
        records.append(record)
    return DecodedBatch(records, torch.stack(pixels) if pixels else None)


def _brightest_values(files: list[str], spec: ResizeSpec) -> list[int]:
    return [brightest_value(path, spec) for path in files]


def _in_batches(function: Callable[[list[str]], T], files: Sequence[str], num_workers: int) -> Iterator[T]:
    """Yield what `function` makes of a few files at a time in a worker process."""
    num_workers = min(num_workers, math.ceil(len(files) / BATCH))
    yield from decoding_loader(files, num_workers, batch_size=BATCH, collate_fn=function)


# --- the pass --------------------------------------------------------------------------------------


def _white_of_all(
    files: Sequence[str], stats: list[FileStat], spec: ResizeSpec, manifest: Manifest, num_workers: int
) -> int:
    """Choose the value of 16-bit files that is shown white, by the brightest of all of them."""
    is_known = [stat in manifest.records for stat in stats]
    values = [manifest.records[stat].brightest for stat in itertools.compress(stats, is_known)]
    unknown = [path for path, known in zip(files, is_known, strict=True) if not known]
    for batch in _in_batches(partial(_brightest_values, spec=spec), unknown, num_workers):
        values += batch
    return sanity_checks.white_of(max(values, default=-1))


def _run_pass(
    files: Sequence[str], stats: list[FileStat], spec: ResizeSpec, num_workers: int, output: "PassOutput"
) -> None:
    """Give `output` each file's record and pixels: from its manifest where that holds them, else decoded."""
    manifest, keep_pixels = output.manifest, output.keeps_pixels
    missing = [not manifest.holds(stat, output.white, keep_pixels) for stat in stats]
    if any(missing):
        why = "to keep them" if keep_pixels else "to find those that cannot be read"
        log.info("decoding %d images once, %s", sum(missing), why)
    batches = decode_batches(
        list(itertools.compress(files, missing)), spec, output.white, num_workers, keep_pixels
    )
    decoded = itertools.chain.from_iterable(map(_one_by_one, batches))
    rows = manifest.rows()
    progress = tqdm(files, desc="decoding", unit="image", leave=False, disable=None)
    for path, stat, is_missing in zip(progress, stats, missing, strict=True):
        if is_missing:
            record, image = next(decoded)
            if record.reason and not manifest.records.get(stat, record).reason:
                raise unreadable_error(path, record.reason)
        else:
            record = manifest.records[stat]
            image = manifest.pixels[rows[stat]] if manifest.pixels is not None and stat in rows else None
        output.append(stat, record, image)


def _one_by_one(batch: DecodedBatch) -> Iterator[tuple[FileRecord, torch.Tensor | None]]:
    images = iter(() if batch.pixels is None else batch.pixels)
    for record in batch.records:
        yield record, None if record.reason else next(images, None)


class PassOutput:
    """Context manager that takes what a pass finds, file by file, and keeps it for the later steps.

    Decoded images are kept in memory if they fit, and in the cache's file if there is room. After an
    exception within the context, the cache gets what was done, unless `manifest`, from before, has more.

    Attributes:
        records: of the files so far.
        pixels: in the end, the decoded images; None: not kept.
    """

    def __init__(
        self, cache: DecodedCache | None, manifest: Manifest, white: int, count: int, side: int
    ) -> None:
        shape = count, 3, side, side
        self.records: Records = {}
        self.pixels: torch.Tensor | None = None
        self.memory = torch.empty(shape, dtype=torch.uint8) if fits_in_memory(math.prod(shape)) else None
        self.manifest = manifest
        self.white = white
        self.images = 0
        self.cache = cache
        self.file: PixelFile | None = None
        with self._giving_up_if_full():
            self.file = cache.new_file(count, side) if cache else None

    @property
    def keeps_pixels(self) -> bool:
        return self.memory is not None or self.file is not None

    def append(self, stat: FileStat, record: FileRecord, image: torch.Tensor | None) -> None:
        """Add the next file; `image`: None if it cannot be read or is not kept."""
        if image is not None:
            if self.memory is not None:
                self.memory.numpy()[self.images] = image.numpy()  # in one thread
            with self._giving_up_if_full():
                if self.file:
                    self.file.append(image)
            self.images += 1
        self.records[stat] = record

    def __enter__(self) -> "PassOutput":
        return self

    def __exit__(self, exception: type[BaseException] | None, *rest: object) -> None:
        before = 0 if self.manifest.pixels is None else len(self.manifest.pixels)
        if self.file and exception and self.images <= before:
            self.file.abandon()
        elif self.file and self.cache:
            with self._giving_up_if_full():
                self.pixels = self.cache.save(self.records, self.white, self.file)
        if self.cache and not (self.file or exception or before) and self.records != self.manifest.records:
            with contextlib.suppress(OSError):
                self.cache.save(self.records, self.white)  # no pixels, but which files can be read
        if self.memory is not None:
            self.pixels = self.memory[: self.images]

    @contextlib.contextmanager
    def _giving_up_if_full(self) -> Iterator[None]:
        """Context manager that gives up the file if writing to it fails."""
        try:
            yield
        except OSError as error:
            if self.file:
                self.file.abandon()
            self.file = None
            folder, why = self.cache and self.cache.folder, error.strerror or error
            instead = "decoded again in every epoch" if self.memory is None else "kept in memory only"
            log.warning(f"{folder}: decoded images cannot be stored there ({why}); they are {instead}")
