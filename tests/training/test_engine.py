"""Inference puts the batches' outputs together, in memory or in a file."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from errors import UserError
from utils.training import engine, inference
from utils.training.optim import build_optimizer
from utils.training.resume import EpochProgress


@pytest.fixture
def loader():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2).contiguous()
    return data.Loader(
        data.sets.arrays.ArrayImages(images), data.PlainView(lambda images: images), 4, train=False
    )


def mean(images):
    return images.float().mean((2, 3))  # (B, 3)


def test_one_output_several_and_a_file(loader, tmp_path):
    expected, path = torch.arange(10.0).view(10, 1).expand(10, 3), tmp_path / "features.npy"
    assert torch.equal(inference.infer(mean, loader, ""), expected)
    several = inference.infer(lambda images: (mean(images), images[:, 0, 0, 0].long()), loader, "")
    assert torch.equal(several[0], expected)
    assert torch.equal(several[1], torch.arange(10))
    assert torch.equal(inference.infer_to_file(mean, loader, "", path), expected)
    np.testing.assert_array_equal(np.load(path), expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_a_full_disk_is_an_error_not_a_crash(loader):
    with pytest.raises(UserError, match="/dev/full: cannot be written .*GB are free"):
        inference.infer_to_file(lambda images: mean(images).repeat(1, 100_000), loader, "", "/dev/full")


@pytest.mark.parametrize(
    ("infer", "file"), [(inference.infer, []), (inference.infer_to_file, ["features.npy"])]
)
def test_what_cannot_be_returned(loader, tmp_path, monkeypatch, infer, file):
    def broken(images):
        return mean(images).log()  # of the first image, which is black

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="features: the network's outputs are not finite for 1 of 10 images"):
        infer(broken, loader, "features", *file)
    loader.train = True  # drops the last incomplete batch
    with pytest.raises(ValueError, match="8 of 10"):
        infer(mean, loader, "", *file)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.RMSprop, partial(torch.optim.Adam, fused=False)]
)
def test_an_optimizer_that_cannot_skip_a_batch(loader, optimizer):
    model = torch.nn.Linear(3, 1)
    before = model.weight.clone()

    def step(images):
        return {"loss": 0 * model(mean(images)).sum(), "trains": torch.tensor(False)}

    with pytest.raises(TypeError, match="cannot skip a batch .* with fused=True"):
        engine._train_epoch(
            model, optimizer(model.parameters(), lr=0.1), loader, step, None, "", EpochProgress()
        )
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("adam", {"lr": 0.1, "weight_decay": 0.1}),
        ("sgd", {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "nesterov": True}),
        ("sgd", {"lr": 0.1}),
    ],
)
def test_a_batch_that_trains_nothing_leaves_no_trace(name, kwargs):
    """The first one, too, at which the optimizer has no state yet."""

    def train(rows, trains=None):
        model = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = build_optimizer(model.parameters(), name, kwargs)
        flags = iter(trains or [])

        def step(batch):
            loss = model(batch[:, :2, 0, 0].float()).square().mean()
            if trains is None:
                return {"loss": loss}
            flag = torch.tensor(next(flags))
            return {"loss": loss * flag, "trains": flag}

        images = torch.arange(24, dtype=torch.uint8).view(8, 3, 1, 1)[rows]
        view = data.PlainView(lambda images: images)
        loader = data.Loader(data.sets.arrays.ArrayImages(images), view, 2, train=False)
        progress = EpochProgress()
        engine._train_epoch(model, optimizer, loader, step, None, "", progress)
        return model, optimizer, progress

    model, optimizer, progress = train(list(range(8)), trains=[False, True, False, True])
    expected, plain, fewer = train([2, 3, 6, 7])
    assert (progress.batches, progress.trained, fewer.trained) == (4, 2, 2)
    assert progress.totals == fewer.totals
    assert torch.equal(model.weight, expected.weight) and torch.equal(model.bias, expected.bias)
    for state, other in zip(optimizer.state.values(), plain.state.values(), strict=True):
        assert state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
