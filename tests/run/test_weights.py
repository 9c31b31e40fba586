"""Every layout of weights that users bring is recognized by its content; what does not fit is refused."""

import logging

import numpy as np
import pytest
import torch
from digits_steps import official_moco, same

from errors import UserError
from moco import convert
from models import ClusteringModel, ContrastiveModel
from models.resnet import ResNet, resnet50
from utils.run.weights import load_weights, read_best_head, read_weights, unwrap


def clustering(num_clusters=5, num_heads=2, width=4, **kwargs):
    return ClusteringModel(ResNet(width=width, **kwargs), 8 * width, num_clusters, num_heads)


def contrastive(**kwargs):
    return ContrastiveModel(ResNet(width=4), 32, **kwargs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth.tar"


# --- every layout --------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("wrap", "head"),
    [
        (lambda weights: weights, None),
        (lambda weights: {"model": weights, "head": 1}, 1),
        (lambda weights: {"model": weights, "head": np.int64(1)}, 1),
        (lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3}, None),
        (lambda weights: {"model": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, None),
        (lambda weights: {f"module._orig_mod.{k}": v for k, v in weights.items()}, None),
        (
            lambda weights: {
                **{"model": weights, "optimizer": {}, "epoch": 3},
                **{"best_loss": np.float64(-1.5), "best_loss_head": np.int64(1)},
            },
            None,  # these weights are the last epoch's, not those that this head was best with
        ),
    ],
)
def test_layouts(path, wrap, head, zipped):
    model, other = clustering(), clustering()
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    weights, found = read_weights(path, ["clustering"])
    assert found == head
    assert list(weights) == list(model.state_dict())
    load_weights(other, weights, path)
    assert same(model.state_dict(), other.state_dict())


def test_official_moco(path):
    own = contrastive().state_dict()
    torch.save(official_moco(own), path, _use_new_zipfile_serialization=False)
    weights, _ = read_weights(path, ["moco", "pretext"])
    assert same(convert(weights), own)
    assert convert(own) is own  # a converted one stays as it is


@pytest.mark.parametrize(
    ("content", "kinds", "message"),
    [
        (contrastive().state_dict(), ["clustering"], "a pretext model .*, but a clustering model"),
        (clustering().state_dict(), ["pretext"], "a clustering model .*, but a pretext model"),
        (
            official_moco(contrastive().state_dict()),
            ["pretext"],
            "an official MoCo checkpoint .*, but a pretext model",
        ),
        (resnet50(224).state_dict(), ["pretext"], "a model of another program.*conv1.weight"),
        (clustering().state_dict(), ["moco", "pretext"], "but an official MoCo .* or a pretext model"),
    ],
)
def test_another_kind_is_recognised_by_its_content(path, content, kinds, message):
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_weights(path, kinds)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, "nothing"),
        ({"epoch": 3, "net": {}}, "epoch, net"),
        ([1, 2], "list"),
        ({"model": {"a": 1}}, "a"),
        (torch.zeros(3), "Tensor"),
    ],
)
def test_no_state_dict(path, content, found):
    torch.save(content, path)
    with pytest.raises(UserError, match=f"holds no state dict, but {found}; expected"):
        read_weights(path, ["pretext"])


def test_choice_of_the_head(path):
    weights = clustering(num_heads=3).state_dict()
    assert read_best_head(weights, 2, path) == 2
    assert read_best_head(clustering(num_heads=1).state_dict(), None, path) == 0
    for head, message in ((None, "which of its 3 heads"), (3, "names head 3 .* 0 to 2"), (-1, "head -1")):
        with pytest.raises(UserError, match=message):
            read_best_head(weights, head, path)
    for head in ("best", 1.0):
        with pytest.raises(UserError, match=f"number of a cluster head, found {head!r}"):
            unwrap({"model": weights, "head": head}, path)


# --- what does not fit is refused ----------------------------------------------------------------


def without(weights, part):
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            without(clustering().state_dict(), "layer3.0.bn1.bias"),
            r"it is incomplete.*: 1 missing \(backbone.layer3.0.bn1.bias\)$",
        ),
        (without(clustering().state_dict(), "conv2"), "it is incomplete.*: 8 missing"),
        (without(clustering().state_dict(), "backbone."), "it has no backbone"),
        (without(clustering().state_dict(), "backbone.conv1"), "it is incomplete.*: 1 missing"),
        (clustering(num_heads=1).state_dict(), r"--set num_heads=1: 2 missing \(cluster_head.1"),
        (
            {key: value.to(torch.int8) for key, value in clustering().state_dict().items()},
            r"of another type \(backbone.conv1.weight torch.int8",
        ),
        (
            {**clustering().state_dict(), "backbone.conv1.weight": torch.zeros(4, 3, 3, 3).to_sparse()},
            "1 of another type",
        ),
        (
            {**clustering().state_dict(), "backbone.conv1.weight": torch.tensor(1.0)},
            r"1 of another shape \(backbone.conv1.weight \(\) instead",
        ),
        ({**clustering().state_dict(), "backbone.fc.bias": torch.zeros(1)}, "1 unexpected"),
        (
            clustering(num_clusters=7).state_dict(),
            r"--set num_classes=7: 4 of another shape \(cluster_head.0.weight \(7, 32\)",
        ),
        (
            clustering(num_heads=3).state_dict(),
            r"--set num_heads=3: 2 unexpected \(cluster_head.2",
        ),
        (
            clustering(width=8).state_dict(),
            r"its backbone is not this configuration's; give the --config_exp .* --set backbone=\.\.\.: ",
        ),
        (
            ClusteringModel(resnet50(224), 2048, 5, 2).state_dict(),
            r"its backbone is not .* missing .*, \.\.\.\); \d+ unexpected .*; \d+ of another shape",
        ),
        (clustering(blocks=(1, 1, 1, 1)).state_dict(), "of a smaller network: 48 missing"),
        (clustering(blocks=(2, 2, 3, 2)).state_dict(), "its backbone is not this .*: 12 unexpected"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    model = clustering()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(model, weights, "file")
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("kwargs", "found"),
    [({"head": "linear"}, "linear head to 128"), ({"features_dim": 64}, "mlp head to 64")],
)
def test_another_projection_head(kwargs, found):
    with pytest.raises(UserError, match=f"model_kwargs is a {found}, here mlp head to 128"):
        load_weights(contrastive(), contrastive(**kwargs).state_dict(), "file")
    with pytest.raises(UserError, match="it has no contrastive head"):
        load_weights(contrastive(), without(contrastive().state_dict(), "contrastive_head"), "file")


def test_the_configuration_beside_the_file_names_its_backbone(path):
    (path.parent / "config.yml").write_text("backbone: resnet10_narrow\n")
    weights = clustering(blocks=(1, 1, 1, 1), width=16).state_dict()
    with pytest.raises(UserError, match="made with, or --set backbone=resnet10_narrow: "):
        load_weights(clustering(), weights, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    weights = clustering().state_dict()
    weights["backbone.bn1.bias"] = weights["backbone.bn1.bias"] + value
    with pytest.raises(UserError, match=r"1 weights are not finite \(backbone.bn1.bias\)"):
        load_weights(clustering(), weights, "file")


def test_the_log_lists_every_weight(caplog):
    caplog.set_level(logging.DEBUG)
    weights = without(clustering().state_dict(), "layer4")
    missing = [key for key in clustering().state_dict() if key not in weights]
    with pytest.raises(UserError, match=f"{len(missing)} missing"):
        load_weights(clustering(), weights, "file")
    assert all(f"\n  {key}" in caplog.text for key in missing)


def test_half_precision_is_widened():
    model, other = clustering(), clustering()
    load_weights(other, model.half().state_dict(), "file")
    assert other.backbone.conv1.weight.dtype == torch.float32
    assert torch.equal(other.backbone.conv1.weight.half(), model.backbone.conv1.weight)


def test_the_backbone_alone_but_no_weight_of_it_may_miss():
    pretext = contrastive().state_dict()
    model = clustering()
    heads = {key: value.clone() for key, value in model.cluster_head.state_dict().items()}
    load_weights(model, pretext, "file", "backbone.")
    assert torch.equal(model.backbone.conv1.weight, pretext["backbone.conv1.weight"])
    assert same(model.cluster_head.state_dict(), heads)
    with pytest.raises(UserError, match="1 missing"):
        load_weights(model, without(pretext, "layer1.0.bn2.bias"), "file", "backbone.")
