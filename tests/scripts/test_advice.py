"""What the messages advise, done word for word: it helps, and nothing that was trained is lost."""

import re
import shutil

import numpy as np
import pytest
import torch
from digits_files import write_digits
from digits_steps import STEPS, arguments, before, config_of, fails, run, same, weights

import losses
import scan
import simclr
from utils.files import digest
from utils.run import checkpoint
from utils.run.config import mismatches

FILES = ("checkpoint.pth.tar", "model.pth.tar")


def told(root, step="pretext"):
    return (root / "digits" / step / "log.txt").read_text()


def digests(folder, names=FILES):
    return {name: digest(folder / name) for name in names}


def interrupt(*_, **__):
    raise KeyboardInterrupt


# --- the images changed after the training -------------------------------------------------------


def test_after_a_test_image_was_removed_the_trained_network_mines_again(copied, capsys):
    moved, pretext = write_digits(copied, test=359), copied / "digits/pretext"
    before = digests(pretext)
    message = fails(capsys, scan.main, arguments("scan", copied, moved, flags=["--fresh"]))
    assert "mine them again with the trained network" in message
    assert f"--pretrained {pretext / 'model.pth.tar'}" in message
    run("pretext", copied, moved)  # the same command does, too
    assert "going on with other settings: data.test: 360 images" in told(copied)
    assert digests(pretext) == before
    assert len(np.load(pretext / "topk-val-neighbors.npy")) == 359


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
def test_other_training_images_and_the_trained_network(copied, capsys, flags):
    moved, pretext = write_digits(copied, train=1400), copied / "digits/pretext"
    before = digests(pretext)
    model = pretext / "model.pth.tar"
    assert f"--pretrained {model}" in fails(capsys, simclr.main, arguments("pretext", copied, moved))
    run("pretext", copied, moved, flags=["--pretrained", str(model), *flags])
    assert len(np.load(pretext / "topk-train-neighbors.npy")) == 1400
    suffix = ".old" if flags else ""
    assert same(weights(model), weights(pretext / f"model.pth.tar{suffix}"))
    assert digest(pretext / f"checkpoint.pth.tar{suffix}") == before["checkpoint.pth.tar"]


def test_an_evaluation_setting_corrected_after_the_training(copied):
    before = digests(copied / "digits/pretext", ["checkpoint.pth.tar"])
    run("pretext", copied, "transformation_kwargs.crop_size=7", "num_classes=3")
    assert digests(copied / "digits/pretext", before) == before
    assert "transformation_kwargs.crop_size: 8 -> 7" in told(copied)


# --- --fresh -------------------------------------------------------------------------------------


def test_fresh_keeps_the_old_results_until_there_are_new_ones(copied, monkeypatch):
    step, folder = "scan", copied / "digits/scan"
    before = digests(folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("utils.training.engine._train_epoch", interrupt)
        run(step, copied, "seed=7", flags=["--fresh"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("utils.training.resume.mark_finished", interrupt)
        run(step, copied, "seed=7")
    unfinished = digests(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("utils.training.engine._train_epoch", interrupt)
        run(step, copied, "seed=8", flags=["--fresh"])  # an unfinished one is kept as well, beside the first
    assert not (folder / "checkpoint.pth.tar").exists()
    assert {name: digest(folder / f"{name}.old") for name in FILES} == before
    assert {name: digest(folder / f"{name}.old2") for name in FILES} == unfinished
    run(step, copied, "seed=8")
    assert not [*folder.glob("*.old*")]
    assert digests(folder) != before and (folder / "fingerprint.json").exists()


# --- more epochs, other settings -----------------------------------------------------------------


@pytest.mark.parametrize("step", ["scan", "selflabel"])
def test_a_finished_training_goes_on(copied, step):
    """With a constant learning rate exactly as if it had had the larger number of epochs from the start."""
    folder = copied / "digits" / step
    run(step, copied, "epochs=3")
    assert "going on with other settings: epochs: 2 -> 3" in told(copied, step)
    assert "follows scheduler constant over 3 epochs" in told(copied, step)
    continued = {name: weights(folder / name) for name in FILES}
    shutil.rmtree(folder)
    run(step, copied, "epochs=3")
    assert all(same(continued[name], weights(folder / name)) for name in FILES)


def test_what_a_longer_cosine_schedule_means_is_told(copied, monkeypatch):
    run("pretext", copied, "epochs=3")  # from 0.2 in the second of two epochs to 0.1 in the third of three
    assert "cosine over 3 epochs: 0.1003 in the next epoch, after 0.2002\n" in told(copied)
    monkeypatch.setattr("utils.training.engine._train_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("pretext", copied, "epochs=9")
    assert "over 9 epochs: 0.3001 in the next epoch, after 0.1003, so the loss may rise" in told(copied)


def test_going_on_with_a_lower_learning_rate(copied, capsys, monkeypatch):
    forward = losses.SimCLRLoss.forward
    with monkeypatch.context() as patch:
        patch.setattr(losses.SimCLRLoss, "forward", lambda *args: torch.nan * forward(*args))
        message = fails(capsys, simclr.main, arguments("pretext", copied, "epochs=3"))
    assert "lower optimizer_kwargs.lr" in message and "add --accept_changes" in message
    lower = ("epochs=3", "optimizer_kwargs.lr=0.01", "optimizer_kwargs.weight_decay=0.5", "batch_size=128")
    assert "add --accept_changes" in fails(capsys, simclr.main, arguments("pretext", copied, *lower))
    run("pretext", copied, *lower, flags=["--accept_changes"])
    saved = checkpoint.load(copied / "digits/pretext/checkpoint.pth.tar")
    assert saved["epoch"] == 3 and saved["identity"]["optimizer_kwargs"]["lr"] == 0.01
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    message = fails(
        capsys, simclr.main, arguments("pretext", copied, *lower, "seed=3", flags=["--accept_changes"])
    )
    assert "seed: 0 -> 3" in message and "add --accept_changes" not in message


def test_a_finished_training_is_not_given_other_settings(copied, capsys):
    folder = copied / "digits/scan"
    before = digests(folder, [*FILES, "config.yml", "fingerprint.json"])
    argv = arguments("scan", copied, "optimizer_kwargs.lr=0.01", flags=["--accept_changes"])
    assert "add --accept_changes and raise epochs, which are done" in fails(capsys, scan.main, argv)
    assert digests(folder, before) == before
    assert "epochs: 2 -> 1" in fails(capsys, scan.main, arguments("scan", copied, "epochs=1"))


# --- another number of clusters ------------------------------------------------------------------


def test_another_number_of_clusters_shares_the_pretext(copied, capsys):
    assert "--run NAME" in fails(capsys, scan.main, arguments("scan", copied, "num_classes=5"))
    run("scan", copied, "num_classes=5", flags=["--run", "five"])
    assert f"{copied / 'digits/pretext'} is used" in told(copied / "five", "scan")
    run("selflabel", copied, "num_classes=5", flags=["--run", "five"])
    found = weights(copied / "five/digits/selflabel/model.pth.tar")
    assert found["cluster_head.0.weight"].shape[0] == 5
    assert weights(copied / "digits/scan/model.pth.tar")["cluster_head.0.weight"].shape[0] == 10


def test_self_labeling_of_another_run_starts_from_the_same_clustering(copied):
    run("selflabel", copied, "seed=3", flags=["--run", "again"])
    found = checkpoint.load(copied / "again/digits/selflabel/checkpoint.pth.tar")["identity"]["inputs"]
    assert found["scan/model.pth.tar"] == digest(copied / "digits/scan/model.pth.tar")


def test_the_pretext_of_any_folder(results, tmp_path, capsys):
    run("scan", tmp_path, flags=["--pretext", str(results / "pretext")])
    assert same(
        weights(tmp_path / "digits/scan/checkpoint.pth.tar"), weights(results / "scan/checkpoint.pth.tar")
    )
    message = fails(capsys, scan.main, arguments("scan", tmp_path, flags=["--pretext", str(tmp_path)]))
    assert f"{tmp_path / 'model.pth.tar'}: no such file" in message


# --- before the first epoch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        ("pretext", "transformation_kwargs.crop_size=10", "transformation_kwargs.crop_size: crop_size 10 is"),
        ("scan", "transformation_kwargs.crop_size=10", "transformation_kwargs.crop_size"),
        ("scan", "augmentation_kwargs.crop_size=10", "augmentation_kwargs.crop_size: crop_size 10 is"),
        ("selflabel", "augmentation_kwargs.crop_size=10", "augmentation_kwargs.crop_size"),
    ],
)  # fmt: skip
def test_crops_are_tried_before_the_first_epoch(after, capsys, step, change, message):
    root = after(*before(step))
    assert message in fails(capsys, STEPS[step][0].main, arguments(step, root, change))
    assert not (root / "digits" / step / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["curves.png", "topk-val-neighbors.npy"])
def test_results_that_cannot_be_written_are_found_before_the_first_epoch(tmp_path, capsys, name):
    (tmp_path / "digits/pretext" / name).mkdir(parents=True)
    message = fails(capsys, simclr.main, arguments("pretext", tmp_path))
    assert f"{name}: cannot be replaced" in message


def test_the_rehearsal_changes_nothing(results, after, monkeypatch):
    root = after("pretext")
    monkeypatch.setattr("scan.dry_run", lambda *_: None)
    run("scan", root)
    assert same(
        weights(root / "digits/scan/checkpoint.pth.tar"), weights(results / "scan/checkpoint.pth.tar")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("transformation_kwargs.crop_size=24", "trains on images of 8 pixels .* and is evaluated on 24"),
        ("augmentation_kwargs.normalize.mean=[0,0,0]", "evaluated with other normalizations"),
    ],
)
def test_settings_that_hardly_can_be_meant(change, message):
    (found,) = mismatches(config_of("pretext", change))
    assert re.search(message, found)
