"""The real scripts on digits with a tiny budget, for the tests that run them."""

import csv
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import data
import eval as evaluation
import scan
import selflabel
import simclr
from utils.analysis import plots
from utils.run import checkpoint, machine
from utils.run.config import load_config
from utils.run.script import parse_arguments, run_script
from utils.run.weights import unwrap
from workflows import run_steps
from workflows.trained_model import load_trained_model

ROOT = Path(__file__).parent.parent
# TEST_PRECISION=bf16, or fp32: test as on a machine on which `precision: auto` means that.
if "TEST_PRECISION" in os.environ:
    machine._cpu_has_bf16 = lambda: os.environ["TEST_PRECISION"] == "bf16"
STEPS = {
    "pretext": (simclr, "configs/pretext/simclr_digits.yml", ["epochs=2"]),
    "scan": (scan, "configs/scan/scan_digits.yml", ["epochs=2", "num_heads=2"]),
    "selflabel": (
        selflabel,
        "configs/selflabel/selflabel_digits.yml",
        ["epochs=2", "confidence_threshold=0.2"],
    ),
}


def before(step):
    """The steps whose results a step needs."""
    return list(STEPS)[: list(STEPS).index(step)]


class BlankFigure(mock.MagicMock):
    """Takes whatever is drawn, and is an empty file."""

    def savefig(self, file, **_):
        Path(file).touch()


def draw_nothing():
    """From now on pictures are empty files: most of the time of so small a run would go into drawing."""
    plots.Figure, plots.FigureCanvasAgg = BlankFigure, mock.MagicMock()


def arguments(step, root, *overrides, flags=()):
    _, config, budget = STEPS[step]
    return ["--config_exp", config, "--set", f"root_dir={root}", *budget, *overrides, *flags]


def config_of(step, *overrides):
    """The checked configuration of a step."""
    script, *_ = STEPS[step]
    return load_config(parse_arguments(arguments(step, "results", *overrides), ""), [script.__name__])


def run(step, root, *overrides, flags=()):
    STEPS[step][0].main(arguments(step, root, *overrides, flags=flags))


def note_steps(patch):
    """List to which the name of each script is added whose step runs from now on."""
    names = []
    for scripts in run_steps.SCRIPTS.values():
        for script in scripts.values():

            def noted(*arguments, script=script, original=script.run_step):
                names.append(script.__name__)
                original(*arguments)

            patch.setattr(script, "run_step", noted)
    return names


def evaluate(step, model, *overrides, flags=()):
    """Run eval.py on a model of a step; returns the figures in its default folder, if that was used."""
    evaluation.main(eval_arguments(step, model, *overrides, flags=flags))
    folder = Path(model).parent / "eval" / "model"
    return figures(folder) if folder.exists() else None


def eval_arguments(step, model, *overrides, flags=()):
    return arguments(step, Path(model).parents[2], *overrides, flags=["--model", str(model), *flags])


def read_json(path):
    return json.loads(path.read_text())


def figures(folder):
    """The content of metrics.json."""
    return read_json(folder / "metrics.json")


def rows_of(path):
    """The rows of a CSV file, as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def epochs(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@torch.no_grad()
def images_and_probabilities(results, n):
    """The first test images, and what the best head of a trained model says of them, the plain way."""
    trained = load_trained_model(results)
    images = data.build_dataset({"val_db_name": "digits"}, "test").images[:n]
    logits = trained.model(data.build_eval_transform(trained.config)(images))
    return images, logits[trained.head].softmax(1)


def require_nearest(features, path):
    """The mined neighbors, which must be the nearest by cosine similarity."""
    features = torch.nn.functional.normalize(features, dim=1)
    mined, similarity = torch.from_numpy(np.load(path)), features @ features.T
    best = similarity.topk(mined.size(1)).values
    torch.testing.assert_close(similarity.gather(1, mined), best, rtol=0, atol=1e-5)
    return mined


def weights(path):
    return unwrap(checkpoint.load(path), path)[0]


def official_moco(own):
    """A contrastive model's state dict in the layout of MoCo v2's file: two encoders and a queue."""
    query = {
        key.replace("contrastive_head.", "fc.").removeprefix("backbone."): value for key, value in own.items()
    }
    state = {f"module.encoder_{e}.{key}": value for e in "qk" for key, value in query.items()}
    state.update({"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1)})
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def fails(capsys, main, argv):
    """Run a script as its command would; return its last line of output."""
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: main(argv))
    assert exit_.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert "error:" in last
    return last
