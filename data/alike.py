"""A warning when all images look the same: reading them went wrong, and nothing can be learned."""

import logging
import zlib

import numpy as np

log = logging.getLogger(__name__)

NEARLY_ALL = 0.9
DARK = 16  # of 255: the highest value of 12-bit data in a 16-bit file
LEVELS = 2  # gray levels that an image of one color may span, because of JPEG noise or values of 0 and 1


def look(image):
    """For an image, uint8 (3, H, W): whether it has only one color, a checksum, and its highest value."""
    pixels = image.numpy()
    low, high = pixels.min((1, 2)).astype(int), pixels.max((1, 2))
    return bool((high - low <= LEVELS).all()), zlib.crc32(pixels.tobytes()), int(high.max())


def warn(looks, where):
    """Log a warning with the likely cause if nearly all images have only one color, are equal, or are black.

    Args:
        looks: what `look` returned for each image.
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
    equal = (sums == np.sort(sums)[len(sums) // 2]).mean()  # if most are equal, the median is their checksum
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
