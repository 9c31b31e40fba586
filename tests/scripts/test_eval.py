"""eval.py on the checkpoints of all steps, and on other images than those of the training."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from digits_files import write_digits
from digits_steps import STEPS, arguments, fails, weights
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

import data
import eval as evaluation
from models import build_model
from utils.run.config import load_config
from utils.run.script import parse_arguments


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_eval_gives_the_figures_of_the_training(results, tmp_path, step):
    evaluation.main(
        ["--config_exp", STEPS[step][1], "--model", str(results / step / "model.pth.tar")]
        + ["--visualize_prototypes", "--output", str(tmp_path)]
        + (["--set", "num_heads=2"] if step == "scan" else [])
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"metrics.json", "confusion_matrix.png", "prototypes.png"}
    now, then = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, results / step))
    accuracies = "acc", "nmi", "ari", "ami", "top5", "majority_vote_acc"
    for key in (*accuracies, "cluster_sizes", "matches", "calibration"):
        assert now[key] == then[key], key
    assert sum(now["cluster_sizes"]) == sum(now["calibration"]["bins"]["count"]) == 360
    assert now["calibration"]["coverage"]["accuracy"][-1] == round(now["acc"], 4)
    empty = [index is None for index in now["prototypes"]]
    assert empty == [size == 0 for size in now["cluster_sizes"]]


def test_the_report_of_an_evaluation(results, tmp_path):
    """Its counts are those of metrics.json; the curves are those of the steps so far."""
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/model.pth.tar"), "--report"]
    evaluation.main([*argv, "--output", str(tmp_path), "--set", "num_heads=2"])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    with open(tmp_path / "clusters.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    sizes = np.bincount([int(row["cluster"]) for row in table], minlength=10)
    assert sizes.tolist() == figures["cluster_sizes"] and all(row["x"] and row["y"] for row in table)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "digits, test split" in page and f"{100 * figures['acc']:.1f} %" in page
    assert ">pretext<" in page and ">scan<" in page and ">selflabel<" not in page


def test_eval_of_the_train_split(results, tmp_path):
    """The training images get their clusters, too, beside those of the test split."""
    (tmp_path / "scan").mkdir()
    model = shutil.copy(results / "scan/model.pth.tar", tmp_path / "scan")
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(model), "--set", "num_heads=2"]
    evaluation.main([*argv, "--split", "train"])
    evaluation.main(argv)
    counts = {}
    for folder in (tmp_path / "scan/eval").iterdir():
        figures = json.loads((folder / "metrics.json").read_text())
        rows = (folder / "assignment.csv").read_text().splitlines()[1:]
        counts[folder.name] = figures["split"], figures["num_images"], len(rows), "acc" in figures
    assert counts == {"model-train": ("train", 1437, 1437, True), "model": ("test", 360, 360, True)}


def test_eval_of_a_pretext_checkpoint(results, tmp_path):
    path = str(results / "pretext/model.pth.tar")
    evaluation.main(["--config_exp", STEPS["pretext"][1], "--model", path, "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "metrics.json").read_text())
    trained = json.loads((results / "pretext/metrics.json").read_text())
    assert figures["top5_neighbor_accuracy"] == pytest.approx(trained["val_neighbors_of_same_class"])
    assert figures["top1_neighbor_accuracy"] > figures["top20_neighbor_accuracy"] > 0.1


def test_eval_kmeans(results, tmp_path):
    """Ten initialisations of scikit-learn's k-means on the training features, scored on the test split."""
    path = results / "pretext/model.pth.tar"
    argv = ["--config_exp", STEPS["pretext"][1], "--model", str(path), "--output", str(tmp_path)]
    evaluation.main([*argv, "--kmeans", "--set", "device=cpu"])
    found = json.loads((tmp_path / "metrics.json").read_text())["kmeans"]
    config = load_config(parse_arguments(argv[:2], ""), ["simclr"])
    model = build_model(config)
    model.load_state_dict(weights(path))
    splits = [data.build_dataset(config, split) for split in ("train", "test")]
    with torch.no_grad():
        train, test = (model.eval()(data.build_eval_transform(config)(split.images)) for split in splits)
    acc = []
    for seed in range(10):
        clusters = KMeans(10, n_init=1, random_state=seed).fit(train.numpy()).predict(test.numpy())
        table = np.zeros((10, 10), int)
        np.add.at(table, (clusters, splits[1].labels.numpy()), 1)
        acc.append(table[linear_sum_assignment(-table)].sum() / 360)
    assert found["acc"]["values"] == pytest.approx(acc, abs=0.02)  # rounding moves single images
    assert found["acc"]["mean"] == pytest.approx(np.mean(found["acc"]["values"]))
    assert found["acc"]["std"] == pytest.approx(np.std(found["acc"]["values"], ddof=1))


def new_digits(root, train, test):
    moved = write_digits(root, "new", train, test, labels=None)
    return ["--set", moved, "val_db_name=new"]


def test_eval_of_a_pretext_checkpoint_on_images_without_labels(results, tmp_path):
    path, out = str(results / "pretext/model.pth.tar"), tmp_path / "out"
    argv = ["--config_exp", STEPS["pretext"][1], "--model", path, "--output", str(out)]
    argv += ["--features", str(tmp_path / "some/features.npy"), "--kmeans"]
    argv += new_digits(tmp_path, train=80, test=50)
    evaluation.main([*argv, "train_db_name=new"])
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["num_images"] == 50 and "acc" not in figures["kmeans"]
    with open(out / "assignment.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = np.bincount([int(row["cluster"]) for row in rows], minlength=10)
    assert sizes.tolist() == figures["kmeans"]["cluster_sizes"]
    assert (out / "neighbors.png").is_file()
    features = np.load(tmp_path / "some/features.npy")
    assert (features.shape, features.dtype) == ((50, 128), np.float32)
    config = load_config(parse_arguments(argv[:2], ""), ["simclr"])
    model = build_model(config)
    model.load_state_dict(weights(results / "pretext/model.pth.tar"))
    with torch.no_grad():
        images = data.build_dataset(config, "test").images[:50]
        expected = model.eval()(data.build_eval_transform(config)(images)).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert (tmp_path / "some/features.csv").read_text().split()[:3] == ["image", "0", "1"]


def test_new_images_need_no_train_split_and_have_a_folder_of_their_own(results, tmp_path):
    new = new_digits(tmp_path, train=None, test=30)
    for step in ("pretext", "scan"):
        folder = tmp_path / "digits" / step
        shutil.copytree(results / step, folder)
        argv = ["--config_exp", STEPS[step][1], "--model", str(folder / "model.pth.tar")]
        for more in (["--set", "num_heads=2"], [*new, "num_heads=2"]):
            evaluation.main([*argv, *more])
        for name, count in (("model", 360), ("model-new", 30)):
            assert json.loads((folder / "eval" / name / "metrics.json").read_text())["num_images"] == count


def test_labelled_images_of_another_number_of_classes(results, tmp_path):
    moved = write_digits(tmp_path, "new", None, 90, labels=lambda labels: labels % 3)
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/model.pth.tar")]
    argv += ["--output", str(tmp_path / "out"), "--visualize_prototypes"]
    evaluation.main([*argv, "--set", moved, "val_db_name=new", "num_heads=2"])
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (figures["num_clusters"], figures["num_classes"]) == (10, 3)
    assert len(figures["matches"]) <= 3


def test_no_picture_of_earlier_figures_stays(results, tmp_path):
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/model.pth.tar")]
    argv += ["--output", str(tmp_path), "--set", "num_heads=2"]
    evaluation.main([*argv, "--visualize_prototypes", "--report"])
    assert (tmp_path / "prototypes.png").is_file() and (tmp_path / "report.html").is_file()
    (tmp_path / "notes.txt").write_text("mine")
    evaluation.main(argv)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("metrics.json", "assignment.csv", "confusion_matrix.png", "calibration.png", "log.txt", "notes.txt")
    }


@pytest.mark.parametrize(
    ("step", "flag", "message"),
    [
        ("scan", "--kmeans", "setup is scan"),
        ("pretext", "--visualize_prototypes", "setup is simclr"),
        ("pretext", "--report", "setup is simclr"),
    ],
)
def test_eval_flags_of_another_kind(results, capsys, step, flag, message):
    argv = ["--config_exp", STEPS[step][1], "--model", str(results / step / "model.pth.tar"), flag]
    assert message in fails(capsys, evaluation.main, argv)


def test_several_heads_and_no_word_which_is_best(results, capsys):
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/checkpoint.pth.tar")]
    assert "which of its 2 heads" in fails(capsys, evaluation.main, [*argv, "--set", "num_heads=2"])


def test_eval_does_not_write_over_a_training(results, capsys):
    model = str(results / "scan/model.pth.tar")
    argv = arguments("scan", results.parent, flags=["--model", model, "--output", str(results / "scan")])
    assert "holds the results of a training" in fails(capsys, evaluation.main, argv)


def test_eval_tells_of_much_larger_images_and_too_many_clusters_at_once(results, tmp_path, capsys):
    np.savez(
        tmp_path / "big.npz", test_images=np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
    )
    model = str(results / "pretext/model.pth.tar")
    change = ["val_db_name=big", f"data_dir={tmp_path}", f"root_dir={tmp_path}"]
    flags = ["--model", model, "--output", str(tmp_path / "out"), "--kmeans"]
    message = fails(
        capsys, evaluation.main, arguments("pretext", tmp_path, *change, "num_classes=2000", flags=flags)
    )
    assert "k-means needs at least 2000 training images" in message
    log = (tmp_path / "out/log.txt").read_text()
    assert "only the middle 8 x 8 pixels of images of 32 pixels" in log and "searches" not in log
