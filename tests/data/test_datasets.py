"""Datasets by their names, and what they all are."""

import numpy as np
import pytest
import torch
from image_folders import config, pictures, splits, write_images
from sklearn.datasets import load_digits

import data
from data.folder import decode_pass
from errors import UserError


def test_digits_split_is_fixed_stratified_and_complete():
    train, test = splits(config("digits", "."))
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (3, 8, 8)
    assert train.images.max() == 255
    shares = train.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert ((shares - 0.8).abs() < 0.01).all()
    rows = torch.cat([train.images, test.images]).flatten(1)
    assert len(rows.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


def test_side_of_image_files():
    for size in range(1, 600):
        settings = {"transformation_kwargs": {"crop_size": size}}
        assert data.side(settings) == round(size * 256 / 224)  # the usual margin on ImageNet
        assert data.side({**settings, "crop_ratio": 1.0}) == size


# --- what all datasets are -----------------------------------------------------------------------


def array_file(root):
    images = pictures(6, 37, 37)
    np.savez(root / "mine.npz", train_images=images, train_labels=np.arange(6) % 2, classes=["cat", "dog"])


def folders(root):
    for name in ("cat", "dog"):
        write_images(root / name, 3)


def class_folders(root):
    folders(root / "mine/train")


def imagenet(root):
    folders(root / "imagenet/ILSVRC2012_img_train")


def nothing(root):
    """The dataset needs no files."""


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize(
    ("name", "write"),
    [("mine", array_file), ("mine", class_folders), ("imagenet", imagenet), ("digits", nothing)],
)
def test_every_dataset_honours_the_protocol(tmp_path, monkeypatch, name, write, room):
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: room)
    write(tmp_path)
    settings = config(name, tmp_path, transformation_kwargs={"crop_size": 32})
    found, again = (data.build_dataset(settings, "train") for _ in range(2))
    assert data.Dataset in type(found).__mro__
    assert found.labels.dtype == torch.int64 and found.labels.shape == (len(found),)
    assert found.labels.max() == len(found.classes) - 1
    assert all(isinstance(text, str) for text in [*found.classes, *found.names(), found.fingerprint()])
    assert len(found.names()) == len(set(found.names())) == len(found)
    index = torch.tensor([[0, 5], [5, 3]])
    first, second = found.fetch([index, torch.tensor([1])], "cpu")
    assert first.dtype == torch.uint8 and first.shape[:3] == (2, 2, 3) and second.shape[:2] == (1, 3)
    assert torch.equal(first[0, 1], found.raw(5)) and torch.equal(second[0], found.raw(1))
    assert (found.fingerprint(), found.names()) == (again.fingerprint(), again.names())


def test_a_dataset_is_one_entry(monkeypatch, tmp_path):
    """A builder and its line; `size` is what image files are brought to."""

    def build_mine(data_dir, split, size):
        return data.ArrayImages(torch.full((3, 3, size, size), len(split), dtype=torch.uint8))

    monkeypatch.setitem(data.DATASETS, "mine", build_mine)
    found = data.build_dataset(config("mine", tmp_path, transformation_kwargs={"crop_size": 28}), "test")
    assert found.images.shape == (3, 3, 32, 32) and found.images.unique().tolist() == [4]
    for key, split in (("train_db_name", "train"), ("val_db_name", "test")):
        with pytest.raises(UserError, match="dataset 'mime': unknown.* did you mean 'mine'"):
            data.build_dataset({**config("digits", tmp_path), key: "mime"}, split)
    with pytest.raises(ValueError, match="split"):
        data.build_dataset(config("digits", tmp_path), "validation")
