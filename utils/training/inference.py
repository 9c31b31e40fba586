"""Forward passes without training: over a whole split, or, as a rehearsal, over a few images."""

import collections
import logging
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from errors import UserError
from utils.run import distributed

log = logging.getLogger(__name__)


@torch.no_grad()
def dry_run(model, *loaders):
    """Pass a few images of each loader through its view and the model, before anything is trained.

    So mistakes show at once, not after hours. Logs a warning if the evaluation's center crop leaves out much
    of each image. Changes neither the model nor the random state.

    Raises:
        UserError: images that the transforms or the network cannot take.
    """
    was_training = model.training
    model.eval()
    cropped = set()
    for loader in loaders:
        images, batch = loader.sample()
        views = parts_of(batch)
        for view in views:
            if view.is_floating_point():  # the others are labels
                _require_fits(model, view)
        side, kept = min(images.shape[-2:]), views[0].size(-1)
        if not loader.train and side > kept * 256 / 224 + 1:  # the usual margin on ImageNet
            cropped.add((kept, side))
    for kept, side in cropped:
        log.warning(
            f"the evaluation sees only the middle {kept} x {kept} pixels of images of {side} pixels, "
            f"{100 * (kept / side) ** 2:.2g} % of them; set transformation_kwargs.crop_size and the size of "
            f"the training crops to {side}, or resize the images"
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
    """Apply `function` to every batch and concatenate its outputs, a tensor or a tuple of tensors.

    The caller puts the model in eval mode, and chooses the precision by calling inside
    `machine.autocast()` or outside it (float32).

    Args:
        function: batch -> tensor or tuple of tensors (B, ...).
        loader: batches of a split, in order.
        title: for the progress bar.
        file: write the outputs (one tensor per batch) to this .npy file, batch by batch, and return a CPU
            tensor that is mapped from it: for features that do not fit in memory. Of several processes, the
            main one writes the file and returns the tensor; the others return None.

    Raises:
        UserError: outputs that are not finite, or a full disk.
    """
    results = _outputs(function, loader, title)
    if file is not None:
        if not distributed.is_main():
            collections.deque(results, maxlen=0)  # the main process gathers them
            return None
        done = _write(results, len(loader.dataset), file)
        _require_all(done, loader)
        # "r+": pages that are only read cost no memory; a private map would have to fit in it
        return torch.from_numpy(np.load(file, mmap_mode="r+"))
    whole = []
    for outputs in results:
        parts = parts_of(outputs)
        if not whole:  # allocated once, and each batch copied into place: torch.cat needs twice the memory
            whole = [part.new_empty(len(loader.dataset), *part.shape[1:]) for part in parts]
            done = 0
        for place, part in zip(whole, parts, strict=True):
            place[done : done + len(part)] = part
        done += len(parts[0])
    _require_all(done, loader)
    return whole[0] if torch.is_tensor(outputs) else tuple(whole)


def parts_of(batch):
    """The tensors of a batch, which is one tensor or a tuple of them."""
    return (batch,) if torch.is_tensor(batch) else batch


def _outputs(function, loader, title):
    """Yield the outputs of `function` for each batch, gathered from all processes."""
    left, broken = len(loader.dataset), 0
    for batch in progress_bar(loader, title):
        outputs = function(batch)
        if distributed.world_size() > 1:
            count = min(loader.batch_size, left)  # without what filled up the last shares
            gathered = tuple(distributed.gather(part)[:count] for part in parts_of(outputs))
            outputs = gathered[0] if torch.is_tensor(outputs) else gathered
            left -= count
        finite = [part.isfinite().reshape(len(part), -1).all(1) for part in parts_of(outputs)]
        broken += (~torch.stack(finite).all(0)).count_nonzero()  # no GPU synchronization
        yield outputs
    if broken:
        raise UserError(
            f"{title}: the network's outputs are not finite for {int(broken)} of {len(loader.dataset)} "
            "images; lower optimizer_kwargs.lr, set precision to fp32, or take other weights"
        )


def _require_all(done, loader):
    if done != len(loader.dataset):
        raise ValueError(f"inference needs every image: the loader gave {done} of {len(loader.dataset)}")


def _write(outputs, count, path):
    """Write `count` rows to an .npy file, batch by batch; returns how many rows there were."""
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
            "folder to a larger disk and set root_dir to its new place: the training so far is saved"
        ) from None
    return done


def progress_bar(batches, title):
    """tqdm over batches, in the main process, if this is a terminal."""
    disable = None if distributed.is_main() else True  # None: shown if this is a terminal
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=disable)
