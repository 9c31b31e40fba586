"""Files of weights that a step cannot start from: each is refused in one line that tells what it is."""

import re

import pytest
import torch
from digits_steps import config_of
from mistakes import refused

from moco import convert
from models import build_model
from steps.load_model import keep_head
from utils.run.weights import load_weights, read_best_head, read_weights


def model_of(step):
    """Function to a step's state dict."""
    return lambda: build_model(config_of(step)).state_dict()


def part_of(step, pattern):
    return lambda: {key: value for key, value in model_of(step)().items() if re.search(pattern, key)}


def with_head(head):
    return lambda: {"model": model_of("scan")(), "head": head}


# what each script reads, and into what
KINDS = {
    "pretext": ["pretext"],
    "scan": ["pretext"],
    "selflabel": ["clustering"],
    "moco": ["moco", "pretext"],
}


def start(script, path):
    weights, head = read_weights(path, KINDS[script])
    model = build_model(config_of("pretext" if script == "moco" else script))
    if script == "moco":
        weights = convert(weights)
    if script == "selflabel":
        weights = keep_head(weights, read_best_head(weights, head, path))
    load_weights(model, weights, path, "backbone." if script == "scan" else "")


# what torch.save takes, or a function to it
FILES: list[tuple] = [
    ("pretext", part_of("pretext", "backbone"), "does not fit this model: it has no contrastive head"),
    ("selflabel", with_head(-1), "names head -1 as the best"),
    ("selflabel", with_head(1.0), "its head must be the number"),
    ("selflabel", part_of("scan", "cluster_head.0"), "does not fit this model: it has no backbone"),
    ("moco", {"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(2)}}, "does not fit"),
]


@pytest.mark.parametrize("row", FILES, ids=[f"{row[0]}-{row[-1]}" for row in FILES])
def test_refused(row, tmp_path):
    script, content, *words = row
    path = tmp_path / "weights.pth.tar"
    torch.save(content() if callable(content) else content, path)
    refused(words, start, script, path)
