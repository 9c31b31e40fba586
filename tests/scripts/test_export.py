"""export.py on the results of a real training: each file by itself gives what the model gives."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from digits_steps import fails, images_and_probabilities, read_json
from mistakes import assert_holds
from safetensors.torch import load_file

import export
from models import build_model

NAMES = ["zero", "one", "zwei, drei", *"3456789"]


@pytest.fixture(scope="module")
def digits(results, tmp_path_factory):
    """A copy of the results whose clusters have names."""
    root = tmp_path_factory.mktemp("export")
    shutil.copytree(results, root / "results")
    names = "".join(f'{number},"{name}"\n' for number, name in enumerate(NAMES))
    (root / "results/names.csv").write_text(f"cluster,name\n{names}")
    return root / "results"


@pytest.fixture(scope="module")
def exported(digits):
    export.main([str(digits)])
    return digits / "export"


@pytest.mark.parametrize("n", [1, 2, 33])
def test_the_onnx_file_gives_the_models_probabilities(digits, exported, n):
    images, expected = images_and_probabilities(digits, n)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert expected.argmax(1).unique().numel() > (n > 9)


def test_the_onnx_file_is_whole(exported):
    onnx.checker.check_model(exported / "model.onnx", full_check=True)
    assert sorted(path.name for path in exported.iterdir()) == sorted(export.EXPORTED)
    about = read_json(exported / "model.json")["onnx"]
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for kind, (found,) in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert (found.name, found.shape) == (about[kind]["name"], about[kind]["shape"])
    assert session.get_inputs()[0].type == "tensor(uint8)" and about["input"]["dtype"] == "uint8"
    assert 0 <= about["largest_difference_from_torch"] <= export.TOLERANCE


def test_weights_and_description_are_enough(digits, exported):
    """Another program builds the network from model.json and model.safetensors alone."""
    about = read_json(exported / "model.json")
    size = {"num_classes": about["num_clusters"], "transformation_kwargs": {"crop_size": about["crop_size"]}}
    model = build_model({"setup": "scan", "backbone": about["backbone"], **size})
    model.load_state_dict(load_file(exported / "model.safetensors"))
    images, expected = images_and_probabilities(digits, 9)
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert about["side"] == about["crop_size"] == images.size(-1)
    with torch.no_grad():
        found = model.eval()((images / 255 - mean) / std)[0].softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (about["names"], about["head"], about["trained_on"]) == (NAMES, 0, "digits")
    assert about["white_level"] is None  # of arrays
    assert set(export.PACKAGES) <= set(about["versions"])


def test_the_best_of_several_heads_and_float_images(copied, tmp_path):
    """The clustering step's model; its images are compared as values from 0 to 1."""
    scan = copied / "digits/scan"
    content = torch.load(scan / "model.pth.tar", weights_only=True)
    other = 1 - content["head"]
    torch.save({**content, "head": other}, scan / "model.pth.tar")
    export.main([str(scan), "--input", "float", "--output", str(tmp_path / "x")])
    images, expected = images_and_probabilities(scan, 9)
    session = onnxruntime.InferenceSession(tmp_path / "x/model.onnx")
    (found,) = session.run(None, {"images": images.numpy() / np.float32(255)})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    weights = load_file(tmp_path / "x/model.safetensors")
    assert torch.equal(weights["cluster_head.0.weight"], content["model"][f"cluster_head.{other}.weight"])
    assert not any(key.startswith("cluster_head.1") for key in weights)
    assert read_json(tmp_path / "x/model.json")["head"] == other


def test_what_differs_from_torch_is_not_kept(digits, exported, tmp_path, monkeypatch, capsys):
    """Here the ONNX file is that of another step's model."""
    monkeypatch.setattr(export, "write_onnx", lambda *given: shutil.copy(before, given[2].parent))
    shutil.copytree(exported, tmp_path / "x")
    before = exported / "model.onnx"
    argv = [str(digits / "scan"), "--output", str(tmp_path / "x")]
    assert_holds(
        fails(capsys, export.main, argv),
        ["differ from torch's by", "more than 0.0001", "nothing was written"],
    )
    for path in exported.iterdir():
        assert path.read_bytes() == (tmp_path / "x" / path.name).read_bytes()
    assert len(list((tmp_path / "x").iterdir())) == 3


def test_what_is_refused_at_once(digits, tmp_path, monkeypatch, capsys):
    def fails_at(results, words, output=tmp_path):
        assert_holds(fails(capsys, export.main, [str(results), "--output", str(output)]), words)

    monkeypatch.setattr(export, "write_onnx", None)  # not reached
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "file").write_text("")
    fails_at(digits, ["model.json: exists and is not from export.py"])
    fails_at(digits, ["file/x: cannot be written", "--output"], tmp_path / "file/x")
    fails_at(digits / "pretext", ["which has no clusters"])
    monkeypatch.setattr(export, "PACKAGES", ("torch", "onyx", "unsafetensors"))
    fails_at(digits, ["pip install onyx unsafetensors"])
