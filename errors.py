"""The one exception whose message is written for the person at the keyboard, and the hint in many of them."""

import difflib


class UserError(ValueError):
    """Input that cannot be used: a file, a key, a value.

    The message is one line that says what is wrong, where, and what to do. The scripts print it
    and exit with status 1; everything else that is raised is a defect of ours and keeps its
    traceback.
    """


def did_you_mean(name, known, shown=repr):
    """The question "did you mean ...?" about the known name that is most like `name`; "" if none is.

    Args:
        name: what was given; a YAML file may give any type.
        known: iterable of strings.
        shown: function of the known name that says how the question shows it.
    """
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {shown(near[0])}?" if near else ""
