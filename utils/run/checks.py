"""What the value of a configuration key may be."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from errors import did_you_mean


class Check(NamedTuple):
    """The values that a key may have."""

    words: str  # what they are; completes "KEY must be ..."
    convert: Callable[[Any], Any]  # returns the value, converted if need be, or raises ValueError with words


def number(
    low: float | None = None,
    high: float | None = None,
    whole: bool = False,
    above: float | None = None,
    below: float | None = None,
) -> Check:
    """A number within these bounds: `low` and `high` are allowed, `above` and `below` are not."""
    bounds = {"above": above, "of at least": low, "of at most": high, "below": below}
    words = "a whole number" if whole else "a number"
    words += "".join(f" {bound} {value}" for bound, value in bounds.items() if value is not None)

    def convert(value: Any) -> float:
        try:  # YAML reads 1e-4 (without a dot) as a string
            value = float(value) if isinstance(value, str) else value
            good = not isinstance(value, bool) and math.isfinite(value) and (not whole or value == int(value))
            good = good and (low is None or value >= low) and (high is None or value <= high)
            good = good and (above is None or value > above) and (below is None or value < below)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise ValueError(words)
        return int(value) if whole else value

    return Check(words, convert)


def one_of(*names: str) -> Check:
    words = f"one of {', '.join(names)}"

    def convert(value: Any) -> str:
        if value not in names:
            question = did_you_mean(value, names)
            raise ValueError(f"{words} ({question})" if question else words)
        return value

    return Check(words, convert)


def list_of(check: Check, length: int | None = None) -> Check:
    words = f"a list of {length} numbers" if length else "a list"

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or (length and len(value) != length):
            raise ValueError(words)
        if not value:
            raise ValueError("a list that is not empty")
        return [check.convert(item) for item in value]

    return Check(words, convert)


def one_or_several(check: Check) -> Check:
    """A value, or a list of such values."""
    several = list_of(check)
    words = f"{check.words} or a list of them"

    def convert(value: Any) -> Any:
        try:
            return (several if isinstance(value, list | tuple) else check).convert(value)
        except ValueError:
            raise ValueError(words) from None

    return Check(words, convert)


def satisfying(
    good: Callable[[Any], object], words: str, convert: Callable[[Any], Any] = lambda value: value
) -> Check:
    """A value that is good once it is converted."""

    def checked(value: Any) -> Any:
        value = convert(value)
        if not good(value):
            raise ValueError(words)
        return value

    return Check(words, checked)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _is_relative(name: str) -> bool:
    path = Path(name)  # it names folders of data and of results
    return not path.anchor and ".." not in path.parts and path != Path()


def _on_or_off(value: Any) -> Any:
    """YAML 1.1 reads on and off as booleans."""
    return ("on" if value else "off") if isinstance(value, bool) else value


BOOLEAN = satisfying(lambda value: isinstance(value, bool), "True or False")
STRING = satisfying(_is_name, "a name")
DATASET = satisfying(
    _is_relative,
    "the name of a dataset within data_dir",
    lambda value: Path(STRING.convert(value)).as_posix(),  # no slash at the end, as a shell completes it
)
DEVICE = satisfying(
    lambda value: re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,2})?", str(value)), "auto, cpu, cuda, cuda:N or mps"
)
_AUTO_ON_OFF = one_of("auto", "on", "off")
ON_OR_OFF = Check(_AUTO_ON_OFF.words, lambda value: _AUTO_ON_OFF.convert(_on_or_off(value)))
SCALE = satisfying(
    lambda pair: pair[0] <= pair[1],
    "a list of two shares of the area, the smaller one first",
    list_of(number(above=0, high=1), 2).convert,
)
POSITIVE = number(1, whole=True)
PROBABILITY = number(0, 1)
SIDE = number(1, 10_000, whole=True)  # of an image, in pixels
