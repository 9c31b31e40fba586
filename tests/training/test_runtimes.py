"""Features by ONNX Runtime: those of torch, or torch computes them."""

import logging

import pytest
import torch
from torch import nn

from utils.training import runtimes


class Unexportable(nn.Module):
    """What a network returns may depend on what it computes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        features = self.network(images)
        return features if features.sum() > -1e9 else -features


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(runtimes, "WORTH_EXPORT", 0)
    monkeypatch.setattr(runtimes, "GAIN", 0)


def small_network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten()
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def test_features_are_those_of_torch_for_batches_of_any_size(caplog):
    caplog.set_level(logging.INFO)
    network, images = small_network(), torch.randn(150, 3, 8, 8)
    expected = network(images)
    found = runtimes.fastest_features(network, 150, "auto")
    parts = [found(part.contiguous(memory_format=torch.channels_last)) for part in images.split((70, 79, 1))]
    assert "ONNX Runtime" in caplog.text
    nn.init.zeros_(network[3].weight)  # torch would show it, the other one has its own copy
    torch.testing.assert_close(found(images), torch.cat(parts), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("why", ["asked for", "few images", "no export", "other values", "slower"])
def test_torch_computes_them_where_the_other_cannot(why, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    network = small_network()
    if why == "no export":
        network = Unexportable(network)
    elif why == "other values":
        monkeypatch.setattr(
            runtimes, "onnx_features", lambda network, _: lambda images: 1.01 * network(images)
        )
    elif why == "slower":
        monkeypatch.setattr(runtimes, "onnx_features", lambda network, _: network)
        monkeypatch.setattr(runtimes, "GAIN", 1e9)
    images = torch.randn(70, 3, 8, 8)
    n = 60 if why == "few images" else 70
    with torch.no_grad():
        found = runtimes.fastest_features(network, n, "torch" if why == "asked for" else "auto")(images)
        assert torch.equal(found, network(images))
    assert not caplog.text


def test_features_with_other_neighbors_are_not_equal():
    torch.manual_seed(0)
    features = torch.randn(64, 5)
    close = torch.ones(64, 5) + 1e-5 * torch.randn(64, 5)
    assert runtimes.are_equal(features, features + 1e-7)
    assert not runtimes.are_equal(features, features + 0.1)
    assert not runtimes.are_equal(close, close + 1e-5 * torch.randn(64, 5))  # within the tolerance
