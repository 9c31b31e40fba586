"""The real scripts, end to end, on a tiny budget."""

import copy
import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from steps import ROOT, STEPS, arguments, fails, run, same, weights
from torch.nn.modules.module import register_module_forward_pre_hook

import data
import eval as evaluation
import losses
import scan
import selflabel
import simclr
from errors import UserError
from models import build_model
from models.resnet import ResNet
from utils.run import checkpoint
from utils.run.config import load_config
from utils.run.folder import Run
from utils.run.script import parse_arguments
from utils.run.weights import read_weights
from utils.training import engine

# --- what a run leaves ---------------------------------------------------------------------------


def test_files(results):
    every = {
        "checkpoint.pth.tar",
        "model.pth.tar",
        "config.yml",
        "metrics.jsonl",
        "metrics.json",
        "curves.png",
        "log.txt",
        "fingerprint.json",
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
    lines = [json.loads(line) for line in (results / "scan/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert {"loss", "consistency", "entropy", "val_loss", "val_acc", "images_per_second", "lr"} <= set(
        lines[0]
    )
    best = min(line["val_loss"] for line in lines)
    assert checkpoint.load(results / "scan/checkpoint.pth.tar")["best_loss"] == pytest.approx(best)


def test_resolved_configuration_is_saved(results):
    saved = yaml.safe_load((results / "scan/config.yml").read_text())
    assert (saved["epochs"], saved["seed"], saved["data_dir"]) == (2, 0, "datasets")


# --- eval.py -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_eval_gives_the_figures_of_the_training(results, tmp_path, step):
    evaluation.main(
        ["--config_exp", STEPS[step][1], "--model", str(results / step / "model.pth.tar")]
        + ["--visualize_prototypes", "--output", str(tmp_path)]
        + (["--set", "num_heads=2"] if step == "scan" else [])
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"metrics.json", "confusion_matrix.png", "prototypes.png"}
    now, then = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, results / step))
    for key in ("acc", "nmi", "ari", "ami", "top5", "majority_vote_acc", "cluster_sizes", "matches"):
        assert now[key] == then[key], key
    assert sum(now["cluster_sizes"]) == 360
    empty = [index is None for index in now["prototypes"]]
    assert empty == [size == 0 for size in now["cluster_sizes"]]


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
    assert found["acc"]["std"] == pytest.approx(np.std(found["acc"]["values"]))


def unlabelled(root, *sizes):
    """`new.npz`: digits without labels, of a train split only if there are two sizes."""
    from data.digits import build_digits

    arrays = {}
    for split, n in zip(("test", "train"), sizes, strict=False):
        arrays[f"{split}_images"] = build_digits("", split, 8).images[:n].permute(0, 2, 3, 1).numpy()
    np.savez(root / "new.npz", **arrays)
    return ["--set", f"data_dir={root}", "val_db_name=new"]


def test_eval_of_a_pretext_checkpoint_on_images_without_labels(results, tmp_path):
    path, out = str(results / "pretext/model.pth.tar"), tmp_path / "out"
    argv = ["--config_exp", STEPS["pretext"][1], "--model", path, "--output", str(out)]
    argv += ["--features", str(tmp_path / "some/features.npy"), "--kmeans", *unlabelled(tmp_path, 50, 80)]
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
    new = unlabelled(tmp_path, 30)
    for step in ("pretext", "scan"):
        folder = tmp_path / "digits" / step
        shutil.copytree(results / step, folder)
        argv = ["--config_exp", STEPS[step][1], "--model", str(folder / "model.pth.tar")]
        for more in (["--set", "num_heads=2"], [*new, "num_heads=2"]):
            evaluation.main([*argv, *more])
        for name, count in (("model", 360), ("model-new", 30)):
            assert json.loads((folder / "eval" / name / "metrics.json").read_text())["num_images"] == count


def test_labelled_images_of_another_number_of_classes(results, tmp_path):
    from data.digits import build_digits

    test = build_digits("", "test", 8)
    images = test.images[:90].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "new.npz", test_images=images, test_labels=test.labels[:90].numpy() % 3)
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/model.pth.tar")]
    argv += ["--output", str(tmp_path / "out"), "--visualize_prototypes"]
    evaluation.main([*argv, "--set", f"data_dir={tmp_path}", "val_db_name=new", "num_heads=2"])
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (figures["num_clusters"], figures["num_classes"]) == (10, 3)
    assert len(figures["matches"]) <= 3


def test_no_picture_of_earlier_figures_stays(results, tmp_path):
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/model.pth.tar")]
    argv += ["--output", str(tmp_path), "--set", "num_heads=2"]
    evaluation.main([*argv, "--visualize_prototypes"])
    assert (tmp_path / "prototypes.png").is_file()
    (tmp_path / "notes.txt").write_text("mine")
    evaluation.main(argv)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("metrics.json", "assignment.csv", "confusion_matrix.png", "log.txt", "notes.txt")
    }


@pytest.mark.parametrize(
    ("step", "flag", "message"),
    [("scan", "--kmeans", "setup is scan"), ("pretext", "--visualize_prototypes", "setup is simclr")],
)
def test_eval_flags_of_another_kind(results, capsys, step, flag, message):
    argv = ["--config_exp", STEPS[step][1], "--model", str(results / step / "model.pth.tar"), flag]
    assert message in fails(capsys, evaluation.main, argv)


# --- seeds and resuming --------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_resumed_run_equals_the_uninterrupted_one(results, tmp_path, monkeypatch, step):
    """Bit for bit, after a crash between the two epochs; which also shows that a seed repeats."""
    root = tmp_path / "digits"
    root.mkdir()
    for done in STEPS:
        if done == step:
            break
        (root / done).symlink_to(results / done)
    log_epoch = Run.log_epoch

    def crash_in_the_second_epoch(self, metrics):
        log_epoch(self, metrics)
        if metrics["epoch"] == 2:
            raise MemoryError

    monkeypatch.setattr(Run, "log_epoch", crash_in_the_second_epoch)
    with pytest.raises(MemoryError):
        run(step, tmp_path)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    run(step, tmp_path)
    assert same(weights(root / step / "model.pth.tar"), weights(results / step / "model.pth.tar"))
    assert "resuming after epoch 1" in (root / step / "log.txt").read_text()
    lines = (root / step / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_another_seed_gives_another_model(results, tmp_path):
    run("pretext", tmp_path, "seed=1")
    assert not same(
        weights(tmp_path / "digits/pretext/model.pth.tar"), weights(results / "pretext/model.pth.tar")
    )


# --- variants ------------------------------------------------------------------------------------


def test_heads_only(results, after):
    root = after("pretext")
    run(
        "scan",
        root,
        "update_cluster_head_only=True",
        "augmentation_kwargs.num_strong_augs=1",
        "num_classes=13",
    )
    pretext, clustering = (
        weights(results / "pretext/model.pth.tar"),
        weights(root / "digits/scan/model.pth.tar"),
    )
    backbone = [key for key in clustering if key.startswith("backbone.")]
    assert backbone
    assert all(torch.equal(clustering[key], pretext[key]) for key in backbone)
    figures = json.loads((root / "digits/scan/metrics.json").read_text())
    assert (figures["num_clusters"], figures["num_classes"]) == (13, 10)
    assert figures["acc"] <= figures["majority_vote_acc"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_features_train_the_same_heads(results, after, precision, tmp_path_factory):
    """Without random augmentations all views are one, so that only the half precision differs."""
    folders = after("pretext"), tmp_path_factory.mktemp("cached")
    (folders[1] / "digits").mkdir()
    (folders[1] / "digits/pretext").symlink_to(results / "pretext")
    settings = ["update_cluster_head_only=True", f"precision={precision}", "epochs=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "build_train_transform", data.build_eval_transform)
        run("scan", folders[0], *settings)
        run("scan", folders[1], *settings, "cache_features=2")
    plain, cached = (
        [json.loads(line) for line in (f / "digits/scan/metrics.jsonl").read_text().splitlines()]
        for f in folders
    )
    for a, b in zip(plain, cached, strict=True):
        for name in ("loss", "val_loss"):
            assert b[name] == pytest.approx(a[name], abs=0.05 if precision == "bf16" else 2e-3)
    a, b = (weights(f / "digits/scan/model.pth.tar") for f in folders)
    assert list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a if "backbone" in key)


def test_cached_views_differ_and_are_drawn(results, after):
    root = after("pretext")
    run("scan", root, "update_cluster_head_only=True", "cache_features=3")
    assert "features of 3 views of 1437 images, 0.00 GB" in (root / "digits/scan/log.txt").read_text()
    views = torch.rand(3, 50, 4)
    drawn = next(data.FeatureViews(views).fetch([torch.zeros(200, 2, dtype=torch.int64)], "cpu"))
    assert drawn.shape == (200, 2, 4)
    assert {tuple(row.tolist()) for row in drawn.flatten(0, 1)} == {
        tuple(row.tolist()) for row in views[:, 0]
    }


SIMCLR = (
    "augmentation_strategy=simclr",
    "augmentation_kwargs.random_resized_crop={size: 8, scale: [0.2, 1.0]}",
    "augmentation_kwargs.color_jitter={brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}",
    "augmentation_kwargs.color_jitter_random_apply.p=0.8",
    "augmentation_kwargs.random_grayscale.p=0.2",
)


@pytest.mark.parametrize("augmentation", [SIMCLR, ["augmentation_strategy=standard", SIMCLR[1]]])
def test_cached_views_in_bfloat16_are_those_of_float32(after, augmentation):
    """The network alone computes in bfloat16; what it sees are the same images."""
    root, seen = after("pretext"), []

    def note(module, images):
        if isinstance(module, ResNet) and not images[0].is_meta:  # on which its width is asked
            seen[-1].append(images[0].clone())

    with register_module_forward_pre_hook(note):
        for precision in ("fp32", "bf16"):
            seen.append([])
            settings = ["update_cluster_head_only=True", "cache_features=1", "epochs=1"]
            run("scan", root, *settings, f"precision={precision}", *augmentation, flags=["--fresh"])
    assert len(seen[0]) == len(seen[1]) > 6
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_cached_features_of_a_backbone_that_trains(after, capsys):
    argv = arguments("scan", after("pretext"), "cache_features=3", "update_cluster_head_only=False")
    assert "cache_features needs update_cluster_head_only True" in fails(capsys, scan.main, argv)


def test_ema(results, after):
    root = after("pretext", "scan")
    run("selflabel", root, "use_ema=True", "ema_alpha=0.9")
    start = checkpoint.load(results / "scan/model.pth.tar")
    final = weights(root / "digits/selflabel/model.pth.tar")
    saved = checkpoint.load(root / "digits/selflabel/checkpoint.pth.tar")
    statistics = [key for key in final if "running" in key or "num_batches" in key]
    assert all(torch.equal(final[key], start["model"][key]) for key in statistics)
    assert same(saved["ema"], final)
    assert not torch.equal(final["backbone.conv1.weight"], start["model"]["backbone.conv1.weight"])


def test_batches_without_a_confident_sample_are_counted(after):
    root = after("pretext", "scan")
    threshold = confidence_that_some_batches_miss(root)
    run("selflabel", root, f"confidence_threshold={threshold}", "batch_size=20", "epochs=1", "precision=fp32")
    line = json.loads((root / "digits/selflabel/metrics.jsonl").read_text())
    assert 0 < line["skipped_batches"] < 71


def test_the_strong_view_of_a_batch_without_a_confident_sample_leaves_no_trace(after, monkeypatch):
    root, found = after("pretext", "scan"), []

    def train(run, identity, model, optimizer, loader, step, **_):
        model.train()
        for batch in loader:
            weak_only = copy.deepcopy(model)
            with torch.no_grad(), run.autocast():
                weak_only(batch[0])
            values = step(batch)
            values["loss"].backward()
            found.append(values["trains"].item())
            assert same(model.state_dict(), weak_only.state_dict()) != found[-1]
        raise UserError("seen enough")

    monkeypatch.setattr(engine, "train", train)
    with pytest.raises(UserError, match="seen enough"):
        threshold = confidence_that_some_batches_miss(root)
        change = (f"confidence_threshold={threshold}", "batch_size=20", "epochs=1", "precision=fp32")
        run("selflabel", root, *change)
    assert set(found) == {True, False}


def confidence_that_some_batches_miss(root):
    """A threshold that about one training image in a hundred exceeds, and one at least in eval mode."""
    config = load_config(parse_arguments(arguments("scan", root), ""), ["scan"])
    model = build_model(config)
    state, head = read_weights(root / "digits/scan/model.pth.tar", ["clustering"])
    model.load_state_dict(state)
    transform = data.build_eval_transform(config)
    images = transform(data.build_dataset(config, "train").images)
    with torch.no_grad():  # in eval mode first: train mode changes BatchNorm's statistics
        highest = model.eval()(images)[head].softmax(1).max().item()
        confidence = model.train()(images)[head].softmax(1).amax(1)
    return round(min(confidence.quantile(0.99).item(), highest - 0.001), 4)


# --- mistakes: one clear line and a non-zero exit ------------------------------------------------


def test_wrong_key(tmp_path, capsys):
    (tmp_path / "x.yml").write_text((ROOT / STEPS["scan"][1]).read_text() + "learning_rate: 3\n")
    last = fails(capsys, scan.main, ["--config_exp", str(tmp_path / "x.yml")])
    assert "x.yml: unknown key 'learning_rate'" in last


def test_missing_dataset(tmp_path, capsys):
    argv = arguments("pretext", tmp_path, "train_db_name=faces", f"data_dir={tmp_path / 'none'}")
    assert "dataset 'faces': unknown" in fails(capsys, simclr.main, argv)


def test_missing_pretext_model(results, tmp_path, capsys):
    last = fails(capsys, scan.main, arguments("scan", tmp_path))
    assert "pretext/model.pth.tar: no such file; run simclr.py" in last
    (tmp_path / "digits/pretext").mkdir(parents=True)
    (tmp_path / "digits/pretext/model.pth.tar").symlink_to(results / "pretext/model.pth.tar")
    assert "run the pretext step" in fails(capsys, scan.main, arguments("scan", tmp_path))


def test_missing_clustering_model(tmp_path, capsys):
    last = fails(capsys, selflabel.main, arguments("selflabel", tmp_path))
    assert "scan/model.pth.tar: no such file; run scan.py" in last


def test_more_neighbors_than_mined(after, capsys):
    last = fails(capsys, scan.main, arguments("scan", after("pretext"), "num_neighbors=21"))
    assert "num_neighbors 21 is more than the 20 neighbors that were mined" in last


def test_split_smaller_than_a_batch(tmp_path, capsys):
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "batch_size=2000"))
    assert "batch_size 2000 is larger than the training split (1437 images)" in last


def test_nothing_confident(after, capsys):
    argv = arguments("selflabel", after("pretext", "scan"), "confidence_threshold=0.999999")
    last = fails(capsys, selflabel.main, argv)
    assert "none of the 1437 training images" in last
    assert "lower confidence_threshold" in last


def test_loss_that_explodes(tmp_path, capsys):
    argv = arguments("pretext", tmp_path, "optimizer_kwargs.lr=1.0e+30", "epochs=1")
    last = fails(capsys, simclr.main, argv)
    assert "epoch 1: the loss is nan" in last
    assert "learning rate 1e+30 is too high" in last
    assert "nor an earlier one" in last
    assert "error: epoch 1" in (tmp_path / "digits/pretext/log.txt").read_text()


def test_loss_that_explodes_later(tmp_path, capsys, monkeypatch):
    run("pretext", tmp_path, "epochs=2")
    path = tmp_path / "digits/pretext/checkpoint.pth.tar"
    saved = checkpoint.load(path)
    saved["identity"]["epochs"] = 3
    torch.save(saved, path)
    forward = losses.SimCLRLoss.forward
    monkeypatch.setattr(losses.SimCLRLoss, "forward", lambda *args: torch.nan * forward(*args))
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "epochs=3"))
    assert "epoch 3: the loss is nan" in last
    assert f"the last good checkpoint is {path}, of epoch 2" in last
    assert checkpoint.load(path)["epoch"] == 2


def test_resuming_with_another_configuration(results, capsys):
    last = fails(capsys, simclr.main, arguments("pretext", results.parent, "temperature=0.7"))
    assert "temperature: " in last
    assert "--fresh" in last


def test_fresh_starts_over(tmp_path):
    run("pretext", tmp_path, "epochs=1")
    run("pretext", tmp_path, "epochs=1", "temperature=0.7", flags=["--fresh"])
    assert yaml.safe_load((tmp_path / "digits/pretext/config.yml").read_text())["temperature"] == 0.7


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path / "file"))
    assert "cannot write results there" in last


def test_no_such_gpu(tmp_path, capsys):
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "device=cuda:63"))
    assert "no such GPU" in last


def test_changed_input_is_not_resumed(results, after, capsys):
    root = after("pretext")
    run("scan", root, "epochs=1")
    (root / "digits/pretext").unlink()
    run("pretext", root, "seed=5", "epochs=1")
    last = fails(capsys, scan.main, arguments("scan", root, "epochs=1"))
    assert "inputs.pretext/model.pth.tar" in last
    assert "--fresh" in last


def test_a_mistake_with_fresh_loses_nothing(results, capsys, tmp_path):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (results / "pretext").glob("*.tar"))
    argv = arguments("pretext", results.parent, f"data_dir={tmp_path}", "batch_size=5000", flags=["--fresh"])
    assert "batch_size 5000" in fails(capsys, simclr.main, argv)
    assert (
        sorted((path.name, path.stat().st_mtime_ns) for path in (results / "pretext").glob("*.tar")) == before
    )


def test_torn_line_of_metrics_does_not_hinder(results, after):
    root = after("pretext")
    run("scan", root, "epochs=1")
    with open(root / "digits/scan/metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    run("scan", root, "epochs=1")
    assert len((root / "digits/scan/metrics.jsonl").read_text().splitlines()) == 1


def test_original_checkpoint_without_our_state(results, after, capsys):
    """The original's {'optimizer', 'model', 'epoch'} resumes; without what EMA needs it is refused."""
    root = after("pretext", "scan")
    run("selflabel", root, "epochs=1")
    path = root / "digits/selflabel/checkpoint.pth.tar"
    saved = checkpoint.load(path)
    saved = {key: saved[key] for key in ("optimizer", "model", "epoch")}
    saved["model"] = {f"module.{key}": value for key, value in saved["model"].items()}
    torch.save(saved, path)
    run("selflabel", root)
    assert checkpoint.load(path)["epoch"] == 2
    torch.save(saved, path)
    argv = arguments("selflabel", root, "use_ema=True", "ema_alpha=0.9")
    assert "it has no ema" in fails(capsys, selflabel.main, argv)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision(results, tmp_path, precision):
    run("pretext", tmp_path, f"precision={precision}", "epochs=1")
    line = json.loads((tmp_path / "digits/pretext/metrics.jsonl").read_text())
    first = json.loads((results / "pretext/metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(first["loss"], rel=0.05)


@pytest.mark.slow
def test_folders_of_unlabelled_images(tmp_path):
    """All steps on image files without labels."""
    from PIL import Image

    from data.digits import build_digits

    for split, n in (("train", 120), ("test", 30)):
        folder = tmp_path / "mine" / split
        folder.mkdir(parents=True)
        for i, image in enumerate(build_digits("", split, 8).images[:n]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 30)).save(folder / f"{i:03}.png")
    names = ["train_db_name=mine", "val_db_name=mine", f"data_dir={tmp_path}", "batch_size=40", "epochs=1"]
    for step in STEPS:
        run(step, tmp_path, *names)
    figures = json.loads((tmp_path / "mine/selflabel/metrics.json").read_text())
    assert sum(figures["cluster_sizes"]) == 30
    model = str(tmp_path / "mine/selflabel/model.pth.tar")
    argv = [
        "--config_exp",
        STEPS["selflabel"][1],
        "--model",
        model,
        "--visualize_prototypes",
        "--set",
        *names,
    ]
    evaluation.main(argv)
    assert (tmp_path / "mine/selflabel/eval/model/prototypes.png").is_file()


def test_several_heads_and_no_word_which_is_best(results, capsys):
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(results / "scan/checkpoint.pth.tar")]
    assert "which of its 2 heads" in fails(capsys, evaluation.main, [*argv, "--set", "num_heads=2"])


def test_command_without_faiss(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    run("pretext", tmp_path, "epochs=1")
    assert "faiss is not installed" in (tmp_path / "digits/pretext/log.txt").read_text()


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
