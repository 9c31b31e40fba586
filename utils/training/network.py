"""The network as simclr_step, scan_step and selflabel_step call it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.run import distributed, machine
from utils.run.folder import Run

if TYPE_CHECKING:
    from data import Loader

log = logging.getLogger(__name__)


@dataclass
class TrainingNetwork:
    """Calls a module in training precision; returns the outputs of the whole batch.

    Each process computes its share of them, see utils/run/distributed.py.
    """

    module: nn.Module  # holds the weights
    call: Callable[[torch.Tensor], Any]  # what computes: the module, or its compiled form
    autocast: Callable[[], AbstractContextManager]

    def __post_init__(self) -> None:
        self._buffers = list(self.module.buffers())

    def __call__(self, images: torch.Tensor) -> Any:
        """What the module returns, a tensor (B, ...) or a list of them."""
        with self.autocast():
            outputs = self.call(images)
        if isinstance(outputs, list):
            return [distributed.gather(output) for output in outputs]
        return distributed.gather(outputs)

    def buffers(self) -> list[torch.Tensor]:
        """The module's buffers: BatchNorm's statistics."""
        return self._buffers


def for_training(run: Run, module: nn.Module, loader: "Loader") -> TrainingNetwork:
    """The TrainingNetwork of a module: compiled where that pays, or distributed over several processes.

    `loader` gives the training batches, whose number decides what pays.
    """
    device, setting = run.machine.device, run.config.compile
    if device.type == "cpu":
        machine.reuse_freed_memory()
    if distributed.world_size() > 1:
        if setting == "on":
            log.info("not compiled: several processes train eagerly")
        call: Callable[[torch.Tensor], Any] = distributed.parallel(module, device)
    else:
        call = machine.compiled(module, setting, device, run.config.epochs * len(loader))
    return TrainingNetwork(module, call, run.machine.autocast)
