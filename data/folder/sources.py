"""What a user gives as images: folders, files, archives and the like, lists of paths."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from errors import UserError, refusal

from ..messages import numbered, shown
from . import containers, listing


class SourceImages(NamedTuple):
    """Images: their paths and names, all different, and the suffixes of the files that are none."""

    files: list[str]
    names: list[str]
    ignored: listing.Suffixes


def images_of(
    sources: Sequence[Path],
    without: Sequence[str | Path | None] = (),
    every: float = 1.0,
    added: Sequence[Path] = (),
    pages: str = "first",
) -> SourceImages:
    """The images of one or more sources, each once.

    Args:
        sources: folders, read as `listing.list_images` does; image files; containers of images; text files of
            paths, see `listed_images`. Of a folder without images its containers are read.
        without: see `listing.list_images`.
        every: seconds between two frames of a video.
        added: more sources, which came later: the names of other images do not depend on them.
        pages: "all": each page of a plain file is an image, see `decode.ResizeSpec`.

    Returns:
        their names are the paths within a folder, a file's own name, and with several sources, or if it was
        added, after the source's name.

    Raises:
        UserError: no such source, or nothing in it that is an image.
    """
    if pages == "all":
        files, names, ignored = images_of(sources, without, every, added)
        ends = [[f"/{page}" for page in containers.page_names(file)] or [""] for file in files]
        files = [file + end for file, own in zip(files, ends, strict=True) for end in own]
        names = [name + end for name, own in zip(names, ends, strict=True) for end in own]
        return SourceImages(files, names, ignored)
    if len(sources) == 1 and not added:
        return _images_of_one(sources[0], without, every)
    known: dict[str, str] = {}
    taken: set[str] = set()
    prefixes: set[str] = set()
    ignored = Counter()
    for number, source in enumerate((*sources, *added)):
        found = _images_of_one(source, without, every)
        bare = found.files == [str(source)] or (len(sources) == 1 and number == 0)
        prefix = "" if bare else f"{_distinct(source.name, prefixes)}/"
        for file, name in zip(found.files, found.names, strict=True):
            if file not in known:
                known[file] = _distinct(prefix + name, taken)
        ignored += found.ignored
    return SourceImages(list(known), list(known.values()), ignored)


def require_source(source: Path) -> None:
    """Raise UserError unless there is such a source, of a kind that can be read."""
    if not source.is_file():
        listing.require_folder(source)
    elif not containers.is_container(str(source)) and not (
        source.suffix.lower() == ".txt" or listing.names_image(str(source))
    ):
        advice = listing.remedy_of(str(source))
        advice = advice or "; give a folder, an image, an archive (.zip, .tar) or a .txt file of paths"
        raise UserError(f"{shown(str(source))}: is a file, and no image{advice}")


def described(sources: Sequence[Path]) -> str:
    """The sources as a message names them."""
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{shown(str(sources[0]))}{more}"


def listed_images(path: Path) -> SourceImages:
    """The images that a text file lists, one path a line, relative to the file's folder.

    If one is elsewhere or has its whole path there, they are named by their paths within the folder that
    holds all of them: tables and pages do not tell where that is.

    Raises UserError if a line names no file, or none an image.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{shown(str(path))}: cannot be read {refusal(error)}") from None
    encoding, errors = "utf-8-sig", "surrogateescape"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # as PowerShell writes it
        encoding, errors = "utf-16", "replace"
    text = content.decode(encoding, errors)
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    listed = {os.path.normpath(os.path.join(path.parent, line)): number for number, line in lines}
    missing = [(number, file) for file, number in listed.items() if not os.path.isfile(file)]
    if missing:
        number, file = missing[0]
        others = f" ({len(missing)} of its {len(listed)} files are missing)" if len(missing) > 1 else ""
        what = "is a folder; list its images" if os.path.isdir(file) else "no such file"
        raise UserError(f"{shown(str(path))}, line {number}: {shown(file)}: {what}{others}")
    files = [file for file in listed if listing.names_image(file)]
    ignored = Counter(listing.suffix_of(file) for file in listed if not listing.names_image(file))
    listing.require_images(path, files, ignored)
    folder, places = os.path.abspath(path.parent), list(map(os.path.abspath, files))
    whole = any(os.path.isabs(line) for _, line in lines)
    if whole or not all(place.startswith(os.path.join(folder, "")) for place in places):
        try:
            folder = os.path.commonpath(map(os.path.dirname, places))
        except ValueError:  # several drives of Windows
            return SourceImages(files, [place.replace(os.sep, "/") for place in places], ignored)
    return SourceImages(files, listing.names_within(Path(folder), places), ignored)


def _images_of_one(source: Path, without: Sequence[str | Path | None], every: float) -> SourceImages:
    require_source(source)
    if source.is_dir():
        files, ignored = listing.images_in(source, without=without)
        inside = sorted(
            filter(containers.is_container, () if files else listing.files_of(source, without=without))
        )
        for path in inside:
            found, others = _contained_images(path, every)
            files += found
            ignored += others
            ignored[listing.suffix_of(path)] -= 1
    elif containers.is_container(str(source)):
        files, ignored = _contained_images(str(source), every)
    elif source.suffix.lower() == ".txt":
        return listed_images(source)
    else:
        return SourceImages([str(source)], [source.name], Counter())
    listing.require_images(source, files, ignored)
    return SourceImages(files, listing.names_within(source, files), +ignored)


def _contained_images(path: str, every: float) -> tuple[list[str], listing.Suffixes]:
    """Paths of the images in a container, and the suffixes of its other files."""
    names = containers.contained(path, every)
    inside = [os.path.join(path, name) for name in names if not any(map(listing.is_hidden, name.split("/")))]
    files = [file for file in inside if listing.names_image(file)]
    return files, Counter(map(listing.suffix_of, set(inside).difference(files)))


def _distinct(name: str, taken: set[str]) -> str:
    """`name`, or "NAME (2)" and so on if that is taken; adds it to `taken`."""
    free = next(candidate for candidate in numbered(*os.path.splitext(name)) if candidate not in taken)
    taken.add(free)
    return free
