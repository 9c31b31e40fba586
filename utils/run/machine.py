"""What a command computes on: device, precision and processes; the compiler, and the memory."""

import ctypes
import logging
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch._functorch import config as compiler_config

from errors import UserError

from . import distributed

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

# files that show an NVIDIA driver, on Linux and on Linux within Windows
DRIVER = Path("/proc/driver/nvidia/version"), Path("/usr/lib/wsl/lib/libcuda.so.1")
# Compiling costs a minute or two, and saves some milliseconds per iteration on a GPU.
ITERATIONS_THAT_REPAY = 3000
# With at most so many images in a pass, or numbers in its input (1024 images of 32 x 32 pixels), a GPU waits
# for kernel launches; CUDA graphs launch them all at once.
FEW_IMAGES, FEW_NUMBERS = 256, 1024 * 3 * 32 * 32


@dataclass(frozen=True)
class Machine:
    """What a command computes on; made once per command, by `start`.

    Attributes:
        device: what everything computes on.
        precision: of the network during training and monitoring.
        rank: the number of this process among `world_size` processes, which torchrun started.
    """

    device: torch.device
    precision: torch.dtype
    rank: int = 0
    world_size: int = 1

    @classmethod
    def start(cls, config) -> "Machine":
        """Choose by the configuration, and join the other processes, if there are any.

        Raises UserError if torch does not see the device, or the other processes cannot be reached.
        """
        device = choose_device(config.device, distributed.local_rank())
        distributed.start(device)
        precision = choose_precision(config.precision, device)
        return cls(device, precision, distributed.rank(), distributed.world_size())

    def __str__(self) -> str:
        processes = f"{self.world_size} processes, " if self.world_size > 1 else ""
        return f"{processes}{self.device} ({dtype_name(self.precision)})"

    @property
    def main(self) -> bool:
        """Whether this process writes the results; of several, only one does."""
        return self.rank == 0

    def loading(self, config) -> dict[str, Any]:
        """Keyword arguments for every data.Loader."""
        return {
            "batch_size": config.batch_size,
            "num_workers": config.num_workers,
            "device": self.device,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def autocast(self) -> torch.autocast:
        """Context manager of the network's forward pass in training and monitoring."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def place(self, model: Model) -> Model:
        """Move a model to the device, in the memory layout that is fast for convolutions.

        On several processes, also make its BatchNorm layers synchronize.
        """
        model = model.to(self.device, memory_format=torch.channels_last)
        return distributed.synchronize(model, self.device)


def choose_device(name, local_rank=None):
    """`auto` is CUDA if there is one, else the CPU; each of torchrun's processes takes its own GPU.

    Args:
        name: auto, cpu, cuda or cuda:N.
        local_rank: number of this process on its machine, None without torchrun.

    Raises:
        UserError: torch does not see the device, or not a GPU for each process.
    """
    if name == "auto":
        name = "cuda" if _count_gpus() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and local_rank is not None:
        if device.index is not None:
            raise UserError(
                f"device {name}: torchrun's processes take one GPU each; set device to auto or cuda"
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        count, index = _count_gpus(), device.index or 0
        if index >= count:
            one_each = f"each process needs its own: torchrun --nproc_per_node {count}"
            what = one_each if local_rank and count else "set device to auto or cpu"
            raise UserError(f"device {device}: torch sees no such GPU here; {what}")
        torch.cuda.set_device(index)
        # Reported figures are float32 ones; training in bfloat16 does not need TensorFloat-32.
        torch.backends.cudnn.allow_tf32 = False
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # advice of the compiler
        torch.backends.cudnn.benchmark = True
    return device


def _count_gpus():
    with warnings.catch_warnings(action="ignore"):  # about an old driver: see `warn_of_unused_gpu`
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def warn_of_unused_gpu():
    """Log a warning if this machine has an NVIDIA GPU, not hidden on purpose, that torch cannot use."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or not any(path.exists() for path in DRIVER):
        return
    try:
        torch.cuda.init()
        reason = "it does not say why"
    except Exception as error:  # an old driver, torch without CUDA, ...: each raises another exception
        reason = str(error).strip().splitlines()[0]
    log.warning("torch cannot use the NVIDIA GPU of this machine, so the CPU computes (%s)", reason)


def choose_precision(name, device):
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        # torch.cuda.is_bf16_supported() also counts emulation, which is slow
        gpu = device.type == "cuda"
        native = torch.cuda.get_device_capability(device) >= (8, 0) if gpu else _cpu_has_bf16()
        name = "bf16" if native else "fp32"
    return torch.bfloat16 if name == "bf16" else torch.float32


def dtype_name(dtype):
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _cpu_has_bf16():
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def reuse_freed_memory():
    """Make the C library keep freed memory, so that the system need not zero new pages in each iteration.

    Only glibc has these settings (`man mallopt`); elsewhere this does nothing.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def few_threads(device):
    """Context of training on `device`: beside a GPU, one thread; on a CPU, nothing is changed.

    What is left for the CPU, mostly random numbers and kernel launches, is not worth more: on 16 cores,
    threads that wait for each other slowed the launches to half.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compiled(network, setting, device, iterations):
    """`network`, compiled for training where that pays.

    Args:
        network: the module to train.
        setting: `on`, `off`, or `auto`: on a GPU, if the run is long enough to repay the compiler's minutes.
            On a CPU nearly all of the time goes to convolutions, which use the same library either way.
        device: torch.device that it trains on.
        iterations: their number in the whole run.

    Returns:
        a function of the network's input.
    """
    repays = device.type == "cuda" and iterations >= ITERATIONS_THAT_REPAY
    if setting == "off" or (setting == "auto" and not repays):
        return network
    log.info("compiling the network (compile: %s); the first iteration takes a minute or two", setting)
    return _OrEager(network)


class _OrEager:
    """A compiled network, or the network itself if compiling fails.

    The first calls compile, for passes of the first one's size. Calls without gradients and calls with them
    have separate graphs. The backward pass is compiled together with the forward pass, not when it is first
    needed, so that a failure shows here. After a call with gradients nothing is left to compile.
    """

    def __init__(self, network):
        self.network, self.eager = None, network

    def __call__(self, images):
        if self.eager is None:
            return self.network(images)
        try:
            if self.network is None:
                few = images.is_cuda and (len(images) <= FEW_IMAGES or images.numel() <= FEW_NUMBERS)
                # not dynamic: a graph for each input size is faster than one for all sizes
                mode = "reduce-overhead" if few else None
                self.network = torch.compile(self.eager, mode=mode, dynamic=False)
            with compiler_config.patch(force_non_lazy_backward_lowering=True):
                outputs = self.network(images)
        except Exception as error:  # no C++ compiler, no Triton, ...: each raises another exception
            cause = getattr(error, "inner_exception", error)  # without what torch.compile adds
            lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
            log.info("not compiled, which is slower but gives the same results (%s)", lines[0].strip())
            log.debug("%s", error)
            self.network, self.eager = self.eager, None
            return self.network(images)
        if torch.is_grad_enabled():
            self.eager = None
        return outputs
