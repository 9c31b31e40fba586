"""Optimizers, and the running average of the weights."""

import pytest
import torch
from mistakes import refused
from torch import nn

from utils.training.ema import EMA
from utils.training.optim import build_optimizer, learning_rate


def test_schedules_and_warm_up():
    assert learning_rate(7, 10, 0.3, "constant") == 0.3
    rates = [learning_rate(epoch, 10, 0.4, "constant", warmup_epochs=3) for epoch in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    cosine = [learning_rate(epoch, 10, 0.4, "cosine") for epoch in range(10)]
    warm = [learning_rate(epoch, 10, 0.4, "cosine", warmup_epochs=1) for epoch in range(10)]
    assert warm == [cosine[0] / 2, *cosine[1:]]


def test_optimizer_takes_what_trains():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    for name in ("sgd", "adam"):
        optimizer = build_optimizer(model.parameters(), name, {"lr": 0.1, "weight_decay": 1e-4})
        assert [tuple(p.shape) for p in optimizer.param_groups[0]["params"]] == [(2, 2), (2,)]


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("adam", {"lr": 0.1, "momentum": 0.5}, ["adam cannot use them", "momentum"]),
        ("sgd", {"lr": 0.1, "nesterov": True, "momentum": 0}, ["sgd cannot use them"]),
    ],
)
def test_arguments_that_it_cannot_use(name, kwargs, words):
    refused(["optimizer_kwargs", *words], build_optimizer, nn.Linear(2, 2).parameters(), name, kwargs)


def test_ema_loop():
    """The published behavior: the average takes the place of the live weights, buffers stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ema = EMA(model, 0.9)
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    for _ in range(5):
        model(torch.randn(8, 4) + 3)  # moves the running statistics
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        for name, p in model.named_parameters():
            shadow[name] = 0.9 * shadow[name] + 0.1 * p.detach()
        ema.update()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), shadow[name])
        assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
