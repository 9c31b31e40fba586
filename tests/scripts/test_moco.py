"""MoCo's file and ImageNet's, through all steps."""

import hashlib

import numpy as np
import pytest
import torch
import torchvision
from digits_steps import figures, official_moco, require_nearest, weights
from PIL import Image

import data
import eval as evaluation
import moco
import scan
import selflabel
from errors import UserError
from utils.run.config import load_config
from utils.run.script import parse_arguments

CONTENT = b"the authors' weights" * 1000


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's real layout for the published 50 classes: JPEGs of all sizes, gray and CMYK ones."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = (data.sets.imagenet.SUBSETS / "imagenet_50.txt").read_text().splitlines()
    modes = ["RGB", "RGB", "L", "CMYK"]
    for split, n in (("train", 2), ("val", 1)):
        for label, line in enumerate(lines):
            folder = root / f"imagenet/ILSVRC2012_img_{split}" / line.split()[0]
            folder.mkdir(parents=True)
            for i in range(n):
                height, width = rng.integers(30, 90, 2)
                image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
                image.convert(modes[(label + i) % 4]).save(folder / f"{line.split()[0]}_{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def moco_file(tmp_path_factory):
    """torchvision's network with MoCo's head, and its file in the layout of the official checkpoint."""
    network = torchvision.models.resnet50(num_classes=128)
    network.fc = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(), network.fc)
    own = {
        f"contrastive_head.{key[3:]}" if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("moco") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(official_moco(own), path, _use_new_zipfile_serialization=False)
    return network, path


def imagenet_arguments(config, imagenet, root, *overrides):
    overrides = (f"root_dir={root}", f"data_dir={imagenet}", "transformation_kwargs.crop_size=32", *overrides)
    return ["--config_exp", f"configs/{config}", "--set", "batch_size=50", "num_workers=0", *overrides]


@pytest.mark.slow
def test_imagenet_from_moco_to_the_end(imagenet, moco_file, tmp_path):
    """The published files of ImageNet-50, on small images and a short budget."""
    network, file = moco_file
    pretext = imagenet_arguments("pretext/moco_imagenet50.yml", imagenet, tmp_path)
    moco.main([*pretext, "--pretrained", str(file)])
    folder = tmp_path / "imagenet_50/pretext"
    model = weights(folder / "model.pth.tar")
    assert torch.equal(model["backbone.layer4.2.conv3.weight"], network.layer4[2].conv3.weight)
    assert torch.equal(model["contrastive_head.2.weight"], network.fc[2].weight)
    assert {path.name for path in folder.iterdir()} == {
        *("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy"),
        # and no features, which are large
        *("metrics.json", "metrics.jsonl", "config.yml", "log.txt", "fingerprint.json"),
    }
    mined = require_nearest(backbone_features(network, imagenet), folder / "topk-val-neighbors.npy")
    assert mined.shape == (50, 6) and mined[:, 0].tolist() == list(range(50))
    assert np.load(folder / "topk-train-neighbors.npy").shape == (100, 51)

    evaluation.main([*pretext, "--model", str(folder / "model.pth.tar"), "--output", str(tmp_path / "e")])
    then, now = figures(folder), figures(tmp_path / "e")
    for k in (1, 5, 20):
        assert now[f"top{k}_neighbor_accuracy"] == then[f"top{k}_neighbor_accuracy"]

    small = ("epochs=1", "augmentation_kwargs.random_resized_crop.size=32")
    scan.main(imagenet_arguments("scan/scan_imagenet_50.yml", imagenet, tmp_path, *small))
    clustering = weights(tmp_path / "imagenet_50/scan/model.pth.tar")
    assert torch.equal(clustering["backbone.conv1.weight"], network.conv1.weight)  # heads only
    assert len({key for key in clustering if key.startswith("cluster_head.")}) == 20
    small = ("epochs=1", "augmentation_kwargs.crop_size=32", "confidence_threshold=0.01")
    selflabel.main(imagenet_arguments("selflabel/selflabel_imagenet_50.yml", imagenet, tmp_path, *small))
    found = figures(tmp_path / "imagenet_50/selflabel")
    assert (found["num_clusters"], found["num_classes"], found["num_images"]) == (50, 50, 50)


@torch.no_grad()
def backbone_features(network, imagenet):
    """The test images' 2048 features before the MLP, the plain way: torchvision's network."""
    argv = imagenet_arguments("pretext/moco_imagenet50.yml", imagenet, "unused")
    config = load_config(parse_arguments(argv, ""), ["moco"])
    images = data.build_dataset(config, "test")
    batch = data.build_eval_transform(config)(torch.stack([images.raw(i) for i in range(len(images))]))
    body = torch.nn.Sequential(*list(network.eval().children())[:-1])
    return body(batch).flatten(1)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file in the place of the authors' one, and its place in torch.hub's cache."""
    served = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    served.write_bytes(CONTENT)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(moco, "URL", served.as_uri())
    monkeypatch.setattr(moco, "MD5", hashlib.md5(CONTENT).hexdigest()[:8])
    return served, tmp_path / "hub/checkpoints" / served.name


def test_official_checkpoint_is_downloaded_once(official, monkeypatch):
    _, path = official
    assert moco.download_checkpoint() == path
    assert path.read_bytes() == CONTENT
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a second download would fail
    assert moco.download_checkpoint() == path


@pytest.mark.parametrize("content", [None, b"<html>down for maintenance</html>", CONTENT[:1000]])
def test_official_checkpoint_that_does_not_arrive(official, content):
    """Nothing, a page, or half of it: said so, and not taken for the checkpoint the next time."""
    served, path = official
    served.unlink()
    if content is not None:
        served.write_bytes(content)
    with pytest.raises(UserError, match="cannot be downloaded.*--pretrained"):
        moco.download_checkpoint()
    assert not list(path.parent.iterdir())
