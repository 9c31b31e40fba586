"""Decode image files: ImageNet's exactly as torchvision does, a user's own as an image viewer shows them."""

import functools
import hashlib
import io
import logging
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from errors import UserError

from ..messages import shown
from .cache import FileRecord
from .containers import read_file, readable
from .sanity_checks import summarize_pixels

log = logging.getLogger(__name__)

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
    lines = str(error.strerror if isinstance(error, OSError) and error.strerror else error).splitlines()
    return lines[0].strip() if lines else type(error).__name__


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
    with (
        warnings.catch_warnings(action="ignore"),
        Image.open(io.BytesIO(content), formats=formats()) as image,
    ):
        width, height = image.size
        # decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is not smaller than what is wanted
        image.draft(None, _resized(width, height, spec))  # type: ignore[arg-type]
        rgb, brightest = _as_seen(image, white)
        pixels, sha256 = _to_square(rgb, spec), hashlib.sha256(content).hexdigest()
        return pixels, FileRecord(sha256, width, height, brightest, *summarize_pixels(pixels))


def brightest_value(path: str) -> int:
    """The highest value of a file of 16-bit gray; -1 for any other file, whose pixels are not read."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(readable(path), formats=formats()) as image:
            return _16_bit_values(image)[2] if image.mode.startswith("I") else -1
    except Exception:  # a damaged file can break a decoder in any way
        return -1


def _as_seen(image: Any, white: int) -> tuple[Image.Image, int]:
    """An image in mode RGB and its highest 16-bit value, -1 for another kind of image."""
    rawmode = image.tile[0].args if image.format == "PNG" and image.tile else None
    image.load()
    color = image.info.get("transparency")
    if rawmode in TRANSPARENT_COLOR_TO_8_BITS and color is not None:
        to_8_bits = TRANSPARENT_COLOR_TO_8_BITS[rawmode]
        image.info["transparency"] = tuple(map(to_8_bits, color)) if rawmode[0] == "R" else to_8_bits(color)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are all right
        log.debug("damaged EXIF data: %s", error)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values, transparent, brightest = _16_bit_values(image)
        values[transparent] = white
        values = (values.clip(max=white) * 255 + white // 2) // white
        return Image.fromarray(values.astype(np.uint8)).convert("RGB"), brightest
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), -1


def _16_bit_values(image: Image.Image) -> tuple[np.ndarray, np.ndarray, int]:
    """The values of 16-bit gray, int64 (H, W); the mask of transparent pixels; the highest other value."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("values beyond 16 bits, whose range is not known; save it with 8 or 16 bits")
    transparent = values == image.info.get("transparency", -1)
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
