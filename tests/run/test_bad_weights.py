"""Files of weights that a step cannot start from, beyond those of test_weights.py: refused in one line."""

import pytest
import torch
from digits_steps import config_of
from mistakes import refused

from moco import convert
from models import build_model
from utils.run.weights import load_weights, read_best_head, unwrap


def weights(step, part=""):
    return {key: value for key, value in build_model(config_of(step)).state_dict().items() if part in key}


def start(step, path):
    model = build_model(config_of(step))
    found, head = unwrap(torch.load(path), path)
    if step == "selflabel":
        read_best_head(found, head, path)
    load_weights(model, convert(found), path)


@pytest.mark.parametrize(
    ("step", "make", "words"),
    [
        ("pretext", lambda: weights("pretext", "backbone"), "does not fit this model: it has no contrastive"),
        ("pretext", lambda: {"state_dict": {"module.encoder_q.bn1.bias": torch.ones(2)}}, "does not fit"),
        ("selflabel", lambda: weights("scan", "cluster_head.0"), "does not fit this model: it has no backb"),
        ("selflabel", lambda: {"model": weights("scan"), "head": -1}, "names head -1 as the best"),
        ("selflabel", lambda: {"model": weights("scan"), "head": 1.0}, "its head must be the number"),
    ],
)
def test_refused(step, make, words, tmp_path):
    path = tmp_path / "weights.pth.tar"
    torch.save(make(), path)
    refused([words], start, step, path)
