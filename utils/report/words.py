"""Numbers as the page writes them."""

import math


def thousands(count: int) -> str:
    """12345 -> 12,345."""
    return f"{count:,}"


def percent(share: float) -> str:
    """0.973 -> 97 %. Only 0 is written as 0 %, and only 1 as 100 %."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    if 0 < value < 1:
        return f"{math.floor(10 * value + 0.5) / 10:.1f} %"
    if 99 < value < 100:
        return f"{math.floor(10 * value) / 10:.1f} %"
    return f"{math.floor(value + 0.5)} %"  # a half is rounded up, as in page.js


def plural(count: int, singular: str) -> str:
    """1 image, 12,345 images."""
    return f"{thousands(count)} {singular if count == 1 else singular + 's'}"
