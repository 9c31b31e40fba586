"""Decode image files: ImageNet's exactly as torchvision does, a user's own as an image viewer shows them."""

import copy
import functools
import hashlib
import io
import logging
import os
import signal
import warnings
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from errors import UserError

from ..dataset import Dataset
from ..messages import shown
from ..sets.labels import labels_and_names

log = logging.getLogger(__name__)

# formats that Pillow opens although they hold no pixels, or need another program to draw them
NO_IMAGES = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# formats that Pillow registers even if it was built without their library
LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# formats that the first bytes identify beyond doubt
UNMISTAKABLE = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP"}

# Pillow gives the transparent color of these PNG files as the file has it, and the pixels brought to 8 bits
TO_8_BITS = {
    "1": lambda v: v * 255,
    "L;2": lambda v: v * 85,
    "L;4": lambda v: v * 17,
    "RGB;16B": lambda v: v >> 8,
}


class How(NamedTuple):
    """How a user's image files become squares."""

    size: int  # side in pixels
    resize: str = "crop"  # crop, pad or squeeze
    white: int = 65535  # value of 16-bit files that is shown white


class Facts(NamedTuple):
    """What decoding found out about a file."""

    sha256: str  # of its content
    width: int
    height: int
    brightest: int  # highest value of an image of 16-bit gray; -1: another kind of image


@functools.cache
def formats():
    """Names of the image formats that this Pillow and its installed plugins read."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401
    Image.preinit()  # the common formats are tried first
    Image.init()
    missing = {name for name, library in LIBRARIES.items() if not features.check(library)}
    return [name for name in Image.ID if name not in NO_IMAGES | missing]


@functools.cache
def suffixes():
    """Suffixes of files in these formats, in lower case."""
    readable = set(formats())  # first, because it registers more of them
    return {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


def is_image(path):
    """Whether a file's first bytes say that it is an image, whatever its name."""
    try:
        with warnings.catch_warnings(action="ignore"):
            Image.open(path, formats=[name for name in formats() if name in UNMISTAKABLE]).close()
    except Exception:  # a damaged file can break a decoder in any way
        return False
    return True


def reason(error):
    """Why a file cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "empty, or not an image"
    lines = str(error.strerror if isinstance(error, OSError) and error.strerror else error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


class FolderImages(Dataset, torch.utils.data.Dataset):
    """One split of a large dataset: files that are decoded each time a batch needs them.

    So that images can be batched, the shorter side is resized to `size` pixels and the center is cropped to
    a square. The center crops of evaluation equal torchvision's to the pixel. The random crops of training
    are drawn within that square, not within the whole of a longer image.

    Args:
        files: paths, one per image. They are kept as one array of bytes: a million Path objects would take
            300 MB, which each worker process copies as it touches them.
        labels, classes: as ArrayImages.
        size: side in pixels of the images that `fetch` gives.
    """

    def __init__(self, files, labels, classes, size):
        self.files = np.array([os.fsencode(path) for path in files])
        self.labels, self.classes = labels_and_names(labels, classes, len(self.files))
        self.size = size

    def __len__(self):
        return len(self.files)

    def paths(self):
        """Each file with its folder, as the file system has it: not always text that UTF-8 can encode."""
        return [os.fsdecode(b"/".join(path.split(b"/")[-2:])) for path in self.files.tolist()]

    def names(self):
        """The images' names, all different, as text that UTF-8 can encode."""
        return [shown(path) for path in self.paths()]

    def fingerprint(self):
        """Number of images and a hash of all files' names with folders and about a hundred files' content."""
        sum_ = hashlib.sha256(os.fsencode("\n".join(self.paths())))
        for digest in self._digests():
            sum_.update(digest)
        return f"{len(self)} images ({sum_.hexdigest()[:16]})"

    def _digests(self):
        for path in self._sampled(self.files):
            with suppress(OSError), open(os.fsdecode(path), "rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()

    def _sampled(self, items):
        return items[:: max(1, len(self) // 100)]

    def decode(self, index):
        """One image, as `fetch` gives it, uint8 (3, size, size), on the CPU. Raises whatever Pillow does."""
        # Pillow warns of odd metadata even where it can read the file
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(os.fsdecode(self.files[index])) as image,
        ):
            return _square(image.convert("RGB"), How(self.size))

    def raw(self, index):
        """`decode`, but raises a UserError that names the file."""
        try:
            return self.decode(index)
        except Exception as error:  # a damaged file can break a decoder in any way
            raise self.unreadable(index, reason(error)) from None

    def unreadable(self, index, why):
        """The UserError for an image that cannot be read."""
        return UserError(f"{shown(os.fsdecode(self.files[index]))}: cannot be read as an image ({why})")

    __getitem__ = raw

    def to(self, device):
        """Do nothing: the images stay in their files."""

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the uint8 images of each index batch, (*index.shape, 3, size, size), on `device`."""
        index_batches = list(index_batches)
        loader = decoding_loader(
            self,
            num_workers,
            batch_sampler=[index.flatten().tolist() for index in index_batches],
            pin_memory=torch.device(device).type == "cuda",
        )
        try:
            for index, images in zip(index_batches, loader, strict=True):
                yield images.to(device, non_blocking=True).unflatten(0, index.shape)
        except UserError as error:  # a worker process puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("errors.UserError: ")) from None


class OwnImages(FolderImages):
    """One split of a user's own images, as a viewer shows them: upright, on white, 16-bit values scaled.

    Args:
        files, labels, classes: as FolderImages.
        how: How.
        folder: pathlib.Path of the split's folder, which contains all files.
        prefix: start of each image's name; the path within the folder follows.
        squares: ArrayImages of the decoded images if they are kept, in memory or in a file, else None.
        hashes: SHA-256 of the files' content, as text, if known, else None.
        white_level: `how.white` if it was given, or chosen by images of 16 bits; None if there are none.
    """

    def __init__(
        self, files, labels, classes, how, folder, prefix="", squares=None, hashes=None, white_level=None
    ):
        super().__init__(files, labels, classes, how.size)
        self.how = how
        self.folder = folder
        self.prefix = prefix
        self.squares = squares
        self.hashes = hashes
        self.white_level = white_level

    def with_white(self, white):
        """The same images with another `how.white`."""
        images = copy.copy(self)
        images.how = self.how._replace(white=white)
        return images

    def within(self):
        """The files' paths, relative to the folder."""
        start = len(os.fsencode(os.path.join(self.folder, "")))
        return [os.fsdecode(path[start:]) for path in self.files.tolist()]

    def paths(self):
        return [self.prefix + path for path in self.within()]

    def content_hashes(self):
        """N strings, equal for files of equal content; None if not known."""
        return self.hashes

    def content_digest(self):
        """Hash of all files' content and of how they are decoded; None if not known."""
        if self.hashes is None:
            return None
        return hashlib.sha256("\n".join([*self.hashes, str(tuple(self.how))]).encode()).hexdigest()

    def _digests(self):
        if self.hashes is None:
            return super()._digests()
        return [bytes.fromhex(sha256) for sha256 in self._sampled(self.hashes)]

    def decode(self, index):
        return self.examine(index)[0]

    def examine(self, index):
        """One image, as `decode` gives it, and its Facts. Raises whatever Pillow does."""
        with open(os.fsdecode(self.files[index]), "rb") as file:
            content = file.read()
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=formats()) as image,
        ):
            shape = image.size
            # decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is not smaller than what is wanted
            image.draft(None, _resized(*shape, self.how))
            image, brightest = _as_seen(image, self.how.white)
            facts = Facts(hashlib.sha256(content).hexdigest(), *shape, brightest)
            return _square(image, self.how), facts

    def raw(self, index):
        return super().raw(index) if self.squares is None else self.squares.raw(index)

    def to(self, device):
        if self.squares is not None:
            self.squares.to(device)

    def fetch(self, index_batches, device, num_workers=0):
        source = super() if self.squares is None else self.squares
        return source.fetch(index_batches, device, num_workers)


def decoding_loader(dataset, num_workers, **how):
    """A DataLoader whose worker processes leave signals to the process that owns them."""
    return torch.utils.data.DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_owner,
        generator=torch.Generator(),  # for the workers' seed, which must not use up the training's numbers
        **how,
    )


def _leave_signals_to_the_owner(worker):
    # Ctrl-C and a scheduler's SIGTERM reach the workers, too. SIGTERM cannot be ignored, because the owner
    # ends idle workers by it. Exit status 0, because any other raises an error in the middle of a batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _as_seen(image, white):
    """Mode RGB: turned upright by its EXIF data, transparency on white, 16-bit values scaled.

    Also returns the highest 16-bit value, -1 for another kind of image.
    """
    rawmode = image.tile[0].args if image.format == "PNG" and image.tile else None
    image.load()
    color = image.info.get("transparency")
    if rawmode in TO_8_BITS and color is not None:
        to_8_bits = TO_8_BITS[rawmode]
        image.info["transparency"] = tuple(map(to_8_bits, color)) if rawmode[0] == "R" else to_8_bits(color)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are all right
        log.debug("damaged EXIF data: %s", error)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image, brightest = _scaled(image, white)
        return image.convert("RGB"), brightest
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), -1


def _scaled(image, white):
    """16-bit integers -> mode L, and their maximum; the value that the file marks as transparent is white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("values beyond 16 bits, whose range is not known; save it with 8 or 16 bits")
    hidden = values == image.info.get("transparency", -1)
    brightest = int(values.max(where=~hidden, initial=0))
    values[hidden] = white
    values = (values.clip(max=white) * 255 + white // 2) // white
    return Image.fromarray(values.astype(np.uint8)), brightest


def _resized(width, height, how):
    """Width and height that an image is scaled to, before it is cropped or padded."""
    if how.resize == "squeeze":
        return how.size, how.size
    side = min(width, height) if how.resize == "crop" else max(width, height)
    # for crop, the same as torchvision's Resize(size), to the pixel
    return max(1, int(how.size * width / side)), max(1, int(how.size * height / side))


def _square(image, how):
    """An RGB image -> uint8 (3, size, size)."""
    width, height = _resized(*image.size, how)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - how.size) / 2), round((height - how.size) / 2)  # as CenterCrop(size)
    pixels = np.array(image.crop((left, top, left + how.size, top + how.size)))
    if how.resize == "pad":
        # The mean color of the border makes weaker edges than gray does, which tell nothing but the shape.
        image = np.asarray(image)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).mean(0).round()
        outside = np.ones((how.size, how.size), bool)
        outside[-top : height - top, -left : width - left] = False
        pixels[outside] = border
    return torch.from_numpy(pixels).permute(2, 0, 1)
