"""torchvision's datasets in their real on-disk formats."""

import pickle
import urllib.error

import numpy as np
import pytest
import torchvision
from image_folders import config, pictures, splits

import data
from errors import UserError


@pytest.fixture
def any_checksum(monkeypatch):
    """Accept small files in place of the real ones, whose MD5 sums torchvision knows."""
    for dataset in (torchvision.datasets.CIFAR10, torchvision.datasets.STL10):
        monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *args: True)


def write_pickle(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def rows(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_cifar10_files(tmp_path, any_checksum):
    folder = tmp_path / "cifar-10" / "cifar-10-batches-py"
    images = pictures(12)
    for i in range(5):
        write_pickle(folder / f"data_batch_{i + 1}", data=rows(images[2 * i : 2 * i + 2]), labels=[i, 9])
    write_pickle(folder / "test_batch", data=rows(images[10:]), labels=[3, 4])
    write_pickle(folder / "batches.meta", label_names=[f"class {i}" for i in range(10)])
    train, test = splits(config("cifar-10", tmp_path))
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1), images[:10])
    np.testing.assert_array_equal(test.images.permute(0, 2, 3, 1), images[10:])
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.classes[4] == "class 4"


def test_cifar20_takes_the_coarse_labels(tmp_path, any_checksum):
    folder = tmp_path / "cifar-20" / "cifar-100-python"
    found = rows(pictures(4))
    write_pickle(folder / "train", data=found, fine_labels=[99, 50, 3, 2], coarse_labels=[19, 4, 0, 7])
    write_pickle(folder / "test", data=found[:1], fine_labels=[98], coarse_labels=[5])
    names = [f"coarse {i}" for i in range(20)]
    write_pickle(folder / "meta", fine_label_names=[str(i) for i in range(100)], coarse_label_names=names)
    train, test = splits(config("cifar-20", tmp_path))
    assert (train.labels.tolist(), test.labels.tolist()) == ([19, 4, 0, 7], [5])
    assert train.classes == names


def test_stl10_files(tmp_path, any_checksum):
    folder = tmp_path / "stl-10" / "stl10_binary"
    folder.mkdir(parents=True)
    images = pictures(9, 96, 96)
    for name, part, labels in (("train", images[:3], [1, 2, 10]), ("test", images[3:5], [4, 5])):
        part.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")  # columns first, as STL-10 is
        np.array(labels, dtype=np.uint8).tofile(folder / f"{name}_y.bin")
    images[5:].transpose(0, 3, 2, 1).tofile(folder / "unlabeled_X.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    train, test = splits(config("stl-10", tmp_path))
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1), images[:3])
    assert (train.labels.tolist(), len(test)) == ([0, 1, 9], 2)
    everything = data.build_dataset(config("stl-10", tmp_path), "train+unlabeled")
    assert (len(everything), everything.labels) == (7, None)


@pytest.mark.parametrize("name", ["cifar-10", "cifar-20", "stl-10"])
def test_download_without_network(tmp_path, monkeypatch, name):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError, match=f"{name}: the dataset is not there and could not be downloaded"):
        data.build_dataset(config(name, tmp_path), "train")
