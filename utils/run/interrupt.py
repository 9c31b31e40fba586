"""Signals: the first one stops the run cleanly; a second one, if it is SIGINT or SIGTERM, at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Raised by the first signal; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_owner: int | None = None  # the process that listens
_noted: int | None = None  # number of the signal that came
_deferred = False


def listen() -> None:
    """From now on SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 raise Interrupted; nohup's SIGHUP does not."""
    global _noted, _owner
    _noted, _owner = None, os.getpid()
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name, None)  # Windows has two of them
            if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _noted
    if os.getpid() != _owner:  # a worker process that is still starting; it ends with its owner
        os._exit(0)
    if _noted is not None:
        if number in (signal.SIGINT, signal.SIGTERM):  # a terminal that is closed may send SIGHUP twice
            os._exit(128 + number)
        return
    _noted = number
    if not _deferred:
        raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Context manager in which a signal is noted, but does not raise."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def check() -> None:
    """Raise Interrupted if a signal came."""
    if _noted is not None:
        raise Interrupted(_noted)


def noted() -> int | None:
    """The number of the signal that came, or None."""
    return _noted
