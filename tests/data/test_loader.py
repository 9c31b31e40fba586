"""Batches: their order, their size, and several made in one call."""

import pytest
import torch
from image_folders import numbered, values

import data
from data.sets.arrays import ArrayImages
from errors import UserError
from utils.run import interrupt
from utils.training import engine
from utils.training.resume import EpochProgress


def test_training_batches_are_shuffled_complete_and_full():
    torch.manual_seed(0)
    loader = data.Loader(numbered(23), data.PlainView(lambda x: x), 5, train=True)
    batches = [values(images) for images in loader]
    assert [len(batch) for batch in batches] == [5] * 4 == [5] * len(loader)
    seen = sum(batches, [])
    assert len(set(seen)) == 20
    assert seen != sorted(seen)
    assert [values(images) for images in loader] != batches  # another order each epoch


def test_evaluation_batches_are_in_order_and_complete():
    loader = data.Loader(numbered(23), data.PlainView(lambda x: x), 5, train=False)
    assert sum((values(images) for images in loader), []) == list(range(23))
    assert len(loader) == 5


@pytest.mark.parametrize(
    ("batch_size", "processes", "message"),
    [
        (4, 1, r"batch_size 4 is larger than the training split \(3 images\).* set batch_size to 3 or less"),
        (1, 1, "set batch_size to 2 or more"),
        (3, 2, "batch_size 3 does not divide by 2 processes.* set it to 2"),
    ],
)
def test_batch_sizes_that_are_refused(batch_size, processes, message):
    with pytest.raises(UserError, match=message):
        data.Loader(numbered(3), data.PlainView(None), batch_size, train=True, world_size=processes)


# --- several batches in one call, as on a GPU ----------------------------------------------------


class NoisyPairs:
    """A view of two tensors, with random numbers of its own; notes how many anchors each call sees."""

    def __init__(self):
        self.calls = []

    def index(self, anchors):
        return torch.stack([anchors, anchors + 1], 1)

    def __call__(self, images, index):
        self.calls.append(len(images))
        pixel = images[:, :, 0, 0, 0].float()  # (B, 2)
        assert torch.equal(pixel, index.float())
        return pixel[:, 0], pixel[:, 1] + torch.rand(len(images))


def small_batches(bytes_at_once):
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(60, 3, 2, 2)
    view = NoisyPairs()
    loader = data.Loader(ArrayImages(images), view, 4, train=True, anchors=torch.arange(59))
    loader.at_once = bytes_at_once
    return loader, view


def test_several_small_batches_are_augmented_in_one_call():
    passes = []
    for bytes_at_once in (0, 3 * 4 * 2 * 12 + 11):  # one batch, and three
        loader, view = small_batches(bytes_at_once)
        torch.manual_seed(0)
        passes.append([(loader.ahead, *batch) for batch in loader])
    assert view.calls == [12, 12, 12, 12, 8] and len(passes[0]) == len(passes[1]) == 14
    assert [ahead for ahead, *_ in passes[0]] == [0] * 14
    assert [ahead for ahead, *_ in passes[1]] == [2, 1, 0] * 4 + [1, 0]
    for (_, anchors, noisy), (_, same_anchors, others) in zip(*passes, strict=True):
        assert torch.equal(anchors, same_anchors) and torch.equal(noisy.floor(), others.floor())


def test_a_pass_goes_on_from_where_nothing_is_ahead(monkeypatch):
    """The training loop stops there only, so that the rest of the pass is the same."""
    seen, stop = [], []
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), fused=True)

    def step(batch):
        seen.append(batch[1])
        return {"loss": model(batch[1].unsqueeze(1)).mean()}

    def epoch(progress=None):
        loader, _ = small_batches(3 * 4 * 2 * 12)
        torch.manual_seed(0)
        if progress:
            loader.skip(progress.batches, progress.random_state)
        progress = progress or EpochProgress()
        engine._train_epoch(model, optimizer, loader, step, None, "", progress)
        return progress

    monkeypatch.setattr(interrupt, "noted", lambda: stop and len(seen) >= stop[0])
    assert epoch().batches == 14
    whole, seen[:] = list(seen), []
    stop.append(5)
    progress = epoch()
    assert progress.batches == len(seen) == 6
    stop.clear()
    assert epoch(progress).batches == 14
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))
