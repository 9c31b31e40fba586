"""Messages about files: their names as text, and lines that one process logs once."""

import functools
import os
import re


def shown(name):
    """A file name as one line of text that UTF-8 can hold, whatever bytes are in it; no two become equal."""
    return re.sub(
        r"[^ -\[\]-~\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]",
        lambda c: ascii(c[0])[1:-1],
        name.replace(os.sep, "/"),
    )


@functools.cache
def say_once(write, message):
    """`write(message)`, such as log.info, once in a process, in which a split may be built several times."""
    write(message)
