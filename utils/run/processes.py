"""Which process of a run this is, by what torchrun says; without torch, which takes seconds to import."""

import os

from errors import UserError


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def require_one_process(script: str) -> None:
    """Raise UserError if torchrun started this script, which works in one process."""
    if launched():
        raise UserError(f"{script} works in one process: start it with python, not with torchrun")


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int | None:
    """Number of this process on its machine; None without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if launched() else None


def is_main() -> bool:
    """Whether this is the process that writes the results."""
    return rank() == 0


def attempt() -> int:
    """How often torchrun has started the processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if launched() else 0
