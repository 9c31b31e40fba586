"""Files of weights that a step cannot start from: each is refused in one line that tells what it is."""

import io
import re

import numpy as np
import pytest
import torch
from digits_steps import config_of, official_moco
from mistakes import npy, refused

from moco import convert
from models import build_model
from steps.load_model import keep_head
from utils.run.weights import choose_head, load_weights, read_weights


def model_of(step, **changes):
    """Function to a step's state dict; `changes` are functions of the weight whose name they end."""

    def make():
        weights = build_model(config_of(step)).state_dict()
        for suffix, function in changes.items():
            key = next(key for key in weights if key.endswith(suffix.replace("_in_", ".")))
            weights[key] = function(weights[key])
        return weights

    return make


def part_of(step, pattern):
    return lambda: {key: value for key, value in model_of(step)().items() if re.search(pattern, key)}


def with_head(head):
    return lambda: {"model": model_of("scan")(), "head": head}


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# what each script reads, and into what
KINDS = {"pretext": ["pretext"], "scan": ["pretext"], "selflabel": ["clustering"], "eval": ["clustering"]}
KINDS["moco"] = ["moco", "pretext"]
MODEL = {"eval": "scan", "moco": "pretext"}


def start(script, path):
    weights, head = read_weights(path, KINDS[script])
    model = build_model(config_of(MODEL.get(script, script)))
    if script == "moco":
        weights = convert(weights)
    if KINDS[script] == ["clustering"]:
        head = choose_head(weights, head, path)
    if script == "selflabel":
        weights = keep_head(weights, head)
    load_weights(model, weights, path, "backbone." if script == "scan" else "")


NONE = "not a readable checkpoint"
# bytes, or what torch.save takes, or a function to either
FILES = [
    ("scan", b"", "weights.pth.tar", NONE, "it is empty"),
    ("scan", b"lr: 0.1\n", NONE, "cut short"),
    ("scan", b"<!DOCTYPE html><html></html>", NONE, "a web page"),
    ("scan", b"version https://git-lfs.github.com/spec/v1\n", NONE, "git lfs pull"),
    ("scan", b"\x1f\x8b\x08", NONE, "an archive; unpack it"),
    ("scan", npy(np.zeros(3)), NONE, "a NumPy array"),
    ("scan", lambda: saved(model_of("pretext")())[:-900], NONE, "cut short"),
    ("scan", lambda: saved(model_of("pretext")())[:900], NONE, "cut short"),
    ("scan", {}, "holds no state dict, but nothing"),
    ("scan", [1, 2], "holds no state dict, but list"),
    ("scan", {"a": 1}, "holds no state dict, but a"),
    ("scan", {"model": print}, NONE, "could run code"),
    ("scan", model_of("scan"), "a clustering model", "but a pretext model"),
    ("scan", {"conv1.weight": torch.zeros(1)}, "a model of another program", "conv1.weight"),
    ("scan", model_of("pretext", conv1_in_weight=lambda w: w + np.nan), "1 weights are not finite"),
    ("scan", model_of("pretext", conv1_in_weight=lambda w: w / 0), "weights are not finite"),
    ("scan", model_of("pretext", conv1_in_weight=lambda w: w[:, :1]), "does not fit", "of another shape"),
    ("scan", model_of("pretext", bn1_in_bias=lambda w: w.to(torch.int8)), "of another type", "int8"),
    ("scan", part_of("pretext", "layer1|layer2"), "does not fit", "missing"),
    ("scan", part_of("pretext", "contrastive"), "a model of another program"),
    ("scan", lambda: official_moco(model_of("pretext")()), "an official MoCo checkpoint"),
    ("pretext", model_of("scan"), "a clustering model", "but a pretext model"),
    ("pretext", part_of("pretext", "backbone"), "does not fit this model: it has no contrastive head"),
    ("pretext", model_of("pretext", conv1_in_weight=lambda w: w * np.nan), "weights are not finite"),
    ("selflabel", with_head(7), "names head 7 as the best, but its heads are 0 to 1"),
    ("selflabel", with_head(-1), "names head -1 as the best"),
    ("selflabel", with_head("best"), "its head must be the number of a cluster head, found 'best'"),
    ("selflabel", with_head(None), "does not say which of its 2 heads is the best"),
    ("selflabel", model_of("pretext"), "a pretext model", "but a clustering model"),
    ("selflabel", part_of("scan", "cluster_head.0"), "does not fit this model: it has no backbone"),
    ("eval", model_of("pretext"), "a pretext model", "but a clustering model"),
    ("eval", b"", NONE, "it is empty"),
    ("eval", model_of("scan"), "does not say which of its 2 heads"),
    ("eval", with_head(1.0), "its head must be the number"),
    ("moco", b"<html>", NONE, "a web page"),
    ("moco", model_of("scan"), "a clustering model", "but an official MoCo checkpoint"),
    ("moco", {"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(2)}}, "does not fit"),
    ("moco", {"state_dict": {}}, "holds no state dict"),
]


@pytest.mark.parametrize(
    "number", range(len(FILES)), ids=[f"{i}-{r[0]}-{r[-1]}" for i, r in enumerate(FILES)]
)
def test_refused(number, tmp_path):
    script, content, *words = FILES[number]
    content = content() if callable(content) else content
    path = tmp_path / "weights.pth.tar"
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    refused(words, start, script, path)
