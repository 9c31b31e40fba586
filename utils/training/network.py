"""The network as a training step calls it."""

import logging

from utils.run import distributed, machine

log = logging.getLogger(__name__)


class TrainingNetwork:
    """Calls a module in the run's precision, compiled where that pays, as one of several processes.

    The outputs are those of the whole batch: each process computes its share, see utils/run/distributed.py.

    Args:
        run: the Run.
        module: what trains, on the run's device; it keeps the weights.
        loader: the batches that it trains on, whose number tells how long the run is.
        images_per_anchor: images of a forward pass for each of the batch's anchors.
    """

    def __init__(self, run, module, loader, images_per_anchor=1):
        self.run = run
        self._buffers = list(module.buffers())
        setting = run.config.compile
        if run.device.type == "cpu":
            machine.reuse_freed_memory()
        if distributed.world_size() > 1:
            if setting == "on":
                log.info("not compiled: several processes train eagerly")
            self.call = distributed.parallel(module, run.device)
        else:
            iterations = run.config.epochs * len(loader)
            images = loader.batch_size * images_per_anchor
            self.call = machine.compiled(module, setting, run.device, iterations, images)

    def __call__(self, images):
        """What the module returns, a tensor (B, ...) or a list of them."""
        with self.run.autocast():
            outputs = self.call(images)
        if isinstance(outputs, list):
            return [distributed.gather(output) for output in outputs]
        return distributed.gather(outputs)

    def buffers(self):
        """The module's buffers: BatchNorm's statistics."""
        return self._buffers
