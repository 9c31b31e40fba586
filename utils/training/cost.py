"""What a step will take in time and memory, measured on a few images before it begins."""

import time

import torch

IMAGES = 8  # of random pixels, on which everything is measured


def of_features(backbone, size, device):
    """Seconds per image to compute a backbone's features of images of `size` pixels, in float32."""
    images = torch.rand(IMAGES, 3, size, size, device=device)
    with torch.no_grad():
        return _seconds(lambda: backbone(images), device) / IMAGES


def of_training(step, model, size, device, autocast, views=2):
    """Seconds and bytes per anchor of a training iteration.

    Args:
        step: images -> dict with `loss`, as simclr.simclr_step.
        model: the module that `step` trains, on `device`; its gradients are removed at the end.
        size: side of the images in pixels.
        autocast: function () -> context of the forward pass.
        views: images for each anchor.

    Returns:
        seconds; bytes of what the forward pass keeps for the backward pass.
    """
    images = torch.rand(IMAGES * views, 3, size, size, device=device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def iterate():
        with autocast():
            loss = step(images)["loss"]
        loss.backward()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        iterate()
    seconds = _seconds(iterate, device)
    model.zero_grad(set_to_none=True)
    return seconds / IMAGES, sum(kept.values()) / IMAGES


def _seconds(function, device):
    """The faster of two calls, after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def duration(seconds):
    """About how long, in words: 40 s, 3 min, 2.5 h, 4 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (36000, 3600, "h"), (172_800, 3600, "h")):
        if seconds < limit:
            digits = limit == 36000
            return f"{max(seconds / unit, 1):.{int(digits)}f} {name}"
    return f"{seconds / 86400:.0f} days"
