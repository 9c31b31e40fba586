"""From the CPU, where random numbers are drawn, to the device of the images."""


def to_device(values, device):
    """Copy a CPU tensor without a GPU synchronization; larger ones are pinned first, which that needs."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
