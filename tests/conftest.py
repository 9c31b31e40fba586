"""What several test files share."""

import logging
import os
import shutil

# The figures are those of a CPU, whatever the machine has; said before torch looks for a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from digits_steps import ROOT, STEPS, draw_nothing, note_steps, run
from filelock import FileLock
from image_folders import gradient
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data import messages
from data.folder import decode_pass
from utils.analysis import plots

# The networks of the tests are too small for two threads, which only get into each other's way.
torch.set_num_threads(1)
draw_nothing()


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def pictures(monkeypatch):
    """Pictures are drawn."""
    monkeypatch.setattr(plots, "Figure", Figure)
    monkeypatch.setattr(plots, "FigureCanvasAgg", FigureCanvasAgg)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """Function (name, make) -> a folder, filled by `make(folder)` in the first worker that asks for the name.

    The workers share it, so no test may change what is in it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def folder_of(name, make):
        folder, finished = base / name, base / f"{name}.finished"
        with FileLock(base / f"{name}.lock"), pytest.MonkeyPatch.context() as patch:
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                patch.chdir(ROOT)
                make(folder)
                finished.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def results(made_once):
    """Folder of a finished run of all three steps on digits."""

    def make(root):
        for step in STEPS:
            run(step, root)

    return made_once("results", make) / "digits"


@pytest.fixture
def steps_run(monkeypatch):
    """Names of the scripts whose step runs from now on, in order."""
    return note_steps(monkeypatch)


@pytest.fixture
def after(results, tmp_path):
    """Folder in which only the step after the given ones is still to run."""

    def link(*steps):
        (tmp_path / "digits").mkdir()
        for step in steps:
            (tmp_path / "digits" / step).symlink_to(results / step)
        return tmp_path

    return link


@pytest.fixture
def copied(results, tmp_path):
    """A copy of the finished run that a test may change."""
    shutil.copytree(results, tmp_path / "digits", dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """The training split of a dataset `mine`, with one image in its test split."""
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
    gradient().save(tmp_path / "mine/test/0.png")
    return tmp_path / "mine/train"


@pytest.fixture
def another_process(monkeypatch, caplog):
    """What an earlier process found is known from its file only."""
    caplog.set_level(logging.INFO)

    def start():
        monkeypatch.setattr(decode_pass, "_finished", {})
        messages.say_once.cache_clear()
        caplog.clear()

    start()
    return start


@pytest.fixture
def no_room(monkeypatch):
    """Decoded images do not fit in memory."""
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: False)
