"""Where figures come from: the machines, versions and commands that produced them."""

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import TypedDict

import torch

from utils.files import write_json
from utils.run.fingerprint import read_fingerprint
from utils.run.folder import FINGERPRINT
from utils.run.machine import Machine, dtype_name
from utils.run.script import PROGRAM
from utils.run.version import VERSION

MADE_WITH = "made_with.json"  # in each step's folder: the machines and versions that produced its results


class Origin(TypedDict):
    """Where the figures of a table of reproduce.py come from; written as JSON."""

    dataset: str
    command: str
    finished: str  # date of the last step
    rehearsal: bool
    settings: list[str]  # other than those of the experiment files
    seeds: list[int]
    protocol: list[str]  # sentences on how the figures were obtained
    made_with: list[dict[str, str]]  # machines and versions, see `note_maker`


def note_maker(folder: Path, machine: Machine) -> None:
    """Record what computes, and the installed versions, in the step's MADE_WITH, once."""
    threads = f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
    maker = {
        "machine": torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else threads,
        "precision": dtype_name(machine.precision),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    makers = read_makers(folder)
    if maker not in makers:
        folder.mkdir(parents=True, exist_ok=True)
        write_json([*makers, maker], folder / MADE_WITH)


def read_makers(folder: Path) -> list[dict[str, str]]:
    """The records of `note_maker`, a list of dicts; empty if the step's script was run by hand."""
    path = folder / MADE_WITH
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def origin_of(args: argparse.Namespace, folders: list[Path], lines: list[str]) -> Origin:
    """The origin of figures.

    Args:
        args: the command line of reproduce.py.
        folders: of the steps' results.
        lines: what else is to be said of how the figures were obtained.
    """
    finished = max((folder / FINGERPRINT).stat().st_mtime for folder in folders)
    makers = [maker for folder in folders for maker in read_makers(folder)]
    splits = [read_fingerprint(folder).get("data", {}) for folder in folders]
    unlabeled = any("unlabeled" in of and of["unlabeled"] != of["train"] for of in splits)
    several = "; mean ± standard deviation (n - 1); worst: the lowest ACC" if len(args.seeds) > 1 else ""
    protocol = [
        "A rehearsal: the figures mean nothing." if args.rehearse else "",
        f"Data: trained on the train split{' (pretext: train+unlabeled)' if unlabeled else ''}, evaluated on "
        "the test split; labels serve these figures only.",
        *lines,
        f"Seeds: {', '.join(map(str, args.seeds))}{several}.",
        f"Settings other than those of the files: {' '.join(args.overrides)}." if args.overrides else "",
    ]
    return {
        "dataset": args.dataset,
        "command": command_of(args),
        "finished": datetime.date.fromtimestamp(finished).isoformat(),
        "rehearsal": args.rehearse,
        "settings": args.overrides,
        "seeds": args.seeds,
        "protocol": [line for line in protocol if line],
        "made_with": [maker for i, maker in enumerate(makers) if maker not in makers[:i]],
    }


def command_of(args: argparse.Namespace) -> str:
    """The command line of reproduce.py that gives these figures, without the folders."""
    command = [args.dataset]
    command += ["--ablation", args.ablation] if args.ablation else []
    command += ["--seeds", *map(str, args.seeds)]
    command += ["--rehearse"] if args.rehearse else []
    command += ["--set", *args.overrides] if args.overrides else []
    return f"python reproduce.py {shlex.join(command)}"


def _commit() -> str:
    """The git commit of this program, with -dirty appended if files differ from it; or its version."""
    if not (PROGRAM / ".git").exists():  # the commit would be that of whatever it lies in
        return f"v{VERSION}"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"
