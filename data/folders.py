"""Images in folders, decoded by worker processes: ImageNet, its subsets, and anybody's own."""

import hashlib
import logging
import os
import re
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
SUBSETS = Path(__file__).parent / "imagenet_subsets"


class FolderImages(torch.utils.data.Dataset):
    """One split of a large dataset: files that are read when a batch asks for them.

    Each image is brought to `size` x `size` pixels: shorter side resized, then the center cropped, so
    that batches can be made. Center crops of evaluation are torchvision's to the pixel; the random
    crops of training are drawn within that square, not within the whole of a longer image.

    Args:
        files: paths, one per image; kept as one array of bytes: a million Path objects would be
            300 MB that each worker process copies as it touches them.
        labels: integers (N,), or None.
        classes: names of the classes, or None.
        size: side in pixels of the images that `fetch` gives.
        convert: function PIL image -> PIL image of mode RGB; may raise anything for one that it refuses.
    """

    def __init__(self, files, labels, classes, size, convert=None):
        self.files = np.array([os.fsencode(path) for path in files])
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.classes = classes
        self.size = size
        self.convert = convert or _plain_rgb

    def __len__(self):
        return len(self.files)

    def fingerprint(self):
        """Number of images and a hash of the files' names, with their folders, and of a hundred's content."""
        sum_ = hashlib.sha256(os.fsencode("\n".join(self.names())))
        for path in self.files[:: max(1, len(self) // 100)].tolist():
            with suppress(OSError), open(os.fsdecode(path), "rb") as file:
                sum_.update(hashlib.file_digest(file, "sha256").digest())
        return f"{len(self)} images ({sum_.hexdigest()[:16]})"

    def names(self):
        """What to call the images: each file with its folder."""
        return [os.fsdecode(b"/".join(path.split(b"/")[-2:])) for path in self.files.tolist()]

    def decode(self, index):
        """The image as it is fetched, uint8 (3, size, size), on the CPU. Raises whatever Pillow does."""
        # of files that it reads, Pillow remarks on odd metadata and on transparency that gets lost
        with warnings.catch_warnings(action="ignore"), Image.open(os.fsdecode(self.files[index])) as image:
            return _resize_and_crop(self.convert(image), self.size)

    def raw(self, index):
        """`decode`, with a UserError that names the file."""
        try:
            return self.decode(index)
        except Exception as error:  # a damaged file can break a decoder in any way
            path = os.fsdecode(self.files[index])
            raise UserError(f"{path}: cannot be read as an image ({_reason(error)})") from None

    __getitem__ = raw

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the uint8 images of each index batch, (*index.shape, 3, size, size), on `device`."""
        index_batches = list(index_batches)
        loader = torch.utils.data.DataLoader(
            self,
            batch_sampler=[index.flatten().tolist() for index in index_batches],
            num_workers=num_workers,
            pin_memory=torch.device(device).type == "cuda",
            worker_init_fn=_leave_signals_to_the_owner,
            generator=torch.Generator(),  # it draws a number for the workers; not from the training's
        )
        try:
            for index, images in zip(index_batches, loader, strict=True):
                yield images.to(device, non_blocking=True).unflatten(0, index.shape)
        except UserError as error:  # a worker process puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("errors.UserError: ")) from None


def _reason(error):
    """What is wrong with a file, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "empty, or not an image"
    lines = str(error.strerror if isinstance(error, OSError) and error.strerror else error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _leave_signals_to_the_owner(worker):
    # Ctrl-C, and a scheduler's SIGTERM, reach the workers as well. Exit status 0: another one would be an
    # error in the middle of the owner's batch; and not ignored, since its owner ends an idle worker so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _plain_rgb(image):
    return image.convert("RGB")


def _upright_rgb(image):
    """As people see the image: turned as its camera noted, and 16-bit values scaled instead of clipped."""
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are all right, what the camera noted is not
        log.debug("damaged EXIF data: %s", error)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("values beyond 16 bits, whose range is not known; save it with 8 or 16 bits")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB")


def _resize_and_crop(image, size):
    # torchvision's Resize(size) and CenterCrop(size), pixel by pixel
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _image_files(folder):
    with os.scandir(folder) as entries:
        return sorted(
            entry.path
            for entry in entries
            # hidden ones are no images: macOS leaves a ._x.jpg beside each x.jpg
            if os.path.splitext(entry.name)[1].lower() in SUFFIXES
            and entry.name[0] != "."
            and not entry.is_dir()
        )


def _class_folders(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _require_known(train, classes, folder, present):
    """Raise UserError if a split has a class folder that the training split has not."""
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise UserError(f"{train}: has no class folder {', '.join(unknown[:4])}, but {folder} has")


def _labelled_files(root, folders):
    """Paths of the images of `{root}/{folder}/`, and their labels: the places in `folders`."""
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = _image_files(root / folder) if (root / folder).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise UserError(f"{root}: no images found in its class folders ({', '.join(sorted(SUFFIXES))})")
    return files, labels


def build_imagenet(data_dir, split, size, subset=None):
    """ImageNet under `{data_dir}/imagenet/ILSVRC2012_img_{train,val}/<wnid>/*`.

    Args:
        subset: 50, 100 or 200 for the published class lists, whose line number is the label; None
            for all classes, labelled in the sorted order of the train split's folders.
    """
    train, val = (Path(data_dir) / "imagenet" / f"ILSVRC2012_img_{name}" for name in ("train", "val"))
    root = val if split == "test" else train
    if not root.is_dir():
        raise UserError(f"{root}: ImageNet is not there; set data_dir to the folder that holds imagenet/")
    present = _class_folders(root)
    if not present:
        raise UserError(f"{root}: holds no class folders; sort its images into one folder per class (wnid)")
    if subset is None:
        of_train = _class_folders(train) if train.is_dir() else []
        wnids = names = of_train or present  # those who only evaluate may lack train
        _require_known(train, wnids, root, present)
    else:
        lines = (SUBSETS / f"imagenet_{subset}.txt").read_text().splitlines()
        wnids, names = zip(*(line.split(" ", 1) for line in lines), strict=True)
    missing = [wnid for wnid in wnids if not (root / wnid).is_dir()]
    if missing:
        raise UserError(f"{root}: {len(missing)} class folders are missing ({', '.join(missing[:4])})")
    return FolderImages(*_labelled_files(root, wnids), list(names), size)


def build_folder(data_dir, split, size, name, num_workers=0, max_unreadable=0.01):
    """Anybody's images under `{data_dir}/{name}/{train,test}/`: a folder per class, or none and no labels.

    Every image is decoded once, and those that cannot be are left out; see `_unreadable`.

    Args:
        num_workers: processes that decode.
        max_unreadable: share of the images that may be left out.

    Raises:
        UserError: no such folders, no images, a class that train/ does not have, too many unreadable images.
    """
    root = Path(data_dir) / name
    train, folder = root / "train", root / split
    for part in (train, folder):
        if not part.is_dir():
            raise UserError(f"{part}: no such folder; a dataset of image files needs train/ and test/")
    present, classes = _class_folders(folder), _class_folders(train)
    _require_known(train, classes, folder, present)
    if present:
        files, labels = _labelled_files(folder, classes)
        loose = _image_files(folder)
        if loose:
            log.warning("%s: %d images beside the class folders are left out", folder, len(loose))
    else:
        files, labels, classes = _image_files(folder), None, None
        if not files:
            raise UserError(f"{folder}: no images found ({', '.join(sorted(SUFFIXES))})")
    notes = root / f"unreadable-{split}.txt"
    unreadable = _unreadable(FolderImages(files, None, None, size, _upright_rgb), folder, notes, num_workers)
    if len(unreadable) > max_unreadable * len(files):
        path, reason = next(iter(unreadable.items()))
        raise UserError(
            f"{folder}: {_count(unreadable, files)} cannot be read, such as {path} ({reason}), which is more "
            f"than the share max_unreadable ({max_unreadable}); mend or remove those that {notes} lists, "
            "or set max_unreadable"
        )
    kept = [i for i, path in enumerate(files) if _shown(path, folder) not in unreadable]
    labels = None if labels is None else [labels[i] for i in kept]
    return FolderImages([files[i] for i in kept], labels, classes, size, _upright_rgb)


# --- images that cannot be read ------------------------------------------------------------------

_found = {}  # what this process knows: (file of notes, digest) -> see `_unreadable`


def _unreadable(images, folder, notes, num_workers):
    """Which images cannot be read: a dict of their paths within `folder`, as `_shown`, and the reasons.

    It is written to `notes`, with a digest of the list of files, so that the next step knows it without
    decoding, and works with the same list of images, to which the neighbors' indices refer.
    """
    files = [os.fsdecode(path) for path in images.files]
    digest = _digest(files, folder)
    if (notes, digest) not in _found:
        found = _read_notes(notes, digest)
        if found is None:
            found = _decode_all(images, [_shown(path, folder) for path in files], num_workers)
            _write_notes(notes, digest, found, f"{_count(found, files)} cannot be read")
        if found:
            log.warning("%s: %s cannot be read and are left out: %s", folder, _count(found, files), notes)
        _found[notes, digest] = found
    return _found[notes, digest]


def _count(unreadable, files):
    return f"{len(unreadable)} of {len(files)} images ({100 * len(unreadable) / len(files):.2g} %)"


def _shown(path, folder):
    """Path within `folder` as one line of text, whatever bytes are in it."""
    return re.sub(
        r"[^ -~\xa0-\ud7ff\ue000-\U0010ffff]", lambda c: ascii(c[0])[1:-1], os.path.relpath(path, folder)
    )


def _digest(files, folder):
    """Hash of the files' names, sizes and times of modification."""
    sum_ = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
            about = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a link to nowhere
            about = "none"
        sum_.update(f"{_shown(path, folder)} {about}\n".encode())
    return sum_.hexdigest()


def _read_notes(notes, digest):
    """What `_write_notes` wrote, or None if there is nothing about these files."""
    try:
        first, *lines = notes.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest not in first:
        return None
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def _write_notes(notes, digest, found, title):
    temporary = notes.with_name(f".{notes.name}.{os.getpid()}")
    lines = [f"# {title}; files {digest}; remove this file to have them looked at again"]
    lines += [f"{path}\t{reason}" for path, reason in found.items()]
    try:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(notes)
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s), so each step will look for unreadable images again",
            *(notes, error.strerror),
        )


class _Reasons(torch.utils.data.Dataset):
    """Why each image of a FolderImages cannot be read: a line, or None for one that can."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        try:
            self.images.decode(index)
        except Exception as error:
            return _reason(error)
        return None


def _decode_all(images, names, num_workers):
    """Decode every image once; returns {name: reason} of those that cannot be."""
    log.info("decoding %d images once, to find those that cannot be read", len(images))
    loader = torch.utils.data.DataLoader(
        _Reasons(images),
        batch_size=16,
        num_workers=num_workers,
        collate_fn=list,
        worker_init_fn=_leave_signals_to_the_owner,
        generator=torch.Generator(),
    )
    bar = tqdm(loader, desc="decoding", unit="batch", leave=False, disable=None)
    reasons = [reason for batch in bar for reason in batch]
    return {name: reason for name, reason in zip(names, reasons, strict=True) if reason}
