"""Runs that are killed, stopped, or find no room: the same command goes on, and ends where it would have."""

import itertools
import multiprocessing
import os
import pkgutil
import resource
import signal
import time

import processes
import pytest
import torch
from digits_steps import STEPS, arguments, before, epochs, run
from image_folders import write_images
from processes import finish

from data.folder import decode_pass
from utils.run import checkpoint, interrupt
from utils.training import engine

SETTINGS = {
    "pretext": ["epochs=4", "knn_every=1"],
    "scan": ["epochs=4", "update_cluster_head_only=False"],
    "selflabel": ["epochs=4", "use_ema=True", "ema_alpha=0.9", "criterion=neighbor-vote-cross-entropy"],
}
STEP_FUNCTION = {
    "pretext": "simclr.simclr_step",
    "scan": "scan.scan_step",
    "selflabel": "selflabel.selflabel_step",
}
INFERENCE = "utils.training.inference._outputs"
BEFORE_VALIDATION = {"pretext": 0, "scan": 0, "selflabel": 1}  # inferences of a resumed run
SCHEDULERS = {"pretext": signal.SIGTERM, "scan": signal.SIGUSR1, "selflabel": signal.SIGUSR2}


def start(step, root, *overrides, fault=None):
    """The step as its command would run it, with `fault()` called first."""
    return processes.start(_main, step, root, overrides, fault, output=root / "output")


def _main(step, root, overrides, fault):
    if fault:
        fault[0](*fault[1:])
    STEPS[step][0].main(arguments(step, root, *SETTINGS[step], *overrides))


def signal_at(name, call, number, seconds_per_checkpoint):
    """Send this process a signal at the given call of a function; in torch.save, when half is written."""
    engine.SECONDS_PER_CHECKPOINT = seconds_per_checkpoint
    owner, _, function = name.rpartition(".")
    owner, calls = pkgutil.resolve_name(owner), itertools.count(1)
    original = getattr(owner, function)

    def counted(*args, **kwargs):
        if next(calls) == call:
            if name == "torch.save":
                original(*args, **kwargs)
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, function, counted)


@pytest.fixture(scope="module")
def uninterrupted(results, made_once):
    """Folder of each step's uninterrupted run."""

    def make(folder):
        for step in STEPS:
            run(step, prepare(step, results, folder / step), *SETTINGS[step])

    return made_once("uninterrupted", make)


def prepare(step, results, root):
    (root / "digits").mkdir(parents=True)
    for earlier in before(step):
        (root / "digits" / earlier).symlink_to(results / earlier)
    return root


def assert_equal(a, b, where=""):
    """Nested dicts and lists of numbers and tensors, bit for bit."""
    if torch.is_tensor(a):
        assert torch.equal(a, b), where
    elif isinstance(a, dict | list):
        assert len(a) == len(b), where
        for key in a if isinstance(a, dict) else range(len(a)):
            assert_equal(a[key], b[key], f"{where}.{key}")
    else:
        assert a == b or (a != a and b != b), where


def assert_same_results(folder, expected):
    for name in ("checkpoint.pth.tar", "model.pth.tar"):
        assert_equal(checkpoint.load(folder / name), checkpoint.load(expected / name), name)
    found, lines = ([(line["epoch"], line["loss"]) for line in epochs(place)] for place in (folder, expected))
    assert found == lines
    assert (folder / "metrics.json").read_text() == (expected / "metrics.json").read_text()
    assert not [*folder.glob("*.tmp"), *folder.glob("scratch")]


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_is_stopped_and_killed_again_and_again(step, results, uninterrupted, tmp_path):
    root, expected = prepare(step, results, tmp_path), uninterrupted / step / "digits" / step
    folder, output = root / "digits" / step, root / "output"
    batches = 1437 // checkpoint.load(expected / "checkpoint.pth.tar")["identity"]["batch_size"]
    stops = [  # by a signal that lets it save: fault, epochs done, batches of the next one
        ((STEP_FUNCTION[step], batches + 2, SCHEDULERS[step], 0), 1, 2),
        ((INFERENCE, BEFORE_VALIDATION[step] + 1, signal.SIGINT, 0), 1, batches),
        (("utils.run.folder.Run.log_epoch", 1, signal.SIGTERM, 1000), 2, None),
    ]
    first_checkpoint = signal_at, "os.fsync", 3, signal.SIGKILL, 0
    assert finish(start(step, root, fault=first_checkpoint)) == -signal.SIGKILL
    for (name, call, number, seconds), done, of_next in stops:
        assert finish(start(step, root, fault=(signal_at, name, call, number, seconds))) == 128 + number
        told = f"stopped by {number.name}; the same command, without --fresh, goes on"
        assert output.read_text().rstrip().endswith(told)
        saved = checkpoint.load(folder / "checkpoint.pth.tar")
        assert (saved["epoch"], (saved["progress"] or {}).get("batches")) == (done, of_next)
    assert "epoch 2/4: stopped after batch 2, saved" in output.read_text()
    assert "resuming after epoch 1 and 2 batches" in output.read_text()

    for name, call in (("torch.save", 1), (STEP_FUNCTION[step], 2), ("os.fsync", 3), ("os.replace", 4)):
        fault = signal_at, name, call, signal.SIGKILL, 0
        assert finish(start(step, root, fault=fault)) == -signal.SIGKILL, output.read_text()
    assert finish(start(step, root)) == 0, output.read_text()
    assert_same_results(folder, expected)


def endless_batch(root):
    """The first batch touches the file `begun`, then waits, and touches `noted` when a signal came."""

    def wait(self, *args, **kwargs):
        (root / "begun").touch()
        while True:
            time.sleep(0.01)
            if interrupt.noted():
                (root / "noted").touch()

    torch.optim.SGD.step = wait


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_a_second_run_and_a_second_signal(results, tmp_path):
    """Another run is refused while the first one uses the folder. A second signal ends that one at once."""
    root = prepare("pretext", results, tmp_path)
    first = start("pretext", root, fault=(endless_batch, root))
    wait_for(lambda: (root / "begun").exists())
    assert finish(start("pretext", root)) == 1
    assert "another run is using this folder" in (root / "output").read_text()
    os.kill(first.pid, signal.SIGTERM)
    wait_for(lambda: (root / "noted").exists())
    assert first.is_alive()
    os.kill(first.pid, signal.SIGTERM)
    assert finish(first) == 128 + signal.SIGTERM
    assert not (root / "digits/pretext/checkpoint.pth.tar").exists()
    assert finish(start("pretext", root, "epochs=1")) == 0  # the lock went with its owner


@pytest.mark.parametrize(("before", "stops"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminal_that_is_closed(before, stops, monkeypatch):
    """It may send SIGHUP twice; nohup ignores it."""
    monkeypatch.setattr(interrupt, "_noted", None)
    earlier = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        signal.signal(signal.SIGHUP, before)
        interrupt.listen()
        with interrupt.deferred():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        assert (interrupt.noted() == signal.SIGHUP) == stops
    finally:
        for number, handler in earlier.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def decoded_by_workers():
    """In a process group of its own, as a shell makes one for each command, and with forked workers."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    decode_pass.fits_in_memory = lambda size: False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_leave_signals_to_their_owner(number, tmp_path):
    """Ctrl-C and schedulers signal the whole process group, those that decode images included."""
    for split in ("train", "test"):
        write_images(tmp_path / "data/squares" / split, 60, (40, 40), suffix="png")
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


def small_files(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk(copied):
    """Files that may not grow: a line that says so, and the previous checkpoint is intact."""
    saved = copied / "digits/pretext/checkpoint.pth.tar"
    half = os.path.getsize(saved) // 2
    assert finish(start("pretext", copied, "epochs=3", fault=(small_files, half))) == 1
    output = (copied / "output").read_text()
    assert "error:" in output and "Traceback" not in output
    assert "cannot be written" in output and "intact" in output
    assert checkpoint.load(saved)["epoch"] == 2
