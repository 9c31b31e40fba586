"""What several test files share."""

import os

# The figures are those of a CPU, whatever the machine has; said before torch looks for a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from steps import ROOT, STEPS, run

# The networks of the tests are too small for two threads, which only get into each other's way.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Folder of a finished run of all three steps on digits."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for step in STEPS:
            run(step, root)
    return root / "digits"


@pytest.fixture
def after(results, tmp_path):
    """Folder in which only the step after the given ones is still to run."""

    def link(*steps):
        (tmp_path / "digits").mkdir()
        for step in steps:
            (tmp_path / "digits" / step).symlink_to(results / step)
        return tmp_path

    return link
