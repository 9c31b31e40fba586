"""The state of a training: save it, resume it, and archive earlier results."""

import itertools
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from errors import UserError
from utils.run import checkpoint, distributed
from utils.run.config import differences, listed, with_defaults
from utils.run.fingerprint import Fingerprint, backbone_hash, read_fingerprint
from utils.run.folder import FINGERPRINT, RESULTS, Run
from utils.run.schema import AFTER_TRAINING, TUNABLE
from utils.run.weights import load_weights, unwrap

from .optim import scheduled_learning_rate

log = logging.getLogger(__name__)

START_OVER = "start over with --fresh, which keeps it as *.old"


@dataclass
class EpochProgress:
    """How far an epoch has come."""

    batches: int = 0
    trained: int = 0  # how many of these batches had something to train on
    totals: dict[str, torch.Tensor] = field(default_factory=dict)  # the step's values, summed over batches
    random_state: torch.Tensor | None = None  # torch's, before the next batch
    seconds: float = 0


class Checkpointed(Protocol):
    """What a checkpoint holds besides model and optimizer. Its keys are top-level keys of the file."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class TrainingState:
    """What a resumed run must restore exactly; see `engine.train`."""

    run: Run
    fingerprint: Fingerprint
    model: nn.Module
    optimizer: torch.optim.Optimizer
    checkpointed: Sequence[Checkpointed] = ()
    epochs_saved: int = 0  # that the checkpoint holds
    saved_at: float = -math.inf  # time.perf_counter() of the last save

    @property
    def path(self) -> Path:
        return self.run.folder / "checkpoint.pth.tar"

    def save(self, epochs_done: int, progress: EpochProgress | None = None) -> None:
        """Save the checkpoint; `progress` is that of an epoch that is not complete."""
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epochs_done,
            "progress": progress and vars(progress),
            "identity": self.fingerprint.content,
        }
        for part in self.checkpointed:
            content |= part.state_dict()
        self.run.save(content, self.path.name)
        self.epochs_saved, self.saved_at = epochs_done, time.perf_counter()

    def resume(self) -> tuple[int, EpochProgress | None]:
        """Load the checkpoint, if there is one.

        A checkpoint without training state (a published pretext file) counts as finished. If the run is
        `fresh`, earlier results are archived instead.

        Returns:
            the number of epochs done, and the progress of the next one, None if it had not begun.

        Raises:
            UserError: the checkpoint is of another experiment, or the folder holds a result without one.
        """
        run = self.run
        if run.fresh:
            archive_results(run, RESULTS, self.fingerprint.files)
        distributed.barrier()  # the processes must agree on whether there is one
        if run.starts_untrained():
            if not run.fresh:
                self._require_untrained()
            run.truncate_epochs(0)
            return 0, None
        saved = checkpoint.load(self.path)
        weights, _ = unwrap(saved, self.path)
        if "model" not in saved and not self.checkpointed:
            log.info("%s: weights without a training state, taken as those of a finished training", self.path)
            load_weights(self.model, weights, self.path)
            return run.config.epochs, None
        changed = self._changes_since(saved)
        self._load(saved, weights)
        self.epochs_saved, progress = saved["epoch"], None
        if saved.get("progress") and not {"batch_size", "data.train"} & changed.keys():
            progress = EpochProgress(**saved["progress"])
        within = f" and {progress.batches} batches of the next" if progress else ""
        log.info("resuming after epoch %d%s", self.epochs_saved, within)
        run.truncate_epochs(self.epochs_saved)
        return self.epochs_saved, progress

    def _load(self, saved: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Load what was saved into the objects that it came from; raise UserError if it does not fit."""
        states = [(part, part.state_dict().keys()) for part in self.checkpointed]
        needed = ["model", "optimizer", "epoch", *(key for _, keys in states for key in keys)]
        missing = [key for key in needed if key not in saved]
        if not missing and _epochs_done(saved) is None:
            missing = ["number of epochs"]
        if missing:
            raise UserError(f"{self.path}: cannot be resumed, it has no {', '.join(missing)}; {START_OVER}")
        load_weights(self.model, weights, self.path)
        try:
            (group,), (own,) = saved["optimizer"]["param_groups"], self.optimizer.param_groups
            if ("betas" in group) != ("betas" in own):
                raise ValueError(f"{', '.join(sorted(group))} instead of {', '.join(sorted(own))}")
            # The settings may have changed. `fused` is among them: the original program's optimizers were not
            # fused, and could not skip a batch.
            group.update({key: value for key, value in own.items() if key != "params"})
            self.optimizer.load_state_dict(saved["optimizer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: its optimizer is another one ({error}); {START_OVER}") from None
        for part, keys in states:
            part.load_state_dict({key: saved[key] for key in keys})

    def _require_untrained(self) -> None:
        """Raise UserError if the folder holds a result, but not the checkpoint of its training."""
        folder, setup = self.run.folder, self.run.config.setup
        model = folder / "model.pth.tar"
        # scan.py writes its model before the first checkpoint
        if (model.exists() and setup != "scan") or (folder / FINGERPRINT).exists():
            mine = f"--pretrained {model} to mine with it, " if setup == "simclr" else ""
            raise UserError(
                f"{folder}: holds a result that was not trained here; add {mine}--run NAME to keep this "
                "training apart, or --fresh to replace it, which keeps it as *.old until then"
            )

    def _changes_since(self, saved: dict[str, Any]) -> dict[str, str]:
        """The settings of the training that have changed since the checkpoint: {key: "old -> new"}.

        More epochs are always allowed, and so are settings that the training does not depend on. With
        `accept_changes`, TUNABLE settings are. Raises UserError for any other change.
        """
        run, here = self.run, self.fingerprint.content
        if "identity" not in saved:
            log.warning("%s: does not contain its configuration (written by another program)", self.path)
        there = saved.get("identity", here)
        # older checkpoints lack the data, and the keys that are new since then
        there = {"data": here["data"], **with_defaults(there)} if isinstance(there, dict) else {}
        changed = differences(there, here)
        irrelevant = AFTER_TRAINING if run.config.setup == "simclr" else ()
        relevant = {key: change for key, change in changed.items() if not key.startswith(irrelevant)}
        done = _epochs_done(saved) or 0
        left = run.config.epochs - done
        # without an epoch left to train, the old result would only pass for one of the new settings
        allowed = TUNABLE if run.accept_changes and left > 0 else ("epochs",)
        if left < 0 or not all(key.startswith(allowed) for key in relevant):
            self._refuse(relevant, left)
        if changed:
            log.info("going on with other settings: %s", listed(changed))
        if relevant and done and left:
            self._log_schedule(there, done)
        return relevant

    def _refuse(self, changed: dict[str, str], left: int) -> NoReturn:
        ways = ["undo the change"]
        if all(key.startswith(TUNABLE) for key in changed):
            raise_epochs = " and raise epochs, which are done," if left <= 0 else ""
            ways.append(f"add --accept_changes{raise_epochs} to go on from there with it")
        model = self.run.folder / "model.pth.tar"
        if self.run.config.setup == "simclr" and model.exists() and "data.train" in changed:
            ways.append(f"add --pretrained {model} to mine these images' neighbors with the trained network")
        ways.append("keep this one apart with --run NAME")
        raise UserError(
            f"{self.path}: written by another experiment ({listed(changed)}); {', '.join(ways)}, "
            f"or {START_OVER}"
        )

    def _log_schedule(self, there: Mapping[str, Any], done: int) -> None:
        """Log what a changed number of epochs, or another change of the schedule, does to the next epoch."""
        config = self.run.config
        last, following = scheduled_learning_rate(there, done - 1), scheduled_learning_rate(config, done)
        rises = ", so the loss may rise at first" if following > last else ""
        log.info(
            f"the learning rate follows scheduler {config.scheduler} over {config.epochs} epochs: "
            f"{following:.4g} in the next epoch, after {last:.4g}{rises}"
        )


def _epochs_done(saved: dict[str, Any]) -> int | None:
    epochs = saved.get("epoch")
    return epochs if isinstance(epochs, int) and epochs >= 0 else None


def use_given_weights(
    run: Run, fingerprint: Fingerprint, source: str | Path | None, model: nn.Module
) -> None:
    """Prepare the folder for the weights of `model`, which were read from the file `source`, if any.

    Raises UserError if the folder holds a training of its own that these weights do not come from.
    """
    sources = [*fingerprint.files, *([Path(source)] if source else [])]
    trained = run.folder / "checkpoint.pth.tar"
    here = [path for path in (trained, run.folder / "model.pth.tar") if path.exists()]
    reads_itself = any(path.samefile(file) for path in here for file in sources)
    if trained.exists() and not reads_itself and not run.fresh:
        raise UserError(
            f"{trained}: the folder holds the training of an earlier run; keep this one apart with --run "
            "NAME, or add --fresh to replace it, which keeps it as *.old"
        )
    there = read_fingerprint(run.folder).get("backbone_weights")
    if run.fresh:
        archive_results(run, RESULTS, sources)
    elif there not in (None, backbone_hash(model.state_dict())):
        archive_results(run, ["model.pth.tar"], sources)
    if not trained.exists():
        run.truncate_epochs(0)
    run.save_config()


def mark_finished(
    run: Run, fingerprint: Fingerprint, weights: dict[str, torch.Tensor], trained: bool = True
) -> None:
    """Write what the results were made from; after a training, remove the archived results."""
    if not run.main:
        return
    fingerprint.write(run.folder, weights)
    if trained:
        for name in RESULTS:
            for path in run.folder.glob(f"{name}.old*"):
                path.unlink()


def archive_results(run: Run, names: Iterable[str], sources: Iterable[Path]) -> None:
    """Rename an earlier run's results to *.old, *.old2, ...; copy those that this run reads, `sources`."""
    if not run.main:
        return
    shutil.rmtree(run.folder / "tensorboard", ignore_errors=True)
    files = [file for file in (run.folder / name for name in names) if file.exists()]
    if not any(file.suffix == ".tar" for file in files):  # nothing was trained
        for file in files:
            file.unlink()
        return
    suffixes = (".old" if number == 1 else f".old{number}" for number in itertools.count(1))
    suffix = next(s for s in suffixes if not any((run.folder / (name + s)).exists() for name in RESULTS))
    for file in files:
        old = file.with_name(file.name + suffix)
        if any(file.samefile(source) for source in sources):
            shutil.copy2(file, old)
        else:
            os.replace(file, old)
    log.info("%s: earlier results are kept as *%s until a new model is trained", run.folder, suffix)
