"""Vectors in the place of images: which rows belong to which images, and what is refused."""

import numpy as np
import pytest
import torch
from digits_files import DIGITS
from image_folders import config, splits, write_images
from mistakes import assert_holds, refused

import data


def vectors(n, d=5, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.fixture
def photos(tmp_path):
    """A folder of images: of 4 in both splits, or, with `test`, of 4 and that many."""

    def write(array, test=0, **more):
        root = tmp_path / "photos"
        write_images(root / ("train" if test else "a"), 4, (40, 40))
        if test:
            write_images(root / "test", test, (40, 40))
        np.save(tmp_path / "v.npy", array, allow_pickle=True)
        settings = {"features_file": str(tmp_path / "v.npy"), "transformation_kwargs": {"crop_size": 28}}
        return config("photos", tmp_path, **settings, **more)

    return write


def fetched(dataset):
    return next(dataset.fetch([torch.arange(len(dataset))], "cpu"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_train_then_test(photos, dtype):
    array = vectors(7, dtype=dtype)
    settings = photos(array, test=3)
    train, test = splits(settings)
    np.testing.assert_array_equal(fetched(train), array[:4].astype(np.float32))
    np.testing.assert_array_equal(fetched(test), array[4:].astype(np.float32))
    images = data.build_dataset({**settings, "features_file": None}, "test")
    assert test.names() == images.names() and torch.equal(test.raw(1), images.raw(1))


def test_images_that_are_both_splits_share_one_tensor(photos, tmp_path):
    """They have one row each."""
    array = vectors(4)
    settings = photos(array)
    train, test = splits(settings)
    for dataset in (train, test):
        np.testing.assert_array_equal(fetched(dataset), array)
    test.to("meta")
    assert train.shared.vectors is test.shared.vectors
    np.save(tmp_path / "v.npy", vectors(4, seed=1))
    assert data.build_dataset(settings, "train").shared is not test.shared


def test_another_dataset_needs_no_training_images(photos, tmp_path):
    """eval.py with another val_db_name, and the vectors of its images only."""
    array = vectors(3)
    settings = {**photos(array), "val_db_name": "new"}
    write_images(tmp_path / "new", 3, (40, 40))
    (tmp_path / "photos").rename(tmp_path / "gone")
    np.testing.assert_array_equal(fetched(data.build_dataset(settings, "test")), array)
    refused(["'photos'", "unknown"], data.build_dataset, settings, "train")
    (tmp_path / "gone").rename(tmp_path / "photos")
    rows = np.concatenate([vectors(4, seed=1), array])
    np.save(tmp_path / "v.npy", rows)
    np.testing.assert_array_equal(fetched(data.build_dataset(settings, "test")), array)
    np.save(tmp_path / "v.npy", rows[:5])
    words = ["holds 5 vectors", "4 train and 3 test images", "a row for each image of the train split, then"]
    refused(words, data.build_dataset, settings, "test")


def test_images_whose_vectors_say_nothing_are_left_out(tmp_path, caplog):
    array = vectors(1437 + 360)
    array[[3, 5, 8]] = np.array([[np.nan], [0], [7]])
    np.save(tmp_path / "v.npy", array)
    settings = {**DIGITS, "features_file": str(tmp_path / "v.npy")}
    dataset, images = data.build_dataset(settings, "train"), data.build_dataset(DIGITS, "train")
    kept = [i for i in range(1437) if i not in (3, 5, 8)]
    np.testing.assert_array_equal(fetched(dataset), array[kept])
    assert len(dataset) == 1434 and dataset.names() == [images.names()[i] for i in kept]
    assert torch.equal(dataset.labels, images.labels[kept])
    assert torch.equal(dataset.raw(-1), images.raw(-1)) and torch.equal(dataset.raw(3), images.raw(4))
    words = ["3 of 1437 images", "(row 3: NaN or infinity)", "(row 5: all zeros)", "(row 8: one number"]
    assert_holds(caplog.messages[-1], words)
    before = dataset.fingerprint()
    array[[8, 9]] = array[[9, 8]]
    np.save(tmp_path / "v.npy", array)
    other = data.build_dataset(settings, "train")
    assert torch.equal(fetched(other), fetched(dataset)) and other.fingerprint() != before


def test_batches_of_vectors(photos):
    dataset = data.build_dataset(photos(vectors(4)), "train")
    pairs = next(dataset.fetch([torch.tensor([[0, 3], [1, 2]])], "cpu"))
    assert pairs.shape == (2, 2, 5) and torch.equal(pairs[0, 1], fetched(dataset)[3])
    settings = {"features_file": "v.npy", "augmentation_strategy": "simclr", "augmentation_kwargs": {}}
    for build in (data.build_train_transform, data.build_eval_transform):
        assert isinstance(build(settings), torch.nn.Identity)


@pytest.mark.parametrize("name", ["fingerprint", "content_digest"])
def test_the_fingerprint_and_the_digest_are_of_images_and_vectors(photos, tmp_path, name):
    settings = photos(vectors(4))

    def identity(**more):
        return getattr(data.build_dataset({**settings, **more}, "train"), name)()

    images, first = identity(features_file=None), identity()
    assert images in first == identity()
    np.save(tmp_path / "v.npy", vectors(4, seed=1))
    assert images in identity() != first


def test_labels_are_those_of_the_images(tmp_path):
    np.save(tmp_path / "v.npy", vectors(1797))
    dataset = data.build_dataset({**DIGITS, "features_file": str(tmp_path / "v.npy")}, "test")
    images = data.build_dataset(DIGITS, "test")
    assert torch.equal(dataset.labels, images.labels) and dataset.classes == images.classes
    assert dataset.content_digest() is None


@pytest.mark.parametrize(
    ("array", "more", "words"),
    [
        (vectors(5), {}, ["holds 5 vectors, but there are 4 images; expected a row for each in the order"]),
        (vectors(4, dtype=np.float64) * 1e300, {}, ["4 of 4 images", "2.JPEG (row 2: NaN or infinity)"]),
        (np.zeros((4, 5), int), {}, ["4 of 4 images have vectors that say nothing", "(row 0: all zeros)"]),
        (np.zeros(4), {}, ["expected numbers of shape (N, D), found float64 (4,)"]),
        (np.zeros((4, 0)), {}, ["found float64 (4, 0)"]),
        (np.array([[{}]] * 4), {}, ["cannot be read as vectors", "numpy.savez"]),
        (vectors(4), {"backbone": "features/6"}, ["backbone features/6: must be features/5", "have 5 num"]),
        (vectors(4), {"backbone": "resnet18"}, ["backbone resnet18: must be features/5"]),
        (vectors(4), {"cache_features": 3}, ["leave cache_features out"]),
    ],
)
def test_what_is_refused(photos, array, more, words):
    refused(words, data.build_dataset, photos(array, **more), "train")


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), (b"PK\x03\x04", "cannot be read as")])
def test_no_array(tmp_path, content, words):
    if content is not None:
        (tmp_path / "v.npy").write_bytes(content)
    refused([words], data.build_dataset, {**DIGITS, "features_file": str(tmp_path / "v.npy")}, "train")
