"""Copy tensors from the CPU, where random numbers are drawn, to the device of the images."""


def to_device(values, device):
    """Copy a CPU tensor to `device`; pinned first, because otherwise the copy would synchronize the GPU."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
