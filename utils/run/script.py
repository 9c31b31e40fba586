"""What every script does around its work: its command line, and how it ends."""

import argparse
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from termcolor import colored

from errors import UserError

from . import distributed, interrupt, schema
from .fingerprint import TUNABLE

log = logging.getLogger(__name__)


def run_script(main, when_stopped="the same command, without --fresh, goes on"):
    """Call `main()`. Exit status: 1, with one line of text, for a user's mistake; 128 + N for signal N.

    `when_stopped` says, after a signal, what to do next.
    """
    interrupt.listen()
    try:
        main()
        distributed.stop()
    except (UserError, OSError) as error:  # OSError: no permission, ...; it names the file
        _fail(error)
    except torch.OutOfMemoryError as error:
        _fail(f"the GPU's memory is full ({str(error).splitlines()[0]}); lower batch_size")
    except MemoryError as error:
        _fail(f"the memory is full ({error}); lower batch_size or the images' size")
    except RuntimeError as error:
        if re.search(r"shared memory|\bshm\b|bus error", str(error), re.I):
            _fail(
                f"the processes that decode images do not fit in /dev/shm ({_shared_memory()}); set "
                "num_workers=0, or make it larger (docker run --shm-size=8g, or --ipc=host)"
            )
        if "allocate memory" in str(error):  # how torch says MemoryError on a CPU
            _fail(f"the memory is full ({str(error).splitlines()[0]}); lower batch_size or the images' size")
        if distributed.world_size() == 1 or not re.search("connection|peer|nccl|gloo", str(error), re.I):
            raise
        log.debug("%s", error)
        _fail(
            "another process of this run was lost, so this one stops; the last checkpoint is intact: "
            "the same command, without --fresh, resumes from it (torchrun --max_restarts does so by itself)"
        )
    except interrupt.Interrupted as signal:
        if distributed.is_main():
            print(f"stopped by {signal}; {when_stopped}", file=sys.stderr)
        sys.exit(128 + signal.number)


def _shared_memory():
    try:
        return f"{shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB in all"
    except OSError:
        return "there is none"


def _fail(message):
    where = f" in process {distributed.rank()}" if distributed.world_size() > 1 else ""
    log.debug("error: %s", message)  # to log.txt, where there is one
    print(colored(f"error{where}:", "red", attrs=["bold"]), message, file=sys.stderr)
    sys.stderr.flush()
    # not sys.exit, which would wait for the other processes
    os._exit(1) if where else sys.exit(1)


def start_arguments(pretrained_help):
    """Function that adds the arguments on what a step starts from: --pretrained FILE, --fresh, ..."""

    def add(parser):
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
            help=f"go on from the checkpoint although {', '.join(TUNABLE)} changed",
        )

    return add


def file_argument(text):
    """argparse type of a file name."""
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"expected a file on this machine, found {text!r}")
    return Path(text).expanduser()


class _ListKeys(argparse.Action):
    """Prints the table of keys and exits, even if required arguments are missing, as --help does."""

    def __call__(self, parser, *_):
        print(schema.listing())
        parser.exit()


def default_environment():
    """configs/env.yml of the current folder or, without one, that of this program."""
    here = Path("configs/env.yml")
    return str(here if here.exists() else Path(__file__).parents[2] / here)


def parse_arguments(argv, description, add_arguments=None):
    """Parse the command line that all steps share: --config_env, --config_exp, --run, --data_dir, --set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--config_env", default=default_environment(), help="this machine (default: configs/env.yml)"
    )
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
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args(argv)
    if args.data_dir:
        args.overrides.append(f"data_dir={yaml_text(args.data_dir)}")
    return args


def yaml_text(path):
    """A path for --set KEY=PATH, in quotes where YAML would misread it, such as 2024, or a path with a #."""
    text = str(path)
    if re.fullmatch(r"[\w./-]*/[\w./-]*", text):
        return text
    return json.dumps(text, ensure_ascii=False)


def add_overrides(parser, help_):
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


def _run_name(text):
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, '_', '-' and '.', found {text!r}")
    return text
