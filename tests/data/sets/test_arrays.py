"""Images in memory: where they are kept, and what is refused."""

import numpy as np
import pytest
import torch
from image_folders import numbered

import data
from data import CachedFeatures, messages

IMAGES = torch.zeros(4, 3, 5, 5, dtype=torch.uint8)


@pytest.mark.parametrize("fits", [True, False])
def test_a_loader_moves_images_to_a_device_that_has_room_for_twice_as_many(monkeypatch, caplog, fits):
    caplog.set_level("INFO")
    messages.say_once.cache_clear()
    dataset, empty = numbered(5), torch.empty
    room = 2 * dataset.images.nbytes - (not fits)

    def allocate(*shape, **how):
        """Of a device with so much room; pretended, as tensors without content."""
        found = empty(*shape, **how)
        if torch.device(how.get("device", "cpu")).type == "meta" and found.nbytes > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(torch, "empty", allocate)
    view = data.PlainView(torch.nn.Identity())
    loaders = [data.Loader(dataset, view, 2, train=False, device="meta") for _ in range(2)]
    assert dataset.images.device.type == ("meta" if fits else "cpu")
    for loader in loaders:
        assert [(batch.device.type, len(batch)) for batch in loader] == [("meta", n) for n in (2, 2, 1)]
    line = "5 images do not fit in the memory of meta; each batch is copied there"
    assert caplog.text.count(line) == (not fits)


def test_fetching_changes_nothing():
    dataset = numbered(5)
    images = dataset.images
    (batch,) = dataset.fetch([torch.tensor([[1, 2]])], "meta")
    assert (batch.device.type, batch.shape) == ("meta", (1, 2, 3, 4, 4))
    assert dataset.images is images and images.device.type == "cpu"
    views = CachedFeatures(torch.zeros(2, 5, 7))
    (batch,) = views.fetch([torch.tensor([[1, 2]])], "meta")
    assert (batch.device.type, batch.shape, views.views.device.type) == ("meta", (1, 2, 7), "cpu")


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (IMAGES.permute(0, 2, 3, 1), None, None, r"images must be uint8 \(N, 3, H, W\)"),
        (IMAGES.float(), None, None, r"images must be uint8 \(N, 3, H, W\)"),
        (IMAGES, [0, 1, 2], None, r"labels must be .* \(4,\), found .* \(3,\)"),
    ],
)
def test_what_is_no_dataset(images, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        data.ArrayImages(images, labels, classes)


def test_labels_of_one_byte():
    labels = np.arange(256, dtype=np.uint8)
    found = data.ArrayImages(torch.zeros(256, 3, 1, 1, dtype=torch.uint8), labels)
    assert found.labels.tolist() == list(range(256)) and found.classes[255] == "255"
    assert data.ArrayImages(found.images[:0], labels[:0]).classes == []
