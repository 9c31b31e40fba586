"""Running average of the weights, as published for self-labeling on ImageNet."""

import torch


class EMA:
    """After every iteration, replace each parameter by its running average (the published behaviour).

        shadow <- alpha * shadow + (1 - alpha) * parameter;   parameter <- shadow

    The live weights take the average's place, which amounts to a step of (1 - alpha) times the
    learning rate. The BatchNorm buffers are put back to what they were at the start.

    Args:
        model: the module; its present parameters start the shadow.
        alpha: in [0, 1].
    """

    def __init__(self, model, alpha):
        self.model = model
        self.alpha = alpha
        # one flat dict, which goes into the checkpoint
        self.shadow = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self):
        parameters = dict(self.model.named_parameters())
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if name in parameters:
                self.shadow[name].lerp_(tensor, 1 - self.alpha)
            tensor.copy_(self.shadow[name])
