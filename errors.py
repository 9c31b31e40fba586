"""The one exception whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """Input that cannot be used: a file, a key, a value.

    The message is one line that says what is wrong, where, and what to do. The scripts print it
    and exit with status 1; everything else that is raised is a defect of ours and keeps its
    traceback.
    """
