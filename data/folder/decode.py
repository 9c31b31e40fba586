"""Decode image files: ImageNet's exactly as torchvision does, a user's own as an image viewer shows them."""

import functools
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from errors import UserError, first_line

from ..messages import shown
from .cache import FileRecord
from .channels import as_rgb, choose_bands, read_channels, unused_channels
from .containers import pages_of, read_file, readable
from .sanity_checks import summarize_pixels

log = logging.getLogger(__name__)

Image.MAX_IMAGE_PIXELS = None  # one's own files have a limit of their own: max_pixels

# formats that Pillow opens although they hold no pixels, or need another program to draw them
NO_IMAGES = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# formats that Pillow registers even if it was built without their library
LIBRARIES = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
# formats that the first bytes identify beyond doubt
UNMISTAKABLE = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TIFF", "WEBP"}

# For these PNG files Pillow scales the pixels to 8 bits, but not the transparent color; these functions do
TRANSPARENT_COLOR_TO_8_BITS: dict[str, Callable[[int], int]] = {
    "1": lambda v: v * 255,
    "L;2": lambda v: v * 85,
    "L;4": lambda v: v * 17,
    "RGB;16B": lambda v: v >> 8,
}


class ResizeSpec(NamedTuple):
    """How images become squares of one size."""

    size: int  # side in pixels
    resize: str = "crop"  # crop, pad or squeeze
    # how files are read: the keys of these names in utils/run/schema.py
    pages: str = "first"
    channels: tuple[int, ...] = ()
    black_level: int = 0
    max_pixels: float = 1e9

    def changes(self) -> list[str]:
        """What is set to another value than in earlier versions, in words, as part of names and digests."""
        pages = [self.pages] * (self.pages != "first")
        channels = [f"channels{'.'.join(map(str, self.channels))}"] * bool(self.channels)
        return pages + channels + [f"black{self.black_level}"] * bool(self.black_level)


@functools.cache
def formats() -> list[str]:
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
def suffixes() -> set[str]:
    """Suffixes of files in these formats, in lower case."""
    readable = set(formats())  # first, because it registers more of them
    return {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


def is_image(path: str) -> bool:
    """Whether a file's first bytes say that it is an image, whatever its name."""
    try:
        with warnings.catch_warnings(action="ignore"):
            Image.open(readable(path), formats=[name for name in formats() if name in UNMISTAKABLE]).close()
    except Exception:  # a damaged file can break a decoder in any way
        return False
    return True


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "empty, or not an image"
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def unreadable_error(path: str, reason: str) -> UserError:
    """The error that names an image that cannot be read."""
    return UserError(f"{shown(path)}: cannot be read as an image ({reason}); replace or remove it")


def decode_plain(path: str, size: int) -> torch.Tensor:
    """An image as torchvision decodes, resizes and crops it, uint8 (3, size, size). Raises as Pillow does."""
    # Pillow warns of odd metadata even where it can read the file
    with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
        return _to_square(image.convert("RGB"), ResizeSpec(size))


def decode_image(path: str, spec: ResizeSpec, white: int) -> tuple[torch.Tensor, FileRecord]:
    """A user's image as a viewer shows it: upright, on white, 16-bit values up to `white` scaled to 8 bits.

    Returns uint8 (3, size, size) and what is known of the file. Raises as Pillow does.
    """
    content = read_file(path)
    with warnings.catch_warnings(action="ignore"), _page_of(io.BytesIO(content), spec) as page:
        image = page.image
        width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
        # decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is not smaller than what is wanted
        if not isinstance(image, np.ndarray):
            image.draft(None, _resized(width, height, spec))  # type: ignore[arg-type]
        rgb, brightest = _as_seen(image, white, spec.black_level)
        pixels, sha256 = _to_square(rgb, spec), hashlib.sha256(content).hexdigest()
        summary = summarize_pixels(pixels)
        return pixels, FileRecord("", sha256, width, height, brightest, *summary, page.pages, page.unused)


def brightest_value(path: str, spec: ResizeSpec) -> int:
    """The highest value of a file of 16 bits, from black on; -1 for any other, whose pixels are not read."""
    try:
        with warnings.catch_warnings(action="ignore"), _page_of(readable(path), spec) as page:
            image = page.image
            return _16_bit_values(image, spec.black_level)[2] if _has_16_bits(image) else -1
    except Exception:  # a damaged file can break a decoder in any way
        return -1


class _Page(NamedTuple):
    image: Any  # of Pillow, or an array (H, W, C) of chosen channels
    pages: int  # of the file
    unused: int  # channels of the file, if not all are used


@contextmanager
def _page_of(file: str | io.BytesIO, spec: ResizeSpec) -> Iterator[_Page]:
    """The page and the channels of a file that are shown. Raises as Pillow does, and ValueError."""
    is_middle = spec.pages == "middle"
    try:
        image = Image.open(file, formats=formats())
    except UnidentifiedImageError:
        yield _Page(*read_channels(file, is_middle, spec.channels))
        return
    with image:
        if image.width * image.height > spec.max_pixels:
            size = f"{image.width * image.height / 1e6:.0f} megapixels"
            raise ValueError(f"{size}, more than max_pixels ({spec.max_pixels:g}), which can be set higher")
        pages, unused = pages_of(image), unused_channels(image)
        if is_middle and len(pages) > 1:
            image.seek(pages[len(pages) // 2])
        if spec.channels and unused:
            yield _Page(*read_channels(file, is_middle, spec.channels))
        else:
            chosen = choose_bands(image, spec.channels) if spec.channels else image
            yield _Page(chosen, len(pages), unused)


def _has_16_bits(image: Any) -> bool:
    return image.dtype != np.uint8 if isinstance(image, np.ndarray) else image.mode.startswith("I")


def _as_seen(image: Any, white: int, black: int = 0) -> tuple[Image.Image, int]:
    """An image in mode RGB and its highest 16-bit value, -1 for another kind of image."""
    if isinstance(image, np.ndarray):
        return (*_scaled(image, white, black),) if _has_16_bits(image) else (as_rgb(image), -1)
    tile = getattr(image, "tile", None)
    rawmode = tile[0].args if image.format == "PNG" and tile else None
    image.load()
    color = image.info.get("transparency")
    if rawmode in TRANSPARENT_COLOR_TO_8_BITS and color is not None:
        to_8_bits = TRANSPARENT_COLOR_TO_8_BITS[rawmode]
        image.info["transparency"] = tuple(map(to_8_bits, color)) if rawmode[0] == "R" else to_8_bits(color)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are all right
        log.debug("damaged EXIF data: %s", error)
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled(image, white, black)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), -1


def _scaled(image: Any, white: int, black: int) -> tuple[Image.Image, int]:
    """16 bits as 8, and the highest value."""
    values, transparent, brightest = _16_bit_values(image, black)
    values[transparent] = white
    values = (values.clip(max=white) * 255 + white // 2) // white
    return as_rgb(np.atleast_3d(values.astype(np.uint8))), brightest


def _16_bit_values(image: Any, black: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Values from `black` on, int64 (H, W) or (H, W, C); which are transparent; the highest of the others."""
    values = np.asarray(image)
    if values.dtype.kind not in "iu":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    values = values.astype(np.int64)
    low, high = values.min(), values.max()
    if low < 0 and not black:
        raise ValueError(
            f"negative values ({low} to {high}); set black_level, which is shown black: -1024 for CT"
        )
    transparent = values == getattr(image, "info", {}).get("transparency", -1 - 2**31)
    values = (values - black).clip(min=0)
    if values.max() > 65535:
        raise ValueError(f"values beyond 16 bits ({low} to {high}); save it with 8 or 16 bits")
    return values, transparent, int(values.max(where=~transparent, initial=0))


def _resized(width: int, height: int, spec: ResizeSpec) -> tuple[int, int]:
    """Width and height that an image is scaled to, before it is cropped or padded."""
    if spec.resize == "squeeze":
        return spec.size, spec.size
    side = min(width, height) if spec.resize == "crop" else max(width, height)
    # for crop, the same as torchvision's Resize(size), to the pixel
    return max(1, int(spec.size * width / side)), max(1, int(spec.size * height / side))


def _to_square(image: Image.Image, spec: ResizeSpec) -> torch.Tensor:
    """An RGB image -> uint8 (3, size, size)."""
    size = spec.size
    width, height = _resized(*image.size, spec)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)  # as CenterCrop(size)
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    if spec.resize == "pad":
        # In the mean color of the border: gray bars make strong edges, which only show the image's shape.
        whole = np.asarray(image)
        border = np.concatenate([whole[0], whole[-1], whole[:, 0], whole[:, -1]]).mean(0).round()
        outside = np.ones((size, size), bool)
        outside[-top : height - top, -left : width - left] = False
        pixels[outside] = border
    return torch.from_numpy(pixels).permute(2, 0, 1)
