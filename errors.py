"""UserError, whose message is written for the user, and the "did you mean" hint that many messages have."""

import difflib
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """Input that cannot be used: a file, a key, a value.

    The message is one line that says what is wrong, where, and what to do. The scripts print it and exit with
    status 1. Bugs in this program raise other exceptions and keep their traceback.
    """


class CannotTrainError(UserError):
    """A step cannot train what it was given, and could not at a second try."""


def did_you_mean(name: object, known: Iterable[str], shown: Callable[[str], str] = repr) -> str:
    """The question "did you mean ...?" with the known name closest to `name`; "" if none is close.

    `name` may be of any type, since it may come from a YAML file. `shown` formats the known name.
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {shown(near[0])}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, which may have many; the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
