"""The loop that all steps share: epochs of training, and passes of inference."""

import collections
import contextlib
import logging
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from errors import UserError

from . import distributed, interrupt
from .optim import learning_rate, set_learning_rate

log = logging.getLogger(__name__)

SECONDS_PER_LINE = 5  # epochs shorter than this do not get a line on the console each


def train(run, model, optimizer, loader, step, *, state=None, after_batch=None, after_epoch=None):
    """Train to the configured epoch, from the last checkpoint if there is one.

    Args:
        run: the Run; its configuration gives epochs and schedule.
        model: the network, on the run's device.
        optimizer: over the parameters that train.
        loader: batches of the training split.
        step: batch -> dict of scalar tensors with `loss`; and, where a batch may train nothing, `trains`, a
            bool: if it is False the others are 0, and the optimiser is left as if there were no such batch.
        state: dict of what else belongs in the checkpoint; updated in place when resuming.
        after_batch: called after each batch, also one that trained nothing.
        after_epoch: called with the number of epochs done, in eval mode; returns numbers, and lists of
            them, to log.

    Raises:
        UserError: the loss, or what the validation finds, is no longer finite, or an epoch in which no batch
            trained.
    """
    config = run.config
    state = {} if state is None else state
    first, progress = run.resume(model, optimizer, state)
    run.save_config()
    last_line = -math.inf
    for epoch in range(first, config.epochs):
        lr = learning_rate(
            epoch, config.epochs, config.optimizer_kwargs.lr, config.scheduler, **config.scheduler_kwargs
        )
        set_learning_rate(optimizer, lr)
        run.seed(epoch)
        start = time.perf_counter()
        title = f"epoch {epoch + 1}/{config.epochs}"
        if progress is not None:
            loader.skip(progress["batches"], progress["random_state"])
        earlier = progress["seconds"] if progress else 0
        progress = _train_epoch(model, optimizer, loader, step, after_batch, title, progress)
        progress["seconds"] = earlier + time.perf_counter() - start

        try:
            interrupt.check()
            metrics = {"epoch": epoch + 1, "lr": lr, **_means(progress, title)}
            _require_finite(run, metrics, ("loss",), epoch, lr)
            metrics["images_per_second"] = round(len(loader) * loader.batch_size / progress["seconds"], 1)
            model.eval()
            if after_epoch:
                metrics.update(after_epoch(epoch + 1))
                _require_finite(run, metrics, ("val_loss", "mean_confidence"), epoch, lr)
        except interrupt.Interrupted:  # within the epoch, or in its validation, which alone will be repeated
            if all(total.isfinite() for total in progress["totals"].values()):
                run.save_checkpoint(model, optimizer, epoch, state, progress)
                log.info("%s: stopped after batch %d, saved", title, progress["batches"])
            raise
        metrics["seconds"] = round(earlier + time.perf_counter() - start, 2)
        progress = None
        with interrupt.deferred():
            run.log_epoch(metrics)
            run.save_checkpoint(model, optimizer, epoch + 1, state)
        interrupt.check()
        if epoch + 1 == config.epochs or time.perf_counter() - last_line > SECONDS_PER_LINE:
            log.info(_summary(metrics, config.epochs))
            last_line = time.perf_counter()
    distributed.barrier()  # what the main process saved can be read
    model.eval()


def _require_finite(run, metrics, names, epoch, lr):
    for name in names:
        if math.isfinite(metrics.get(name, 0)):
            continue
        path = run.folder / "checkpoint.pth.tar"
        precision = "" if run.precision == torch.float32 else f", or {str(run.precision)[6:]} too coarse"
        kept = f"the last good checkpoint is {path}, of epoch {epoch}" if epoch else "nor an earlier one"
        kept += "; to go on from it with other settings add --accept_changes" if epoch else ""
        raise UserError(
            f"epoch {epoch + 1}: the {name} is {metrics[name]}; most likely the learning rate {lr:g} is too "
            f"high{precision}: lower optimizer_kwargs.lr{' or set precision fp32' if precision else ''}; "
            f"nothing of this epoch was saved, {kept}"
        )


def _train_epoch(model, optimizer, loader, step, after_batch, title, progress):
    """Train on the batches of an epoch, from `progress` on, to the end or to a signal; returns the progress.

    That is a dict: `batches` done, `trained` of them, the `totals` of what `step` returned for these, and the
    `random_state` with which the next batch begins. `train` adds the `seconds` that they took.
    """
    model.train()
    done, trained, totals = (
        (progress[key] for key in ("batches", "trained", "totals")) if progress else (0, 0, {})
    )
    on_gpu = torch.device(loader.device).type == "cuda"
    bar = _progress(loader, title)
    bar.update(done)
    # several processes would not stop at the same batch
    with contextlib.nullcontext() if distributed.world_size() > 1 else interrupt.deferred():
        for batch in _until_workers_stop(bar):
            if on_gpu:
                torch.compiler.cudagraph_mark_step_begin()  # what the last step returned is no longer needed
            values = step(batch)
            trains = values.pop("trains", None)
            optimizer.zero_grad(set_to_none=True)
            values["loss"].backward()
            if trains is not None:
                # where this is 1, fused optimisers change nothing, on the device: made for torch's GradScaler
                optimizer.found_inf = trains.logical_not().float()
            optimizer.step()
            trained = trained + (1 if trains is None else trains)
            for name, value in values.items():  # summed on the device: no step waits for a value
                totals[name] = totals.get(name, 0) + value.detach()
            if after_batch:
                after_batch()
            done += 1
            if not bar.disable and done % 20 == 0:
                bar.set_postfix(loss=f"{values['loss'].item():.4f}")
            if interrupt.noted() and not loader.ahead:
                break
    random_state = torch.get_rng_state()
    # here a GPU is waited for, so that the time that `train` takes is that of its work
    totals = {name: total.cpu() for name, total in totals.items()}
    return {"batches": done, "trained": int(trained), "totals": totals, "random_state": random_state}


def _until_workers_stop(batches):
    """The batches, until a signal ends the workers that make them as well."""
    try:
        yield from batches
    except RuntimeError:
        if not interrupt.noted():
            raise


def _means(progress, title):
    trained, skipped = progress["trained"], progress["batches"] - progress["trained"]
    if trained == 0:
        raise UserError(
            f"{title}: none of the {skipped} batches had a sample to train on; the model is not confident "
            "enough: train the clustering step longer or lower confidence_threshold"
        )
    metrics = {name: total.item() / trained for name, total in progress["totals"].items()}
    return {**metrics, "skipped_batches": skipped} if skipped else metrics


def _summary(metrics, epochs):
    left = (epochs - metrics["epoch"]) * metrics["seconds"]
    hidden = ("epoch", "lr", "seconds", "images_per_second")
    shown = [
        f"{name} {value:.4g}"
        for name, value in metrics.items()
        if name not in hidden and not isinstance(value, list)
    ]
    clock = time.strftime("%H:%M:%S", time.gmtime(left)) if left < 86400 else f"{left / 86400:.1f} days"
    return "  ".join(
        [
            f"epoch {metrics['epoch']}/{epochs}",
            *shown,
            f"{metrics['images_per_second']:.0f} images/s",
            f"{clock} left",
        ]
    )


@torch.no_grad()
def rehearse(model, *loaders):
    """Pass a few images of each loader through its view and the model, before anything is trained.

    What cannot work is then found out now, not after hours. Logs a warning when the center crop of an
    evaluation leaves much of each image out. Changes neither the model nor the random state.

    Raises:
        UserError: images that the transforms or the network cannot take.
    """
    was_training = model.training
    model.eval()
    cropped = set()
    for loader in loaders:
        images, batch = loader.sample()
        views = (batch,) if torch.is_tensor(batch) else batch
        for view in views:
            _require_fits(model, view)
        side, kept = min(images.shape[-2:]), views[0].size(-1)
        if not loader.train and side > kept * 256 / 224 + 1:  # the margin that is usual on ImageNet
            cropped.add((kept, side))
    for kept, side in cropped:
        log.warning(
            "the evaluation sees only the middle %d x %d pixels of images of %d pixels, %.2g %% of them; set "
            "transformation_kwargs.crop_size and the size of the training crops to %d, or resize the images",
            *(kept, kept, side, 100 * (kept / side) ** 2, side),
        )
    model.train(was_training)


def _require_fits(model, images):
    try:
        model(images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = " x ".join(map(str, images.shape[1:]))
        raise UserError(
            f"the network cannot take images of {shape} ({str(error).splitlines()[0]}); set another crop "
            "size (transformation_kwargs and augmentation_kwargs) or backbone"
        ) from None


@torch.no_grad()
def infer(function, loader, title, file=None):
    """Apply `function` to every batch and put together what it returns, a tensor or a tuple of tensors.

    The caller puts the model in eval mode, and chooses the precision by running inside
    `run.autocast()` or outside it (float32).

    Args:
        function: batch -> tensor or tuple of tensors (B, ...).
        loader: batches of a split, in order.
        title: for the progress bar.
        file: write the outputs (one tensor per batch) to this .npy file as they come, and return a CPU
            tensor that is mapped from it: for features that would not fit in memory. Of several
            processes the main one writes and returns it, the others return None.

    Raises:
        UserError: outputs that are not finite, from which nothing sound could be computed; a full disk.
    """
    results = _outputs(function, loader, title)
    if file is not None:
        if not distributed.is_main():
            collections.deque(results, maxlen=0)  # compute them for the main process
            return None
        done = _write(results, len(loader.dataset), file)
        _require_all(done, loader)
        # "r+": pages that are only read cost no memory; a private map would have to fit in it
        return torch.from_numpy(np.load(file, mmap_mode="r+"))
    whole = []
    for outputs in results:
        parts = (outputs,) if torch.is_tensor(outputs) else outputs
        if not whole:  # the outputs are copied to their place as they come: no second copy at the end
            whole = [part.new_empty(len(loader.dataset), *part.shape[1:]) for part in parts]
            done = 0
        for place, part in zip(whole, parts, strict=True):
            place[done : done + len(part)] = part
        done += len(parts[0])
    _require_all(done, loader)
    return whole[0] if torch.is_tensor(outputs) else tuple(whole)


def _outputs(function, loader, title):
    """What `function` returns for each batch; gathered, where each process has a share of the batch."""
    left, broken = len(loader.dataset), 0
    for batch in _progress(loader, title):
        outputs = function(batch)
        if distributed.world_size() > 1:
            count = min(loader.batch_size, left)  # without what fills up the last shares
            if torch.is_tensor(outputs):
                outputs = distributed.gather(outputs)[:count]
            else:
                outputs = tuple(distributed.gather(part)[:count] for part in outputs)
            left -= count
        parts = (outputs,) if torch.is_tensor(outputs) else outputs
        finite = [part.isfinite().reshape(len(part), -1).all(1) for part in parts]
        broken += (~torch.stack(finite).all(0)).count_nonzero()  # on the device: no batch waits for it
        yield outputs
    if broken:
        raise UserError(
            f"{title}: the network's outputs are not finite for {int(broken)} of {len(loader.dataset)} "
            "images; lower optimizer_kwargs.lr, set precision to fp32, or take other weights"
        )


def _progress(batches, title):
    disable = None if distributed.is_main() else True  # None: shown if this is a terminal
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=disable)


def _require_all(done, loader):
    if done != len(loader.dataset):
        raise ValueError(f"inference needs every image: the loader gave {done} of {len(loader.dataset)}")


def _write(outputs, count, path):
    """Write `count` rows to an .npy file as they come; returns the number of rows that came."""
    done = size = 0
    try:
        with open(path, "wb") as file:
            # written, not assigned through a map: a full disk is then an error instead of a crash
            for output in outputs:
                array = output.cpu().numpy()
                if done == 0:
                    shape, size = (count, *array.shape[1:]), count * array[0].nbytes
                    header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(array.tobytes())
                done += len(array)
    except OSError as error:
        free = shutil.disk_usage(Path(path).parent).free
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); it needs {size / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; free some, or move the results "
            "folder to a larger disk and set root_dir to its new place: what was trained is saved and goes on"
        ) from None
    return done
