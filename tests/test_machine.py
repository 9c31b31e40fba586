"""The automatic choices: device, precision, compilation."""

import functools
import logging

import pytest
import torch
from steps import run, same, weights

from errors import UserError
from utils import machine

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees so many."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return pretend


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "device"),
    [
        ("auto", 0, None, "cpu"), ("auto", 2, None, "cuda"), ("cpu", 2, None, "cpu"),
        ("cuda:1", 2, None, "cuda:1"), ("auto", 2, 1, "cuda:1"), ("cuda", 2, 0, "cuda:0"),
        ("auto", 0, 1, "cpu"),
    ],
)  # fmt: skip
def test_device(gpus, name, count, local_rank, device):
    gpus(count)
    assert machine.choose_device(name, local_rank) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "advice"),
    [
        ("cuda", 0, None, "set device to auto or cpu"), ("cuda:2", 2, None, "set device to auto or cpu"),
        ("auto", 2, 2, "torchrun --nproc_per_node 2"), ("cuda:1", 2, 0, "set device to auto or cuda"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there(gpus, name, count, local_rank, advice):
    gpus(count)
    with pytest.raises(UserError, match=advice):
        machine.choose_device(name, local_rank)


@pytest.mark.parametrize(
    ("setting", "device", "steps", "images", "mode"),
    [
        ("off", GPU, 10**6, 1024, "eager"), ("auto", CPU, 10**6, 1024, "eager"), ("on", CPU, 1, 128, None),
        ("auto", GPU, 100, 1024, "eager"), ("auto", GPU, 10**5, 1024, None), ("on", GPU, 1, 1024, None),
        ("auto", GPU, 10**5, 128, "reduce-overhead"),
    ],
)  # fmt: skip
def test_what_is_compiled(monkeypatch, setting, device, steps, images, mode):
    monkeypatch.setattr(torch, "compile", lambda network, mode: ("compiled", mode))
    network = torch.nn.Linear(2, 2)
    chosen = machine.compiled(network, setting, device, steps, images)
    assert chosen is network if mode == "eager" else chosen.network == ("compiled", mode)


def test_without_a_compiler_one_line_and_the_same_result(results, tmp_path, monkeypatch, caplog):
    def compile_(network, mode):
        def call(images):
            raise RuntimeError("\nno C++ compiler\nand ten lines more")

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with caplog.at_level(logging.INFO, "utils.machine"):
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # caplog's handler stays
        run("pretext", tmp_path, "compile=on")
    told = [r.getMessage() for r in caplog.records if r.name == "utils.machine" and r.levelno >= logging.INFO]
    assert told[1:] == ["not compiled, which is slower but no less right (no C++ compiler)"]
    assert same(
        weights(tmp_path / "digits/pretext/model.pth.tar"), weights(results / "pretext/model.pth.tar")
    )


@pytest.mark.parametrize("step", ["pretext", "scan"])
def test_compiled_training_is_the_same_training(results, after, monkeypatch, step):
    """torch traces the network; the compiler behind it is replaced, which takes it too long for a test."""
    compile_ = torch.compile
    calls = []

    def eager_backend(network, mode):
        calls.append(mode)
        return functools.partial(compile_, backend="eager")(network)

    monkeypatch.setattr(torch, "compile", eager_backend)
    root = after("pretext") if step == "scan" else after()
    run(step, root, "compile=True")  # as YAML reads `on`
    assert calls == [None]
    name = "checkpoint.pth.tar"
    assert same(weights(root / "digits" / step / name), weights(results / step / name))
