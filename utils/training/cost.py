"""What a step will take in time and memory, measured on a few images before it begins."""

import time

import torch

IMAGES = {
    "cpu": 8,
    "cuda": 128,
}  # of random pixels, on which everything is measured; few would not fill a GPU


def of_features(backbone, size, device):
    """Seconds per image to compute a backbone's features of images of `size` pixels, in float32."""
    n = IMAGES[device.type]
    images = torch.rand(n, 3, size, size, device=device)
    with torch.no_grad():
        return _seconds(lambda: backbone(images), device) / n


def of_training(step, model, size, device, autocast):
    """Seconds and bytes per image of an iteration of training on two views of each.

    Args:
        step: images -> dict with `loss`, as simclr.simclr_step.
        model: the module that `step` trains; its gradients are removed at the end.
        size: side of the images in pixels.
        device: torch.device of the model.
        autocast: function () -> context of the forward pass.

    Returns:
        seconds; bytes of what the forward pass keeps for the backward pass.
    """
    n = IMAGES[device.type]
    images = torch.rand(2 * n, 3, size, size, device=device)
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
    return seconds / n, sum(kept.values()) / n


def _seconds(function, device):
    """The faster of two calls, after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
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
