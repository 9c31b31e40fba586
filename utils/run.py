"""One run of one step: its folder, its log, its device, its seed, its processes."""

import argparse
import functools
import itertools
import json
import logging
import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import torch
import yaml
from termcolor import colored

from errors import UserError

from . import checkpoint, distributed, fingerprint, interrupt, machine, pretrained
from .config import AFTER_TRAINING, TUNABLE, differences, experiment_of, listed, mismatches, to_dict
from .optim import learning_rate

log = logging.getLogger(__name__)

# what the steps leave in the folder of results, besides config.yml and log.txt, which they rewrite or add to
RESULTS = (
    *("checkpoint.pth.tar", "model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy"),
    *("metrics.json", "metrics.jsonl", "curves.png", "confusion_matrix.png", "assignment.csv"),
    fingerprint.NAME,
)


def run_script(main):
    """Call `main()` and exit: 1 and one line for what the user can mend, 128 + its number for a signal."""
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
                f"the processes that decode images find no room in /dev/shm ({_shared_memory()}); set "
                "num_workers=0, or make it larger (docker run --shm-size=8g, or --ipc=host)"
            )
        if "allocate memory" in str(error):  # torch's own MemoryError on a CPU
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
            print(f"stopped by {signal}; the same command, without --fresh, goes on", file=sys.stderr)
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
    """The command-line arguments that say what a step starts from: --pretrained FILE, --fresh, ..."""

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
    """Type of a command-line argument that names a file."""
    if not text or "://" in text:
        raise argparse.ArgumentTypeError(f"expected a file on this machine, found {text!r}")
    return Path(text).expanduser()


def _by_main(method):
    """A method of Run that only the main process executes; the others return None at once."""

    @functools.wraps(method)
    def by_main(self, *args):
        return method(self, *args) if self.main else None

    return by_main


class Run:
    """Where a step works and what it works with.

    Args:
        config: the checked configuration.
        folder: pathlib.Path of the results; created.
        fresh: set an earlier run's results in that folder aside instead of resuming it.
        accept_changes: resume although TUNABLE settings changed.

    Attributes:
        device: torch.device that everything computes on.
        precision: torch dtype of the network during training and monitoring.
        loading: keyword arguments that every data.Loader of the run takes.
        main: whether this process writes the results; of torchrun's processes one does.
    """

    def __init__(self, config, folder, fresh=False, accept_changes=False):
        self.config = config
        self.folder = folder
        self.fresh = fresh and not distributed.restarted()
        self.accept_changes = accept_changes
        self.trains = True  # until weights are taken instead
        self.inputs, self.sources, self.data = {}, [], {}
        self.device = machine.choose_device(config.device, distributed.local_rank())
        self.precision = machine.choose_precision(config.precision, self.device)
        distributed.start(self.device)
        self.main = distributed.is_main()
        self.loading = {
            "batch_size": config.batch_size, "device": self.device, "num_workers": config.num_workers,
            "rank": distributed.rank(), "world_size": distributed.world_size(),
        }  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.start_logging()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot write results there ({error}); set root_dir, or --output of eval.py"
            ) from None
        self._require_replaceable()
        if config.device == "auto" and self.device.type == "cpu" and self.main:
            machine.warn_of_unused_gpu()
        self.seed()
        processes = f"{distributed.world_size()} processes, " if distributed.world_size() > 1 else ""
        log.info(
            "%s on %s, results in %s",
            *(config.setup, f"{processes}{self.device} ({str(self.precision)[6:]})", self.folder),
        )
        for mismatch in mismatches(config):
            log.warning("%s", mismatch)

    def _require_replaceable(self):
        """Refuse now what would only be found out when results are written."""
        for path in (self.folder / name for name in RESULTS):
            if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
                raise UserError(
                    f"{path}: is no file that can be replaced; move it away, or set another root_dir"
                )

    def start_logging(self):
        """Log to the console and to log.txt, in the main process."""
        console = logging.StreamHandler()
        console.setLevel(logging.INFO if self.main else logging.ERROR)
        console.setFormatter(_ColorFormatter("%(message)s"))
        logging.raiseExceptions = False  # a full disk must not print a traceback for each line of log.txt
        logging.basicConfig(level=logging.INFO, handlers=[console], force=True)
        if self.main:
            file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8", errors="backslashreplace")
            file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            _lock(file.stream, self.folder)
            logging.getLogger().addHandler(file)
        logging.getLogger("utils").setLevel(logging.DEBUG)  # details, for the file only
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells which instruction sets it tried

    def seed(self, epoch=None):
        """Seed all random numbers by (seed, epoch), so that a resumed epoch repeats exactly."""
        torch.manual_seed(self.config.seed * 1_000_003 + (0 if epoch is None else epoch + 1))

    def autocast(self):
        """Context of the network's forward pass in training and monitoring."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def place(self, model):
        """Move a model to the device, in the memory layout that convolutions like."""
        model = model.to(self.device, memory_format=torch.channels_last)
        return distributed.synchronise(model, self.device)

    def for_training(self, network, loader, images_per_anchor=1):
        """The function that training calls in the place of `network`, which keeps the weights.

        Compiled where that pays; with several processes, one that averages the gradients over them.

        Args:
            network: the module that trains, on the run's device.
            loader: the batches that it trains on, whose number tells how long the run is.
            images_per_anchor: images of a forward pass for each of the batch's anchors.
        """
        if self.device.type == "cpu":
            machine.reuse_freed_memory()
        if self.loading["world_size"] > 1:
            if self.config.compile == "on":
                log.info("not compiled: several processes train eagerly")
            return distributed.parallel(network, self.device)
        steps = self.config.epochs * len(loader)
        images = loader.batch_size * images_per_anchor
        return machine.compiled(network, self.config.compile, self.device, steps, images)

    @contextmanager
    def scratch(self):
        """Context of a folder for large intermediate files, beside the results; removed at the end."""
        folder = self.folder / "scratch"
        if not self.main:
            yield folder
            return
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def uses(self, path, role):
        """Note a file that the run starts from, so that it is neither resumed on another one nor removed.

        `role` names it in messages. Returns the path.
        """
        path = Path(path)
        self.inputs[role] = checkpoint.digest(path)
        if path.exists():
            self.sources.append(path)
        return path

    def works_on(self, **splits):
        """Note the datasets, by split, so that the run is not resumed on other images."""
        self.data.update({name: dataset.fingerprint() for name, dataset in splits.items()})

    def identity(self):
        """What the results depend on: the experiment, the images, and the earlier steps' files."""
        return {**experiment_of(self.config), "inputs": self.inputs, "data": self.data}

    # --- what is written -------------------------------------------------------------------------

    @_by_main
    def save(self, content, name):
        """Save a file of weights in the folder."""
        checkpoint.save(content, self.folder / name)

    @_by_main
    def sign(self, weights):
        """Say in the folder that the step is finished, and what its results were made from."""
        fingerprint.write(self.folder, self.identity(), weights)
        if self.trains:
            for path in itertools.chain(*(self.folder.glob(f"{name}.old*") for name in RESULTS)):
                path.unlink()

    @_by_main
    def save_config(self):
        """Save the resolved configuration beside the results."""
        with checkpoint.atomic(self.folder / "config.yml") as path:
            path.write_text(yaml.safe_dump(to_dict(self.config), sort_keys=False))

    @_by_main
    def log_epoch(self, metrics):
        """Append one JSON line of metrics to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def read_epochs(self):
        """The metrics of the epochs so far, a list of dicts."""
        path = self.folder / "metrics.jsonl"
        epochs = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                epoch = json.loads(line)
            except json.JSONDecodeError:  # a line cut short by a crash; its epoch will be repeated
                break
            if not isinstance(epoch, dict) or not isinstance(epoch.get("epoch"), int):
                break
            epochs.append(epoch)
        return epochs

    def save_checkpoint(self, model, optimizer, epochs_done, state, progress=None):
        """Save all that resuming needs; `progress` is that of an epoch which is not complete."""
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epochs_done,
            "progress": progress,
            "identity": self.identity(),
            **state,
        }
        self.save(content, "checkpoint.pth.tar")

    def resume(self, model, optimizer, state):
        """Load the checkpoint, if there is one, into model, optimiser and the dict `state`.

        A plain state dict, as the published pretext files are, counts as a finished training. With
        `fresh`, what an earlier run left is set aside instead.

        Returns the number of epochs done, and the progress of the next one, None if it was not begun.
        Raises UserError when the checkpoint is of another experiment, showing what differs.
        """
        path = self.folder / "checkpoint.pth.tar"
        if self.fresh:
            self._set_aside(RESULTS)
        distributed.barrier()  # the processes must agree on whether there is one
        if self.fresh or not path.exists():
            if not self.fresh:
                self._require_untrained()
            self._forget_epochs_after(0)
            return 0, None
        saved = checkpoint.load(path)
        weights, _ = pretrained.unwrap(saved, path)
        if "model" not in saved and not state:
            log.info("%s: weights without a training state, taken as the result of a finished training", path)
            pretrained.fit(model, weights, path)
            return self.config.epochs, None
        changed = self._changes_since(saved, path)
        missing = [key for key in ("model", "optimizer", "epoch", *state) if key not in saved]
        if not missing and not (isinstance(saved["epoch"], int) and saved["epoch"] >= 0):
            missing = ["number of epochs"]
        if missing:
            raise UserError(
                f"{path}: cannot be resumed, it has no {', '.join(missing)}; start over with --fresh, which "
                "keeps it as *.old"
            )
        pretrained.fit(model, weights, path)
        try:
            for group in saved["optimizer"]["param_groups"]:
                # The settings may have changed. Only fused optimisers heed the engine's `found_inf`, and
                # those of the original were not.
                group.update(self.config.optimizer_kwargs, fused=True)
            optimizer.load_state_dict(saved["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its optimiser is another one ({error}); start over with --fresh, which keeps it as "
                "*.old"
            ) from None
        for key, value in state.items():
            if isinstance(value, dict):  # in place, for the object that it belongs to
                value.update({name: tensor.to(self.device) for name, tensor in saved[key].items()})
            else:
                state[key] = saved[key]
        other_batches = {"batch_size", "data.train"} & changed.keys()
        progress = None if other_batches else saved.get("progress")
        log.info(
            "resuming after epoch %d%s",
            *(saved["epoch"], f" and {progress['batches']} batches of the next" if progress else ""),
        )
        self._forget_epochs_after(saved["epoch"])
        return saved["epoch"], progress

    def _require_untrained(self):
        """Raise UserError if the folder holds a result, but not the checkpoint of its training."""
        model = self.folder / "model.pth.tar"
        # scan.py writes its model before the first checkpoint
        given = model.exists() and self.config.setup != "scan"
        if given or (self.folder / fingerprint.NAME).exists():
            mine = f"--pretrained {model} to mine with it, " if self.config.setup == "simclr" else ""
            raise UserError(
                f"{self.folder}: holds a result that was not trained here; add {mine}--run NAME to keep this "
                "training apart, or --fresh to replace it, which keeps it as *.old until then"
            )

    def _changes_since(self, saved, path):
        """The settings that may change when a training is resumed, and did: {key: "old -> new"}.

        More epochs always may, TUNABLE ones with `accept_changes`, and what the training does not depend on.
        Raises UserError if others did.
        """
        identity = self.identity()
        if "identity" not in saved:
            log.warning("%s: does not tell its configuration (written by another program)", path)
        there = saved.get("identity", identity)
        there = {"data": self.data, **there} if isinstance(there, dict) else {}  # older ones tell no data
        changed = differences(there, identity)
        irrelevant = AFTER_TRAINING if self.config.setup == "simclr" else ()
        relevant = {key: change for key, change in changed.items() if not key.startswith(irrelevant)}
        done = saved.get("epoch") if isinstance(saved.get("epoch"), int) else 0
        left = self.config.epochs - done
        # without an epoch to train, the result would only be given another name
        allowed = TUNABLE if self.accept_changes and left > 0 else ("epochs",)
        if left < 0 or not all(key.startswith(allowed) for key in relevant):
            self._refuse(path, relevant, left)
        if changed:
            log.info("going on with other settings: %s", listed(changed))
        if relevant:
            self._tell_schedule(there, done)
        return relevant

    def _refuse(self, path, changed, left):
        ways = ["undo the change"]
        if all(key.startswith(TUNABLE) for key in changed):
            raise_epochs = " and raise epochs, which are done," if left <= 0 else ""
            ways.append(f"add --accept_changes{raise_epochs} to go on from there with it")
        model = self.folder / "model.pth.tar"
        if self.config.setup == "simclr" and model.exists() and "data.train" in changed:
            ways.append(f"add --pretrained {model} to mine these images' neighbors with the trained network")
        ways.append("keep this one apart with --run NAME")
        raise UserError(
            f"{path}: written by another experiment ({listed(changed)}); {', '.join(ways)}, or start "
            "over with --fresh, which keeps it as *.old"
        )

    def _tell_schedule(self, there, done):
        """Log what a changed number of epochs, or another change of the schedule, means."""
        config = self.config
        if 0 < done < config.epochs:
            last, following = _learning_rate(there, done - 1), _learning_rate(config, done)
            log.info(
                "the learning rate follows scheduler %s over %d epochs: %.4g in the next epoch, after %.4g%s",
                *(config.scheduler, config.epochs, following, last),
                ", so the loss may rise at first" if following > last else "",
            )

    def take_instead_of_training(self, source, model):
        """Make the folder ready for the given weights of `model`, which were read from the file `source`.

        Raises UserError if the folder holds a training of its own that these weights do not come from.
        """
        path = self.folder / "checkpoint.pth.tar"
        self.sources.append(Path(source))
        self.trains = False
        own = any(p.exists() and p.samefile(source) for p in (path, self.folder / "model.pth.tar"))
        if path.exists() and not own and not self.fresh:
            raise UserError(
                f"{path}: the folder holds the training of an earlier run; keep this one apart with --run "
                "NAME, or add --fresh to replace it, which keeps it as *.old"
            )
        there = fingerprint.read(self.folder).get("backbone_weights")
        if self.fresh:
            self._set_aside(RESULTS)
        elif there not in (None, fingerprint.of_backbone(model.state_dict())):
            self._set_aside(["model.pth.tar"])
        if not path.exists():
            self._forget_epochs_after(0)
        self.save_config()

    @_by_main
    def _set_aside(self, names):
        """Rename what an earlier run left to *.old, *.old2, ...; copy a file that this one starts from."""
        files = [file for file in (self.folder / name for name in names) if file.exists()]
        if not any(file.suffix == ".tar" for file in files):  # nothing was trained
            for file in files:
                file.unlink()
            return
        suffixes = itertools.chain([".old"], (f".old{number}" for number in itertools.count(2)))
        suffix = next(s for s in suffixes if not any((self.folder / (name + s)).exists() for name in RESULTS))
        for file in files:
            is_source = any(file.samefile(source) for source in self.sources)
            (shutil.copy2 if is_source else os.replace)(file, file.with_name(file.name + suffix))
        log.info("%s: earlier results are kept as *%s until a new model is trained", self.folder, suffix)

    @_by_main
    def _forget_epochs_after(self, epochs_done):
        kept = [line for line in self.read_epochs() if line["epoch"] <= epochs_done]
        with checkpoint.atomic(self.folder / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def results_folder(config, step):
    """`{root_dir}/{train_db_name}/{step}`; the steps are pretext, scan, selflabel."""
    return Path(config.root_dir).expanduser() / config.train_db_name / step


def earlier_folder(config, step, run_name):
    """Folder of an earlier step's results: with --run, where that run has none, those without --run."""
    own = results_folder(config, step)
    shared = Path(config.root_dir).expanduser().parent / config.train_db_name / step
    if run_name and not (own / "model.pth.tar").exists() and (shared / "model.pth.tar").exists():
        log.info("--run %s has no %s step of its own: %s is used", run_name, step, shared)
        return shared
    return own


def _learning_rate(config, epoch):
    return learning_rate(
        epoch,
        config["epochs"],
        config["optimizer_kwargs"]["lr"],
        config["scheduler"],
        **config.get("scheduler_kwargs", {}),
    )


def _lock(file, folder):
    """Hold an open file until this process ends or closes it; raise UserError if another one does."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another run works there at this moment; wait for it, or keep this one apart with "
            "--run NAME"
        ) from None
    except OSError:  # a network drive that knows no locks
        pass


class _ColorFormatter(logging.Formatter):
    COLORS = {logging.WARNING: "yellow", logging.ERROR: "red"}

    def format(self, record):
        text = super().format(record)
        return colored(text, self.COLORS[record.levelno]) if record.levelno in self.COLORS else text
