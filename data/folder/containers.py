"""Images within files: archives, parquet tables, videos, pages. The path of such an image is FILE/NAME.

What reads images by path, `read_file` and `stat_file`, takes those and plain files alike.
"""

import functools
import io
import math
import os
import tarfile
import zipfile
from collections.abc import Callable
from typing import NamedTuple, cast

from PIL import Image, TiffImagePlugin

from errors import UserError, first_line

from ..messages import shown

SUBFILE_TYPE = 254  # tag of a TIFF page; bits 1 and 4: a smaller copy, a mask
COMPRESSED_TARS = ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz"


def read_file(path: str) -> bytes:
    """The content of an image's file. Raises OSError, or what reading its container does."""
    if not _is_member(path):
        with open(path, "rb") as file:
            return file.read()
    container, name = _split(path)
    return _opened(container).read(name)


def stat_file(path: str) -> tuple[int, int]:
    """Size in bytes, of a video's frame about, and time of change in nanoseconds. Raises OSError."""
    if not _is_member(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    container, name = _split(path)
    return _opened(container).size(name), os.stat(container).st_mtime_ns


def readable(path: str) -> str | io.BytesIO:
    """What Pillow opens an image from: a plain file lazily."""
    return io.BytesIO(read_file(path)) if _is_member(path) else path


def is_container(path: str) -> bool:
    """Whether a file's name says that it holds images."""
    return path.lower().endswith(tuple(_KINDS))


def page_names(path: str) -> list[str]:
    """The names of a file's pages or frames as members; none if it has one, or cannot be read."""
    if not path.lower().endswith(_PAGED) or _is_member(path):
        return []
    try:
        names = _opened(path).names(0)
    except Exception:  # decoding says why
        return []
    return names if len(names) > 1 else []


def pages_of(image: Image.Image) -> list[int]:
    """The pages or frames of an image that show what the first does: no thumbnails, masks or other scales."""
    if image.format not in ("TIFF", "GIF", "WEBP", "PNG", "AVIF"):  # of a JPEG they are a phone's depth maps
        return [0]
    pages, size = list(range(getattr(image, "n_frames", 1))), image.size
    if image.format == "TIFF" and len(pages) > 1:
        image, pages = cast("TiffImagePlugin.TiffImageFile", image), []
        for page in range(image.n_frames):
            image.seek(page)
            if image.size == size and not image.tag_v2.get(SUBFILE_TYPE, 0) & 5:
                pages.append(page)
        image.seek(0)
    return pages or [0]


def contained(path: str, every: float) -> list[str]:
    """The names of a container's files, sorted where reading them in any order costs the same.

    `every`: seconds between two frames of a video. Raises UserError for a damaged container, or if what reads
    it is not installed.
    """
    try:
        return _opened(path).names(every)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{shown(path)}: to read it: pip install {error.name}") from None
    except Exception as error:  # a damaged file can break a library in any way
        raise UserError(f"{shown(path)}: cannot be read ({first_line(error)}); is it complete?") from None


def _is_member(path: str) -> bool:
    lower = path.lower().replace(os.sep, "/")
    return any(f"{suffix}/" in lower for suffix in (*_KINDS, *_PAGED)) and not os.path.lexists(path)


def _split(path: str) -> tuple[str, str]:
    """The container of a member, and the member's name."""
    container = os.path.dirname(path)
    while not os.path.isfile(container) and container != os.path.dirname(container):
        container = os.path.dirname(container)
    return container, path[len(container) + 1 :]


def _opened(path: str) -> "Container":
    # processes would move each other's place in one open file
    return _open(path, os.stat(path).st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=8)
def _open(path: str, modified: int, process: int) -> "Container":
    kinds = (kind for suffix, kind in _KINDS.items() if path.lower().endswith(suffix))
    return next(kinds, _pages)(path)


def _inner(name: str) -> str:
    """A member's name as a path that stays within the container."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


class Container(NamedTuple):
    """A file that holds images, open."""

    names: Callable[[float], list[str]]  # seconds between two frames of a video -> all members
    read: Callable[[str], bytes]
    size: Callable[[str], int]  # bytes of a member


def _zip(path: str) -> Container:
    archive = zipfile.ZipFile(path)
    if any(info.flag_bits & 1 for info in archive.infolist()):
        raise UserError(f"{shown(path)}: needs a password; unpack it, and give the folder")
    found = {_inner(info.filename): info for info in archive.infolist() if not info.is_dir()}
    return Container(
        lambda _: sorted(found), lambda name: archive.read(found[name]), lambda name: found[name].file_size
    )


def _tar(path: str) -> Container:
    archive = tarfile.open(path)  # noqa: SIM115
    found = {_inner(info.name): info for info in archive if info.isfile()}
    # going back in a compressed one means to start again
    names = list(found) if path.lower().endswith(COMPRESSED_TARS) else sorted(found)

    def read(name: str) -> bytes:
        file = archive.extractfile(found[name])
        assert file is not None  # as of all regular files
        return file.read()

    return Container(lambda _: names, read, lambda name: found[name].size)


def _parquet(path: str) -> Container:
    """Rows with an image: bytes, or a struct of bytes and path as Hugging Face writes it.

    They are named by their paths if all have one of their own, else by their numbers.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    types = {field.name: str(field.type) for field in table.schema_arrow}
    columns = [name for name, t in types.items() if t in ("binary", "large_binary") or "<bytes: " in t]
    if not columns:
        raise ValueError("it has no column of images")
    column = "image" if "image" in columns else columns[0]
    groups = range(table.num_row_groups)
    rows = [(group, row) for group in groups for row in range(table.metadata.row_group(group).num_rows)]

    @functools.lru_cache(maxsize=1)
    def values(group: int) -> list:
        return table.read_row_group(group, columns=[column]).column(0).to_pylist()

    def read_row(group: int, row: int) -> bytes:
        value = values(group)[row]
        value = value.get("bytes") if isinstance(value, dict) else value
        if not value:
            raise ValueError("the row holds no bytes")
        return value

    names: list[str] = []
    if "path: string" in types[column]:
        paths = table.read(columns=[f"{column}.path"]).column(0).to_pylist()
        names = [_inner((value or {}).get("path") or "") for value in paths]
    if rows and not (all(names) and len({*names}) == len(rows)):
        with Image.open(io.BytesIO(read_row(*rows[0]))) as image:
            suffix = str(image.format).lower()
        names = [f"{row:0{len(str(len(rows)))}}.{suffix}" for row in range(len(rows))]
    found = dict(zip(names, rows, strict=True))
    size = os.path.getsize(path) // max(1, len(rows))
    return Container(lambda _: names, lambda name: read_row(*found[name]), lambda _: size)


def _pages(path: str) -> Container:
    image = Image.open(path)
    found = {f"{page:04}.tif": page for page in pages_of(image)}

    def read(name: str) -> bytes:
        file = io.BytesIO()
        image.seek(found[name])
        image.save(file, "TIFF")
        return file.getvalue()

    return Container(
        lambda _: list(found), read, lambda _: image.width * image.height * len(image.getbands())
    )


def _video(path: str) -> Container:
    """Frames, as PNG files that are named after their time in seconds."""
    import av

    video = av.open(path)
    stream = video.streams.video[0]
    stream.thread_type = "AUTO"
    start = stream.start_time or 0

    def names(every: float) -> list[str]:
        length = (video.duration or 0) / 1e6
        if stream.duration is not None:
            length = float(stream.duration * stream.time_base)
        if not length:
            raise ValueError("its length is not known; ffmpeg -i IN -c copy OUT.mp4 writes it")
        return [f"{number * every:010.3f}s.png" for number in range(math.ceil(length / every))]

    def read(name: str) -> bytes:
        time, frame = float(name.removesuffix("s.png")), None
        video.seek(start + round(time / stream.time_base), stream=stream)
        for frame in video.decode(stream):
            if frame.time is None or frame.time >= time + float(start * stream.time_base) - 1e-3:
                break
        if frame is None:
            raise ValueError("no frame at this time")
        file = io.BytesIO()
        frame.to_image().rotate(frame.rotation, expand=True).save(file, "PNG", compress_level=1)
        return file.getvalue()

    return Container(names, read, lambda _: stream.width * stream.height)


_PAGED = ".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif"
_KINDS: dict[str, Callable[[str], Container]] = {
    ".zip": _zip, ".tar": _tar, **dict.fromkeys(COMPRESSED_TARS, _tar), ".parquet": _parquet,
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"), _video),
}  # fmt: skip
