"""Forward passes without training: over a whole split, or over a few images to try whether all fits."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from errors import UserError, first_line
from utils.run import distributed

if TYPE_CHECKING:
    from data import Loader

log = logging.getLogger(__name__)

Outputs = TypeVar("Outputs", torch.Tensor, tuple[torch.Tensor, ...])


@torch.no_grad()
def dry_run(model: nn.Module, *loaders: "Loader") -> None:
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
        views = _tensors_of(batch)
        for view in views:
            if not view.is_floating_point():  # labels
                continue
            try:
                model(view)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                shape = " x ".join(map(str, view.shape[1:]))
                raise UserError(
                    f"the network cannot take images of {shape} ({first_line(error)}); set another "
                    "crop size (transformation_kwargs and augmentation_kwargs) or backbone"
                ) from None
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


@torch.no_grad()
def infer(function: Callable[[Any], Outputs], loader: "Loader", title: str) -> Outputs:
    """Apply `function` to every batch and concatenate its outputs, a tensor or a tuple of tensors (B, ...).

    The caller puts the model in eval mode, and chooses the precision by calling inside
    `machine.autocast()` or outside it (float32). `title` is that of the progress bar.

    Raises:
        UserError: outputs that are not finite.
        ValueError: a loader that leaves out images.
    """
    n, done = len(loader.anchors), 0
    whole: list[torch.Tensor] = []
    for outputs in _outputs(function, loader, title):
        parts = _tensors_of(outputs)
        if not whole:  # allocated once, and each batch copied into place: torch.cat needs twice the memory
            # on the CPU in place of MPS, since the figures are computed in float64
            at = "cpu" if parts[0].is_mps else parts[0].device
            whole = [part.new_empty(n, *part.shape[1:], device=at) for part in parts]
        for place, part in zip(whole, parts, strict=True):
            place[done : done + len(part)] = part
        done += len(parts[0])
    return cast(Outputs, whole[0] if torch.is_tensor(outputs) else tuple(whole))


@torch.no_grad()
def infer_to_file(
    function: Callable[[Any], torch.Tensor], loader: "Loader", title: str, path: Path
) -> torch.Tensor:
    """As `infer`, for features that do not fit in memory: written to an .npy file batch by batch.

    Returns:
        CPU tensor, mapped from the file. Only the main process writes it; the others return an empty tensor.

    Raises:
        UserError: outputs that are not finite, or a full disk.
    """
    n = len(loader.anchors)
    batches = _outputs(function, loader, title)
    if not distributed.is_main():
        for _ in batches:  # the main process gathers them
            pass
        return torch.empty(0)
    done = size = 0
    try:
        with open(path, "wb") as file:
            # written, not assigned through a map: a full disk is then an error instead of a crash
            for outputs in batches:
                array = outputs.cpu().numpy()
                if done == 0:
                    shape, size = (n, *array.shape[1:]), n * array[0].nbytes
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
    # "r+": pages that are only read cost no memory; a private map would have to fit in it
    return torch.from_numpy(np.load(path, mmap_mode="r+"))


def _tensors_of(batch: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (batch,) if isinstance(batch, torch.Tensor) else batch


def _outputs(function: Callable[[Any], Outputs], loader: "Loader", title: str) -> Iterator[Outputs]:
    """Yield the outputs of `function` for each batch, gathered from all processes."""
    n = left = len(loader.anchors)
    broken: int | torch.Tensor = 0
    for batch in progress_bar(loader, title):
        outputs = function(batch)
        count = min(loader.batch_size, left)  # without what filled up the last shares
        parts = tuple(distributed.gather(part)[:count] for part in _tensors_of(outputs))
        left -= len(parts[0])
        finite = [part.isfinite().reshape(len(part), -1).all(1) for part in parts]
        broken = broken + (~torch.stack(finite).all(0)).count_nonzero()  # no GPU synchronization
        yield cast(Outputs, parts[0] if torch.is_tensor(outputs) else parts)
    if left:
        raise ValueError(f"inference needs every image: the loader gave {n - left} of {n}")
    if broken:
        raise UserError(
            f"{title}: the network's outputs are not finite for {int(broken)} of {n} images; lower "
            "optimizer_kwargs.lr, set precision to fp32, or take other weights"
        )


def progress_bar(batches: "Loader", title: str) -> tqdm:
    """tqdm over batches, in the main process, if this is a terminal."""
    disable = None if distributed.is_main() else True  # None: shown if this is a terminal
    return tqdm(batches, desc=title, unit="batch", leave=False, disable=disable)
