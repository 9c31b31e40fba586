"""What the loggers of a run are given: TensorBoard, and the one that docs/LOGGERS.md shows."""

import re
import resource
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from digits_steps import ROOT, arguments, config_of, epochs, fails, rows_of, run, same, weights
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import scan
from utils.run import processes
from utils.run.folder import Run
from utils.run.loggers import Loggers
from utils.training.resume import TrainingState, archive_results


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def curves(folder):
    """{tag: [(epoch, value), ...]} of TensorBoard's files, as its page reads them."""
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    tags = read.Tags()["scalars"]
    return {
        tag: [(e.step, pytest.approx(e.value, rel=1e-6)) for e in read.Scalars(tag)] for tag in tags
    }, read


def test_tensorboard_of_a_run_that_was_killed_before_its_checkpoint(after, results, monkeypatch):
    root, save = after("pretext"), TrainingState.save
    folder = root / "digits/scan"

    def killed(self, epochs_done, progress=None):
        if epochs_done == 2:
            raise MemoryError("as if killed")
        save(self, epochs_done, progress)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(TrainingState, "save", killed)
        run("scan", root, "logger=tensorboard")
    assert [point[0] for point in curves(folder)[0]["loss"]] == [1, 2]
    run("scan", root, "logger=tensorboard")
    assert "resuming after epoch 1" in (folder / "log.txt").read_text()

    found, read = curves(folder)
    expected = {}
    for line in epochs(folder):
        for name, value in line.items():
            several = isinstance(value, list)
            for i, number in enumerate(value if several else [value]):
                points = expected.setdefault(f"{name}/{i}" if several else name, [])
                points.append((line["epoch"], number))
    for without in ("epoch", "warned_of/0"):  # the latter is text
        expected.pop(without, None)
    assert {"val_losses/1", "cluster_sizes/9", "val_acc"} <= found.keys()
    assert expected == found
    for line in epochs(folder):
        assert min(line["val_losses"]) == line["val_loss"]

    clusters = [int(row["cluster"]) for row in rows_of(folder / "assignment.csv")]
    assert {*read.Tags()["images"]} == {f"prototypes/{cluster}" for cluster in clusters}
    (metadata,) = folder.glob("tensorboard/**/metadata.tsv")
    header, *rows = (line.split("\t") for line in metadata.read_text().splitlines())
    assert header == ["image", "cluster", "class"] and [int(row[1]) for row in rows] == clusters
    assert np.loadtxt(metadata.with_name("tensors.tsv")).shape[0] == 360

    assert same(
        *(weights(path / "model.pth.tar") for path in (folder, results / "scan"))
    )  # logging changes nothing
    archive_results(mock.Mock(main=True, folder=folder), (), ())  # as --fresh does
    assert not (folder / "tensorboard").exists()


def test_a_logger_of_ones_own_beside_one_that_fails(after, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/LOGGERS.md").read_text(), re.DOTALL)
    (tmp_path / "mylog.py").write_text(code)
    (tmp_path / "failing.py").write_text(
        "class Full:\n    def __init__(self, *_): raise OSError(28, 'No space')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    root = after("pretext", "scan")
    run("selflabel", root, "logger=[failing:Full, mylog:Folder]")
    folder = root / "digits/selflabel"
    log = (folder / "log.txt").read_text()
    assert (
        log.count("logger failing:Full: [Errno 28] No space; it gets nothing more")
        == log.count("logger ")
        == 1
    )
    rows = [line.split(",") for line in (folder / "mylog/curves.csv").read_text().splitlines()]
    losses = [(int(epoch), float(value)) for epoch, name, value in rows if name == "loss"]
    assert losses == [(line["epoch"], line["loss"]) for line in epochs(folder)]
    with Image.open(sorted(folder.glob("mylog/prototypes-*.png"))[0]) as image:
        assert image.size == (8, 8)
    assert len(rows_of(folder / "mylog/features.csv")) == len(np.load(folder / "mylog/features.npy")) == 360


def test_what_is_not_installed_is_said_before_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("tensorboard", "tensorbord", "json:Nothing", "no/name"):
        last = fails(capsys, scan.main, arguments("scan", tmp_path, f"logger={name}"))
        assert "error: logger: " in last and "pip install tensorboard, or give MODULE:CLASS" in last
    assert not [*tmp_path.iterdir()]


def test_a_full_disk(tmp_path, caplog, capfd):
    """Files that may not grow: one warning, and no traceback of the thread that writes."""
    loggers = Loggers("tensorboard", tmp_path, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        for epoch in range(1, 60):
            loggers.log_epoch({"epoch": epoch, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.text.count("WARNING") == caplog.text.count("File too large; it gets nothing more") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_only_the_main_process_logs(tmp_path, monkeypatch):
    config = config_of("scan", "logger=tensorboard")
    for main in (True, False):
        monkeypatch.setattr(processes, "is_main", lambda main=main: main)
        assert bool(Run(config, Path(tmp_path), mock.Mock()).loggers.makers) == main
