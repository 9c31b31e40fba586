"""The network as a training step calls it."""

import logging

from utils.run import distributed, machine

log = logging.getLogger(__name__)


class TrainingNetwork:
    """Calls a module in the precision of training, and gathers its outputs from all processes.

    The outputs are those of the whole batch: each process computes its share, see utils/run/distributed.py.

    Args:
        module: what trains; it keeps the weights.
        call: what is called in its place, such as the compiled module.
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


def for_training(run, module, loader, images_per_anchor=1):
    """The TrainingNetwork of a module: compiled where that pays, or one of several processes.

    Args:
        run: the Run.
        module: what trains, on the run's device.
        loader: the batches that it trains on, whose number says how long the run is.
        images_per_anchor: images of a forward pass for each of the batch's anchors.
    """
    setting = run.config.compile
    if run.device.type == "cpu":
        machine.reuse_freed_memory()
    if distributed.world_size() > 1:
        if setting == "on":
            log.info("not compiled: several processes train eagerly")
        call = distributed.parallel(module, run.device)
    else:
        iterations = run.config.epochs * len(loader)
        images = loader.batch_size * images_per_anchor
        call = machine.compiled(module, setting, run.device, iterations, images)
    return TrainingNetwork(module, call, run.autocast)
