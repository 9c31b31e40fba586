"""What this machine is good for: its device, its precision, its compiler, its memory."""

import ctypes
import logging
import sys
from contextlib import suppress

import torch

from errors import UserError

log = logging.getLogger(__name__)

# Compiling costs a minute or two, and saves some milliseconds per step on a GPU.
STEPS_THAT_REPAY = 3000
# In passes over fewer images a GPU waits for its next kernel: CUDA graphs launch them all at once.
LAUNCH_BOUND = 256


def choose_device(name, local_rank=None):
    """`auto` is CUDA if there is one, else the CPU; each of torchrun's processes takes its own GPU.

    Args:
        name: auto, cpu, cuda or cuda:N.
        local_rank: number of this process on its machine, None without torchrun.

    Raises:
        UserError: the named device is not there, or not one for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and local_rank is not None:
        if device.index is not None:
            raise UserError(
                f"device {name}: torchrun's processes take one GPU each; set device to auto or cuda"
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            one_each = f"each process needs its own: torchrun --nproc_per_node {count}"
            what = one_each if local_rank and count else "set device to auto or cpu"
            raise UserError(f"device {device}: torch sees no such GPU here; {what}")
        torch.cuda.set_device(device)
        # Reported figures are float32 ones; training in bfloat16 does not need TensorFloat-32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return device


def choose_precision(name, device):
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        # torch.cuda.is_bf16_supported() also counts emulation, which is slow
        gpu = device.type == "cuda"
        native = torch.cuda.get_device_capability(device) >= (8, 0) if gpu else _cpu_has_bf16()
        name = "bf16" if native else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def _cpu_has_bf16():
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def reuse_freed_memory():
    """Let the C library keep what is freed, instead of having every step's pages zeroed by the system again.

    Only glibc has these settings (`man mallopt`); elsewhere nothing happens.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)


def compiled(network, setting, device, steps, images):
    """`network`, compiled for training where that pays.

    Args:
        network: the module to train.
        setting: `on`, `off`, or `auto`: on a GPU, if the run is long enough to repay the compiler's minutes.
            On a CPU the convolutions take nearly all of the time and are the same library's either way.
        device: torch.device that it trains on.
        steps: training steps of the whole run.
        images: images in a forward pass.

    Returns:
        a function of the network's arguments.
    """
    if setting == "off" or (setting == "auto" and (device.type != "cuda" or steps < STEPS_THAT_REPAY)):
        return network
    small = device.type == "cuda" and images <= LAUNCH_BOUND
    log.info("compiling the network (compile: %s); the first step takes a minute or two", setting)
    return _OrEager(torch.compile(network, mode="reduce-overhead" if small else None), network)


class _OrEager:
    """A compiled network, or the network itself if compiling, which the first call does, fails."""

    def __init__(self, network, eager):
        self.network, self.eager = network, eager

    def __call__(self, *args):
        if self.eager is None:
            return self.network(*args)
        try:
            outputs = self.network(*args)
        except Exception as error:  # no C++ compiler, no Triton, ...: each has an exception of its own
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            log.info("not compiled, which is slower but no less right (%s)", lines[0].strip())
            log.debug("%s", error)
            self.network, outputs = self.eager, self.eager(*args)
        self.eager = None
        return outputs
