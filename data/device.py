"""Move tensors between the CPU, where random numbers are drawn, and the training device."""

import logging

import torch

from .messages import say_once

log = logging.getLogger(__name__)

Device = torch.device | str
WITHOUT_FLOAT64 = ("mps",)


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device`; pinned first, because otherwise the copy would synchronize the GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=device.type == "cuda")


def for_float64(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one that does not compute in float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def moved_if_it_fits(tensor: torch.Tensor, device: Device, what: str) -> torch.Tensor:
    """The tensor on `device`; or itself, with a line in the log, if twice its size does not fit there.

    The other half is left for the training. `what` names the content in the message.
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
