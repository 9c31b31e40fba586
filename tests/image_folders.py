"""What the tests of datasets share."""

import os

import numpy as np
import torch
from PIL import Image

import data
from data.sets.arrays import ArrayImages

SIZE = 32  # side of the test images, and, with crop_size 28, of those that fetch gives


def gradient(mode="RGB"):
    """Dark on the left, bright on the right; top and bottom differ in red."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([4 * x + 4 * y, 8 * x, 255 - 8 * y], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pictures(n, height=32, width=32, seed=0):
    """Noise, uint8 (n, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(path, red=None, **options):
    """An image, of one color if `red` is given, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (gradient() if red is None else Image.new("RGB", (SIZE, SIZE), (red, 0, 0))).save(path, **options)


def write_images(folder, n, size=(300, 260), mode="RGB", suffix="JPEG"):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.fromarray(pictures(1, *size, seed=i)[0]).convert(mode).save(folder / f"{i}.{suffix}")


def config(name, data_dir, **more):
    return {"train_db_name": name, "val_db_name": name, "data_dir": str(data_dir), **more}


def splits(settings):
    return [data.build_dataset(settings, split) for split in ("train", "test")]


def build(folder, split="train", **settings):
    settings = {"transformation_kwargs": {"crop_size": 28}, "max_unreadable": 1, **settings}
    return data.build_dataset(config("mine", folder.parent.parent, **settings), split)


def build_anywhere(path, split="train", **settings):
    """The images of `image_folder`."""
    settings = {"transformation_kwargs": {"crop_size": 28}, "max_unreadable": 1, **settings}
    settings = {**config("digits", "nowhere", image_folder=str(path)), **settings}
    return data.build_dataset(settings, split)


def fetch(dataset, index):
    return next(dataset.fetch([torch.as_tensor(index)], "cpu"))


def file_names(dataset):
    return [os.path.basename(os.fsdecode(path)) for path in dataset.files]


def unreadable(folder, split="train"):
    """{name: reason} of the list of unreadable images; split "": the list of `folder` itself."""
    path = folder.parent / f"unreadable-{split}.txt" if split else folder / "unreadable.txt"
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    return dict(line.split("\t") for line in lines[1:])


# --- without files ---------------------------------------------------------------------------------


def numbered(n):
    """Image i has the constant value i."""
    return ArrayImages(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4).clone())


def values(images):
    return images[:, 0, 0, 0].tolist()
