"""One run on several processes, which torchrun starts.

Each process computes the network's outputs for its share of a batch. The outputs are gathered, and every
process computes the loss of the whole batch from them. So the losses need not know about processes, and W
processes compute the same as one:

    L(all outputs),   dL/dw = sum_r  dL/d(outputs of r)  d(outputs of r)/dw

Process r computes term r. DistributedDataParallel averages the terms instead of adding them, so the backward
pass of `gather` multiplies by W. BatchNorm takes its statistics over all shares.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from errors import UserError, first_line

from .processes import attempt, is_main, launched, rank, world_size

Model = TypeVar("Model", bound=nn.Module)

TIMEOUT = timedelta(hours=2)  # one process may mine the neighbors of ImageNet while the others wait


def start(device: torch.device) -> None:
    """Join the other processes, if there are any. Raises UserError if they cannot be reached."""
    if not launched() or dist.is_initialized():
        return
    try:
        store, place, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # after a restart the store still holds the addresses of the processes before it
        store = dist.PrefixStore(f"attempt {attempt()}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place, world_size=count, timeout=TIMEOUT)
    except RuntimeError as error:
        raise UserError(
            f"torchrun's processes cannot reach each other ({first_line(error)}); see its --rdzv-endpoint"
        ) from None


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Context manager that lets the main process run the block first (for downloads); the others wait."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def gather(share: torch.Tensor) -> torch.Tensor:
    """Every process's share (B / W, ...) -> the whole batch (B, ...), in the order of the ranks."""
    return _Gather.apply(share) if world_size() > 1 else share


def from_main(values: torch.Tensor) -> torch.Tensor:
    """The main process's tensor, in every process. All give one of the same shape and dtype."""
    if world_size() > 1:
        dist.broadcast(values, 0)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share: torch.Tensor) -> torch.Tensor:
        whole = share.new_empty(world_size() * len(share), *share.shape[1:])
        dist.all_gather_into_tensor(whole, share.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.chunk(world_size())[rank()] * world_size()


class _Mean(torch.autograd.Function):
    """Mean over the processes."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value / world_size()

    backward = forward  # the transpose of a symmetric map


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm with the statistics of all processes' shares, of equal size. torch's own needs a GPU."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def __init__(self, layer: _BatchNorm) -> None:
        """Take the place of `layer`, a BatchNorm2d: share its parameters and statistics."""
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(self, name, buffer)
        self.train(layer.training)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(images)
        x = images.float()
        mean = _Mean.apply(x.mean((0, 2, 3)))
        centered = x - mean.view(1, -1, 1, 1)
        variance = _Mean.apply(centered.square().mean((0, 2, 3)))
        with torch.no_grad():
            n = x.numel() // x.size(1) * world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(images.dtype)


def synchronize(model: Model, device: torch.device) -> Model:
    """Make each BatchNorm2d of the model synchronize over all processes; parameters keep their names.

    Raises UserError for any other BatchNorm class: it would lose what it adds, or not be synchronized.
    """
    if world_size() == 1:
        return model
    modules = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if isinstance(module, _BatchNorm)}
    for name, module in layers.items():
        if type(module) is not nn.BatchNorm2d:
            raise UserError(
                f"{name}: a {type(module).__name__} cannot take its statistics over several processes, only "
                "torch.nn.BatchNorm2d can; train in one process, or with another backbone"
            )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, module in layers.items():
        model.set_submodule(name, SyncBatchNorm(module))
    return model


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes."""
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # a new name from torch 2.14 on
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)
