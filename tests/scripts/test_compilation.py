"""Compiled training is the same training, and so is one whose compilation fails."""

import functools
import logging

import pytest
import torch
from digits_steps import before, run, same, weights
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from utils.run import machine


def failing_compiler(passes):
    """A compiler behind torch.compile that fails at the graphs of these passes."""

    def compiler(name):
        def compile_graph(graph, inputs):
            if name in passes:
                raise RuntimeError(f"\nno compiler for the {name} pass\nand ten lines more")
            return make_boxed_func(graph)

        return compile_graph

    inference, forward, backward = map(compiler, ("inference", "forward", "backward"))
    return aot_autograd(fw_compiler=forward, bw_compiler=backward, inference_compiler=inference)


@pytest.mark.parametrize(
    ("step", "fails"),
    [("pretext", "forward"), ("selflabel", "inference"), ("selflabel", "backward")],
)
def test_without_a_compiler_one_line_and_the_same_result(results, after, monkeypatch, caplog, step, fails):
    torch.compiler.reset()
    compile_ = functools.partial(torch.compile, backend=failing_compiler([fails]), dynamic=False)
    monkeypatch.setattr(torch, "compile", lambda network, **_: compile_(network))
    with caplog.at_level(logging.INFO, "utils.run.machine"):
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # caplog's handler stays
        root = after(*before(step))
        run(step, root, "compile=on")
    told = [record.getMessage() for record in caplog.records if record.name == "utils.run.machine"]
    assert told[1:] == [
        f"not compiled, which is slower but gives the same results (no compiler for the {fails} pass)"
    ]
    name = "model.pth.tar"
    assert same(weights(root / "digits" / step / name), weights(results / step / name))


@pytest.mark.parametrize("step", ["pretext", "scan"])
def test_compiled_training_is_the_same_training(results, after, monkeypatch, step):
    """torch traces the network; the compiler behind it is replaced, which takes it too long for a test."""
    compile_ = torch.compile
    calls = []

    def eager_backend(network, mode, dynamic):
        calls.append((mode, dynamic))
        return compile_(network, backend="eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", eager_backend)
    root = after("pretext") if step == "scan" else after()
    run(step, root, "compile=True")  # as YAML reads `on`
    assert calls == [(None, False)]
    name = "checkpoint.pth.tar"
    assert same(weights(root / "digits" / step / name), weights(results / step / name))


@pytest.mark.parametrize(("step", "images"), [("pretext", 2 * 64), ("scan", 64), ("selflabel", 64)])
def test_the_sizes_of_the_passes(results, after, monkeypatch, step, images):
    """SimCLR has both views of an image in one pass."""
    seen = set()

    def note(network, setting, device, iterations):
        return lambda images: seen.add((iterations, tuple(images.shape))) or network(images)

    monkeypatch.setattr(machine, "compiled", note)
    root = after(*before(step))
    run(step, root, "epochs=1", "batch_size=64")
    assert seen == {(1437 // 64, (images, 3, 8, 8))}
