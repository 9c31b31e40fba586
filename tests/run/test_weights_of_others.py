"""Backbones in the files of other programs: found by their names, whatever is around them."""

import argparse
import sys

import pytest
import timm
import torch
import torchvision
from mistakes import refused
from torch import nn

from models import build_model, library_network
from utils.run import checkpoint
from utils.run.weights import find_backbone, load_backbone

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def settings(name, size=64):
    config = {"setup": "pretrained", "backbone": name, "train_db_name": "mine"}
    return {**config, "transformation_kwargs": {"crop_size": size}}


def load(name, file, size=64):
    """A model of this backbone with the weights of a file, as pretrained.py loads them."""
    model = build_model(settings(name, size))
    found, _ = find_backbone(checkpoint.load(file), model.backbone, file)
    library = library_network(name)
    load_backbone(model, library.convert(model.backbone, found) if library else found, file)
    return model.backbone.eval()


def varied(network):
    """Give BatchNorm other statistics than those of a new network, and all biases other values than 0."""
    for value in network.state_dict().values():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return network.eval()


@torch.no_grad()
def features(network, images=IMAGES):
    return network(images)


def without_classifier(network):
    network.fc = nn.Identity()
    return network


def prefixed(weights, prefix):
    return {f"{prefix}{key}": value for key, value in weights.items()}


def others(weights):
    """The same names with other values, as of a momentum encoder, a student or a running average."""
    return {key: value + 1 for key, value in weights.items()}


def head(prefix, *names):
    return {f"{prefix}{name}": torch.zeros(3, 3) for name in names}


def lightly(network, weights):
    children = list(network.children())[:-1]
    return nn.Sequential(*children).state_dict()


# what each program puts around the weights of a torchvision network; each holds these weights once
LAYOUTS = {
    "torchvision": lambda n, w: {**w, **head("fc.", "weight", "bias")},
    "before num_batches_tracked": lambda n, w: {k: v for k, v in w.items() if "batches" not in k},
    "our own": lambda n, w: prefixed(w, "backbone."),
    "our own training": lambda n, w: {
        "model": {**prefixed(w, "backbone."), **head("contrastive_head.", "0.weight")},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
    },
    "timm's training": lambda n, w: {
        "state_dict": others(w), "state_dict_ema": w, "args": argparse.Namespace(model="x"), "epoch": 9
    },
    "lightly SimCLR": lambda n, w: {
        **prefixed(lightly(n, w), "backbone."), **head("projection_head.", "layers.0.weight")
    },
    "lightly MoCo": lambda n, w: {
        "state_dict": {
            **prefixed(others(lightly(n, w)), "backbone_momentum."), **prefixed(lightly(n, w), "backbone.")
        }
    },
    "lightly DINO": lambda n, w: {
        **prefixed(others(lightly(n, w)), "student_backbone."), **prefixed(lightly(n, w), "teacher_backbone.")
    },
    "solo-learn": lambda n, w: {
        "state_dict": {
            **prefixed(others(w), "momentum_backbone."),
            **prefixed(w, "backbone."),
            **head("classifier.", "weight", "bias"),
            **head("projector.", "0.weight"),
        },
        "hyper_parameters": {"name": "simsiam"},
    },
    "older solo-learn": lambda n, w: {"state_dict": prefixed(w, "encoder.")},
    "DINO": lambda n, w: {
        "student": {**prefixed(others(w), "module.backbone."), **head("module.head.", "mlp.0.weight")},
        "teacher": {**prefixed(w, "backbone."), **head("head.", "mlp.0.weight")},
        "args": argparse.Namespace(arch="x"),
    },
    "MoCo": lambda n, w: {
        "state_dict": {
            **prefixed(others(w), "module.encoder_k."),
            **prefixed(w, "module.encoder_q."),
            **head("module.encoder_q.fc.", "0.weight", "2.weight"),
            **{"module.queue": torch.zeros(2, 2), "module.queue_ptr": torch.zeros(1)},
        }
    },
    "SwAV": lambda n, w: {
        **prefixed(w, "module."), **head("module.projection_head.", "0.weight"),
        **head("module.prototypes.", "weight"),
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_every_layout_gives_the_features_of_the_network(name, layout, tmp_path):
    network = varied(without_classifier(torchvision.models.get_model(name)))
    torch.save(LAYOUTS[layout](network, network.state_dict()), tmp_path / "weights.pth")
    loaded = load(f"torchvision/{name}", tmp_path / "weights.pth")
    torch.testing.assert_close(features(loaded), features(network), rtol=0, atol=1e-5)


def test_timms_file_for_another_image_size(tmp_path):
    """The position embeddings are resampled as timm does it itself."""
    whole = varied(timm.create_model("test_vit"))
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    loaded = load("timm/test_vit", tmp_path / "weights.pth", 96)
    own = timm.create_model(
        "test_vit",
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": whole.state_dict()},
        img_size=96,
        num_classes=0,
    )
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(features(loaded, images), features(own.eval(), images), rtol=0, atol=1e-5)


def test_dinov2s_own_file(tmp_path):
    """Its names are not all timm's, and it has a token for masked patches."""
    name = "vit_small_patch14_dinov2"
    network = varied(timm.create_model(name, num_classes=0, img_size=56))
    weights = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    torch.save({"teacher": prefixed(weights, "backbone.")}, tmp_path / "weights.pth")
    loaded = load(f"timm/{name}", tmp_path / "weights.pth", 56)
    images = torch.rand(1, 3, 56, 56)
    torch.testing.assert_close(features(loaded, images), features(network, images), rtol=0, atol=1e-5)


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    network = varied(without_classifier(torchvision.models.shufflenet_v2_x0_5()))
    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    loaded = load("torchvision/shufflenet_v2_x0_5", path)
    assert torch.equal(features(loaded), features(network))
    path.write_bytes(path.read_bytes()[:1000])
    refused(["weights.safetensors: not a readable checkpoint"], checkpoint.load, path)


def test_safetensors_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "x.safetensors").touch()
    refused(["pip install safetensors"], checkpoint.load, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {"epoch": 3}, ["holds no weights of this backbone", "it has no weights"]),
        (lambda w: {"a.weight": torch.zeros(1)}, ["it has a.weight, and the backbone conv1.0.weight, conv1"]),
        (lambda w: {k: v for k, v in w.items() if "stage3" not in k}, ["missing (backbone.stage3."]),
        (lambda w: {**w, "stage5.weight": torch.zeros(1)}, ["1 unexpected (backbone.stage5.weight)"]),
        (
            lambda w: {**w, "conv1.0.weight": torch.zeros(24, 3, 7, 7)},
            ["1 of another shape (backbone.conv1.0.weight (24, 3, 7, 7) instead of (24, 3, 3, 3))"],
        ),
        (
            lambda w: {**w, "conv1.1.bias": w["conv1.1.bias"] + torch.nan},
            ["not finite (backbone.conv1.1.bias"],
        ),
    ],
)
def test_a_misfit_is_refused_with_the_names(change, words, tmp_path):
    weights = without_classifier(torchvision.models.shufflenet_v2_x0_5()).state_dict()
    torch.save(change(weights), tmp_path / "weights.pth")
    refused(["weights.pth", *words], load, "torchvision/shufflenet_v2_x0_5", tmp_path / "weights.pth")
