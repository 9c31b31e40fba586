"""All that a GPU would do, on one that is pretended (fake_gpu.py): nothing is on the wrong device, no shape
depends on numbers, no training step waits for one.

What this cannot show: that the numbers are right, that CUDA has a kernel for a type, memory, speed,
compilation, CUDA graphs, several GPUs, faiss on a GPU. That takes a GPU: `make bench`, `make cifar10`.
"""

import json

import fake_gpu
import pytest
import torch
from digits_steps import ROOT
from fake_gpu import SCENARIOS, train
from processes import finish, start


@pytest.fixture(scope="module")
def found(results, made_once):
    """What fake_gpu.py found in each scenario, in a process of its own: autograd counts the GPUs once."""

    def make(folder):
        process = start(fake_gpu.main, results, folder, output=folder / "output")
        (folder / "status").write_text(str(finish(process)))

    folder = made_once("gpu", make)
    status, printed = ((folder / name).read_text() for name in ("status", "output"))
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    check = lines[0]["check"] if lines else f"exit status {status}\n{printed}"
    if check != "passed":
        because = f"torch {torch.__version__} lets no GPU be pretended: fake_gpu.py needs other internals"
        pinned = f"torch=={torch.__version__.split('+')[0]}\n" in (ROOT / "requirements.txt").read_text()
        (pytest.fail if pinned else pytest.skip)(f"{because}\n{check}")
    return {line["name"]: line for line in lines[1:]}


def outcome(found, name):
    assert name in found, f"the process ended before or in {name!r}"
    assert "error" not in found[name], found[name]["error"]
    return found[name]


@pytest.mark.parametrize("name", [name for name, (function, *_) in SCENARIOS.items() if function is train])
def test_training(found, name):
    assert outcome(found, name)["waits"] == [[]]  # between the first of two batches and the second


@pytest.mark.parametrize(
    ("name", "figure"),
    [("eval of clusters", "prototypes"), ("eval of features", "kmeans"), ("moco", "knn_accuracy")],
)
def test_evaluation(found, name, figure):
    assert figure in outcome(found, name)


@pytest.mark.parametrize(
    ("name", "operators", "copies"), [("simclr", 60, 3), ("ours", 60, 6), ("ours and weak", 250, 25)]
)
def test_augmentation(found, name, operators, copies):
    """Small batches are augmented several in one call: one of SCAN took 480 operators and 40 copies alone."""
    outcome_ = outcome(found, name)
    assert outcome_["dtypes"] == ["torch.float32"] and outcome_["same"]
    assert outcome_["operators"] <= operators and outcome_["copies"] <= copies
    assert outcome_["waits"] == [[]]
