"""Networks: shapes, freezing, and what the builder refuses."""

import pytest
import torch
from digits_steps import same
from torch import nn

from errors import UserError
from models import BACKBONES, ClusteringModel, ContrastiveModel, build_model
from models.resnet import ResNet

DIGITS = {
    **{"setup": "scan", "backbone": "resnet10_narrow", "train_db_name": "digits", "num_classes": 10},
    "transformation_kwargs": {"crop_size": 8},
}


@pytest.mark.parametrize(
    ("name", "dim"),
    [("resnet18", 512), ("resnet50", 2048), ("resnet10_narrow", 128), ("resnet10_narrow_pool", 128)],
)
def test_backbone_gives_the_dimension_that_the_heads_take(name, dim):
    model = build_model({**DIGITS, "backbone": name})
    assert model.backbone.eval()(torch.zeros(1, 3, 8, 8)).shape == (1, dim)
    assert model.cluster_head[0].in_features == dim


class Drawing(nn.Module):
    """In train mode it draws random numbers and changes its statistics."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.dropout = nn.Dropout()
        self.cached = None

    def forward(self, images):
        if self.cached is None:
            self.cached = self.conv.weight.detach() * 0 + 1
        return self.cached.mean() * self.dropout(self.norm(self.conv(images)).mean((2, 3)))


def test_a_backbone_is_asked_its_width_without_a_trace(monkeypatch):
    """The weights are those of a network whose width is known."""
    monkeypatch.setitem(BACKBONES, "drawing", lambda image_size: Drawing())
    torch.manual_seed(0)
    expected = ClusteringModel(Drawing(), 7, 10).state_dict()
    following = torch.rand(1)
    torch.manual_seed(0)
    model = build_model({**DIGITS, "backbone": "drawing"})
    assert same(model.state_dict(), expected) and torch.equal(torch.rand(1), following)
    assert all(module.training for module in model.modules()) and model.backbone.cached is None
    with pytest.raises(UserError, match="backbone drawing: cannot take images of 2 pixels .*; set another"):
        build_model({**DIGITS, "backbone": "drawing", "transformation_kwargs": {"crop_size": 2}})


@pytest.mark.parametrize("size", [28, 96, 128])
def test_resnet_takes_any_size(size):
    network = ResNet(width=4, max_pool=size > 64).eval()
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 32)


def test_contrastive_output_is_normalised():
    model = ContrastiveModel(ResNet(width=4), 32, "mlp", 16)
    norms = model(torch.randn(5, 3, 8, 8)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5))
    with pytest.raises(ValueError, match="mlp"):
        ContrastiveModel(ResNet(width=4), 32, "deep", 16)


def test_clustering_heads_are_independent():
    model = build_model({**DIGITS, "num_heads": 3})
    logits = model(torch.randn(2, 3, 8, 8))
    assert [tuple(head.shape) for head in logits] == [(2, 10)] * 3
    assert not torch.equal(logits[0], logits[1])


def test_frozen_backbone_learns_nothing():
    model = ClusteringModel(ResNet(width=4), 32, 5).freeze_backbone().train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(torch.randn(4, 3, 8, 8))[0].sum().backward()
    assert all(torch.equal(before[key], value) for key, value in model.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert model.cluster_head[0].weight.grad is not None
    assert model.cluster_head.training


def test_the_stem_follows_the_dataset():
    for name, size, pooled in (("cifar-10", 96, 0), ("stl-10", 32, 1), ("mine", 32, 0), ("mine", 96, 1)):
        config = {**DIGITS, "backbone": "resnet18", "train_db_name": name}
        model = build_model({**config, "transformation_kwargs": {"crop_size": size}})
        assert isinstance(model.backbone.pool, torch.nn.MaxPool2d) == pooled


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build_model({**DIGITS, "backbone": "resnet-18"})
    with pytest.raises(UserError, match="unknown step"):
        build_model({**DIGITS, "setup": "byol"})
