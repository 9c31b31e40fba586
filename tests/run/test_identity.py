"""What a step's results say that they were made from."""

import pytest
import torch

from utils.run import identity


def test_the_hash_is_of_the_backbone_only():
    backbone = {"backbone.a": torch.ones(3), "backbone.b": torch.zeros(2)}
    same = {**dict(reversed(backbone.items())), "contrastive_head.weight": torch.ones(1)}
    assert identity.of_backbone(backbone) == identity.of_backbone(same)
    assert identity.of_backbone({**backbone, "backbone.b": torch.ones(2)}) != identity.of_backbone(same)


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"data": 3, "files": 3, "backbone": 1}'])
def test_damaged_fingerprint_is_as_none(content, tmp_path):
    (tmp_path / "fingerprint.json").write_text(content)
    assert identity.read_fingerprint(tmp_path) == {}
