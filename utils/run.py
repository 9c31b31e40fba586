"""One run of one step: its folder, its log, its device, its seed."""

import json
import logging
import sys
from pathlib import Path

import torch
import yaml
from termcolor import colored

from errors import UserError

from . import checkpoint
from .config import differences, experiment_of, to_dict

log = logging.getLogger(__name__)


def run_script(main):
    """Call `main()` and exit: 1 and one line for a user's mistake, 130 for Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(colored("error:", "red", attrs=["bold"]), error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last complete epoch", file=sys.stderr)
        sys.exit(130)


def add_fresh(parser):
    """The command-line flag of the steps that train."""
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming an earlier run")


class Run:
    """Where a step works and what it works with.

    Args:
        config: the checked configuration.
        folder: pathlib.Path of the results; created.
        fresh: forget an earlier run in that folder instead of resuming it.

    Attributes:
        device: torch.device that everything computes on.
        precision: torch dtype of the network during training and monitoring.
    """

    def __init__(self, config, folder, fresh=False):
        self.config = config
        self.folder = folder
        self.device = choose_device(config.device)
        self.precision = choose_precision(config.precision, self.device)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                for name in ("checkpoint.pth.tar", "model.pth.tar", "metrics.jsonl"):
                    (self.folder / name).unlink(missing_ok=True)
            self.start_logging()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot write results there ({error}); set root_dir") from None
        self.seed()
        log.info(
            "%s on %s, results in %s", config.setup, f"{self.device} ({str(self.precision)[6:]})", self.folder
        )

    def start_logging(self):
        """Log to the console and to log.txt."""
        console = logging.StreamHandler()
        console.setFormatter(_ColorFormatter("%(message)s"))
        file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[console, file], force=True)
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which instruction sets it tried

    def seed(self, epoch=None):
        """Seed all random numbers by (seed, epoch), so that a resumed epoch repeats exactly."""
        torch.manual_seed(self.config.seed * 1_000_003 + (0 if epoch is None else epoch + 1))

    def autocast(self):
        """Context of the network's forward pass in training and monitoring."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def place(self, model):
        """Move a model to the device, in the memory layout that convolutions like."""
        return model.to(self.device, memory_format=torch.channels_last)

    # --- what is written -------------------------------------------------------------------------

    def save_config(self):
        """Save the resolved configuration beside the results."""
        with checkpoint.atomic(self.folder / "config.yml") as path:
            path.write_text(yaml.safe_dump(to_dict(self.config), sort_keys=False))

    def log_epoch(self, metrics):
        """Append one JSON line of metrics to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_epochs(self):
        """The metrics of the epochs so far, a list of dicts."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def save_checkpoint(self, model, optimizer, epochs_done, state):
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epochs_done,
            "config": experiment_of(self.config),
            **state,
        }
        checkpoint.save(content, self.folder / "checkpoint.pth.tar")

    def resume(self, model, optimizer, state):
        """Load the checkpoint, if there is one, into model, optimiser and the dict `state`.

        Returns the number of epochs done. Raises UserError when the checkpoint is of another
        experiment, showing what differs.
        """
        path = self.folder / "checkpoint.pth.tar"
        if not path.exists():
            self._forget_epochs_after(0)
            return 0
        saved = checkpoint.load(path)
        if not isinstance(saved, dict) or "optimizer" not in saved:
            raise UserError(f"{path}: not a training checkpoint; move it away, or start over with --fresh")
        changed = (
            differences(saved.get("config", {}), experiment_of(self.config)) if "config" in saved else []
        )
        if changed:
            raise UserError(
                f"{path}: written by another configuration ({'; '.join(changed)}); undo the change, "
                "set another root_dir, or start over with --fresh"
            )
        checkpoint.load_weights(
            model, {k.removeprefix("module."): v for k, v in saved["model"].items()}, path
        )
        optimizer.load_state_dict(saved["optimizer"])
        for key, value in state.items():
            if isinstance(value, dict):  # in place, for the object that it belongs to
                value.update({name: tensor.to(self.device) for name, tensor in saved[key].items()})
            else:
                state[key] = saved[key]
        log.info("resuming after epoch %d", saved["epoch"])
        self._forget_epochs_after(saved["epoch"])
        return saved["epoch"]

    def _forget_epochs_after(self, epochs_done):
        kept = [line for line in self.read_epochs() if line["epoch"] <= epochs_done]
        with checkpoint.atomic(self.folder / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def results_folder(config, step):
    """`{root_dir}/{train_db_name}/{step}`; the steps are pretext, scan, selflabel."""
    return Path(config.root_dir).expanduser() / config.train_db_name / step


def choose_device(name):
    """`auto` is CUDA if there is one, else the CPU. Raises UserError if the named device is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device {name}: torch sees no such GPU here; set device to auto or cpu")
        # Reported figures are float32 ones; training in bfloat16 does not need TensorFloat-32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return device


def choose_precision(name, device):
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bf16()
        name = "bf16" if native else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def _cpu_has_bf16():
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


class _ColorFormatter(logging.Formatter):
    COLORS = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def format(self, record):
        text = super().format(record)
        return colored(text, self.COLORS[record.levelno]) if record.levelno in self.COLORS else text
