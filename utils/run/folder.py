"""One run of one step: its results folder, its log and its seed."""

import atexit
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from termcolor import colored

from errors import UserError
from utils.files import atomic

from . import checkpoint, processes
from .config import mismatches, to_dict
from .loggers import Loggers
from .machine import Machine
from .schema import Config

log = logging.getLogger(__name__)

# What the steps write to the folder, except config.yml and log.txt, which every run rewrites or appends to.
CHECKPOINT, MODEL, FINGERPRINT = "checkpoint.pth.tar", "model.pth.tar", "fingerprint.json"
EPOCHS, FIGURES = "metrics.jsonl", "metrics.json"
MINED_TRAIN, MINED_TEST = "topk-train-neighbors.npy", "topk-val-neighbors.npy"
# FINGERPRINT holds the digests of these, so that a file that was replaced is noticed.
SIGNED = (MODEL, MINED_TRAIN, MINED_TEST, FIGURES)
PICTURES = "curves.png", "confusion_matrix.png"
TRAINING_FEATURES = "training_features.npz"
RESULTS = (CHECKPOINT, *SIGNED, EPOCHS, *PICTURES, "assignment.csv", TRAINING_FEATURES, FINGERPRINT)


class Run:
    """One run of one step: its results folder, its log and lock, and its random numbers.

    Args:
        config: the checked configuration.
        folder: of the results; created.
        machine: what it computes on.
        fresh: set an earlier run's results in that folder aside instead of resuming that run.
        accept_changes: resume even if settings have changed that may change, see `schema.Key`.

    Attributes:
        main: whether this process writes the results; of torchrun's processes only one does.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        machine: Machine,
        fresh: bool = False,
        accept_changes: bool = False,
    ) -> None:
        self.config = config
        self.folder = folder
        self.machine = machine
        self.main = processes.is_main()
        self.fresh = fresh and not processes.attempt() > 0
        self.accept_changes = accept_changes
        self.loggers = Loggers((config.logger or []) if self.main else [], folder, config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.start_logging()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot write results there ({error}); set root_dir, or --output of eval.py"
            ) from None
        for path in (self.folder / name for name in RESULTS):
            if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
                raise UserError(f"{path}: cannot be replaced; move it away, or set another root_dir")
        self.seed()
        log.info("%s on %s, results in %s", config.setup, machine, self.folder)
        for mismatch in mismatches(config):
            log.warning("%s", mismatch)

    def starts_untrained(self) -> bool:
        """Whether there is no checkpoint to resume, or --fresh was given."""
        return self.fresh or not (self.folder / CHECKPOINT).exists()

    def start_logging(self) -> None:
        """Log to the console and to log.txt, in the main process."""
        console = logging.StreamHandler()
        console.setLevel(logging.INFO if self.main else logging.ERROR)
        console.setFormatter(_ColorFormatter("%(message)s"))
        logging.raiseExceptions = False  # a full disk must not print a traceback for each line of log.txt
        logging.basicConfig(level=logging.INFO, handlers=[console], force=True)
        if self.main:
            file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8", errors="backslashreplace")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            lock(file.stream, self.folder, "--run NAME")  # type: ignore[arg-type]  # it is open
            logging.getLogger().addHandler(file)
        logging.getLogger(__name__.split(".run.")[0]).setLevel(logging.DEBUG)  # details, for the file only
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it lists the instruction sets that it tried

    def seed(self, epoch: int = -1) -> None:
        """Seed all random numbers by (seed, epoch), so that a resumed epoch repeats, on a CPU exactly."""
        torch.manual_seed(self.config.seed * 1_000_003 + epoch + 1)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Context manager of a folder for large intermediate files; removed at the end."""
        folder = self.folder / "scratch"
        if not self.main:
            yield folder
            return
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():  # Windows keeps files that are mapped
                atexit.register(shutil.rmtree, folder, ignore_errors=True)

    # --- what is written: by the main process only -----------------------------------------------

    def save(self, content: dict[str, Any], name: str) -> None:
        """Save a file of weights in the folder."""
        if self.main:
            checkpoint.save(content, self.folder / name)

    def save_config(self) -> None:
        """Save the resolved configuration beside the results."""
        if self.main:
            with atomic(self.folder / "config.yml") as path:
                path.write_text(yaml.safe_dump(to_dict(self.config), sort_keys=False), encoding="utf-8")

    def log_epoch(self, metrics: dict[str, Any]) -> None:
        """Append one JSON line of metrics to metrics.jsonl."""
        if self.main:
            with open(self.folder / EPOCHS, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
            self.loggers.log_epoch(metrics)

    def truncate_epochs(self, epochs_done: int) -> None:
        """Remove the lines of later epochs, which will be repeated, from metrics.jsonl."""
        if self.main:
            kept = [line for line in self.read_epochs() if line["epoch"] <= epochs_done]
            with atomic(self.folder / EPOCHS) as path:
                path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            for line in kept:
                self.loggers.log_epoch(line)

    def read_epochs(self) -> list[dict[str, Any]]:
        """The metrics of the epochs so far."""
        return read_epochs(self.folder)


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics of the epochs of a step, by its folder."""
    path = folder / EPOCHS
    epochs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            epoch = json.loads(line)
        except json.JSONDecodeError:  # a line cut short by a crash; its epoch will be repeated
            break
        if not isinstance(epoch, dict) or not isinstance(epoch.get("epoch"), int):
            break
        epochs.append(epoch)
    return epochs


def results_folder(config: Config, step: str) -> Path:
    """`{root_dir}/{train_db_name}/{step}`; the steps are pretext, scan, selflabel."""
    return Path(config.root_dir).expanduser() / config.train_db_name / step


def earlier_folder(config: Config, step: str, run_name: str | None) -> Path:
    """Folder of an earlier step's results; if the run named by --run has none, of those without --run."""
    folder = find_earlier_folder(config, step, run_name)
    if folder != results_folder(config, step):
        log.info("--run %s has no %s step of its own: %s is used", run_name, step, folder)
    return folder


def find_earlier_folder(config: Config, step: str, run_name: str | None) -> Path:
    """As `earlier_folder`, but logs nothing."""
    own = results_folder(config, step)
    shared = Path(config.root_dir).expanduser().parent / config.train_db_name / step
    lacks = run_name and not (own / MODEL).exists()
    return shared if lacks and (shared / MODEL).exists() else own


def rename(folder: Path, target: Path) -> None:
    """Rename a step's folder, although its log may be open, which Windows would refuse."""
    handlers = (h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler))
    logs = [handler for handler in handlers if folder.resolve() in Path(handler.baseFilename).parents]
    for handler in logs:
        handler.close()  # the next message opens it again
    folder.rename(target)
    for handler in logs:
        handler.baseFilename = str(target.resolve() / "log.txt")


def lock(file: IO[Any], folder: Path, apart: str, holder: str = "") -> None:
    """Lock an open file of a folder until this process ends or closes it; without locks, do nothing.

    Raises UserError if another process, `holder`, has locked it; `apart` is what keeps two runs apart.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        which = f" ({holder})" if holder else ""
        raise UserError(
            f"{folder}: another run is using this folder{which}; wait for it, or keep this one apart with "
            f"{apart}"
        ) from None
    except OSError:  # a network drive without locks
        pass


class _ColorFormatter(logging.Formatter):
    COLORS = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return colored(text, self.COLORS[record.levelno]) if record.levelno in self.COLORS else text
