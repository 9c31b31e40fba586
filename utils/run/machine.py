"""What a command computes on: device, precision and processes; the compiler, and the memory."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from errors import UserError, first_line

from . import distributed, processes
from .distributed import Model
from .schema import Config

log = logging.getLogger(__name__)

# Compiling costs a minute or two, and saves some milliseconds per iteration on a GPU.
ITERATIONS_THAT_REPAY = 3000
# With at most so many images in a pass, or numbers in its input (1024 images of 32 x 32 pixels), a GPU waits
# for kernel launches; CUDA graphs launch them all at once.
FEW_IMAGES, FEW_NUMBERS = 256, 1024 * 3 * 32 * 32
FEW_FEATURES = 20_000  # images whose features one thread clusters in seconds


@dataclass(frozen=True)
class Machine:
    """What a command computes on; made once per command, by `start`."""

    device: torch.device  # that everything computes on
    precision: torch.dtype  # of the network during training and monitoring

    @classmethod
    def start(cls, config: Config) -> "Machine":
        """Choose by the configuration, and join the other processes, if there are any.

        Raises UserError if torch does not see the device, or the other processes cannot be reached.
        """
        device = choose_device(config.device, processes.local_rank())
        distributed.start(device)
        return cls(device, choose_precision(config.precision, device))

    def __str__(self) -> str:
        count = processes.world_size()
        how_many = f"{count} processes, " if count > 1 else ""
        return f"{how_many}{self.device} ({dtype_name(self.precision)})"

    def loading(self, config: Config) -> dict[str, Any]:
        """Keyword arguments for every data.Loader."""
        return {
            "batch_size": config.batch_size,
            "num_workers": config.num_workers,
            "device": self.device,
            "rank": processes.rank(),
            "world_size": processes.world_size(),
        }

    def autocast(self) -> torch.autocast:
        """Context manager of the network's forward pass in training and monitoring."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def place(self, model: Model) -> Model:
        """Move a model to the device, in the memory layout that is fast for convolutions.

        On several processes, also make its BatchNorm layers synchronize.
        """
        model = model.to(self.device).to(memory_format=torch.channels_last)
        return distributed.synchronize(model, self.device)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` is CUDA if there is one, else the CPU; each of torchrun's processes takes its own GPU.

    Raises UserError if torch does not see the device, or not a GPU for each process.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device mps: torch sees no GPU of Apple's here; set device to auto or cpu")
        if local_rank is not None:
            raise UserError("device mps: works in one process; start it with python, not with torchrun")
    if device.type != "cuda":
        return device
    if local_rank is not None:
        if device.index is not None:
            raise UserError(
                f"device {name}: torchrun's processes take one GPU each; set device to auto or cuda"
            )
        device = torch.device("cuda", local_rank)
    index = device.index or 0
    if index >= gpus:
        one_each = f"each process needs its own: torchrun --nproc_per_node {gpus}"
        what = one_each if local_rank and gpus else "set device to auto or cpu"
        raise UserError(f"device {device}: torch sees no such GPU here; {what}")
    torch.cuda.set_device(index)
    # Reported figures are float32 ones; training in bfloat16 does not need TensorFloat-32.
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # advice of the compiler
    torch.backends.cudnn.benchmark = True
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware computes in it, else float32."""
    if name == "auto":
        # torch.cuda.is_bf16_supported() also counts emulation, which is slow
        if device.type == "cuda":
            native = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            native = device.type == "cpu" and _cpu_has_bf16()
        name = "bf16" if native else "fp32"
    if name == "bf16" and device.type == "mps":
        raise UserError("device mps: computes in float32 only; set precision to auto or fp32")
    return torch.bfloat16 if name == "bf16" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def reuse_freed_memory() -> None:
    """Make the C library keep freed memory, so that the system need not zero new pages in each iteration.

    That takes a tenth of the time of a small network on a CPU. Only glibc has these settings (`man mallopt`);
    elsewhere this does nothing.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager of many small operations: several threads spend more time on waiting for each other.

    Beside another busy process, two threads trained heads on features eight times slower than one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # of scikit-learn and BLAS
            yield
    finally:
        torch.set_num_threads(threads)


def threads_for(images: int) -> AbstractContextManager[None]:
    """Context manager of work on the features of so many images: one thread, unless more of them pay."""
    return one_thread() if images <= FEW_FEATURES else nullcontext()


def few_threads(device: torch.device | str) -> AbstractContextManager[None]:
    """Context manager of training on `device`: beside a GPU, one thread; on a CPU, nothing is changed.

    What is left for the CPU, mostly random numbers and kernel launches, is not worth more: on 16 cores,
    threads that wait for each other slowed the launches to half.
    """
    return one_thread() if torch.device(device).type == "cuda" else nullcontext()


def compiled(
    network: nn.Module, setting: str, device: torch.device, iterations: int
) -> Callable[[torch.Tensor], Any]:
    """`network`, compiled for training where that pays.

    `setting` is `on`, `off`, or `auto`: on a GPU, if the iterations of the whole run repay the compiler's
    minutes. On a CPU nearly all of the time goes to convolutions, which use the same library either way.
    """
    repays = device.type == "cuda" and iterations >= ITERATIONS_THAT_REPAY
    if setting == "off" or (setting == "auto" and not repays) or device.type == "mps":
        return network
    log.info("compiling the network (compile: %s); the first iteration takes a minute or two", setting)
    return _CompiledOrEager(network)


class _CompiledOrEager:
    """A compiled network, or the network itself if compiling fails.

    torch.compile works during the first calls; if one fails, the plain network is used from then on. Calls
    without gradients and calls with them have separate graphs. After a call with gradients nothing is left to
    compile.
    """

    def __init__(self, network: nn.Module) -> None:
        self.call: Callable[[torch.Tensor], Any] = network
        self.eager = network
        self.may_fail = True

    def __call__(self, images: torch.Tensor) -> Any:
        if not self.may_fail:
            return self.call(images)
        try:
            if self.call is self.eager:
                few = images.is_cuda and (len(images) <= FEW_IMAGES or images.numel() <= FEW_NUMBERS)
                # not dynamic: a graph for each input size is faster than one for all sizes
                self.call = torch.compile(self.eager, mode="reduce-overhead" if few else None, dynamic=False)
            with _backward_compiled_at_once():
                outputs = self.call(images)
            self.may_fail = not torch.is_grad_enabled()
            return outputs
        except Exception as error:  # no C++ compiler, no Triton, ...: each raises another exception
            cause = getattr(error, "inner_exception", error)  # without what torch.compile adds
            log.info("not compiled, which is slower but gives the same results (%s)", first_line(cause))
            log.debug("%s", error)
            self.call, self.may_fail = self.eager, False
            return self.eager(images)


# --- what torch has no public name for; without these, its next version computes the same ----------


def _cpu_has_bf16() -> bool:
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _backward_compiled_at_once() -> AbstractContextManager[object]:
    """Context manager that compiles the backward pass eagerly.

    A failure of the compiler is then raised in the forward call, where we catch it.
    """
    try:
        from torch._functorch import config

        return config.patch(force_non_lazy_backward_lowering=True)
    except (ImportError, AttributeError):
        return nullcontext()
