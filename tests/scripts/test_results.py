"""What the steps leave in the folder of results, on every kind of images."""

import numpy as np
import pytest
import yaml
from digits_files import write_digits
from digits_steps import epochs, run
from PIL import Image

from utils.run import checkpoint


def test_files(results):
    every = {
        *("checkpoint.pth.tar", "model.pth.tar", "config.yml", "fingerprint.json", "log.txt"),
        *("metrics.json", "metrics.jsonl", "curves.png"),
    }
    mined = {"topk-train-neighbors.npy", "topk-val-neighbors.npy"}
    assert {p.name for p in (results / "pretext").iterdir()} == every | mined
    for step in ("scan", "selflabel"):
        assert {p.name for p in (results / step).iterdir()} >= every | {"confusion_matrix.png"}


def test_neighbors(results):
    for name, shape in (("train", (1437, 21)), ("val", (360, 6))):
        mined = np.load(results / "pretext" / f"topk-{name}-neighbors.npy")
        assert mined.shape == shape
        assert mined.dtype == np.int64
        assert (mined[:, 0] == np.arange(shape[0])).mean() > 0.95


def test_published_file_contents(results):
    pretext = checkpoint.load(results / "pretext/model.pth.tar")
    assert {key.split(".")[0] for key in pretext} == {"backbone", "contrastive_head"}
    clustering = checkpoint.load(results / "scan/model.pth.tar")
    assert set(clustering) == {"model", "head"}
    assert clustering["head"] in (0, 1)
    final = checkpoint.load(results / "selflabel/model.pth.tar")
    assert {key for key in final if "cluster_head" in key} == {"cluster_head.0.weight", "cluster_head.0.bias"}
    assert {"model", "optimizer", "epoch"} <= set(checkpoint.load(results / "scan/checkpoint.pth.tar"))


def test_metrics_per_epoch(results):
    lines = epochs(results / "scan")
    assert [line["epoch"] for line in lines] == [1, 2]
    shown = {"loss", "consistency", "entropy", "val_loss", "val_acc", "images_per_second", "lr"}
    assert shown <= lines[0].keys()
    best = min(line["val_loss"] for line in lines)
    assert checkpoint.load(results / "scan/checkpoint.pth.tar")["best_loss"] == pytest.approx(best)


def test_resolved_configuration_is_saved(results):
    saved = yaml.safe_load((results / "scan/config.yml").read_text())
    assert (saved["epochs"], saved["seed"], saved["data_dir"]) == (2, 0, "datasets")


def test_precision(tmp_path):
    """On few images: many a CPU emulates bfloat16, slowly."""
    settings = [write_digits(tmp_path, train=256, test=64), "batch_size=64", "epochs=1"]
    losses = []
    for precision in ("fp32", "bf16"):
        run("pretext", tmp_path / precision, *settings, f"precision={precision}")
        losses.append(epochs(tmp_path / precision / "digits/pretext")[0]["loss"])
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_pictures(pictures, after):
    """As all other tests do not."""
    root = after("pretext")
    run("scan", root, "epochs=1")
    for name in ("curves", "confusion_matrix"):
        with Image.open(root / f"digits/scan/{name}.png") as image:
            image.load()
            assert min(image.size) > 200
