"""Optimizers and learning-rate schedules."""

import math

import torch

from errors import UserError

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def build_optimizer(parameters, name, kwargs):
    """SGD or Adam over all trainable `parameters`; weight decay applies to BatchNorm and biases, too.

    Raises UserError for arguments that the optimizer does not take.
    """
    optimizer = OPTIMIZERS[name]
    parameters = [p for p in parameters if p.requires_grad]
    try:
        optimizer = optimizer(parameters, fused=True, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_kwargs: {name} cannot use them ({error})") from None
    if kwargs.get("momentum"):
        # otherwise a first iteration that the optimizer skips would leave it uninitialized
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def skip_unless(trains, optimizer):
    """Let the optimizer's next step change nothing if `trains`, a bool on its device, is False.

    Fused optimizers read `found_inf` on the device, without a GPU synchronization; torch's GradScaler
    sets it, too.

    Raises:
        TypeError: an optimizer that would train on the batch all the same.
    """
    if type(optimizer) not in OPTIMIZERS.values() or not all(
        group["fused"] for group in optimizer.param_groups
    ):
        raise TypeError(
            f"{type(optimizer).__name__} cannot skip a batch that has nothing to train on: only SGD and Adam "
            "with fused=True can, see build_optimizer"
        )
    optimizer.found_inf = trains.logical_not().float()


def learning_rate(epoch, epochs, lr, scheduler, lr_decay_rate=0.1, lr_decay_epochs=(), warmup_epochs=0):
    """Learning rate of the 0-based `epoch` of `epochs`.

    cosine: from lr down to lr * rate^3; step: times rate after each milestone; constant: lr. The first
    `warmup_epochs` have 1, 2, ... of warmup_epochs + 1 parts of that.
    """
    if scheduler == "cosine":
        floor = lr * lr_decay_rate**3
        lr = floor + (lr - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    elif scheduler == "step":
        lr *= lr_decay_rate ** sum(epoch > milestone for milestone in lr_decay_epochs)
    return lr * min(1, (epoch + 1) / (warmup_epochs + 1))


def scheduled_learning_rate(config, epoch):
    """`learning_rate` by the settings of a configuration, or of the fingerprint in a checkpoint."""
    return learning_rate(
        epoch,
        config["epochs"],
        config["optimizer_kwargs"]["lr"],
        config["scheduler"],
        **config.get("scheduler_kwargs", {}),
    )


def set_learning_rate(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
