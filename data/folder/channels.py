"""The channels of an image that are shown, and TIFF files of more channels than Pillow reads."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

TIFF_STARTS = b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"
SAMPLES, BITS = 277, 258  # tags of a TIFF page


def unused_channels(image: Image.Image) -> int:
    """The number of channels of a TIFF of which Pillow leaves some out; 0 for any other image."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    samples = image.tag_v2.get(SAMPLES, 1)
    rawmode = str((image.tile[0].args or [""])[0]) if image.tile else ""
    return samples if samples > len(image.getbands()) or rawmode.endswith("X") else 0


def choose_bands(image: Image.Image, channels: Sequence[int]) -> Image.Image:
    """One to three channels of an image, from 1, as gray or RGB. Raises ValueError if it has too few."""
    bands = (image.convert("RGB") if image.mode in ("P", "1") else image).split()
    _require_channels(channels, len(bands))
    chosen = [bands[channel - 1] for channel in channels]
    if len(chosen) == 1:
        return chosen[0]
    return Image.merge("RGB", [*chosen, Image.new(chosen[0].mode, image.size)][:3])


def read_channels(
    source: str | BinaryIO, is_middle: bool, channels: Sequence[int]
) -> tuple[np.ndarray, int, int]:
    """The first or the middle page of a TIFF of any channels, by tifffile.

    Returns the pixels (H, W, C) of the given channels, or of the first three; the number of pages; and that
    of channels, 0 if all are given. Raises ValueError if it is no TIFF or has too few channels, and without
    tifffile.
    """
    file = io.BytesIO(Path(source).read_bytes()) if isinstance(source, str) else source
    samples, bits = _tags(file)
    try:
        import tifffile
    except ImportError:
        what = f"a TIFF of {samples} channels of {bits} bits, of which only RGB or gray can be read here"
        raise ValueError(f"{what}; pip install tifffile, and channels: 1,2,3 says which are shown") from None
    with tifffile.TiffFile(file) as tiff:
        first = tiff.pages[0]
        pages = [page for page in tiff.pages if page.shape == first.shape and not page.subfiletype & 5]
        page = pages[len(pages) // 2 if is_middle else 0]
        pixels, axes = page.asarray(), page.axes
    pixels = np.moveaxis(pixels, axes.index("S"), -1) if "S" in axes else pixels[..., None]
    channels = channels or range(1, 1 + min(3, pixels.shape[-1]))
    _require_channels(channels, pixels.shape[-1])
    chosen = pixels[..., [channel - 1 for channel in channels]]
    return chosen, len(pages), samples * (samples > len(channels))


def as_rgb(pixels: np.ndarray) -> Image.Image:
    """Pixels uint8 (H, W, C) of one to three channels as gray, or as red, green and blue."""
    if pixels.shape[-1] == 1:
        return Image.fromarray(pixels[..., 0]).convert("RGB")
    return Image.fromarray(np.pad(pixels, ((0, 0), (0, 0), (0, 3 - pixels.shape[-1]))))


def _require_channels(channels: Sequence[int], count: int) -> None:
    if max(channels) > count:
        raise ValueError(f"it has {count} channels, so no channel {max(channels)}")


def _tags(file: BinaryIO) -> tuple[int, int]:
    """Channels and bits of each. Raises ValueError if it is no TIFF."""
    try:
        file.seek(0)
        start = file.read(8)
        if start[:4] not in TIFF_STARTS:
            raise ValueError
        directory = TiffImagePlugin.ImageFileDirectory_v2(
            start + (file.read(8) if start[2:3] == b"+" else b"")
        )
        file.seek(directory.next)
        directory.load(file)
        file.seek(0)
        return int(directory.get(SAMPLES, 1)), int(np.max(directory[BITS]))
    except Exception:  # a damaged file can break it in any way
        raise ValueError("empty, or not an image") from None
