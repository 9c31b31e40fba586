"""How much memory there is, and whether decoded images fit in it."""

import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # this process's groups; the limits


def fits_in_memory(size: int) -> bool:
    """Whether `size` bytes are at most a quarter of this process's share of the memory."""
    return size <= available_memory() / 4


def available_memory() -> float:
    """This process's share of the memory, in bytes.

    The run's processes on this machine share the memory equally. It is what the system has available, or the
    limit of the job or container if that is lower.
    """
    available = 4e9  # if the system does not say
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        lines = dict(line.split(":") for line in text.splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min([available, *_limits()]) / processes


def _limits() -> Iterator[int]:
    """Memory limits in bytes of this process's Linux control groups, version 1 or 2."""
    try:
        lines = CONTROL_GROUPS[0].read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = CONTROL_GROUPS[1] / controllers
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        for folder in (top / group[1:], *(top / group[1:]).parents):
            try:
                limit = (folder / file).read_text().strip()
            except OSError:  # a container does not see the groups above its own
                continue
            if limit != "max":
                yield int(limit)
