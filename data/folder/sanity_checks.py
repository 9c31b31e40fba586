"""Warnings about a folder as a whole: all images alike, black, of one color, or cut off by the crop."""

import logging
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .cache import FileRecord

if TYPE_CHECKING:
    from .decode import ResizeSpec

log = logging.getLogger(__name__)

NEARLY_ALL = 0.9
DARK = 16  # of 255: the highest value of 12-bit data in a 16-bit file
WHITES = (1023, 4095, 65535)  # of 10, 12 and 16 bits
WHITE = WHITES[-1]  # the value of 16-bit files that is shown white, if nothing else is known
MANY = 0.2  # share of the images
LEVELS = 2  # gray levels that an image of one color may span, because of JPEG noise or values of 0 and 1


class PixelSummary(NamedTuple):
    """What is compared between images."""

    one_color: int  # 1: the image has only one color
    checksum: int
    highest: int  # value


def summarize_pixels(image: torch.Tensor) -> PixelSummary:
    """The summary of an image, uint8 (3, H, W)."""
    pixels = np.ascontiguousarray(image.numpy())  # ten times as fast
    low, high = pixels.min((1, 2)).astype(int), pixels.max((1, 2))
    return PixelSummary(int((high - low <= LEVELS).all()), zlib.crc32(pixels.data), int(high.max()))


def warn_if_alike(summaries: Sequence[PixelSummary], where: str) -> None:
    """Log a warning with the likely cause if nearly all images have only one color, are equal, or are black.

    `where`: the split, for the message.
    """
    if not summaries:
        return
    one_color, checksums, highest = np.array(summaries).T
    # if most are equal, the median is their checksum
    equal = (checksums == np.sort(checksums)[len(checksums) // 2]).mean()
    if one_color.mean() >= NEARLY_ALL:
        log.warning(
            f"{where}: {100 * one_color.mean():.0f} % of the images are of one color, so there is nothing to "
            "learn; likely causes: values of 0 to 1 instead of 0 to 255, masks, or white shapes on "
            "transparency, which is shown white"
        )
    elif equal >= NEARLY_ALL and len(summaries) > 1:
        log.warning(
            f"{where}: {100 * equal:.0f} % of the images are equal to each other, so there is nothing to "
            "learn; likely cause: copies of one file, such as a placeholder from a download"
        )
    elif (highest <= DARK).mean() >= NEARLY_ALL:
        log.warning(
            f"{where}: nearly all images are almost black, with no value above {DARK} of 255; likely cause: "
            "10 or 12 bits in color files of 16; scale the values to the whole range"
        )


def white_of(brightest: int) -> int:
    """The lowest of WHITES that is at least `brightest`, the highest value of all 16-bit files, or -1."""
    return next(white for white in WHITES if brightest <= white) if brightest >= 0 else WHITE


def warn_of_white(records: Iterable[FileRecord], white: int, given: int | None, where: str) -> None:
    """Log a warning if the value that is shown white may be wrong; `given`: None if `white_of` chose it."""
    values = [record.brightest for record in records if record.brightest >= 0]
    if not given and values and white < WHITE:
        log.warning(
            f"{where}: no value of its {len(values)} images of 16 bits is above {max(values)}, so {white} is "
            f"shown white, as of {white.bit_length()} bits; if they are dark images of 16 bits, set "
            f"white_level: {WHITE}"
        )
    above = sum(value > white for value in values)
    if above:
        log.warning(
            f"{where}: {above} of its {len(values)} images of 16 bits have values above {white}, up to "
            f"{max(values)}, which are all shown white; {white} comes from white_level or from the training "
            "images"
        )


def warn_of_images(records: Iterable[FileRecord], spec: "ResizeSpec", where: str) -> None:
    """Log warnings about what a folder's images have in common, and what is left out of them."""
    readable = [record for record in records if not record.reason]
    warn_if_alike([PixelSummary(r.one_color, r.checksum, r.highest) for r in readable], where)
    long = sum(2 * max(r.width, r.height) > 3 * min(r.width, r.height) for r in readable)
    share = long / max(1, len(readable))
    if spec.resize == "crop" and share >= MANY:
        log.warning(
            f"{where}: {100 * share:.0f} % of the images are over 1.5 times as long as wide, and the crop to "
            "a square leaves out more than a third of them; to show them whole, set resize: pad or squeeze"
        )
    of = f"{where}: {{}} of {len(readable)} files have"
    if several := sum(record.pages > 1 for record in readable):
        used = f"the {spec.pages} one is used; to choose: pages (first, middle or all)"
        log.warning(f"{of.format(several)} several pages or frames; {used}")
    if counts := [record.channels for record in readable if record.channels]:
        numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
        used = ", ".join(map(str, spec.channels)) if spec.channels else "at most the first three"
        log.warning(
            f"{of.format(len(counts))} {numbers} channels; used: {used}; to choose: channels (such as 1,2,3)"
        )
