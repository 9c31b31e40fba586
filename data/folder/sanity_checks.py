"""Warnings about what all images of a folder have in common, which reading one of them cannot tell."""

import logging
import zlib

import numpy as np

log = logging.getLogger(__name__)

NEARLY_ALL = 0.9
DARK = 16  # of 255: the highest value of 12-bit data in a 16-bit file
WHITES = (1023, 4095, 65535)  # of 10, 12 and 16 bits
MANY = 0.2  # share of the images
LEVELS = 2  # gray levels that an image of one color may span, because of JPEG noise or values of 0 and 1


def look(image):
    """For an image, uint8 (3, H, W): whether it has only one color, a checksum, and its highest value."""
    pixels = np.ascontiguousarray(image.numpy())  # ten times as fast
    low, high = pixels.min((1, 2)).astype(int), pixels.max((1, 2))
    return bool((high - low <= LEVELS).all()), zlib.crc32(pixels), int(high.max())


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
            "bits in color files of 16; scale the values to the whole range",
            where,
            DARK,
        )


def white_of(seen, otherwise):
    """The 16-bit value that is white: that of 10, 12 or 16 bits, by the brightest of all images.

    Args:
        seen: list of `kept.Seen`.
        otherwise: what to return if no image has 16 bits.
    """
    brightest = max((facts.brightest for facts in seen), default=-1)
    return next(white for white in WHITES if brightest <= white) if brightest >= 0 else otherwise


def tell_white(seen, white, given, where):
    """Log a warning if the value that is shown white may be wrong.

    Args:
        seen: list of `kept.Seen`.
        white: the value.
        given: the same if it was given, None if `white_of` chose it.
        where: the split, for the message.
    """
    values = [facts.brightest for facts in seen if facts.brightest >= 0]
    if not given and values and white < WHITES[-1]:
        log.warning(
            "%s: no value of its %d images of 16 bits is above %d, so %d is shown white, as of %d "
            "bits; if they are dark images of 16 bits, set white_level: 65535",
            where,
            len(values),
            max(values),
            white,
            white.bit_length(),
        )
    above = sum(value > white for value in values)
    if above:
        log.warning(
            "%s: %d of its %d images of 16 bits have values above %d, up to %d, which are all shown white; "
            "white_level, or the training images, say so",
            where,
            above,
            len(values),
            white,
            max(values),
        )


def warn_of_crop(seen, resize, where):
    """Log a warning if the square crop leaves out over a third of many images; `seen`: as above."""
    shapes = [(facts.width, facts.height) for facts in seen if not facts.reason]
    share = sum(2 * max(shape) > 3 * min(shape) for shape in shapes) / max(1, len(shapes))
    if resize == "crop" and share >= MANY:
        log.warning(
            "%s: %.0f %% of the images are over 1.5 times as long as wide, and the crop to a square "
            "leaves out more than a third of them; to show them whole, set resize: pad or squeeze",
            where,
            100 * share,
        )
