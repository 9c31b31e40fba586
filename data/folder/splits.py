"""A user's own folder of images as a dataset: its splits, its classes, and the images that can be read."""

import logging
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from errors import UserError

from ..messages import say_once, shown
from ..sets.labels import require_few, require_known
from . import listing
from .cache import DecodedCache
from .decode import ResizeSpec
from .decode_pass import DecodedFolder, decode_folder, share_of
from .own_images import OwnImages
from .sources import described, images_of

log = logging.getLogger(__name__)

ANNOTATIONS = "val_annotations.txt"  # TinyImageNet's labels of val/images/
LIKE_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


class SplitFiles(NamedTuple):
    """The files of a split, their names, the suffixes of other files, and labels and classes, if any."""

    files: list[str]
    names: list[str]
    ignored: listing.Suffixes
    labels: list[int] | None = None
    classes: list[str] | None = None


def build_folder(
    root: Path | Sequence[Path],
    split: str,
    spec: ResizeSpec,
    *,
    num_workers: int = 0,
    max_unreadable: float = 0.01,
    folder_labels: str = "auto",
    every: float = 1.0,
    added: Sequence[Path] = (),
    white_level: int | None = None,
    cache_folder: Path | None = None,
    train_cache_folder: Path | None = None,
    results: str | Path | None = None,
    only_read: bool = False,
) -> OwnImages:
    """A user's own images under `{root}/{train,test}/`: a folder per class, or none and then no labels.

    Without test/, train/ serves as both splits; without either, `root` itself does. Evaluation does not need
    train/. Where there is TinyImageNet's list of the labels of val/, that is the test split. Folders are read
    recursively. Images of anything but one folder are in both splits, without labels. Every image is decoded
    once, and those that cannot be read are left out; see `decode_pass`.

    Args:
        root: a folder, or sources as `sources.images_of` takes them.
        max_unreadable: share of the images that may be left out.
        folder_labels: "auto", or "none": folders mean nothing, and all images are in both splits.
        every: seconds between the frames that are taken of a video.
        added: more sources, see `sources.images_of`.
        white_level: value of 16-bit files that is shown white; None: see `sanity_checks.white_of`.
        cache_folder: folder that the decoded images are kept in; None: nowhere.
        train_cache_folder: that of the train split, whose value of white holds for the test split, too.
        results: folder to leave out if it lies within `root`. So is the parent of `cache_folder`.
        only_read: whether `root` is a folder of the user's, into which nothing is written: the list of
            unreadable images goes to `cache_folder`. It is then no part of the images' names.

    Raises:
        UserError: no such folders, no images, a class that train/ does not have, too many unreadable images.
    """
    given = [root] if isinstance(root, Path) else list(root)
    first = folder = given[0]
    if folder_labels == "none" or len(given) > 1 or added or first.is_file():
        # if results and images share a folder, only this dataset's results within it are left out
        without = results, cache_folder and cache_folder.parent
        found = SplitFiles(*images_of(given, without, every, added, spec.pages))
    else:
        listing.require_folder(first)
        folder = _folder_of_split(first, split)
        found = _files_of_split(folder, first / "train")
    where = described([folder, *given[1:]])
    name = "all" if folder == first else folder.name
    list_folder = cache_folder if only_read and cache_folder else first
    unreadable_list = list_folder / ("unreadable.txt" if folder == first else f"unreadable-{name}.txt")
    is_training = cache_folder == train_cache_folder and folder in (first, first / "train")
    white = white_level
    if white is None and not is_training:
        white = white_of_training(train_cache_folder, spec)
    cache = _cache(cache_folder, name, spec)
    decoded = decode_folder(found.files, found.names, where, spec, unreadable_list, num_workers, cache, white)
    _require_readable(decoded, max_unreadable, where, unreadable_list)
    files = list(compress(found.files, decoded.readable))
    _log_what_is_read(where, files, found, len(decoded.unreadable))
    classes = None if found.classes is None else [shown(name) for name in found.classes]
    return OwnImages(
        files,
        compress(found.names, decoded.readable),
        None if found.labels is None else list(compress(found.labels, decoded.readable)),
        classes,
        "" if classes or (only_read and folder == first) else f"{folder.name}/",
        decoded,
        white or (decoded.white if decoded.has_16_bits else None),
    )


def white_of_training(train_cache_folder: Path | None, spec: ResizeSpec) -> int | None:
    """The value of 16-bit files that is white in the train split; None if not known."""
    caches = [_cache(train_cache_folder, name, spec) for name in ("train", "all")]
    return next((white for cache in caches if cache and (white := cache.load().white)), None)


def _cache(folder: Path | None, name: str, spec: ResizeSpec) -> DecodedCache | None:
    name = "-".join([name, str(spec.size), spec.resize, *spec.changes()])
    return DecodedCache(folder, name) if folder else None


def _require_readable(
    decoded: DecodedFolder, max_unreadable: float, where: str, unreadable_list: Path
) -> None:
    """Raise UserError if none, or too few, of a folder's images can be read."""
    unreadable, count = decoded.unreadable, len(decoded.readable)
    example = "".join(f"such as {path} ({why})" for path, why in list(unreadable.items())[:1])
    if len(unreadable) == count:
        raise UserError(f"{where}: none of the {count} images can be read, {example}")
    if len(unreadable) > max_unreadable * count:
        raise UserError(
            f"{where}: {share_of(unreadable, count)} cannot be read, {example}, "
            f"which is more than the share max_unreadable ({max_unreadable}); remove those that "
            f"{shown(str(unreadable_list))} lists with the reasons, or set max_unreadable"
        )


def _log_what_is_read(where: str, files: list[str], found: SplitFiles, unreadable: int) -> None:
    """Log one line on what was read and what was left out."""
    n = len(found.classes or ())
    about = f"in {n} class folder{'s' * (n > 1)}" if n else "without class folders"
    others, has_advice = listing.describe_ignored(found.ignored)
    rest = [f"{unreadable} that cannot be read"] * bool(unreadable) + [others] * bool(found.ignored)
    left_out = f"; left out: {', '.join(rest)}" if rest else ""
    write = log.warning if has_advice else log.info
    say_once(write, f"{where}: {listing.describe_images(files)} {about}{left_out}")


# --- classes ---------------------------------------------------------------------------------------


def _files_of_split(folder: Path, train: Path) -> SplitFiles:
    """The files of a split's folder; `train`: the folder of the train split, if there is one."""
    where, present = shown(str(folder)), listing.class_folders(folder)
    of_train = listing.class_folders(train) if train.is_dir() else []
    if _is_annotated(folder):
        return _annotated_files(folder, of_train)
    classes = of_train if len(of_train) > 1 else present  # a single class means nothing
    require_known(train, classes, folder, present)
    require_few(classes, where)
    loose, ignored = listing.images_in(folder, deep=False)
    files, labels, ignored_in_classes = listing.labeled_files(folder, classes if present else [])
    ignored += ignored_in_classes
    listing.require_images(folder, files or loose, ignored)
    if not files:
        return SplitFiles(loose, listing.names_within(folder, loose), ignored)
    if loose:
        say_once(log.warning, f"{where}: {len(loose)} images beside the class folders are left out")
    return SplitFiles(files, listing.names_within(folder, files), ignored, labels, classes)


def _is_annotated(folder: Path) -> bool:
    """Whether TinyImageNet's file says the classes of the images in a folder."""
    return (folder / ANNOTATIONS).is_file() and (folder / "images").is_dir()


def _annotated_files(folder: Path, classes: list[str]) -> SplitFiles:
    """The files of a folder that `_is_annotated`; `classes`: of the train split, or empty."""
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    class_of = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    present = sorted(set(class_of.values()))
    classes = classes or present
    require_known(folder.parent / "train", classes, folder, present)
    found, ignored = listing.images_in(folder / "images")
    files = [path for path in found if os.path.basename(path) in class_of]
    if len(files) < len(found):
        n = len(found) - len(files)
        say_once(log.warning, f"{shown(str(folder))}: {n} images that are not in {ANNOTATIONS} are left out")
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[class_of[os.path.basename(path)]] for path in files]
    return SplitFiles(files, listing.names_within(folder, files), ignored, labels, classes)


# --- splits ----------------------------------------------------------------------------------------


def _folder_of_split(root: Path, split: str) -> Path:
    """The folder that a split is read from. Logs which images serve as both splits, and what is left out."""
    where, inside = shown(str(root)), listing.class_folders(root)
    annotated = _is_annotated(root / "val")
    if "train" not in inside and "test" not in inside and not annotated:
        similar = [name for name in inside if name.lower() in LIKE_SPLITS]
        similar += [f"{name}/train" for name in inside if (root / name / "train").is_dir()]
        if similar:
            names = ", ".join(f"{shown(name)}/" for name in similar[:4])
            raise UserError(f"{where}: has {names}; the splits must be {where}/train/ and {where}/test/")
        say_once(log.info, f"{where}: neither train/ nor test/ in it, so all its images are in both splits")
        return root
    splits = "train", "val" if annotated else "test"
    beside = [
        f"{shown(name)}/" for name in inside if name not in splits and listing.holds_an_image(root / name)
    ]
    loose, _ = listing.images_in(root, deep=False)
    beside += [f"{len(loose)} images"] if loose else []
    if beside:
        hint = "" if annotated or "test" in inside else "; the test split is called test/"
        say_once(log.warning, f"{where}: {', '.join(beside)} beside {'/ or '.join(splits)}/ left out{hint}")
    if split == "test" and annotated:
        return root / "val"
    if split == "test" and "test" in inside:
        return root / "test"
    if "train" not in inside:
        raise UserError(
            f"{where}/train: no such folder; training needs train/ beside test/ (where there is neither, "
            "all images are in both splits)"
        )
    if split == "test":
        say_once(log.info, f"{where}: no test/ in it, so the images of train/ are in both splits")
    return root / "train"
