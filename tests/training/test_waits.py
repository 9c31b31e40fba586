"""What would go wrong on a GPU alone: numbers that are read while batches train, and tensors on two devices.

On torch's `meta` device a tensor has a shape but no numbers. To read one, which on a GPU makes the CPU
wait, is an error there. So is a shape that depends on numbers, and a tensor that was left on the CPU. This
cannot show CUDA's kernels, copies that wait, memory, speed, compilation or CUDA graphs.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

import data
from data.sets.arrays import ArrayImages
from losses import CRITERIA
from models import build_model
from scan import scan_step
from selflabel import selflabel_step
from simclr import simclr_step
from utils.run.config import load_config
from utils.run.script import parse_arguments
from utils.training import engine
from utils.training.ema import EMA
from utils.training.resume import EpochProgress

META = torch.device("meta")


def two_views(config, count):
    return data.TwoViews(data.build_train_transform(config))


def pairs(config, count):
    neighbors = torch.arange(count).unsqueeze(1).expand(-1, config.num_neighbors + 1)
    return data.AnchorNeighborView(data.build_train_transform(config), neighbors, config.num_neighbors)


def weak_and_strong(config, count):
    return data.WeakStrongView(data.build_eval_transform(config), data.build_train_transform(config))


STEPS = {
    simclr_step: ("pretext/simclr_cifar10.yml", two_views),
    scan_step: ("scan/scan_cifar10.yml", pairs),
    selflabel_step: ("selflabel/selflabel_cifar10.yml", weak_and_strong),
}


def config_and_loader(step):
    """Three batches on the meta device, of images in the size of CIFAR-10's."""
    file, view = STEPS[step]
    argv = ["--config_exp", f"configs/{file}", "--set", "backbone=resnet10_narrow", "batch_size=16"]
    config = load_config(parse_arguments(argv, ""), ["simclr", "scan", "selflabel"])
    count = 3 * config.batch_size
    images = ArrayImages(torch.zeros(count, 3, 32, 32, dtype=torch.uint8))
    return config, data.Loader(images, view(config, count), config.batch_size, train=True, device=META)


class NoOptimizer:
    """torch's fused ones have no rule for shapes without numbers."""

    def zero_grad(self, set_to_none):
        pass

    def step(self):
        pass


@pytest.mark.parametrize("step", STEPS)
def test_no_number_is_read_before_the_end_of_an_epoch(monkeypatch, step):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # unknown on this device
    monkeypatch.setattr(engine, "skip_unless", lambda trains, optimizer: trains.logical_not())
    config, loader = config_and_loader(step)
    threshold = [config.confidence_threshold] if step is selflabel_step else []
    criterion = CRITERIA[config.criterion](*threshold, **config.criterion_kwargs)
    model, progress = build_model(config).to(META), EpochProgress()
    update, train = EMA(model, 0.9).update, partial(step, model, criterion)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        engine._train_epoch(model, NoOptimizer(), loader, train, update, "", progress)
    assert progress.batches == 3
