"""Numbers as people read them."""

import math


def number(count):
    """12345 -> 12,345."""
    return f"{count:,}"


def percent(share):
    """0.973 -> 97 %. Only none is 0 % and only all is 100 %."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    if 0 < value < 1:
        return f"{math.floor(10 * value + 0.5) / 10:.1f} %"
    if 99 < value < 100:
        return f"{math.floor(10 * value) / 10:.1f} %"
    return f"{math.floor(value + 0.5)} %"  # a half goes up, as in page.js


def figure(value):
    """A figure of four digits."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def plural(count, singular, several=None):
    """1 image, 12,345 images."""
    return f"{number(count)} {singular if count == 1 else several or singular + 's'}"
