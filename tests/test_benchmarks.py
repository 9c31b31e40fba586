"""The benchmarks run, and what they call the plain way computes the same."""

import json
import sys

import numpy as np
import pytest
import torch
from digits_steps import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench
import decoding
import plain
import predicting

import data
from utils.analysis import metrics


def test_plain_objective_and_matching_are_ours():
    random = torch.Generator().manual_seed(0)
    probabilities = torch.randn(300, 7, generator=random).softmax(1)
    neighbors = torch.randint(300, (300, 6), generator=random)
    consistency, entropy = plain.validation_objective(probabilities, neighbors)
    ours = metrics.validation_objective(probabilities, neighbors)
    assert (ours["consistency"], ours["entropy"]) == pytest.approx((consistency, entropy), abs=1e-5)
    clusters, labels = torch.randint(7, (2, 300), generator=random)
    pairs = [(cluster, label) for cluster in range(7) for label in range(7)]
    table = np.array(plain.count_matches(clusters, labels, pairs)).reshape(7, 7)
    np.testing.assert_array_equal(table, metrics.contingency(clusters.numpy(), labels.numpy(), 7, 7))
    assert list(zip(*plain.assign(table), strict=True)) == metrics.hungarian_match(table)


@pytest.mark.parametrize("step", ["simclr", "selflabel"])
def test_plain_augmentations_have_the_statistics_of_ours(step):
    """Mean and deviation of all pixels, and of images' means, over the same random images."""
    config = bench.config_of(step)
    config["batch_size"] = 500
    statistics = []
    for way in ("plain", "fp32"):
        torch.manual_seed(0)
        values = []
        for batch in bench.batches_of(step, config, way, torch.device("cpu"), 2):
            views = batch if torch.is_tensor(batch) else batch[1]
            values.append(torch.stack([views.mean((1, 2, 3)), views.std((1, 2, 3))]))
        values = torch.cat(values, 1)
        statistics.append(torch.cat([values.mean(1), values.std(1)]))
    torch.testing.assert_close(*statistics, atol=0.06, rtol=0.06)


def test_a_task_of_the_bench(tmp_path, monkeypatch, capsys):
    output = tmp_path / "bench.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "matching C=10,", "--device", "cpu"])
    monkeypatch.setattr(bench, "TASKS", {"limits": None, "matching C=10,": None})

    def measured(task, way, device):
        if task == "limits":
            return {"float32 FLOP": 1e11, "copied bytes": 1e10}
        return bench.matching(10)(way, device)

    monkeypatch.setattr(bench, "in_a_process", measured)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", str(output)])
    bench.main()
    row = json.loads(output.read_text())["tasks"]["matching C=10,"]
    assert row["ratio"]["fp32"] == pytest.approx(row["per_second"]["fp32"] / row["per_second"]["plain"])
    assert "matching C=10" in capsys.readouterr().out


def test_decoding(tmp_path, monkeypatch, capsys):
    output = tmp_path / "decoding.json"
    options = ["--photos", "3", "--megapixels", "0.2", "--side", "64", "--workers", "0", "--output"]
    monkeypatch.setattr(sys, "argv", ["decoding.py", *options, str(output)])
    monkeypatch.setattr(decoding, "ROUNDS", 1)
    decoding.main()
    found = json.loads(output.read_text())
    assert found["ratio"]["plain"] == 1
    assert len(found["ratio"]) == 6
    assert "later epochs: from memory" in capsys.readouterr().out


def test_the_plain_decoding_is_ours_at_full_scale(tmp_path):
    """A picture too small to be decoded at a reduced scale."""
    decoding.photo(0, 200, 150).save(tmp_path / "a.png")
    image = data.folder.decode.decode_image(
        str(tmp_path / "a.png"), data.folder.decode.ResizeSpec(128), 65535
    )[0]
    (expected,) = decoding.plain([tmp_path / "a.png"], 128)
    np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


def test_predicting(tmp_path):
    """More images than distinct ones, all predicted."""
    count = predicting.DISTINCT + 10
    predicting.write_results(tmp_path / "results")
    predicting.write_images(tmp_path / f"{count} images", count)
    row = predicting.measure(tmp_path, count, workers=0)
    assert row["images"] == count and row["images per second"] == pytest.approx(count / row["seconds"])
    lines = (tmp_path / f"{count}.csv").read_text().splitlines()[1:]
    predictions = [line.partition(",")[2] for line in lines]
    assert predictions[-10:] == predictions[:10] and len(set(predictions)) > 200
    assert not any(line.rpartition(",")[2] for line in lines)
