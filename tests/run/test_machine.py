"""The automatic choices: device, precision, compilation."""

import math
from unittest import mock

import pytest
import torch

from errors import UserError
from utils.analysis import neighbors
from utils.run import machine
from utils.run.checks import DEVICE

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees so many."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        # not torch.cuda.set_device, which checks what it is given
        monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
        return chosen

    chosen = []
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
    chosen, device = gpus(count), torch.device(device)
    assert machine.choose_device(name, local_rank) == device
    assert chosen == ([device.index or 0] if device.type == "cuda" else [])


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
    ("setting", "device", "steps", "shape", "mode"),
    [
        ("off", GPU, 10**6, (1025, 3, 32, 32), "eager"), ("auto", CPU, 10**6, (1025, 3, 32, 32), "eager"),
        ("on", CPU, 1, (128, 3, 32, 32), None), ("auto", GPU, 100, (1025, 3, 32, 32), "eager"),
        ("auto", GPU, 10**5, (1025, 3, 32, 32), None), ("on", GPU, 1, (257, 3, 96, 96), None),
        ("auto", GPU, 10**5, (1024, 3, 32, 32), "reduce-overhead"),
        ("auto", GPU, 10**5, (256, 3, 224, 224), "reduce-overhead"),
    ],
)  # fmt: skip
def test_what_is_compiled(monkeypatch, setting, device, steps, shape, mode):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda network, mode, dynamic: modes.append(mode) or network)
    images = mock.MagicMock(is_cuda=device == GPU)
    images.__len__.return_value, images.numel.return_value = shape[0], math.prod(shape)
    network = mock.MagicMock()
    chosen = machine.compiled(network, setting, device, steps)
    assert chosen(images) is chosen(images) is network.return_value
    assert modes == ([] if mode == "eager" else [mode])


def test_apples_gpu(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="device mps: torch sees no GPU of Apple's here; set device to auto"):
        machine.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device("auto").type == "cpu"  # only where it is asked for
    device = machine.choose_device(DEVICE.convert("mps"))
    assert device.type == "mps"
    with pytest.raises(UserError, match="one process; start it with python, not with torchrun"):
        machine.choose_device("mps", 0)
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: True)
    for name in ("auto", "fp32"):
        assert machine.choose_precision(name, device) == torch.float32
    with pytest.raises(UserError, match="float32 only; set precision to auto or fp32"):
        machine.choose_precision("bf16", device)
    network = mock.MagicMock()
    assert machine.compiled(network, "on", device, 10**6) is network
    assert neighbors._faiss_for(device) == (None, "faiss does not search on mps")
    with machine.Machine(device, torch.float32).autocast():
        assert not torch.is_autocast_enabled("mps")


def test_beside_a_gpu_one_thread_trains(monkeypatch):
    threads, calls = 16, []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    with machine.few_threads(CPU):
        pass
    assert not calls  # it has side effects: MKL's own choice is gone
    with pytest.raises(MemoryError), machine.few_threads(GPU):
        assert calls == [1]
        raise MemoryError
    assert calls == [1, 16]
