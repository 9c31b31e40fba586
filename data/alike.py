"""Images that all look the same: something is lost on the way from the file, and nothing can be learned."""

import logging
import zlib

import numpy as np

log = logging.getLogger(__name__)

NEARLY_ALL = 0.9
DARK = 16  # the highest value of 255 that 12 bits have in a file of 16
LEVELS = 2  # grey levels that an image of one color may span: the noise of JPEG, or values of 0 and 1


def look(image):
    """Of uint8 (3, H, W): whether it is of one color, a checksum, and its highest value."""
    pixels = image.numpy()
    low, high = pixels.min((1, 2)).astype(int), pixels.max((1, 2))
    return bool((high - low <= LEVELS).all()), zlib.crc32(pixels.tobytes()), int(high.max())


def warn(looks, where):
    """Warn, naming the likely cause, if nearly all images are of one color, equal to each other, or black.

    Args:
        looks: what `look` returned of each.
        where: the split, for the message.
    """
    if not looks:
        return
    one_color, sums, highest = np.array(looks).T
    if one_color.mean() >= NEARLY_ALL:
        log.warning(
            "%s: %.0f %% of the images are of one color, so there is nothing to learn; likely causes: values "
            "of 0 to 1 instead of 0 to 255, masks, or white shapes on transparency, which is shown white",
            where,
            100 * one_color.mean(),
        )
        return
    equal = (sums == np.sort(sums)[len(sums) // 2]).mean()  # the median is one of them, if most are equal
    if equal >= NEARLY_ALL and len(looks) > 1:
        log.warning(
            "%s: %.0f %% of the images are equal to each other, so there is nothing to learn; likely cause: "
            "copies of one file, such as a placeholder from a download",
            where,
            100 * equal,
        )
        return
    if (highest <= DARK).mean() >= NEARLY_ALL:
        log.warning(
            "%s: nearly all images are almost black, with no value above %d of 255; likely cause: 10 or 12 "
            "bits in files of 16; scale the values to the whole range",
            where,
            DARK,
        )
