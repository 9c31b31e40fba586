"""What the real steps log of their clusters and neighbors, warn of and refuse."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from digits_steps import arguments, config_of, epochs, fails, figures, run, same, weights

import selflabel
import simclr
from utils.analysis import neighbor_quality


def test_digits_neighbors_are_go(results):
    mined = torch.from_numpy(np.load(results / "pretext/topk-train-neighbors.npy"))
    quality = figures(results / "scan")["train_neighbors"]
    assert quality == neighbor_quality.neighbor_quality(mined[:, :6])
    assert quality["verdict"] == "go"
    assert min(quality["mutual"], quality["transitive"]) > 10 * quality["by_chance"]
    assert "neighbors: go" in (results / "scan/log.txt").read_text()


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_every_epoch_tells_its_clusters(results, step):
    lines = epochs(results / step)
    assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["val_acc"] > 0.1
    for line in lines:
        sizes = line["cluster_sizes"]
        assert (len(sizes), sum(sizes)) == (10, 360)
        assert line["dead_clusters"] == sizes.count(0)
        assert 0.1 <= line["mean_confidence"] <= 1
        shares = line.get("confident_shares", [])
        assert len(shares) == (10 if step == "selflabel" else 0) and all(0 <= share <= 1 for share in shares)
    summary = [line for line in (results / step / "log.txt").read_text().splitlines() if "images/s" in line]
    assert summary
    assert all("mean_confidence" in line and "[" not in line for line in summary)


def test_a_resumed_run_is_not_warned_again(after):
    """30 clusters for ten sorts of digits: some are dead from the first epoch on."""
    root = after("pretext")
    for count in (2, 3):
        run("scan", root, f"epochs={count}", "num_classes=30", "num_heads=1")
        assert epochs(root / "digits/scan")[-1]["dead_clusters"] > 0
        assert (root / "digits/scan/log.txt").read_text().count("clusters are dead") == 1


def test_nothing_confident_is_refused_and_nothing_lost(copied, results, capsys):
    argv = arguments("selflabel", copied, "confidence_threshold=0.9999999", flags=["--fresh"])
    last = fails(capsys, selflabel.main, argv)
    assert "none of the 1437 training images" in last and "the highest is 0." in last
    models = [weights(folder / "selflabel/model.pth.tar") for folder in (copied / "digits", results)]
    assert same(*models)


def test_only_the_beginning_of_a_training_is_checked(copied):
    log = copied / "digits/selflabel/log.txt"
    for flags, checks in (([], 1), (["--fresh"], 2)):
        run("selflabel", copied, flags=flags)
        assert log.read_text().count("training images (") == checks


def test_the_check_changes_nothing(results, after, monkeypatch):
    """The same weights as without it, BatchNorm's statistics included."""
    monkeypatch.setattr(selflabel, "watch_from_the_start", lambda *_: lambda epoch, probabilities: {})
    root = after("pretext", "scan")
    run("selflabel", root)
    trained = [weights(folder / "selflabel/model.pth.tar") for folder in (root / "digits", results)]
    assert same(*trained)


def test_features_are_measured_every_few_epochs(tmp_path):
    run("pretext", tmp_path, "epochs=3", "knn_every=2", "features=backbone", "precision=fp32")
    folder = tmp_path / "digits/pretext"
    measured = {line["epoch"]: line["knn_accuracy"] for line in epochs(folder) if "knn_accuracy" in line}
    assert [*measured] == [2, 3]
    assert measured[3] == figures(folder)["knn_accuracy"]


def test_features_that_are_all_the_same(tmp_path, monkeypatch):
    config = config_of("pretext", "batch_size=256", "criterion_kwargs.temperature=0.1")
    for below, collapsed in ((0.04, True), (0.06, False)):
        lines = [{"loss": math.log(511) - below}]
        ended = mock.Mock(config=config, **{"read_epochs.return_value": lines})
        assert simclr.has_collapsed(ended) == collapsed

    monkeypatch.setattr(simclr, "SMALL", 10)  # no loss is low enough
    run("pretext", tmp_path)
    assert (tmp_path / "digits/pretext/log.txt").read_text().count("nothing was learned") == 1
    assert figures(tmp_path / "digits/pretext")["collapsed"]
