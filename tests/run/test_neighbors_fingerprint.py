"""What a step's results say that they were made from."""

from types import SimpleNamespace

import pytest
import torch
from digits_steps import config_of, weights

import data
from models import build_model
from utils.run import fingerprint
from utils.training import features


def test_the_hash_is_of_the_backbone_only():
    backbone = {"backbone.a": torch.ones(3), "backbone.b": torch.zeros(2)}
    same = {**dict(reversed(backbone.items())), "contrastive_head.weight": torch.ones(1)}
    assert fingerprint.backbone_hash(backbone) == fingerprint.backbone_hash(same)
    assert fingerprint.backbone_hash({**backbone, "backbone.b": torch.ones(2)}) != fingerprint.backbone_hash(
        same
    )


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"data": 3, "files": 3, "backbone": 1}'])
def test_damaged_fingerprint_is_as_none(content, tmp_path):
    (tmp_path / "fingerprint.json").write_text(content)
    assert fingerprint.read_fingerprint(tmp_path) == {}


def test_networks_with_weights_of_the_same_shapes_are_told_apart(results, caplog):
    """resnet10_narrow_pool differs from resnet10_narrow by a layer without weights."""
    folder, state = results / "pretext", weights(results / "pretext/model.pth.tar")
    paths = set()
    for backbone in ("resnet10_narrow", "resnet10_narrow_pool"):
        config = config_of("scan", f"backbone={backbone}")
        model = build_model(config)
        model.load_state_dict(state, strict=False)
        images = data.build_dataset(config, "test")
        paths.add(features.features_path(SimpleNamespace(config=config), folder, model, images))
        caplog.clear()
        fingerprint.check_neighbors(folder, fingerprint.Fingerprint(config, {}), state, "")
        assert ("made with backbone resnet10_narrow, here it is" in caplog.text) == ("pool" in backbone)
    assert len(paths) == 2
