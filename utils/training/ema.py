"""Running average of the weights, as published for self-labeling on ImageNet."""

import torch
from torch import nn


class EMA:
    """After every iteration, replace each parameter by its running average (the published behavior).

        shadow <- alpha * shadow + (1 - alpha) * parameter;   parameter <- shadow

    The average replaces the live weights, which amounts to (1 - alpha) times the learning rate. The BatchNorm
    buffers are reset to their values at the start.

    Args:
        model: the module; its current parameters initialize the shadow.
        alpha: in [0, 1].
    """

    def __init__(self, model: nn.Module, alpha: float) -> None:
        self.model = model
        self.alpha = alpha
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"ema": self.shadow}

    def load_state_dict(self, state: dict[str, dict[str, torch.Tensor]]) -> None:
        for name, tensor in state["ema"].items():
            self.shadow[name].copy_(tensor)

    @torch.no_grad()
    def update(self) -> None:
        parameters = dict(self.model.named_parameters())
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if name in parameters:
                self.shadow[name].lerp_(tensor, 1 - self.alpha)
            tensor.copy_(self.shadow[name])
