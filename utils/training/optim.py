"""Optimizers and learning-rate schedules."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from errors import UserError

OPTIMIZERS: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], name: str, kwargs: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """SGD or Adam over all trainable `parameters`; weight decay applies to BatchNorm and biases, too.

    Raises UserError for arguments that the optimizer does not take.
    """
    parameters = [p for p in parameters if p.requires_grad]
    try:
        optimizer = OPTIMIZERS[name](parameters, fused=True, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_kwargs: {name} cannot use them ({error}); see torch.optim") from None
    if kwargs.get("momentum"):
        # otherwise a first iteration that the optimizer skips would leave it uninitialized
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def skip_unless(trains: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer's next step change nothing if `trains`, a bool on its device, is False.

    Fused optimizers read `found_inf` on the device, without a GPU synchronization; torch's GradScaler
    sets it, too.

    Raises:
        TypeError: an optimizer that would train on the batch all the same.
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if not fused or type(optimizer) not in OPTIMIZERS.values():
        raise TypeError(
            f"{type(optimizer).__name__} cannot skip a batch that has nothing to train on: only SGD and Adam "
            "with fused=True can, see build_optimizer"
        )
    optimizer.found_inf = trains.logical_not().float()  # type: ignore[attr-defined]


def learning_rate(
    epoch: int,
    epochs: int,
    lr: float,
    scheduler: str,
    lr_decay_rate: float = 0.1,
    lr_decay_epochs: Sequence[int] = (),
    warmup_epochs: int = 0,
) -> float:
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


def scheduled_learning_rate(config: Mapping[str, Any], epoch: int) -> float:
    """`learning_rate` by the settings of a configuration, or of the fingerprint in a checkpoint."""
    lr, kwargs = config["optimizer_kwargs"]["lr"], config.get("scheduler_kwargs", {})
    return learning_rate(epoch, config["epochs"], lr, config["scheduler"], **kwargs)
