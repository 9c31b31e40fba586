"""A run goes on from its last checkpoint, and from no other."""

import signal
from unittest import mock

import pytest
import torch
import yaml
from digits_steps import arguments, fails, run, same, weights

import losses
import selflabel
import simclr
from utils.analysis import metrics
from utils.run import checkpoint, interrupt
from utils.training import engine
from utils.training.resume import TrainingState


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


def test_short_epochs_share_a_checkpoint(copied, monkeypatch, saved):
    run("pretext", copied, "epochs=5")
    assert saved == [3, 5]
    saved.clear()
    monkeypatch.setattr(engine, "SECONDS_PER_CHECKPOINT", 0)
    run("pretext", copied, "epochs=7")
    assert saved == [6, 7]


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


def test_fresh_starts_over(results, copied):
    run("pretext", copied, "seed=1", flags=["--fresh"])
    folder = copied / "digits/pretext"
    assert yaml.safe_load((folder / "config.yml").read_text())["seed"] == 1
    assert "resuming" not in (folder / "log.txt").read_text()
    assert not same(*(weights(path / "model.pth.tar") for path in (folder, results / "pretext")))


def test_a_mistake_with_fresh_loses_nothing(copied, capsys):
    def files():
        folder = copied / "digits/pretext"
        return sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.tar"))

    before = files()
    argv = arguments("pretext", copied, "data_dir=elsewhere", "batch_size=5000", flags=["--fresh"])
    assert "batch_size 5000" in fails(capsys, simclr.main, argv)
    assert files() == before


def test_original_checkpoint_without_our_state(copied, capsys):
    """The original's {'optimizer', 'model', 'epoch'} resumes; without what EMA needs it is refused."""
    path = copied / "digits/selflabel/checkpoint.pth.tar"
    saved = {key: value for key, value in checkpoint.load(path).items() if key in ("optimizer", "epoch")}
    saved["model"] = {f"module.{key}": value for key, value in weights(path).items()}
    torch.save(saved, path)
    run("selflabel", copied, "epochs=3")
    assert checkpoint.load(path)["epoch"] == 3
    torch.save(saved, path)
    argv = arguments("selflabel", copied, "epochs=3", "use_ema=True", "ema_alpha=0.9")
    assert "it has no ema" in fails(capsys, selflabel.main, argv)


def test_loss_that_explodes(tmp_path, capsys):
    argv = arguments("pretext", tmp_path, "optimizer_kwargs.lr=1.0e+30", "epochs=1")
    last = fails(capsys, simclr.main, argv)
    assert "epoch 1: the loss is nan" in last
    assert "learning rate 1e+30 is too high" in last
    assert "and there is no earlier checkpoint" in last
    assert "error: epoch 1" in (tmp_path / "digits/pretext/log.txt").read_text()


def test_loss_that_explodes_later(copied, capsys, monkeypatch, saved):
    forward, factors = losses.SimCLRLoss.forward, iter([1.0] * 10 + [torch.nan] * 5)
    monkeypatch.setattr(losses.SimCLRLoss, "forward", lambda *args: next(factors) * forward(*args))
    last = fails(capsys, simclr.main, arguments("pretext", copied, "epochs=6"))
    path = copied / "digits/pretext/checkpoint.pth.tar"
    assert "epoch 5: the loss is nan" in last
    assert f"the last good checkpoint is {path}, of epoch 3; " in last
    assert saved == [3] and checkpoint.load(path)["epoch"] == 3
