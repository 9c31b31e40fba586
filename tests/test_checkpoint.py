"""Every format that users bring, every file that is none, and writes that a crash cannot spoil."""

import numpy as np
import pytest
import torch

from errors import UserError
from models import ClusteringModel, ContrastiveModel
from models.resnet import ResNet
from utils import checkpoint


def clustering(num_clusters=5, num_heads=2):
    return ClusteringModel(ResNet(width=4), 32, num_clusters, num_heads)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth.tar"


@pytest.mark.parametrize("zipped", [True, False])  # torch before 1.6 wrote no zip files
@pytest.mark.parametrize(
    ("wrap", "head"),
    [
        (lambda weights: weights, None),
        (lambda weights: {"model": weights, "head": 1}, 1),
        (lambda weights: {"model": weights, "head": np.int64(1)}, 1),
        (lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3}, None),
        (lambda weights: {"model": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3}, None),
    ],
)
def test_formats(path, wrap, head, zipped):
    model = clustering()
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    weights, found = checkpoint.read_weights(path)
    assert found == head
    assert list(weights) == list(model.state_dict())
    other = clustering()
    checkpoint.load_weights(other, weights, path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_numpy_scalar_of_old_numpy(path):
    """Published files name the module numpy.core, which NumPy 2 renamed."""
    torch.save(
        {"model": clustering().state_dict(), "head": np.int64(1)}, path, _use_new_zipfile_serialization=False
    )
    content = path.read_bytes().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    path.write_bytes(content)
    assert b"numpy.core.multiarray" in content
    assert checkpoint.read_weights(path)[1] == 1


class Evil:
    def __reduce__(self):
        return (print, ("code from a file",))


@pytest.mark.parametrize("content", [Evil(), {"model": Evil()}])
def test_no_code_from_a_file(path, content, capsys):
    torch.save(content, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)
    assert "code from a file" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04broken", b"\x80\x02}"])
def test_files_that_are_no_checkpoint(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_truncated_file(path):
    checkpoint.save(clustering().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cut short"):
        checkpoint.load(path)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load(tmp_path / "x")
    with pytest.raises(UserError, match="a folder"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"model": {"a": 1}}, torch.zeros(3)])
def test_no_state_dict(path, content):
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no state dict"):
        checkpoint.read_weights(path)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_refused_whatever_breaks(path, seed):
    rng = np.random.default_rng(seed)
    torch.save(
        {"model": clustering().state_dict(), "head": 1}, path, _use_new_zipfile_serialization=seed % 2 == 0
    )
    intact = path.read_bytes()
    refused = 0
    for _ in range(25):
        content = bytearray(intact)
        for place in rng.integers(0, 2000, 5):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            checkpoint.read_weights(path)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 5


def test_choice_of_the_head(path):
    weights = clustering(num_heads=3).state_dict()
    assert checkpoint.choose_head(weights, 2, path) == 2
    assert checkpoint.choose_head(clustering(num_heads=1).state_dict(), None, path) == 0
    for head, message in ((None, "which of its 3 heads"), (3, "names head 3")):
        with pytest.raises(UserError, match=message):
            checkpoint.choose_head(weights, head, path)
    with pytest.raises(UserError, match="no cluster head"):
        checkpoint.choose_head({"backbone.conv1.weight": torch.zeros(1)}, None, path)


# --- what does not fit is refused ----------------------------------------------------------------


def without(weights, part):
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            without(clustering().state_dict(), "layer3.0.conv1"),
            r"1 missing \(backbone.layer3.0.conv1.weight\)",
        ),
        (clustering(num_clusters=7).state_dict(), r"of another shape \(cluster_head.0.weight \(7, 32\)"),
        (clustering(num_heads=3).state_dict(), r"2 unexpected \(cluster_head.2.weight"),
        (ContrastiveModel(ResNet(width=4), 32).state_dict(), "4 missing .*4 unexpected"),
        (ClusteringModel(ResNet(width=8), 64, 5, 2).state_dict(), "of another shape"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    model = clustering()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        checkpoint.load_weights(model, weights, "file")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_pretext_head_is_left_out_but_no_backbone_weight_may_miss():
    pretext = ContrastiveModel(ResNet(width=4), 32).state_dict()
    arguments = {"skip": ["contrastive_head."], "keep": ["cluster_head."]}
    model = clustering()
    checkpoint.load_weights(model, pretext, "file", **arguments)
    assert torch.equal(model.backbone.conv1.weight, pretext["backbone.conv1.weight"])
    with pytest.raises(UserError, match="1 missing"):
        checkpoint.load_weights(model, without(pretext, "layer1.0.bn2.bias"), "file", **arguments)


# --- atomic writes -------------------------------------------------------------------------------


def test_failed_write_keeps_the_previous_file(path, monkeypatch):
    checkpoint.save({"a": torch.ones(3)}, path)

    def full_disk(content, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left.*the previous one is intact"):
        checkpoint.save({"a": torch.zeros(3)}, path)
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert list(path.parent.iterdir()) == [path]
