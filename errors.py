"""UserError, whose message is written for the user, and the "did you mean" hint that many messages have."""

import difflib
import errno
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


NOT_CONNECTED = "connect the drive again, and give the same command"
TO_DO = {  # about what the system refuses
    errno.EACCES: "change its permissions or give another place",
    errno.EPERM: "change its permissions or give another place",
    errno.EROFS: "give a place that can be written",
    errno.ENOSPC: "free some space, and give the same command again",
    errno.EDQUOT: "free some space, and give the same command again",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "give a folder",
    errno.EISDIR: "give a file in it",
    errno.ENAMETOOLONG: "shorten it",
    errno.ELOOP: "remove the link that leads back to itself",
    errno.EMFILE: "raise the number of files that may be open (ulimit -n 4096)",
    errno.EIO: "check the drive, and copy what can still be read",
    **dict.fromkeys((errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN), NOT_CONNECTED),
}


def refusal(error: OSError) -> str:
    """What the system says, in brackets, and what to do about it."""
    advice = TO_DO.get(error.errno or 0, "")
    return f"({error.strerror or first_line(error)})" + (f"; {advice}" if advice else "")
