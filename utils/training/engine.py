"""The loop that all steps share: epochs of training.

An epoch depends only on the seed and on its number, so a resumed run repeats it, on a CPU to the bit. After a
signal, the run stops at the end of the current batch, or in the validation that follows. It saves the
EpochProgress with torch's random state, and `loader.skip` continues from there. Batches that are
`loader.ahead` are trained first, because their random numbers are already drawn.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from errors import CannotTrainError
from utils.run import distributed, interrupt
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.run.machine import dtype_name, few_threads

from .inference import progress_bar
from .optim import scheduled_learning_rate, skip_unless
from .resume import Checkpointed, EpochProgress, TrainingState

if TYPE_CHECKING:
    from data import Loader

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 5  # epochs shorter than this do not get a line on the console each
SECONDS_PER_CHECKPOINT = 10  # at most one checkpoint in this time
TrainingStep = Callable[[Any], dict[str, torch.Tensor]]


def train(
    run: Run,
    fingerprint: Fingerprint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: "Loader",
    step: TrainingStep,
    *,
    checkpointed: Sequence[Checkpointed] = (),
    before_epoch: Callable[[], None] | None = None,
    after_batch: Callable[[], None] | None = None,
    after_epoch: Callable[[int], dict[str, Any]] | None = None,
) -> None:
    """Train to the configured epoch, from the last checkpoint if there is one.

    With 0 epochs, `after_epoch` is called with 0, and the model is kept as it is.

    Args:
        run: its configuration gives epochs and schedule; its device holds the model.
        fingerprint: of the step; a checkpoint must share it to be resumed.
        step: batch -> dict of scalar tensors, `loss` among them. If a batch may have nothing to train on,
            also `trains`, a bool: if it is False, the other values are 0, and the optimizer skips the batch.
        checkpointed: further objects whose state the checkpoint holds.
        before_epoch: called before each epoch, in eval mode, but not when resuming in the middle of one.
        after_batch: called after each batch, also after a skipped one.
        after_epoch: called with the number of epochs done, in eval mode; returns a dict of numbers, and lists
            of numbers, to log. It may also hold `new_best`, a bool, which is not logged: whether it saved a
            new best model. That epoch gets a checkpoint, because a run that resumes from an earlier epoch
            might not find the same model again.

    Raises:
        UserError: the loss or a validation figure is not finite, or all batches of an epoch were skipped.
    """
    epochs = run.config.epochs
    training = TrainingState(run, fingerprint, model, optimizer, checkpointed)
    done, progress = training.resume()
    run.save_config()
    last_line, in_batches = -math.inf, False
    if not epochs and run.starts_untrained():
        _keep_start(training, after_epoch)
    try:
        while done < epochs:
            start = time.perf_counter()
            lr = scheduled_learning_rate(run.config, done)
            for group in optimizer.param_groups:
                group["lr"] = lr
            if not progress:
                if before_epoch:
                    model.eval()
                    before_epoch()
                progress = EpochProgress()
            start -= progress.seconds
            run.seed(done)
            title = f"epoch {done + 1}/{epochs}"
            in_batches = True
            _train_epoch(model, optimizer, loader, step, after_batch, title, progress)
            in_batches = False
            interrupt.check()

            metrics = {"epoch": done + 1, "lr": lr, **_means(progress, title)}
            _require_finite(training, metrics, "loss")
            metrics["images_per_second"] = round(len(loader) * loader.batch_size / progress.seconds, 1)
            model.eval()
            metrics |= after_epoch(done + 1) if after_epoch else {}
            _require_finite(training, metrics, "val_loss", "mean_confidence")
            new_best = metrics.pop("new_best", False)
            metrics["seconds"] = round(time.perf_counter() - start, 2)
            with interrupt.deferred():
                run.log_epoch(metrics)
                done, progress = done + 1, None
                is_due = time.perf_counter() - training.saved_at >= SECONDS_PER_CHECKPOINT
                # before_epoch can fail, e.g. on a full disk
                if done == epochs or before_epoch or new_best or is_due:
                    training.save(done)
            interrupt.check()
            if done == epochs or time.perf_counter() - last_line > SECONDS_PER_LINE:
                log.info(_summary(metrics, epochs))
                last_line = time.perf_counter()
    except interrupt.Interrupted:
        # several processes need not stop after the same batch
        if distributed.world_size() == 1 or not in_batches:
            _save_unfinished(training, done, progress)
        raise
    distributed.barrier()  # what the main process saved can be read
    model.eval()


def _keep_start(training: TrainingState, after_epoch: Callable[[int], dict[str, Any]] | None) -> None:
    """Evaluate and save a model that is not to be trained."""
    training.model.eval()
    metrics = {"epoch": 0, **(after_epoch(0) if after_epoch else {})}
    metrics.pop("new_best", None)
    training.run.log_epoch(metrics)
    training.save(0)


def _save_unfinished(training: TrainingState, done: int, progress: EpochProgress | None) -> None:
    """Save an interrupted epoch, unless its loss is not finite. An interrupted validation runs again."""
    epochs = training.run.config.epochs
    if progress and all(total.isfinite() for total in progress.totals.values()):
        training.save(done, progress)
        log.info("epoch %d/%d: stopped after batch %d, saved", done + 1, epochs, progress.batches)
    elif not progress and done > training.epochs_saved:
        training.save(done)
        log.info("stopped after epoch %d/%d, saved", done, epochs)


def _require_finite(training: TrainingState, metrics: dict[str, Any], *names: str) -> None:
    saved, precision = training.epochs_saved, training.run.machine.precision
    for name in names:
        if math.isfinite(metrics.get(name, 0)):
            continue
        coarse = f" (or set precision fp32: {dtype_name(precision)} may be too coarse)"
        kept = "there is no earlier checkpoint"
        if saved:
            kept = f"the last good checkpoint is {training.path}, of epoch {saved}; "
            kept += "to go on from it with other settings add --accept_changes"
        raise CannotTrainError(
            f"epoch {metrics['epoch']}: the {name} is {metrics[name]}; most likely the learning rate "
            f"{metrics['lr']:g} is too high: lower optimizer_kwargs.lr"
            f"{coarse if precision != torch.float32 else ''}; nothing of this epoch was saved, and {kept}"
        )


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: "Loader",
    step: TrainingStep,
    after_batch: Callable[[], None] | None,
    title: str,
    progress: EpochProgress,
) -> None:
    """Train on an epoch's batches, from `progress` on, until the end or a signal. Updates `progress`."""
    start = time.perf_counter() - progress.seconds
    model.train()
    loader.skip(progress.batches, progress.random_state)
    device = torch.device(loader.device)
    trained: int | torch.Tensor = progress.trained
    totals = progress.totals
    bar = progress_bar(loader, title)
    bar.update(progress.batches)
    # a signal is not deferred on several processes, which would not stop at the same batch
    deferred = contextlib.nullcontext() if distributed.world_size() > 1 else interrupt.deferred()
    with few_threads(device), deferred:
        for batch in _until_workers_stop(bar):
            if device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # the last batch's outputs are no longer needed
            values = step(batch)
            trains = values.pop("trains", None)
            optimizer.zero_grad(set_to_none=True)
            values["loss"].backward()
            if trains is not None:
                skip_unless(trains, optimizer)
            optimizer.step()
            trained = trained + (1 if trains is None else trains)
            for name, value in values.items():  # on the device, without a GPU synchronization
                totals[name] = totals.get(name, 0) + value.detach()
            if after_batch:
                after_batch()
            progress.batches += 1
            if not bar.disable and progress.batches % 20 == 0:
                bar.set_postfix(loss=f"{values['loss'].item():.4f}")
            if interrupt.noted() and not loader.ahead:
                break
        progress.random_state = torch.get_rng_state()
        # the only GPU synchronization, apart from the progress bar's; so the time includes the GPU's work
        progress.totals = {name: total.cpu() for name, total in totals.items()}
        progress.trained = int(trained)
        progress.seconds = time.perf_counter() - start


def _until_workers_stop(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; end early if a signal has also ended the worker processes that make them."""
    try:
        yield from batches
    except RuntimeError:
        if not interrupt.noted():
            raise


def _means(progress: EpochProgress, title: str) -> dict[str, float]:
    trained, skipped = progress.trained, progress.batches - progress.trained
    if trained == 0:
        raise CannotTrainError(
            f"{title}: none of the {skipped} batches had a sample to train on; the model is not confident "
            "enough: train the clustering step longer or lower confidence_threshold"
        )
    metrics = {name: total.item() / trained for name, total in progress.totals.items()}
    return {**metrics, "skipped_batches": skipped} if skipped else metrics


def _summary(metrics: dict[str, Any], epochs: int) -> str:
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    clock = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 86400:.1f} days"
    hidden = ("epoch", "lr", "seconds", "images_per_second")
    shown = {k: v for k, v in metrics.items() if k not in hidden and not isinstance(v, list)}
    parts = [f"epoch {metrics['epoch']}/{epochs}", *(f"{name} {value:.4g}" for name, value in shown.items())]
    return "  ".join([*parts, f"{metrics['images_per_second']:.0f} images/s", f"{clock} left"])
