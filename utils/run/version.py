"""The version of this program, and of the program that made some results."""

import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

VERSION = "1.0.0"  # pyproject.toml reads it here


@cache
def warn_if_newer(version: str, results: Path) -> None:
    """Log a warning, once, if results were made by a newer major version than this one."""
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) > int(VERSION.partition(".")[0]):
        told = results, version, VERSION
        log.warning("%s: made by version %s, which this one, %s, may misread; use that one", *told)
