"""What a step will take in time and memory, measured on a few images before it begins."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

MEASURED_IMAGES = {"cpu": 8, "cuda": 128, "mps": 128}  # of random pixels; fewer would not keep a GPU busy


def seconds_per_image(backbone: nn.Module, size: int, device: torch.device) -> float:
    """Seconds per image to compute a backbone's features of images of `size` pixels, in float32."""
    n = MEASURED_IMAGES[device.type]
    images = torch.rand(n, 3, size, size, device=device)
    with torch.no_grad():
        return _seconds(lambda: backbone(images), device) / n


def training_cost(
    step: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    model: nn.Module,
    size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[float, float]:
    """Seconds, and bytes kept for the backward pass, per image of a training iteration on two views of each.

    Args:
        step: images -> dict with `loss`, as simclr.simclr_step.
        model: the module that `step` trains; its gradients are removed at the end.
        size: side of the images in pixels.
        autocast: gives the context manager of the forward pass.
    """
    n = MEASURED_IMAGES[device.type]
    images = torch.rand(2 * n, 3, size, size, device=device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def iterate() -> None:
        with autocast():
            loss = step(images)["loss"]
        loss.backward()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        iterate()
    seconds = _seconds(iterate, device)
    model.zero_grad(set_to_none=True)
    return seconds / n, sum(kept.values()) / n


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """The faster of two calls, after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def duration(seconds: float) -> str:
    """About how long, in words: 40 s, 3 min, 2.5 h, 4 days."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.{int(seconds < 36000)}f} h"
    return f"{seconds / 86400:.0f} days"
