"""The network as simclr_step, scan_step and selflabel_step call it."""

import logging

from utils.run import distributed, machine

log = logging.getLogger(__name__)


class TrainingNetwork:
    """Calls a module in training precision; returns the outputs of the whole batch.

    Each process computes its share of them, see utils/run/distributed.py.

    Args:
        module: the module to train; it holds the weights.
        call: the function to call in its place, such as the compiled module.
        autocast: function () -> context of the forward pass.
    """

    def __init__(self, module, call, autocast):
        self.call = call
        self.autocast = autocast
        self._buffers = list(module.buffers())

    def __call__(self, images):
        """What the module returns, a tensor (B, ...) or a list of them."""
        with self.autocast():
            outputs = self.call(images)
        if isinstance(outputs, list):
            return [distributed.gather(output) for output in outputs]
        return distributed.gather(outputs)

    def buffers(self):
        """The module's buffers: BatchNorm's statistics."""
        return self._buffers


def for_training(run, module, loader):
    """The TrainingNetwork of a module: compiled where that pays, or distributed over several processes.

    Args:
        run: the Run.
        module: the module to train, on the run's device.
        loader: the training batches; their number decides what pays.
    """
    setting = run.config.compile
    if run.machine.device.type == "cpu":
        machine.reuse_freed_memory()
    if distributed.world_size() > 1:
        if setting == "on":
            log.info("not compiled: several processes train eagerly")
        call = distributed.parallel(module, run.machine.device)
    else:
        call = machine.compiled(module, setting, run.machine.device, run.config.epochs * len(loader))
    return TrainingNetwork(module, call, run.machine.autocast)
