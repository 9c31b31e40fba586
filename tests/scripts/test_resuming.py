"""A seed repeats; a run goes on from its last checkpoint, and from no other."""

import json
import signal
from unittest import mock

import pytest
import torch
import yaml
from digits_steps import ROOT, STEPS, arguments, before, fails, run, same, weights

import losses
import scan
import selflabel
import simclr
from utils.analysis import metrics
from utils.run import checkpoint, interrupt
from utils.run.folder import Run
from utils.training import engine
from utils.training.resume import TrainingState


@pytest.mark.parametrize("step", STEPS)
def test_resumed_run_equals_the_uninterrupted_one(results, tmp_path, monkeypatch, step):
    """Bit for bit, after a crash between the two epochs; which also shows that a seed repeats."""
    root = tmp_path / "digits"
    root.mkdir()
    for done in before(step):
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


@pytest.fixture
def saved(monkeypatch):
    """The epochs that get a checkpoint, if the time does not matter."""
    epochs, save = [], TrainingState.save

    def note(self, epochs_done, progress=None):
        epochs.append(epochs_done)
        save(self, epochs_done, progress)

    monkeypatch.setattr(TrainingState, "save", note)
    monkeypatch.setattr(engine, "SECONDS_PER_CHECKPOINT", 1000)
    return epochs


def test_short_epochs_share_a_checkpoint(tmp_path, monkeypatch, saved):
    run("pretext", tmp_path, "epochs=4")
    assert saved == [1, 4]
    saved.clear()
    monkeypatch.setattr(engine, "SECONDS_PER_CHECKPOINT", 0)
    run("pretext", tmp_path, "epochs=6")
    assert saved == [5, 6]


def test_the_best_model_so_far_has_a_checkpoint(after, monkeypatch, saved):
    """Another epoch's might not find it again: one that is resumed with another learning rate, say."""
    losses = iter([0.5, 0.6, 0.4, 0.7, 0.8])
    objective = {"entropy": 2.0, "consistency": 1.0}
    monkeypatch.setattr(metrics, "validation_objective", lambda *_: {**objective, "loss": next(losses)})
    root = after("pretext")
    run("scan", root, "epochs=5", "num_heads=1")
    assert saved == [1, 3, 5]


def test_stopped_before_an_epoch(after, monkeypatch, saved):
    """The votes that precede it may be stopped, or find no room: each earlier epoch has its checkpoint."""
    update, votes = selflabel.Votes.update, iter(range(1, 5))

    def stop_before_the_fourth(self):
        if next(votes) == 4:
            raise interrupt.Interrupted(signal.SIGTERM)
        update(self)

    monkeypatch.setattr(selflabel.Votes, "update", stop_before_the_fourth)
    root = after("pretext", "scan")
    with pytest.raises(interrupt.Interrupted):
        run("selflabel", root, "epochs=5", "criterion=neighbor-vote-cross-entropy")
    assert saved == [1, 2, 3]


@pytest.mark.parametrize(("function", "call", "expected"), [("simclr_step", 3, []), ("knn_accuracy", 1, [0])])
def test_several_processes_stopped(tmp_path, monkeypatch, saved, function, call, expected):
    """Among the batches they may have come unequally far; in the validation all have trained the epoch."""
    original, calls = getattr(simclr, function), iter(range(1, 100))

    def stop(*args):
        if next(calls) == call:
            raise interrupt.Interrupted(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(simclr, function, stop)
    monkeypatch.setattr(engine, "distributed", mock.Mock(world_size=lambda: 2))
    with pytest.raises(interrupt.Interrupted):
        run("pretext", tmp_path)
    assert saved == expected


def test_another_seed_gives_another_model(results, tmp_path):
    run("pretext", tmp_path, "seed=1")
    assert not same(
        weights(tmp_path / "digits/pretext/model.pth.tar"), weights(results / "pretext/model.pth.tar")
    )


def test_resuming_with_another_configuration(copied, capsys):
    last = fails(capsys, simclr.main, arguments("pretext", copied, "temperature=0.7"))
    assert "temperature: " in last
    assert "--fresh" in last


def test_changed_input_is_not_resumed(results, after, capsys):
    root = after("pretext")
    run("scan", root, "epochs=1")
    (root / "digits/pretext").unlink()
    run("pretext", root, "seed=5", "epochs=1")
    last = fails(capsys, scan.main, arguments("scan", root, "epochs=1"))
    assert "inputs.pretext/model.pth.tar" in last
    assert "--fresh" in last


def test_fresh_starts_over(tmp_path):
    run("pretext", tmp_path, "epochs=1")
    run("pretext", tmp_path, "epochs=1", "temperature=0.7", flags=["--fresh"])
    assert yaml.safe_load((tmp_path / "digits/pretext/config.yml").read_text())["temperature"] == 0.7


def test_a_mistake_with_fresh_loses_nothing(copied, capsys):
    before = sorted(
        (path.name, path.stat().st_mtime_ns) for path in (copied / "digits/pretext").glob("*.tar")
    )
    argv = arguments("pretext", copied, "data_dir=elsewhere", "batch_size=5000", flags=["--fresh"])
    assert "batch_size 5000" in fails(capsys, simclr.main, argv)
    assert (
        sorted((path.name, path.stat().st_mtime_ns) for path in (copied / "digits/pretext").glob("*.tar"))
        == before
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


def test_loss_that_explodes(tmp_path, capsys):
    argv = arguments("pretext", tmp_path, "optimizer_kwargs.lr=1.0e+30", "epochs=1")
    last = fails(capsys, simclr.main, argv)
    assert "epoch 1: the loss is nan" in last
    assert "learning rate 1e+30 is too high" in last
    assert "and there is no earlier checkpoint" in last
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


def test_loss_that_explodes_after_short_epochs(tmp_path, capsys, monkeypatch, saved):
    log_epoch, forward = Run.log_epoch, losses.SimCLRLoss.forward

    def log_and_break(self, values):
        log_epoch(self, values)
        if values["epoch"] == 2:
            monkeypatch.setattr(losses.SimCLRLoss, "forward", lambda *args: torch.nan * forward(*args))

    monkeypatch.setattr(Run, "log_epoch", log_and_break)
    last = fails(capsys, simclr.main, arguments("pretext", tmp_path, "epochs=4"))
    assert "epoch 3: the loss is nan" in last and "of epoch 1; " in last
    assert saved == [1]
