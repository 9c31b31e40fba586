"""What an earlier run left: it is gone on from, or refused in one line that says what to do."""

import pytest
import torch
from digits_steps import config_of
from mistakes import refused

from models import build_model
from utils.run import checkpoint
from utils.run.fingerprint import Fingerprint
from utils.run.folder import Run
from utils.run.machine import Machine
from utils.training.optim import build_optimizer
from utils.training.resume import TrainingState


@pytest.fixture
def training(tmp_path):
    """Function settings -> a Training in one folder, in which two epochs were trained."""

    def build(*settings, inputs=None):
        config = config_of("pretext", *settings)
        model = build_model(config)
        optimizer = build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)
        return TrainingState(
            Run(config, tmp_path, Machine.start(config)), Fingerprint(config, {}, inputs), model, optimizer
        )

    build().save(2)
    return build


def test_goes_on(training):
    assert training("epochs=3").resume() == (2, None)


def test_settings_that_are_no_longer_given_are_those_of_torch(training):
    again = training("epochs=3")
    content = checkpoint.load(again.path)
    content["optimizer"]["param_groups"][0].update(dampening=0.5, fused=False)
    torch.save(content, again.path)
    again.resume()
    (group,) = again.optimizer.param_groups
    assert "dampening" not in again.run.config.optimizer_kwargs
    assert group["dampening"] == 0 and group["fused"]


CHANGES: list[tuple] = [  # ... removes a key
    ({"optimizer": ...}, "cannot be resumed, it has no optimizer", "--fresh"),
    ({"epoch": ...}, "cannot be resumed, it has no epoch"),
    ({"epoch": -3}, "cannot be resumed, it has no number of epochs"),
    ({"optimizer": 3}, "its optimizer is another one", "--fresh"),
    ({"optimizer": {"state": {}, "param_groups": [{"betas": (0.9, 0.999)}]}}, "its optimizer is another one"),
    ({"identity": {}}, "written by another experiment|cannot be resumed", "--fresh"),
    ({"model": {}}, "holds no state dict"),
]


@pytest.mark.parametrize("row", CHANGES, ids=[str(row[0]) for row in CHANGES])
def test_another_checkpoint(row, training):
    changes, *words = row
    again = training()
    content = {**checkpoint.load(again.path), **changes}
    torch.save({key: value for key, value in content.items() if value is not ...}, again.path)
    refused(["checkpoint.pth.tar", *words], again.resume)


@pytest.mark.parametrize(
    ("setting", "change"), [("temperature=0.9", "temperature: "), ("seed=4", "seed: 0 -> 4")]
)
def test_another_setting(setting, change, training):
    refused([change, "-> ", "--fresh"], training(setting).resume)


def test_another_input(training):
    model = training().run.folder / "earlier.pth.tar"
    inputs = {"pretext/model.pth.tar": model}
    model.write_bytes(b"1")
    again = training(inputs=inputs)
    again.save(2)
    model.write_bytes(b"2")
    refused(["inputs.pretext/model.pth.tar: ", "--fresh"], training(inputs=inputs).resume)


@pytest.mark.parametrize(
    "content", ["3\n", "[1]\n", '{"epoch": 2, "lo', '{"loss": 1}\n', '{"epoch": "one"}\n', "\n"]
)
def test_damaged_metrics_are_forgotten(content, training):
    again = training()
    metrics = again.run.folder / "metrics.jsonl"
    metrics.write_text(content)
    assert again.run.read_epochs() == []
    assert again.resume() == (2, None)
    assert metrics.read_text() == ""
