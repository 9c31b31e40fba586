"""Which files of a folder are images, and which of its folders are classes."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import UserError, refusal

from ..messages import say_once, shown
from .decode import is_image, suffixes

log = logging.getLogger(__name__)

NO_SUFFIX = "no suffix"
# thumbnails, metadata, bins and settings, which macOS, Windows, Linux and network drives leave
SYSTEM = {"__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"}
SYSTEM |= {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
UNREADABLE_LISTS = {"unreadable-train.txt", "unreadable-test.txt", "unreadable-val.txt", "unreadable.txt"}
REMEDIES = {
    ".heic .heif .hif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
    ".avif .avifs .j2k .jp2 .jpx .webp": "pip install --upgrade pillow",
    ".arw .cr2 .cr3 .dng .nef .orf .raf .rw2": "save them as JPEG",
    ".dcm .eps .pdf .svg": "save them as PNG",
    ".avi .gz .m4v .mkv .mov .mp4 .parquet .tar .tgz .webm .zip": "name the file itself",
    ".7z .rar": "unpack it",
    ".arrow .h5 .hdf5 .lmdb .mat .npy .npz .tfrecord": "save the images as files; vectors go to --features",
}

Suffixes = Counter[str]  # of files


def list_images(folder: Path, without: Sequence[str | Path | None] = ()) -> tuple[list[str], Suffixes]:
    """All images below a folder, whatever its folders are called.

    Args:
        folder: the folder.
        without: folders to leave out, unless they are `folder` itself or around it. None is no folder.

    Returns:
        sorted list of their paths, and the suffixes of the files that are no images.

    Raises:
        UserError: no such folder, or no images in it.
    """
    require_folder(folder)
    files, ignored = images_in(folder, without=without)
    require_images(folder, files, ignored)
    return files, ignored


def names_within(folder: Path, files: Sequence[str]) -> list[str]:
    """The paths of a folder's files within it, with slashes on any system."""
    start = len(os.path.join(folder, ""))
    return [file[start:].replace(os.sep, "/") for file in files]


def require_folder(folder: Path) -> None:
    """Raise UserError unless there is such a folder, and it can be opened."""
    where = shown(str(folder))
    try:
        os.scandir(folder).close()
    except NotADirectoryError:
        raise UserError(f"{where}: is a file; give the folder that the images are in") from None
    except FileNotFoundError:
        raise UserError(f"{where}: no such folder") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be opened {refusal(error)}") from None


def require_images(folder: Path, files: list[str], ignored: Suffixes) -> None:
    """Raise UserError if a folder has no images; `ignored`: suffixes of its other files."""
    if not files:
        others = f", only {describe_ignored(ignored)[0]}" if ignored else ""
        raise UserError(f"{shown(str(folder))}: no images found (.jpg, .png, ...){others}")


def class_folders(root: Path) -> list[str]:
    """Sorted names of the folders in a folder, without hidden ones, system folders and links upwards."""
    around = _folders_around(root)
    return sorted(
        path.name
        for path in Path(root).iterdir()
        if not is_hidden(path.name) and path.is_dir() and _inode(path) not in around
    )


def labeled_files(root: Path, folders: Sequence[str]) -> tuple[list[str], list[int], Suffixes]:
    """Paths of the images in `{root}/{folder}/`, their labels, and the suffixes of other files.

    A label is an index in `folders`; the split may lack some of these folders.
    """
    files: list[str] = []
    labels: list[int] = []
    ignored: Suffixes = Counter()
    for label, folder in enumerate(folders):
        if (root / folder).is_dir():
            found, others = images_in(root / folder)
            files += found
            labels += [label] * len(found)
            ignored += others
    return files, labels, ignored


def images_in(
    folder: Path, deep: bool = True, without: Sequence[str | Path | None] = ()
) -> tuple[list[str], Suffixes]:
    """Sorted paths of a folder's images, with `deep` recursively, and the suffixes of other files."""
    files: list[str] = []
    ignored: Suffixes = Counter()
    for path in files_of(folder, deep, without):
        if names_image(path):
            files.append(path)
        elif os.path.basename(path) not in UNREADABLE_LISTS:
            ignored[suffix_of(path)] += 1
    return sorted(files), ignored


def files_of(folder: Path, deep: bool = True, without: Sequence[str | Path | None] = ()) -> Iterator[str]:
    """Paths of the files of a folder, with `deep` recursively."""
    entered = _folders_around(folder) | {_inode(path) for path in without if path and os.path.isdir(path)}
    return _files_in(folder, entered if deep else None)


def names_image(path: str) -> bool:
    """Whether a file's suffix is that of an image, or its content is an image if it has no suffix."""
    suffix = suffix_of(path)
    return suffix in suffixes() or (suffix == NO_SUFFIX and is_image(path))


def holds_an_image(folder: Path) -> bool:
    """Whether there is an image somewhere below a folder."""
    return any(suffix_of(path) in suffixes() for path in _files_in(folder, _folders_around(folder)))


def _files_in(folder: str | Path, entered: set[tuple[int, int]] | None) -> Iterator[str]:
    """Paths of the files in a folder, without hidden ones; recursively if `entered` is a set.

    `entered` identifies folders not to enter (again), since links may lead in circles. Each folder that is
    entered is added to it.
    """
    try:
        entries = os.scandir(folder)
    except PermissionError as error:
        say_once(
            log.warning, f"{shown(str(folder))}: left out, because it cannot be opened ({error.strerror})"
        )
        return
    with entries:
        for entry in entries:
            linked = entry.is_symlink()
            if is_hidden(entry.name):
                continue
            if os.path.isdir(entry.path) if linked else entry.is_dir():
                if entered is not None and _inode(entry.path) not in entered:
                    entered.add(_inode(entry.path))
                    yield from _files_in(entry.path, entered)
            elif linked or entry.is_file():  # not a pipe, on which reading would block
                yield entry.path


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM  # macOS leaves a ._x.jpg beside each x.jpg


def _inode(path: str | Path) -> tuple[int, int]:
    """What identifies a folder, whatever links lead to it."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _folders_around(folder: Path) -> set[tuple[int, int]]:
    folder = Path(folder).resolve()
    return {_inode(path) for path in (folder, *folder.parents)}


# --- what is read and left out, in words -------------------------------------------------------------


def describe_ignored(ignored: Suffixes) -> tuple[str, bool]:
    """The files that are no images, in words; and whether some are images in formats that we do not read."""
    advice = "".join(map(remedy_of, ignored))
    return f"{ignored.total()} other files ({_most_common(ignored)}){advice}", bool(advice)


def remedy_of(path: str) -> str:
    """What to do to read a file, by its suffix, as the end of a message; "" if nothing is known."""
    suffix = suffix_of(f"x{path}")
    remedies = (remedy for names, remedy in REMEDIES.items() if suffix in names.split())
    return "".join(f"; to read {suffix}: {remedy}" for remedy in remedies)


def describe_images(files: list[str]) -> str:
    """The number of images and their formats, in words."""
    return f"{len(files)} images ({_most_common(Counter(map(suffix_of, files)))})"


def _most_common(counts: Suffixes) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]
    rest = counts.total() - sum(n for _, n in most)
    return ", ".join([f"{suffix} {n}" for suffix, n in most] + [f"others {rest}"] * (rest > 0))


def suffix_of(path: str) -> str:
    """The suffix in lower case, or NO_SUFFIX, also for unusual ones: `frame.0001`, `a.jpg?width=300`."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9]*", suffix) else NO_SUFFIX
