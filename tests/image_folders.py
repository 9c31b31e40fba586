"""What the tests of image files share."""

import os

import numpy as np
import torch
from PIL import Image

import data

SIZE = 32  # side of the test images, and, with crop_size 28, of those that fetch gives


def gradient(mode="RGB"):
    """Dark on the left, bright on the right; top and bottom differ in red."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([4 * x + 4 * y, 8 * x, 255 - 8 * y], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def build(folder, split="train", **settings):
    config = {"train_db_name": "mine", "val_db_name": "mine", "data_dir": str(folder.parent.parent)}
    return data.build_dataset(
        {**config, "transformation_kwargs": {"crop_size": 28}, "max_unreadable": 1, **settings}, split
    )


def only(folder):
    """The one image of the split, uint8 (SIZE, SIZE, 3)."""
    dataset = build(folder)
    assert len(dataset) == 1
    return next(dataset.fetch([torch.tensor([0])], "cpu"))[0].permute(1, 2, 0).numpy()


def file_names(dataset):
    return [os.path.basename(os.fsdecode(path)) for path in dataset.files]


def notes(folder, split="train"):
    """{name: reason} of the list of unreadable images."""
    lines = (folder.parent / f"unreadable-{split}.txt").read_text().splitlines()
    assert lines[0].startswith("# ")
    return dict(line.split("\t") for line in lines[1:])
