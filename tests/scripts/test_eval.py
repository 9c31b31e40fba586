"""eval.py on the checkpoints of all steps, and on other images than those of the training."""

import argparse

import numpy as np
import pytest
import torch
from digits_files import write_digits
from digits_steps import config_of, eval_arguments, evaluate, fails, figures, rows_of, weights
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

import data
import eval as evaluation
from models import build_model


@torch.no_grad()
def features_of(model_file, *splits):
    """The pretext model's features of the digits, the plain way."""
    config = config_of("pretext")
    model = build_model(config)
    model.load_state_dict(weights(model_file))
    images = (data.build_dataset(config, split).images for split in splits)
    return [model.eval()(data.build_eval_transform(config)(part)).numpy() for part in images]


def test_eval_gives_the_figures_of_the_training(results, tmp_path):
    step, flags = "selflabel", ["--visualize_prototypes", "--output", str(tmp_path)]
    evaluate(step, results / step / "model.pth.tar", flags=flags)
    assert {p.name for p in tmp_path.iterdir()} >= {"metrics.json", "confusion_matrix.png", "prototypes.png"}
    now, then = figures(tmp_path), figures(results / step)
    accuracies = "acc", "nmi", "ari", "ami", "top5", "majority_vote_acc"
    for key in (*accuracies, "cluster_sizes", "matches", "calibration"):
        assert now[key] == then[key], key
    assert sum(now["cluster_sizes"]) == sum(now["calibration"]["bins"]["count"]) == 360
    assert now["calibration"]["coverage"]["accuracy"][-1] == round(now["acc"], 4)
    empty = [index is None for index in now["prototypes"]]
    assert empty == [size == 0 for size in now["cluster_sizes"]]


def test_the_report_of_an_evaluation(results, tmp_path):
    """Its counts are those of metrics.json."""
    model, output = results / "scan/model.pth.tar", ["--output", str(tmp_path)]
    evaluate("scan", model, flags=[*output, "--report", "--visualize_prototypes"])
    assert (tmp_path / "prototypes.png").is_file()
    found, table = figures(tmp_path), rows_of(tmp_path / "clusters.csv")
    sizes = np.bincount([int(row["cluster"]) for row in table], minlength=10)
    assert sizes.tolist() == found["cluster_sizes"] and all(row["x"] and row["y"] for row in table)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "digits, test split" in page and f"{100 * found['acc']:.1f} %" in page

    (tmp_path / "notes.txt").write_text("mine")
    evaluate("scan", model, flags=output)  # no picture or report of earlier figures stays
    assert {p.name for p in tmp_path.iterdir()} == {
        *("metrics.json", "assignment.csv", "confusion_matrix.png", "log.txt", "notes.txt")
    }


def test_eval_of_the_train_split(copied):
    """The training images get their clusters, too, beside those of the test split."""
    model = copied / "digits/scan/model.pth.tar"
    evaluate("scan", model, flags=["--split", "train"])
    evaluate("scan", model)
    counts = {}
    for folder in (model.parent / "eval").iterdir():
        found = figures(folder)
        rows = rows_of(folder / "assignment.csv")
        counts[folder.name] = found["split"], found["num_images"], len(rows), "acc" in found
    assert counts == {"model-train": ("train", 1437, 1437, True), "model": ("test", 360, 360, True)}


def test_eval_of_a_pretext_checkpoint(results, copied):
    found = evaluate("pretext", copied / "digits/pretext/model.pth.tar")
    trained = figures(results / "pretext")
    assert found["top5_neighbor_accuracy"] == pytest.approx(trained["val_neighbors_of_same_class"])
    assert found["top1_neighbor_accuracy"] > found["top20_neighbor_accuracy"] > 0.1


def test_eval_kmeans(copied):
    """Ten initializations of scikit-learn's k-means on the training features, scored on the test split."""
    model = copied / "digits/pretext/model.pth.tar"
    found = evaluate("pretext", model, "device=cpu", flags=["--kmeans"])["kmeans"]
    train, test = features_of(model, "train", "test")
    labels = data.build_dataset(config_of("pretext"), "test").labels.numpy()
    acc = []
    for seed in range(10):
        clusters = KMeans(10, n_init=1, random_state=seed).fit(train).predict(test)
        table = np.zeros((10, 10), int)
        np.add.at(table, (clusters, labels), 1)
        acc.append(table[linear_sum_assignment(-table)].sum() / 360)
    assert found["acc"]["values"] == pytest.approx(acc, abs=0.02)  # rounding moves single images
    assert found["acc"]["mean"] == pytest.approx(np.mean(found["acc"]["values"]))
    assert found["acc"]["std"] == pytest.approx(np.std(found["acc"]["values"], ddof=1))


def test_eval_of_a_pretext_checkpoint_on_images_without_labels(results, tmp_path):
    new = [write_digits(tmp_path, "new", 80, 50, labels=None), "val_db_name=new", "train_db_name=new"]
    model, out, file = results / "pretext/model.pth.tar", tmp_path / "out", tmp_path / "some/features.npy"
    flags = ["--output", str(out), "--features", str(file), "--kmeans"]
    evaluate("pretext", model, *new, flags=flags)
    found = figures(out)
    assert found["num_images"] == 50 and "acc" not in found["kmeans"]
    sizes = np.bincount([int(row["cluster"]) for row in rows_of(out / "assignment.csv")], minlength=10)
    assert sizes.tolist() == found["kmeans"]["cluster_sizes"]
    assert (out / "neighbors.png").is_file()
    features = np.load(file)
    assert (features.shape, features.dtype) == ((50, 128), np.float32)
    np.testing.assert_allclose(features, features_of(model, "test")[0][:50], atol=1e-5)
    assert file.with_suffix(".csv").read_text().split()[:3] == ["image", "0", "1"]


def test_labeled_images_of_another_number_of_classes(copied, tmp_path):
    """New images need no train split, and have a folder of their own."""
    new = [write_digits(tmp_path, "new", None, 90, labels=lambda labels: labels % 3), "val_db_name=new"]
    model = copied / "digits/scan/model.pth.tar"
    evaluate("scan", model, *new, flags=["--visualize_prototypes"])
    found = figures(model.parent / "eval/model-new")
    assert (found["num_images"], found["num_clusters"], found["num_classes"]) == (90, 10, 3)
    assert len(found["matches"]) <= 3


@pytest.mark.parametrize(
    ("step", "file", "flags", "message"),
    [
        ("scan", "model", ["--kmeans"], "--kmeans clusters a pretext model's features, but setup is scan"),
        ("pretext", "model", ["--visualize_prototypes"], "needs clusters, but setup is simclr"),
        ("pretext", "model", ["--report"], "needs clusters, but setup is simclr"),
        ("scan", "checkpoint", [], "which of its 2 heads"),
        ("scan", "model", ["--output", "RESULTS"], "holds the results of a training"),
    ],
)
def test_refused(results, capsys, step, file, flags, message):
    flags = [str(results / step) if flag == "RESULTS" else flag for flag in flags]
    argv = eval_arguments(step, results / step / f"{file}.pth.tar", flags=flags)
    assert message in fails(capsys, evaluation.main, argv)


def test_features_go_to_an_npy_file():
    with pytest.raises(argparse.ArgumentTypeError, match="expected a file FILE.npy, found 'features.txt'"):
        evaluation.array_file("features.txt")


def test_eval_tells_of_much_larger_images_and_too_many_clusters_at_once(results, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
    np.savez(tmp_path / "big.npz", test_images=images)
    settings = ["val_db_name=big", f"data_dir={tmp_path}", "num_classes=2000"]
    flags = ["--output", str(tmp_path / "out"), "--kmeans"]
    argv = eval_arguments("pretext", results / "pretext/model.pth.tar", *settings, flags=flags)
    assert "k-means needs at least 2000 training images" in fails(capsys, evaluation.main, argv)
    log = (tmp_path / "out/log.txt").read_text()
    assert "only the middle 8 x 8 pixels of images of 32 pixels" in log and "searches" not in log
