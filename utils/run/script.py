"""What every script does around its work: its command line, and how it ends."""

import argparse
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self

from termcolor import colored

from errors import UserError, first_line, refusal

from . import config, interrupt, processes, schema
from .version import VERSION

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CommandOptions:
    """Choices of a command line, in a field each."""

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> Self:
        """The options among the arguments of a command line; the others keep their default."""
        given: dict[str, Any] = {
            field.name: getattr(args, field.name, field.default) for field in fields(cls)
        }
        return cls(**given)


def run_script(
    main: Callable[[], object], when_stopped: str = "the same command, without --fresh, goes on"
) -> None:
    """Call `main()`. Exit status: 1, with one line of text, for a user's mistake; 128 + N for signal N.

    `when_stopped` says, after a signal, what to do next.
    """
    interrupt.listen()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of names that Windows' code pages lack
    try:
        main()
        if processes.launched():
            from . import distributed  # imports torch, which --help does without

            distributed.stop()
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # no permission, no space, ...
        _fail(f"{error.filename or 'a file'}: cannot be used {refusal(error)}")
    except (MemoryError, RuntimeError) as error:
        message = _message_for(error)
        if message is None:
            raise
        log.debug("%s", error)
        _fail(message)
    except interrupt.Interrupted as signal:
        if processes.is_main():
            with suppress(OSError):  # a terminal that was closed
                print(f"stopped by {signal}; {when_stopped}", file=sys.stderr)
        sys.exit(128 + signal.number)


def _message_for(error: Exception) -> str | None:
    """The message for an error that is no bug: memory that is full, or a process that was lost; else None."""
    text = str(error)
    line = first_line(error)
    if type(error).__name__ == "OutOfMemoryError" or "backend out of memory" in text:  # the latter: MPS
        return f"the GPU's memory is full ({line}); lower batch_size"
    if isinstance(error, MemoryError) or "allocate memory" in text:  # how torch says it on a CPU
        return f"the memory is full ({line}); lower batch_size or the images' size"
    if re.search(r"shared memory|\bshm\b", text):
        return (
            "the processes that decode images do not fit in /dev/shm; set num_workers=0, or make it larger "
            "(docker run --shm-size=8g, or --ipc=host)"
        )
    if processes.world_size() > 1 and re.search("connection|peer|nccl|gloo", text, re.I):
        return (
            "another process of this run was lost, so this one stops; the last checkpoint is intact: "
            "the same command, without --fresh, resumes from it (torchrun --max_restarts does so by itself)"
        )
    return None


def _fail(message: str) -> NoReturn:
    where = f" in process {processes.rank()}" if processes.world_size() > 1 else ""
    log.debug("error: %s", message)  # to log.txt, where there is one
    print(colored(f"error{where}:", "red", attrs=["bold"]), message, file=sys.stderr)
    sys.stderr.flush()
    if where:
        os._exit(1)  # sys.exit would wait for the other processes
    sys.exit(1)


def _add_start_arguments(parser: argparse.ArgumentParser, pretrained_help: str) -> None:
    """Add the arguments on what a step starts from: --pretrained FILE, --fresh, --accept_changes."""
    parser.add_argument("--pretrained", metavar="FILE", type=file_argument, help=pretrained_help)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over instead of resuming; the earlier results are kept as *.old until a new model is "
        "trained",
    )
    parser.add_argument(
        "--accept_changes",
        action="store_true",
        help=f"go on from the checkpoint although {', '.join(schema.TUNABLE)} changed",
    )


def file_argument(text: str) -> Path:
    """argparse type of a file name."""
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"expected a file on this machine, found {text!r}")
    return Path(text).expanduser()


class _ListKeys(argparse.Action):
    """Prints the table of keys and exits, even if required arguments are missing, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(schema.listing())
        parser.exit()


def own_file(name: str) -> str:
    """A file of this program, such as one in configs/; relative if the program is in the current folder."""
    return name if Path(name).resolve() == (PROGRAM / name).resolve() else str(PROGRAM / name)


def default_environment() -> str:
    """configs/env.yml of this program; or that of the current folder, if it holds keys of this program only.

    A line tells of the latter, whether it is read or not.
    """
    here, own = Path("configs/env.yml"), own_file("configs/env.yml")
    if not here.exists() or str(here) == own:
        return own
    try:
        config.read_environment(here)
    except UserError as error:
        _tell(f"{error}; so it is taken for another program's, and {own} is read")
        return own
    _tell(f"this machine's settings are those of {here.resolve()}; the program's own: --config_env {own}")
    return str(here)


@cache
def _tell(line: str) -> None:
    """Print a line once, however many steps a command has."""
    print(line, file=sys.stderr)


def parse_arguments(
    argv: Sequence[str] | None,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    pretrained_help: str | None = None,
) -> argparse.Namespace:
    """Parse the command line that all steps share: --config_env, --config_exp, --run, --data_dir, --set.

    Args:
        add_arguments: adds the script's own arguments.
        pretrained_help: of --pretrained, for a step that has it, --fresh and --accept_changes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config_env", metavar="FILE", help="this machine (default: configs/env.yml)")
    parser.add_argument(
        "--config_exp", required=True, help="the experiment, configs/<step>/<step>_<dataset>.yml"
    )
    parser.add_argument(
        "--run",
        metavar="NAME",
        type=_run_name,
        help="keep the results apart, in root_dir/NAME/ (torchrun needs a -- before the script)",
    )
    parser.add_argument("--data_dir", help="folder of the datasets; the same as --set data_dir=...")
    add_overrides(parser, "override a key of either file: --set epochs=1 optimizer_kwargs.lr=0.1")
    parser.add_argument(
        "--list-keys",
        action=_ListKeys,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print every key of both files with its values, its default and what requires it, and exit",
    )
    add_version(parser)
    if pretrained_help is not None:
        _add_start_arguments(parser, pretrained_help)
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args(argv)
    args.config_env = args.config_env or default_environment()
    if not Path(args.config_exp).exists() and (PROGRAM / args.config_exp).is_file():
        args.config_exp = own_file(args.config_exp)
    if args.data_dir:
        args.overrides.append(f"data_dir={yaml_text(args.data_dir)}")
    return args


def is_name(text: str) -> bool:
    """Whether a text can be the name of a run, a results folder or a record."""
    return re.fullmatch(r"\w[\w.-]*", text) is not None


def yaml_text(path: str | Path) -> str:
    """A path for --set KEY=PATH, in quotes where YAML would misread it, such as 2024, or a path with a #."""
    text = str(path)
    if re.fullmatch(r"[\w./-]*/[\w./-]*", text):
        return text
    return json.dumps(text, ensure_ascii=False)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version to a command line."""
    parser.add_argument("--version", action="version", version=f"scan-clustering {VERSION}")


def add_overrides(parser: argparse.ArgumentParser, help_: str) -> None:
    """Add --set KEY=VALUE ... to a command line, as `overrides`."""
    parser.add_argument(
        "--set",
        "-s",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help=help_,
    )


def _run_name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, '_', '-' and '.', found {text!r}")
    return text
