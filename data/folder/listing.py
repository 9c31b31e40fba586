"""A user's own folders of images: which files are images, and which split and class they belong to."""

import logging
import os
import re
from collections import Counter
from itertools import compress
from pathlib import Path

from errors import UserError

from ..messages import say_once, shown
from ..sets.labels import require_few, require_known
from . import decode_pass
from .cache import Kept
from .decode import OwnImages, is_image, suffixes

log = logging.getLogger(__name__)

NO_SUFFIX = "no suffix"
# thumbnails, metadata, bins and settings, which macOS, Windows, Linux and network drives leave
SYSTEM = {"__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found"}
SYSTEM |= {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
ANNOTATIONS = "val_annotations.txt"  # TinyImageNet's labels of val/images/
LIKE_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
REMEDIES = {
    ".heic .heif .hif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
    ".avif .avifs .j2k .jp2 .jpx .webp": "pip install --upgrade pillow",
    ".arw .cr2 .cr3 .dng .nef .orf .raf .rw2": "save them as JPEG",
    ".dcm .eps .pdf .svg": "save them as PNG",
}


def build_folder(
    root, split, how, *, num_workers=0, max_unreadable=0.01, folder_labels="auto", white_level=None,
    keep_in=None, training_in=None, called=None, results=None,
):  # fmt: skip
    """A user's own images under `{root}/{train,test}/`: a folder per class, or none and then no labels.

    Without test/, train/ serves as both splits; without either, `root` itself does. Evaluation does not need
    train/. Where there is TinyImageNet's list of the labels of val/, that is the test split. Folders are read
    recursively. Every image is decoded once, and those that cannot be read are left
    out; see `decode_pass.look_at`.

    Args:
        root: pathlib.Path.
        split: see `data.build_dataset`.
        how: How the images become squares.
        num_workers: processes that decode.
        max_unreadable: share of the images that may be left out.
        folder_labels: "auto", or "none": folders mean nothing, and all images are in both splits.
        white_level: value of 16-bit files that is shown white; None: see `alike.white_of`.
        keep_in: folder that the decoded images are kept in, or None.
        training_in: folder that the decoded images of the train split are kept in, whose value of white
            holds for the test split, too; or None.
        results: folder to leave out if it lies within `root`, or None. That of `keep_in` is left out, too.
        called: what `root` is called in the images' names, which may be ""; None: its own name.

    Raises:
        UserError: no such folders, no images, a class that train/ does not have, too many unreadable images.
    """
    require_folder(root)
    if folder_labels == "none":
        folder, labels, classes = root, None, None
        # where the results are in the very folder of the images, those of this dataset are in one below
        files, left_out = list_images(root, but=(results, keep_in and keep_in.parent))
    else:
        folder = _folder_of_split(root, split)
        files, labels, classes, left_out = _listed(root / "train", folder)
    ours = called == "" and keep_in  # the folder of image_folder may be anywhere, and is only read
    notes = (keep_in if ours else root) / (
        "unreadable.txt" if folder == root else f"unreadable-{folder.name}.txt"
    )
    kept = Kept(keep_in, _stem("all" if folder == root else folder.name, how)) if keep_in else None
    of_training = keep_in == training_in and folder in (root, root / "train")
    if white_level is None and training_in and not of_training:
        white_level = white_of_training(training_in, how)
    images = OwnImages(files, None, None, how, folder)
    found = decode_pass.look_at(images, notes, num_workers, kept, white_level)
    where = shown(str(folder))
    example = "".join(f"such as {path} ({why})" for path, why in list(found.unreadable.items())[:1])
    if len(found.unreadable) == len(files):
        raise UserError(f"{where}: none of the {len(files)} images can be read, {example}")
    if len(found.unreadable) > max_unreadable * len(files):
        share = decode_pass.count(found.unreadable, files)
        raise UserError(
            f"{where}: {share} cannot be read, {example}, "
            f"which is more than the share max_unreadable ({max_unreadable}); repair or remove those that "
            f"{shown(str(notes))} lists, or set max_unreadable"
        )
    is_read = [shown(path) not in found.unreadable for path in images.within()]
    files = list(compress(files, is_read))
    prefix = folder.name if called is None or folder != root else called
    prefix = f"{prefix}/" if prefix else ""
    if labels is not None:
        labels, classes = list(compress(labels, is_read)), [shown(name) for name in classes]
        prefix = ""
    _tell(where, files, classes, left_out, len(found.unreadable))
    how = how._replace(white=found.white)
    level = white_level or (found.white if found.gray_16 else None)
    return OwnImages(files, labels, classes, how, folder, prefix, found.squares, found.hashes, level)


def white_of_training(folder, how):
    """The value of 16-bit files that is white in the train split, from its kept images; None if not known."""
    whites = (Kept(folder, _stem(name, how)).white() for name in ("train", "all"))
    return next(filter(None, whites), None)


def _stem(name, how):
    return f"{name}-{how.size}-{how.resize}"


def _listed(train, folder):
    """The files of a split; their labels and the classes, or None and None; a Counter of other suffixes."""
    where, present = shown(str(folder)), class_folders(folder)
    of_train = class_folders(train) if train.is_dir() else []
    if _annotated(folder):
        return _by_annotations(folder, of_train)
    classes = of_train if len(of_train) > 1 else present  # a single class means nothing
    require_known(train, classes, folder, present)
    require_few(classes, where)
    loose, left_out = _images_in(folder, deep=False)
    files, labels, of_classes = labelled_files(folder, classes if present else [])
    left_out += of_classes
    if not files:
        files, labels, classes = loose, None, None
    elif loose:
        say_once(log.warning, f"{where}: {len(loose)} images beside the class folders are left out")
    if not files:
        raise _no_images(folder, left_out)
    return files, labels, classes, left_out


def _annotated(folder):
    """Whether TinyImageNet's file says the classes of the images in a folder."""
    return (folder / ANNOTATIONS).is_file() and (folder / "images").is_dir()


def _by_annotations(folder, classes):
    """As `_listed`, for a folder that is `_annotated`; `classes`: of the train split, or empty."""
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    class_of = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    classes = classes or sorted(set(class_of.values()))
    require_known(folder.parent / "train", classes, folder, sorted(set(class_of.values())))
    found, left_out = _images_in(folder / "images")
    files = [path for path in found if os.path.basename(path) in class_of]
    if len(files) < len(found):
        n = len(found) - len(files)
        say_once(log.warning, f"{shown(str(folder))}: {n} images that are not in {ANNOTATIONS} are left out")
    number = {name: label for label, name in enumerate(classes)}
    return files, [number[class_of[os.path.basename(path)]] for path in files], classes, left_out


def _tell(where, files, classes, left_out, unreadable):
    """Log one line on what was read and what was left out."""
    kinds = _counts(Counter(map(_suffix, files)))
    n = len(classes or ())
    about = f"in {n} class folder{'s' * (n > 1)}" if n else "without class folders"
    others, advice = _others(left_out)
    rest = [f"{unreadable} that cannot be read"] * bool(unreadable) + [others] * bool(left_out)
    rest = f"; left out: {', '.join(rest)}" if rest else ""
    write = log.warning if advice else log.info
    say_once(write, f"{where}: {len(files)} images ({kinds}) {about}{rest}")


# --- which folders ---------------------------------------------------------------------------------


def _folder_of_split(root, split):
    """The folder that a split is read from. Logs which images serve as both splits, and what is left out."""
    where, inside = shown(str(root)), class_folders(root)
    annotated = _annotated(root / "val")
    if "train" not in inside and "test" not in inside and not annotated:
        similar = [name for name in inside if name.lower() in LIKE_SPLITS]
        similar += [f"{name}/train" for name in inside if (root / name / "train").is_dir()]
        if similar:
            names = ", ".join(f"{shown(name)}/" for name in similar[:4])
            raise UserError(f"{where}: has {names}; the splits must be {where}/train/ and {where}/test/")
        say_once(log.info, f"{where}: neither train/ nor test/ in it, so all its images are in both splits")
        return root
    splits = "train", "val" if annotated else "test"
    beside = [f"{shown(name)}/" for name in inside if name not in splits and _any(root / name)]
    loose, _ = _images_in(root, deep=False)
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


def list_images(folder, but=()):
    """All images below a folder, whatever its folders are called.

    Args:
        folder: pathlib.Path.
        but: folder to leave out, or several, unless it is `folder` itself or around it. None is no folder.

    Returns:
        sorted list of their paths, as text, and a Counter of the suffixes of the files that are no images.

    Raises:
        UserError: no such folder, or no images in it.
    """
    require_folder(folder)
    files, left_out = _images_in(folder, but=but)
    if not files:
        raise _no_images(folder, left_out)
    return files, left_out


def require_folder(folder):
    """Raise UserError unless there is such a folder, and it can be opened."""
    where = shown(str(folder))
    try:
        os.scandir(folder).close()
    except NotADirectoryError:
        raise UserError(f"{where}: is a file; give the folder that the images are in") from None
    except FileNotFoundError:
        raise UserError(f"{where}: no such folder") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be opened ({error.strerror})") from None


def _no_images(folder, left_out):
    others = f", only {_others(left_out)[0]}" if left_out else ""
    return UserError(f"{shown(str(folder))}: no images found (.jpg, .png, ...){others}")


def class_folders(root):
    """Sorted names of the folders in a folder, without hidden ones, system folders and links upwards."""
    around = _folders_around(root)
    return sorted(
        path.name
        for path in Path(root).iterdir()
        if not _hidden(path.name) and path.is_dir() and _identity(path) not in around
    )


def labelled_files(root, folders):
    """Paths of the images in `{root}/{folder}/`, their labels, and a Counter of the suffixes of other files.

    A label is an index in `folders`; the split may lack some of these folders.
    """
    files, labels, left_out = [], [], Counter()
    for label, folder in enumerate(folders):
        if (root / folder).is_dir():
            found, others = _images_in(root / folder)
            files += found
            labels += [label] * len(found)
            left_out += others
    return files, labels, left_out


# --- which files -----------------------------------------------------------------------------------


def _images_in(folder, deep=True, but=()):
    """Sorted paths of a folder's images, with `deep` recursively, and a Counter of other files' suffixes."""
    files, left_out, around = [], Counter(), _folders_around(folder) if deep else None
    for path in [but] if isinstance(but, str | Path) else but or ():
        if path and os.path.isdir(path):
            around.add(_identity(path))
    for path in _files_in(folder, around):
        suffix = _suffix(path)
        if suffix in suffixes() or (suffix == NO_SUFFIX and is_image(path)):
            files.append(path)
        elif os.path.basename(path) not in decode_pass.NOTES:
            left_out[suffix] += 1
    return sorted(files), left_out


def _files_in(folder, around):
    """Paths of the files in a folder, without hidden ones; recursively if `around` is a set.

    `around` holds the identities of folders not to enter (again), since links may lead in circles. Each
    folder that is entered is added to it.
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
            if _hidden(entry.name):
                continue
            if os.path.isdir(entry.path) if linked else entry.is_dir():
                if around is not None and _identity(entry.path) not in around:
                    around.add(_identity(entry.path))
                    yield from _files_in(entry.path, around)
            elif linked or entry.is_file():  # not a pipe, on which reading would block
                yield entry.path


def _any(folder):
    """Whether a folder holds an image."""
    return any(_suffix(path) in suffixes() for path in _files_in(folder, _folders_around(folder)))


def _hidden(name):
    return name.startswith(".") or name.lower() in SYSTEM  # macOS leaves a ._x.jpg beside each x.jpg


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _folders_around(folder):
    folder = Path(folder).resolve()
    return {_identity(path) for path in (folder, *folder.parents)}


def _suffix(path):
    """The suffix in lower case, or NO_SUFFIX, also for unusual ones: `frame.0001`, `a.jpg?width=300`."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z][a-z0-9]*", suffix) else NO_SUFFIX


def _others(left_out):
    """The files that were left out, in words; and whether some are images in formats that we do not read."""
    remedies = {suffix: remedy for names, remedy in REMEDIES.items() for suffix in names.split()}
    advice = {suffix: remedies[suffix] for suffix in left_out if suffix in remedies}
    text = f"{left_out.total()} other files ({_counts(left_out)})"
    return text + "".join(f"; to read {suffix}: {remedy}" for suffix, remedy in advice.items()), bool(advice)


def _counts(suffixes):
    most = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))[:5]
    rest = suffixes.total() - sum(n for _, n in most)
    return ", ".join([f"{suffix} {n}" for suffix, n in most] + [f"others {rest}"] * (rest > 0))
