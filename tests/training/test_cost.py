from contextlib import nullcontext
from functools import partial

import torch

from losses import SimCLRLoss
from models import build_model
from simclr import simclr_step
from utils.training import cost

CONFIG = {
    "setup": "simclr",
    "backbone": "resnet10_narrow",
    "train_db_name": "own",
    "transformation_kwargs": {"crop_size": 16},
}


def test_memory_of_training_grows_with_the_image():
    model = build_model(CONFIG).train()
    step = partial(simclr_step, model, SimCLRLoss(0.5))
    small, large = (
        cost.training_cost(step, model, size, torch.device("cpu"), nullcontext) for size in (16, 32)
    )
    assert small[0] > 0
    # the feature maps have four times the pixels; the weights, which do not grow, are not counted
    assert 3 < large[1] / small[1] < 4.1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_of_one_layer_is_what_its_backward_pass_needs():
    """Of x -> relu(Wx) only x and the result are kept, besides the weights."""
    layer = torch.nn.Linear(100, 50, bias=False)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 100, bias=False), layer)

    def step(images):
        return {"loss": model(images).relu().sum()}

    _, bytes_ = cost.training_cost(step, model, 4, torch.device("cpu"), nullcontext)
    assert bytes_ == 2 * 4 * (3 * 4 * 4 + 100 + 50)


def test_duration():
    seconds = 0.1, 42, 200, 5000, 9000, 90_000, 3e5
    texts = ["1 s", "42 s", "3 min", "83 min", "2.5 h", "25 h", "3 days"]
    assert [cost.duration(value) for value in seconds] == texts
