"""The mutual information of an image and its neighbor under several heads: TEMI, with estimated sizes.

    L = -1/B  sum_i  w_i log  sum_c  (p_ic q_ic)^beta  pi_c / p'_c,     w_i = mean over heads of  <p_i, q_i>

p_i, q_i: cluster probabilities of image i and of one of its neighbors; p': their running mean. In TEMI
(Adaloglou et al., Exploring the Limits of Deep Image Clustering using Pretrained Models, BMVC 2023) pi is
uniform, which makes clusters of equal size the cheapest. Here the caller estimates the sizes. No teacher: on
frozen features it changed nothing.
"""

import torch
from torch import nn

MOMENTUM = 0.9  # of the running mean


class TEMILoss(nn.Module):
    """The sum of the losses of H heads, with pi = `sizes`.

    Args:
        sizes: float (H, C), the expected shares of the images, all above 0.
        beta: how flat the optimum is, in (0, 1]; the authors' 0.6 is for few clusters.
    """

    mean: torch.Tensor

    def __init__(self, sizes: torch.Tensor, beta: float = 0.6):
        super().__init__()
        self.sizes = sizes / sizes.sum(1, keepdim=True)
        self.beta = beta
        self.register_buffer("mean", self.sizes.clone())

    def forward(self, logits: torch.Tensor, neighbor_logits: torch.Tensor) -> torch.Tensor:
        """Both float (H, B, C) -> a scalar; updates the running mean."""
        log_p, log_q = logits.log_softmax(2), neighbor_logits.log_softmax(2)
        with torch.no_grad():
            self.mean.lerp_((log_p.exp().mean(1) + log_q.exp().mean(1)) / 2, 1 - MOMENTUM)
            weight = (log_p + log_q).exp().sum(2).mean(0)
            surplus = (self.mean / self.sizes).log().unsqueeze(1)  # (H, 1, C)
        return -(weight * torch.logsumexp(self.beta * (log_p + log_q) - surplus, 2)).mean(1).sum()
