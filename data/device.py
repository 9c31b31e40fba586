"""From the CPU, where random numbers are drawn, to the device of the images."""


def to_device(values, device):
    """Copy a CPU tensor; a GPU is not waited for, as it would be if larger ones were not pinned first."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
