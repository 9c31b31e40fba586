"""Copy or link files into a folder for each cluster; nothing is moved or overwritten."""

import filecmp
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import data
from data.messages import numbered
from errors import UserError
from utils.files import writing

ON_WINDOWS = sys.platform == "win32"
DEVICE_NAMES = r"con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]"  # reserved there


def sorting_folders(root: Path, names: Sequence[str], images: Path) -> list[Path]:
    """A folder in `root` for each name; names that a file system would merge get different folders.

    Raises UserError if `root` is a file, or if a folder and that of the images overlap.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"--sort-into {root}: is a file; give a folder")
    taken: dict[str, Path] = {}
    for name in names:
        for candidate in numbered(folder_name(name)):
            key = unicodedata.normalize("NFC", candidate).casefold()  # the same on some file systems
            if key not in taken:
                taken[key] = root / candidate
                break
    folders = list(taken.values())
    source = images.resolve()
    for folder in (root, *folders) if source.is_dir() else ():
        target = folder.resolve()
        if target.is_relative_to(source) or (folder != root and source.is_relative_to(target)):
            raise UserError(
                f"--sort-into {root}: {folder} and the images' folder {images} overlap; give another"
            )
    return folders


def folder_name(name: str) -> str:
    """A name as that of a folder on any system: never a path, hidden, too long or reserved."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).strip(" .")
    name = name.encode()[:200].decode(errors="ignore").strip(" .") or "_"
    return f"_{name}" if re.match(rf"({DEVICE_NAMES}) *(\.|$)", name, re.I) else name


def place_in(folder: Path, name: str) -> Path:
    """Where an image of this name goes in a folder; on Windows under a name that Windows takes."""
    if not ON_WINDOWS:
        return folder / name
    stem, suffix = os.path.splitext(name)
    *folders, last = map(folder_name, stem.split("/"))
    return folder.joinpath(*folders, last + suffix)


def require_room(files: Iterable[str], root: Path) -> None:
    """Raise UserError if the disk has no room for copies of the files, less what is in `root` already."""
    needed = 0
    for file in files:
        with suppress(OSError):  # a broken link
            needed += data.stat_file(file)[0]
    there = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    existing = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed - there > free:
        raise UserError(
            f"--sort-into {root}: copies of the images take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB "
            "are free there; free some space, or sort links with --link"
        )


def sort_files(files: Iterable[tuple[str, Path]], link: bool) -> tuple[int, int]:
    """Copy each file to a path, or link it there, unless it is there already.

    Args:
        files: pairs of a file and its path.
        link: make symbolic links instead of copies.

    Returns:
        the number of copies or links made, and of files that were there already.
    """
    made = kept = 0
    for file, path in files:
        target = free_path(path, file)
        if target is None:
            kept += 1
        else:
            copy_or_link(file, target, link)
            made += 1
    return made, kept


def free_path(path: Path, file: str) -> Path | None:
    """`path`, or "NAME (2)" and so on if another file has that name; None if this very file has it."""
    for name in numbered(path.stem, path.suffix):
        candidate = path.with_name(name)
        if not os.path.lexists(candidate):
            return candidate
        if candidate.is_file() and _same_content(file, candidate):
            break
    return None


def _same_content(file: str, other: Path) -> bool:
    if os.path.exists(file):
        return filecmp.cmp(file, other, shallow=False)
    return data.read_file(file) == other.read_bytes()


def copy_or_link(file: str, target: Path, link: bool) -> None:
    """A copy gets its name only when it is complete."""
    is_plain = os.path.exists(file)
    if link and not is_plain:
        raise UserError(f"{file}: an image within a file cannot be linked; leave --link out")
    temporary = target.with_name(f".copying-{os.getpid()}")
    with writing(target, "the table is whole, what was sorted stays, and the same command goes on"):
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(os.path.abspath(file))
            return
        try:
            if is_plain:
                shutil.copy2(file, temporary)
            else:
                temporary.write_bytes(data.read_file(file))
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)
