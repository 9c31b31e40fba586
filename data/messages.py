"""Messages about files: names and sizes as text, and messages that a process logs only once."""

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator


def shown(name: str) -> str:
    """A file name, whatever its bytes, as one line that UTF-8 can encode; different names stay different."""
    return re.sub(
        r"[^ -\[\]-~\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]",
        lambda c: ascii(c[0])[1:-1],
        name.replace(os.sep, "/"),
    )


def numbered(name: str, suffix: str = "") -> Iterator[str]:
    """NAME, NAME (2), NAME (3) and so on, each with the suffix."""
    yield name + suffix
    for number in itertools.count(2):
        yield f"{name} ({number}){suffix}"


def amount(num_bytes: float) -> str:
    """A number of bytes, in words."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


@functools.cache
def say_once(write: Callable[[str], None], message: str) -> None:
    """Call `write(message)`, such as log.info, once per process: a split may be built several times."""
    write(message)
