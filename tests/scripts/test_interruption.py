"""Runs that are killed, stopped, or find no room: the same command goes on, and ends where it would have."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time

import processes
import pytest
import torch
from digits_steps import STEPS, arguments, before, fails
from PIL import Image
from processes import finish

from data.folder import decode_pass
from utils.run import checkpoint, interrupt
from utils.run.folder import Run
from utils.training import engine, inference

EPOCHS = "epochs=5"
SETTINGS = {
    "pretext": [EPOCHS],
    "scan": [EPOCHS, "update_cluster_head_only=False"],
    "selflabel": [EPOCHS, "use_ema=True", "ema_alpha=0.9", "criterion=neighbor-vote-cross-entropy"],
}


def start(step, root, *overrides, fault=None):
    """The step as its command would run it, with `fault()` called first."""
    return processes.start(_main, step, root, overrides, fault, output=root / "output")


def _main(step, root, overrides, fault):
    if fault:
        fault[0](*fault[1:])
    STEPS[step][0].main(arguments(step, root, *SETTINGS[step], *overrides))


def kill_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def kill_at(function, call):
    """SIGKILL in the given call of os.fsync or os.replace, or when torch.save has written half a file."""
    engine.SECONDS_PER_CHECKPOINT = 0  # to have more of them
    calls = 0
    owner = torch if function == "save" else os
    original = getattr(owner, function)

    def fatal(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            if function == "save":
                original(*args, **kwargs)
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, function, fatal)


@pytest.fixture(scope="module")
def uninterrupted(results, made_once):
    """Folder of each step's uninterrupted run."""

    def make(folder):
        for step in STEPS:
            root = prepare(step, results, folder / step)
            assert finish(start(step, root)) == 0, (root / "output").read_text()

    folder = made_once("uninterrupted", make)
    return {step: folder / step for step in STEPS}


def prepare(step, results, root):
    (root / "digits").mkdir(parents=True)
    for earlier in before(step):
        (root / "digits" / earlier).symlink_to(results / earlier)
    return root


def assert_equal(a, b, where=""):
    """Nested dicts and lists of numbers and tensors, bit for bit."""
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b or (a != a and b != b), where


def assert_same_results(step, root, whole):
    folder, expected = (r / "digits" / step for r in (root, whole))
    for name in ("checkpoint.pth.tar", "model.pth.tar"):
        assert_equal(checkpoint.load(folder / name), checkpoint.load(expected / name), name)
    assert losses(folder) == losses(expected)
    assert (folder / "metrics.json").read_text() == (expected / "metrics.json").read_text()
    leftover = [
        path.name for path in folder.iterdir() if path.name.endswith(".tmp") or path.name == "scratch"
    ]
    assert not leftover


def losses(folder):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["epoch"], line["loss"]) for line in lines]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_moment(step, results, uninterrupted, tmp_path):
    """Twelve SIGKILLs: six at random moments, six while a file is being written."""
    root, random_ = prepare(step, results, tmp_path), random.Random(step)
    writing = [(kill_at, function, call) for function in ("save", "fsync", "replace") for call in (2, 4)]
    faults = writing + [(kill_after, random_.uniform(0.05, 0.9)) for _ in range(6)]
    random_.shuffle(faults)
    killed = 0
    for fault in faults:
        code = finish(start(step, root, fault=fault))
        while code == 0:  # it was done before; the next one begins anew, and is killed a little earlier
            assert_same_results(step, root, uninterrupted[step])
            shutil.rmtree(root / "digits" / step)
            fault = (kill_after, fault[1] / 2) if fault[0] is kill_after else fault
            code = finish(start(step, root, fault=fault))
        assert code == -signal.SIGKILL, (root / "output").read_text()
        killed += 1
    assert killed == 12
    assert finish(start(step, root)) == 0, (root / "output").read_text()
    assert_same_results(step, root, uninterrupted[step])


def signal_in_epoch(epoch, number):
    """Send this process a signal in the second batch of the given epoch."""
    train_epoch = engine._train_epoch

    def train_and_signal(model, optimizer, loader, step, after_batch, title, progress):
        def step_and_signal(batch):
            if title.startswith(f"epoch {epoch}/") and progress.batches == 1:
                os.kill(os.getpid(), number)
            return step(batch)

        train_epoch(model, optimizer, loader, step_and_signal, after_batch, title, progress)

    engine._train_epoch = train_and_signal


@pytest.mark.parametrize(
    ("step", "number"), [*((step, signal.SIGTERM) for step in STEPS), ("scan", signal.SIGINT)]
)
def test_stopped_within_an_epoch(step, number, results, uninterrupted, tmp_path):
    root = prepare(step, results, tmp_path)
    assert finish(start(step, root, fault=(signal_in_epoch, 4, number))) == 128 + number
    output = (root / "output").read_text()
    assert "epoch 4/5: stopped after batch 2, saved" in output
    assert output.rstrip().endswith(f"stopped by {number.name}; the same command, without --fresh, goes on")
    saved = checkpoint.load(root / "digits" / step / "checkpoint.pth.tar")
    assert saved["epoch"] == 3 and saved["progress"]["batches"] == 2
    assert finish(start(step, root)) == 0
    assert "resuming after epoch 3 and 2 batches" in (root / "output").read_text()
    assert_same_results(step, root, uninterrupted[step])


def signal_between(epoch, number):
    """Send this process a signal when the given epoch, which is too short for a checkpoint, is complete."""
    log_epoch = Run.log_epoch

    def log_and_signal(run, values):
        log_epoch(run, values)
        if values["epoch"] == epoch:
            os.kill(os.getpid(), number)

    Run.log_epoch = log_and_signal
    engine.SECONDS_PER_CHECKPOINT = 1000


def test_stopped_between_two_short_epochs(results, uninterrupted, tmp_path):
    root = prepare("pretext", results, tmp_path)
    assert finish(start("pretext", root, fault=(signal_between, 3, signal.SIGTERM))) == 128 + signal.SIGTERM
    saved = checkpoint.load(root / "digits/pretext/checkpoint.pth.tar")
    assert saved["epoch"] == 3 and saved["progress"] is None
    assert finish(start("pretext", root)) == 0
    assert_same_results("pretext", root, uninterrupted["pretext"])


def interrupt_in_inference(epoch):
    """SIGTERM in the first inference after the given epoch's training."""
    train_epoch, outputs = engine._train_epoch, inference._outputs

    def note(*args):
        inference._outputs = signal_and_infer if f"epoch {epoch}/" in args[5] else outputs
        return train_epoch(*args)

    def signal_and_infer(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return outputs(*args, **kwargs)

    engine._train_epoch = note


@pytest.mark.parametrize("step", STEPS)
def test_stopped_within_a_validation(step, results, uninterrupted, tmp_path):
    root = prepare(step, results, tmp_path)
    assert finish(start(step, root, fault=(interrupt_in_inference, 4))) == 128 + signal.SIGTERM
    saved = checkpoint.load(root / "digits" / step / "checkpoint.pth.tar")
    assert saved["epoch"] == 3 and saved["progress"]["batches"] >= 2  # of the fourth: all batches
    assert finish(start(step, root)) == 0
    assert_same_results(step, root, uninterrupted[step])


def test_two_runs_in_one_folder(results, tmp_path):
    root = prepare("pretext", results, tmp_path)
    first = start("pretext", root, fault=(endless_batch, root))
    wait_for(lambda: (root / "begun").exists())
    assert finish(start("pretext", root)) == 1
    assert "another run is using this folder" in (root / "output").read_text()
    first.kill()
    first.join()
    assert finish(start("pretext", root, "epochs=1")) == 0  # the lock went with its owner


def decoded_by_workers():
    """In a process group of its own, as a shell makes one for each command, and with forked workers."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    decode_pass.fits_in_memory = lambda size: False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_signals_to_their_owner(number, tmp_path):
    """Ctrl-C and schedulers signal the whole process group, those that decode images included."""
    for split in ("train", "test"):
        folder = tmp_path / "data/squares" / split
        folder.mkdir(parents=True)
        for i in range(60):
            Image.new("RGB", (40, 40), (4 * i, 90, 255 - 4 * i)).save(folder / f"{i}.png")
    settings = ["train_db_name=squares", "val_db_name=squares", f"data_dir={tmp_path / 'data'}"]
    settings += ["batch_size=20", "num_workers=2", "epochs=2000"]
    process = start("pretext", tmp_path, *settings, fault=(decoded_by_workers,))
    saved = tmp_path / "squares/pretext/checkpoint.pth.tar"
    wait_for(saved.exists)
    os.killpg(process.pid, number)
    code, output = finish(process), (tmp_path / "output").read_text()
    assert code == 128 + number, output
    assert "Traceback" not in output and f"stopped by {number.name}" in output
    # between two epochs no batch is done
    assert (checkpoint.load(saved)["progress"] is not None) == ("stopped after batch" in output)


def endless_batch(root):
    """The first batch touches the file `begun`, then waits, and touches `noted` when a signal came."""

    def wait(self, *args, **kwargs):
        (root / "begun").touch()
        while True:
            time.sleep(0.01)
            if interrupt.noted():
                (root / "noted").touch()

    torch.optim.SGD.step = wait


def test_a_second_signal_ends_it_at_once(results, tmp_path):
    root = prepare("pretext", results, tmp_path)
    process = start("pretext", root, fault=(endless_batch, root))
    wait_for(lambda: (root / "begun").exists())
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: (root / "noted").exists())
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 128 + signal.SIGTERM
    assert not (root / "digits/pretext/checkpoint.pth.tar").exists()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def small_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk(step, results, tmp_path):
    """Files that may not grow: a line that says so, and the previous checkpoint is intact."""
    root = prepare(step, results, tmp_path)
    assert finish(start(step, root, "epochs=2")) == 0
    folder = root / "digits" / step
    saved = checkpoint.load(folder / "checkpoint.pth.tar")
    saved["identity"]["epochs"] = 5
    torch.save(saved, folder / "checkpoint.pth.tar")
    (root / "output").unlink()
    size = os.path.getsize(folder / "checkpoint.pth.tar")
    assert finish(start(step, root, fault=(small_files, size // 2))) == 1
    output = (root / "output").read_text()
    assert "error:" in output and "Traceback" not in output
    assert "cannot be written" in output and "intact" in output
    assert checkpoint.load(folder / "checkpoint.pth.tar")["epoch"] == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_full_file_system(results, tmp_path):
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", root], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (root / "filler").write_bytes(bytes(16 * 2**20 - 1_200_000))
        assert finish(start("pretext", root)) == 1
        output = (root / "output").read_text()
        assert "error:" in output and "Traceback" not in output and "cannot be written" in output
        (root / "filler").unlink()
        (root / "output").unlink()
        assert finish(start("pretext", root)) == 0, (root / "output").read_text()
    finally:
        subprocess.run(["umount", root], check=True)


def test_a_folder_that_is_read_only(results, tmp_path, capsys, monkeypatch):
    """As an ordinary user: root may write anywhere, so the system's refusal is put in its place."""
    root = prepare("pretext", results, tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(args[0]))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    message = fails(capsys, STEPS["pretext"][0].main, arguments("pretext", root))
    assert "cannot write results there" in message and "root_dir" in message
