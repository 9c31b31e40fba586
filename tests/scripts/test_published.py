"""What users of the original bring: checkpoints to start from, and STL-10's files."""

import json
import re

import numpy as np
import pytest
import torch
import torchvision
from digits_steps import arguments, fails, run, same, weights

import eval as evaluation
import scan
import selflabel
import simclr
from errors import UserError
from models import build_model
from utils.analysis import neighbors
from utils.run import checkpoint
from utils.run.config import load_config
from utils.run.script import parse_arguments


def publish(state, path, **more):
    """Save as the published files were: by an old torch, trained on several GPUs, the head a NumPy scalar."""
    state = {f"module.{key}": value for key, value in state.items()}
    torch.save({"model": state, **more} if more else state, path, _use_new_zipfile_serialization=False)
    return path


# --- starting in the middle ----------------------------------------------------------------------


@pytest.fixture
def published_pretext(results, tmp_path):
    return publish(weights(results / "pretext/model.pth.tar"), tmp_path / "simclr_digits.pth.tar")


def start(file, *more):
    return ("--pretrained", str(file), *more)


def test_simclr_mines_with_a_given_model(results, tmp_path, published_pretext):
    run("pretext", tmp_path, flags=start(published_pretext))
    folder = tmp_path / "digits/pretext"
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        np.testing.assert_array_equal(np.load(folder / name), np.load(results / "pretext" / name))
    assert same(weights(folder / "model.pth.tar"), weights(results / "pretext/model.pth.tar"))
    now, then = (json.loads((f / "metrics.json").read_text()) for f in (folder, results / "pretext"))
    assert now.pop("pretrained") == str(published_pretext)
    assert now == then
    assert {path.name for path in folder.iterdir()} == {
        *("model.pth.tar", "topk-train-neighbors.npy", "topk-val-neighbors.npy"),
        *("metrics.json", "metrics.jsonl", "config.yml", "log.txt", "fingerprint.json"),
    }


@pytest.mark.parametrize("setup", ["original", "file"])
def test_published_pretext_file_under_the_name_checkpoint(results, tmp_path, setup):
    """Users of the original store the published file where a training would leave its checkpoint."""
    folder = tmp_path / "digits/pretext"
    folder.mkdir(parents=True)
    file = publish(weights(results / "pretext/model.pth.tar"), folder / "checkpoint.pth.tar")
    before = file.read_bytes()
    run("pretext", tmp_path, flags=() if setup == "original" else start(file, "--fresh"))
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        np.testing.assert_array_equal(np.load(folder / name), np.load(results / "pretext" / name))
    assert same(weights(folder / "model.pth.tar"), weights(results / "pretext/model.pth.tar"))
    assert file.read_bytes() == before  # not even --fresh removes what the run starts from


def test_given_weights_do_not_replace_a_training(tmp_path, published_pretext, capsys):
    run("pretext", tmp_path, "epochs=1")
    trained = weights(tmp_path / "digits/pretext/model.pth.tar")
    argv = arguments("pretext", tmp_path, flags=start(published_pretext))
    assert "holds the training of an earlier run" in fails(capsys, simclr.main, argv)
    assert same(weights(tmp_path / "digits/pretext/model.pth.tar"), trained)
    simclr.main([*argv, "--fresh"])
    assert same(weights(tmp_path / "digits/pretext/model.pth.tar"), weights(published_pretext))
    assert not (tmp_path / "digits/pretext/checkpoint.pth.tar").exists()
    (tmp_path / "digits/pretext/mine.pth.tar").write_text("")
    simclr.main([*argv, "--fresh"])
    assert (tmp_path / "digits/pretext/mine.pth.tar").exists()  # only what the program writes is removed


def test_a_new_model_is_never_beside_the_neighbors_of_another(tmp_path, published_pretext, monkeypatch):
    """Interrupted between the model and its neighbors, a run leaves no neighbors."""
    run("pretext", tmp_path, flags=start(published_pretext))
    other = {
        key: value * 1.01 if value.is_floating_point() else value
        for key, value in weights(published_pretext).items()
    }

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(neighbors, "nearest_neighbors", interrupt)
        run("pretext", tmp_path, flags=start(publish(other, tmp_path / "other.pth.tar")))
    folder = tmp_path / "digits/pretext"
    assert same(weights(folder / "model.pth.tar"), other)
    assert not [*folder.glob("topk-*"), *folder.glob("metrics.json"), *folder.glob("scratch*")]


def test_mining_again_keeps_the_curves(tmp_path):
    run("pretext", tmp_path, "epochs=1")
    folder = tmp_path / "digits/pretext"
    before = (folder / "metrics.jsonl").read_text()
    run("pretext", tmp_path, "epochs=1", flags=start(folder / "checkpoint.pth.tar"))
    assert (folder / "metrics.jsonl").read_text() == before != ""


def test_fresh_from_its_own_checkpoint(results, after):
    root = after("pretext", "scan")
    run("selflabel", root, "epochs=1")
    folder = root / "digits/selflabel"
    run("selflabel", root, "epochs=1", flags=start(folder / "checkpoint.pth.tar", "--fresh"))
    assert not same(weights(folder / "model.pth.tar"), weights(results / "selflabel/model.pth.tar"))


def test_the_best_model_is_missing(results, after, capsys):
    """A plain state dict or the original's training checkpoint cannot stand for scan's best epoch."""
    root = after("pretext")
    (root / "digits/scan").mkdir()
    torch.save(weights(results / "scan/model.pth.tar"), root / "digits/scan/checkpoint.pth.tar")
    assert "it has no model, optimizer, epoch" in fails(capsys, scan.main, arguments("scan", root))


def test_scan_from_a_given_model(results, tmp_path, published_pretext, capsys):
    folder = tmp_path / "digits/pretext"
    folder.mkdir(parents=True)  # neighbors, but no model
    for name in ("topk-train-neighbors.npy", "topk-val-neighbors.npy"):
        (folder / name).symlink_to(results / "pretext" / name)
    run("scan", tmp_path, flags=start(published_pretext))
    assert same(weights(tmp_path / "digits/scan/model.pth.tar"), weights(results / "scan/model.pth.tar"))
    other = publish({k: v + 1 for k, v in weights(published_pretext).items()}, tmp_path / "other.pth.tar")
    last = fails(capsys, scan.main, arguments("scan", tmp_path, flags=start(other)))
    assert "inputs.pretext/model.pth.tar" in last  # the trained run is not resumed on other weights


def test_selflabel_from_a_given_model(results, tmp_path):
    state = checkpoint.load(results / "scan/model.pth.tar")
    file = publish(state["model"], tmp_path / "scan_digits.pth.tar", head=np.int64(state["head"]))
    run("selflabel", tmp_path, flags=start(file))
    expected = weights(results / "selflabel/model.pth.tar")
    assert same(weights(tmp_path / "digits/selflabel/model.pth.tar"), expected)


@pytest.mark.parametrize(
    ("main", "step", "given", "message"),
    [
        (scan.main, "scan", "selflabel", "a clustering model .*, but a pretext model"),
        (evaluation.main, "pretext", "scan", "a clustering model .*, but a pretext model"),
    ],
)
def test_checkpoint_of_another_step(results, tmp_path, capsys, main, step, given, message):
    option = "--model" if main is evaluation.main else "--pretrained"
    argv = arguments(step, tmp_path, flags=(option, str(results / given / "model.pth.tar")))
    assert re.search(message, fails(capsys, main, argv))


def test_checkpoint_of_another_network(results, tmp_path, capsys):
    flags = start(results / "pretext/model.pth.tar")
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "backbone=resnet18", flags=flags))
    assert "its backbone is not this configuration's" in last and "--set backbone=resnet10_narrow:" in last
    assert "backbone.layer4.1.bn2.running_var" in (tmp_path / "digits/pretext/log.txt").read_text()
    flags = start(results / "scan/model.pth.tar")
    last = fails(capsys, selflabel.main, arguments("selflabel", tmp_path, "num_classes=7", flags=flags))
    assert "it was made with num_classes 10, try --set num_classes=10" in last


# --- the walk of the tutorial on STL-10 ----------------------------------------------------------


@pytest.mark.slow
def test_stl10_from_a_published_checkpoint(tmp_path, monkeypatch):
    """The tutorial's commands on files in STL-10's format; no unlabelled images are needed for them."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    folder = tmp_path / "data/stl-10/stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", 22), ("test", 6)):
        rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        rng.integers(1, 11, n, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))

    def argv(config, *more):
        common = [f"root_dir={tmp_path}", f"data_dir={tmp_path / 'data'}", "batch_size=11", "epochs=1"]
        common += ["transformation_kwargs.crop_size=48"]  # half of the images' side, to be done sooner
        return ["--config_exp", f"configs/{config}", *more, "--set", *common]

    config = load_config(parse_arguments(argv("pretext/simclr_stl10.yml"), ""), ["simclr"])
    file = publish(build_model(config).state_dict(), tmp_path / "simclr_stl-10.pth.tar")
    simclr.main(argv("pretext/simclr_stl10.yml", "--pretrained", str(file)))
    small = "augmentation_kwargs.crop_size=48"
    scan.main([*argv("scan/scan_stl10.yml"), small])
    selflabel.main([*argv("selflabel/selflabel_stl10.yml"), small, "confidence_threshold=0.05"])
    model = tmp_path / "stl-10/selflabel/model.pth.tar"
    evaluation.main(argv("selflabel/selflabel_stl10.yml", "--model", str(model), "--visualize_prototypes"))
    assert np.load(tmp_path / "stl-10/pretext/topk-train-neighbors.npy").shape == (22, 21)
    assert (tmp_path / "stl-10/selflabel/eval/model/prototypes.png").is_file()
    with pytest.raises(UserError, match="unlabeled"):  # training does need them
        simclr.main(argv("pretext/simclr_stl10.yml", "--fresh"))
