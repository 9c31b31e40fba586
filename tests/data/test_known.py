"""benchmarks/data/known.py: idx files -> array files."""

import gzip
import hashlib
import struct
import sys

import numpy as np
import pytest
from digits_steps import ROOT
from image_folders import config, splits

from errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks/data"))

import known

SHAPES = {"train_images": (5, 4, 3), "train_labels": (5,), "test_images": (2, 4, 3), "test_labels": (2,)}


def idx(array):
    """The bytes of an idx file: type and number of axes, their sizes (big-endian), the pixels by rows."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def original(tmp_path, monkeypatch):
    """A folder as torchvision leaves it, some files packed, and its arrays, whose digests are expected."""
    arrays = {}
    folder = tmp_path / "originals"
    (folder / "MNIST/raw").mkdir(parents=True)
    for i, (name, shape) in enumerate(SHAPES.items()):
        arrays[name] = np.random.default_rng(i).integers(0, 10, shape, np.uint8)
        path = folder / "MNIST/raw" / known.FILES[name]
        path.write_bytes(idx(arrays[name]))
        if i % 2 == 0:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    digests = {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}
    monkeypatch.setitem(known.DIGESTS, "mnist", digests)
    return folder, arrays


def convert(tmp_path, folder):
    known.main(["mnist", "--from", str(folder), "--data_dir", str(tmp_path / "datasets")])


def test_the_program_reads_what_the_files_hold(tmp_path, original):
    folder, arrays = original
    convert(tmp_path, folder)
    datasets = splits(config("mnist", tmp_path / "datasets"))
    for split, dataset in zip(("train", "test"), datasets, strict=True):
        np.testing.assert_array_equal(dataset.images, np.stack([arrays[f"{split}_images"]] * 3, axis=1))
        assert dataset.labels.tolist() == arrays[f"{split}_labels"].tolist()
        assert dataset.classes == list("0123456789")


def test_other_images_are_refused(tmp_path, original):
    folder, arrays = original
    path = folder / "MNIST/raw" / known.FILES["test_labels"]
    path.write_bytes(idx(arrays["test_labels"] + 1))
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte does not hold the original test labels"):
        convert(tmp_path, folder)
    assert not (tmp_path / "datasets").exists()
    path.unlink()
    with pytest.raises(UserError, match="neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"):
        convert(tmp_path, folder)
