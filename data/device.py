"""Move tensors between the CPU, where random numbers are drawn, and the training device."""

import logging

import torch

from .messages import say_once

log = logging.getLogger(__name__)


def to_device(values, device):
    """Copy a CPU tensor to `device`; pinned first, because otherwise the copy would synchronize the GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def moved_if_it_fits(tensor, device, what):
    """The tensor on `device`; itself, with a line in the log, if there is not room for twice as much there.

    The other half is left for the training. `what` it holds, for the message.
    """
    if tensor.device.type == torch.device(device).type:
        return tensor
    try:
        torch.empty(2, *tensor.shape, dtype=tensor.dtype, device=device)
    except torch.OutOfMemoryError:
        message = f"{what} do not fit in the memory of {device}; each batch is copied there"
        say_once(log.info, message)
        return tensor
    return tensor.to(device)
