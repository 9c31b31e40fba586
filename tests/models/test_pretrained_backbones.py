"""Networks of timm and torchvision: built without weights, features as the libraries' own."""

import socket
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from digits_steps import ROOT
from mistakes import refused

from models import build_model, library_network, preprocessing
from models.pretrained_backbones import IMAGENET, learned_with_labels

DINO = "timm/vit_small_patch14_dinov2.lvd142m"


def build(backbone, size=64, **more):
    config = {"setup": "pretrained", "backbone": backbone, "train_db_name": "stl-10", **more}
    return build_model({**config, "transformation_kwargs": {"crop_size": size}})


@pytest.fixture
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize(
    ("name", "classifier", "dim"),
    [
        ("resnet18", "fc", 512),
        ("mobilenet_v2", "classifier.1", 1280),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("squeezenet1_1", "classifier.1", 512),
        ("densenet121", "classifier", 1024),
        ("regnet_y_400mf", "fc", 440),
        ("shufflenet_v2_x0_5", "fc", 1024),
    ],
)
def test_torchvision_features_are_what_its_classifier_takes(name, classifier, dim, no_network):
    backbone = build(f"torchvision/{name}").backbone.eval()
    whole = torchvision.models.get_model(name).eval()
    fits = whole.load_state_dict(backbone.state_dict(), strict=False)
    assert {key.rpartition(".")[0] for key in fits.missing_keys} == {classifier}
    assert library_network(f"torchvision/{name}").classifiers() == (classifier,)
    taken = []
    whole.get_submodule(classifier).register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        features = backbone(images)
    assert features.shape == (2, dim)
    expected = taken[0] if taken[0].dim() == 2 else taken[0].relu().mean((2, 3))  # squeezenet's convolution
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "dim"), [("test_resnet", 96), ("test_vit", 64), ("test_efficientnet", 256)])
def test_timm_features_are_its_own(name, dim, no_network):
    backbone = build(f"timm/{name}").backbone.eval()
    whole = timm.create_model(name, **({"img_size": 64} if "vit" in name else {})).eval()
    whole.load_state_dict(backbone.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)
        features = backbone(images)
    assert features.shape == (2, dim)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


def test_the_default_of_cluster_takes_images_of_224_pixels(no_network):
    model = build(DINO, 224, setup="scan", num_classes=7)
    assert model.backbone.pos_embed.shape == (1, 1 + 16 * 16, 384)
    assert model.cluster_head[0].in_features == 384
    assert all(key.startswith(("backbone.", "cluster_head.")) for key in model.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("timm/resnt18", 64, ["unknown network 'resnt18'", "did you mean 'timm/resnet18'?"]),
        ("timm/resnet18.a1_in2k", 64, ["unknown weights 'a1_in2k'", "did you mean 'timm/resnet18.a1_in1k'?"]),
        ("torchvision/mobilenetv2", 64, ["did you mean 'torchvision/mobilenet_v2'?"]),
        ("torchvision/resnet18.IMAGENET_V1", 64, ["did you mean 'torchvision/resnet18.IMAGENET1K_V1'"]),
        ("torchvision/fasterrcnn_resnet50_fpn", 64, ["unknown network"]),
        ("torchvision/", 64, ["unknown network ''", "known: alexnet"]),
        ("tim/resnet18", 64, ["unknown library 'tim'", "timm, torchvision"]),
        ("resnet-18", 64, ["unknown name", "timm/NAME", "did you mean 'resnet18'?"]),
        (DINO, 225, ["225 pixels do not divide into patches of 14", "such as 224"]),
        ("torchvision/vit_b_32", 40, ["cannot take images of 40 pixels"]),
        ("timm/maxvit_tiny_tf_224", 100, ["cannot take images of 100 pixels", "divisible"]),
        ("features/64", 64, ["set features_file"]),
    ],
)
def test_what_is_refused(name, size, words):
    refused(words, build, name, size)


@pytest.mark.parametrize("name", ["features", "features/0", "features/x", "features/-3", "features/1/2"])
def test_features_of_no_width(name):
    refused(["expected features/D"], lambda: build(name, features_file="x.npy"))


def test_timm_is_imported_only_when_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(["timm/resnet18", "pip install timm"], build, "timm/resnet18")
    code = "import models, sys; print([name for name in ('timm', 'torchvision') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_preprocessing():
    for name in (DINO, "torchvision/mobilenet_v2", "resnet18", "features/64"):  # DINO not 518 pixels
        assert preprocessing(name) == IMAGENET
    assert preprocessing("torchvision/efficientnet_b1") == IMAGENET._replace(size=240)
    half = [0.5] * 3
    assert preprocessing("timm/vit_tiny_patch16_384.augreg_in21k_ft_in1k") == (384, half, half)


LABELS = {
    False: "lvd142m lvd1689m dinov3_lvd1689m sat493m dino fb_dino mae fcmae seer in1k_ijepa",
    True: "in1k a1_in1k tv_in1k sw_in12k in21k augreg_in21k augreg_in21k_ft_in1k fcmae_ft_in1k seer_ft_in1k "
    "fcmae_ft_in22k_in1k mae_in1k_ft_in1k openai_ft_in1k fb_inw21k mim_in22k_ft_in22k_in1k",
    None: "openai laion2b webli mim_in22k eupe_lvd1689m sa1b clip_laion2b_ft_320",
}


@pytest.mark.parametrize("labels", LABELS)
def test_labels_by_timms_tags(labels):
    for tag in LABELS[labels].split():
        assert learned_with_labels(tag) is labels, tag


def test_weights_by_name():
    named = {name: library_network(name) for name in (DINO, "timm/resnet18", "torchvision/mobilenet_v2")}
    assert [(network.weights, network.labels) for network in named.values()] == [
        (DINO, False), ("timm/resnet18.a1_in1k", True), ("torchvision/mobilenet_v2.IMAGENET1K_V2", True)
    ]  # fmt: skip
    assert library_network("timm/swinv2_cr_small_384").weights is None  # timm has no weights for it
    assert library_network("resnet18") is None
