"""Labels of every source: one class is no label."""

import numpy as np
import pytest
from image_folders import config, pictures, save

import data
from data import messages
from data.sets import labels
from errors import UserError

IMAGES = pictures(12, 8, 8)


@pytest.fixture(autouse=True)
def another_process():
    messages.say_once.cache_clear()


def build(folder, split="train"):
    return data.build_dataset(config("mine", folder, transformation_kwargs={"crop_size": 8}), split)


@pytest.mark.parametrize(
    ("value", "classes", "name"), [(0, None, 0), (7, None, 7), (1, ["cat", "dog"], "dog")]
)
def test_one_class_in_an_array_file(tmp_path, caplog, value, classes, name):
    caplog.set_level("INFO")
    arrays = {"train_images": IMAGES, "train_labels": np.full(12, value), "test_images": IMAGES}
    more = {} if classes is None else {"classes": np.array(classes)}
    np.savez(tmp_path / "mine.npz", **arrays, test_labels=np.arange(12) % 2, **more)
    for _ in range(2):
        found = build(tmp_path)
        assert (found.labels, found.classes) == (None, None)
    line = f"dataset 'mine', split 'train': all images are of one class ({name}), which is no information"
    assert caplog.text.count(line) == 1
    assert build(tmp_path, "test").labels.tolist() == [0, 1] * 6


@pytest.mark.parametrize("folders", [["train/all"], ["train/all", "test/all"], ["all"]])
def test_one_class_folder(tmp_path, caplog, folders):
    """Unlabelled images in one folder, as torchvision's ImageFolder needs them."""
    caplog.set_level("INFO")
    for folder in folders:
        save(tmp_path / "mine" / folder / "0.png")
        save(tmp_path / "mine" / folder / "1.png")
    for split in ("train", "test"):
        found = build(tmp_path, split)
        assert (found.labels, found.classes, found.names()) == (None, None, ["all/0.png", "all/1.png"])
        assert f"split '{split}': all images are of one class (all)" in caplog.text


def test_one_class_of_several_in_a_split(tmp_path):
    """A collapsed clustering of it would be perfect by any figure."""
    for path in ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "test/cat/0.png", "test/cat/1.png"):
        save(tmp_path / "mine" / path)
    assert build(tmp_path).labels.tolist() == [0, 0, 1]
    assert build(tmp_path, "test").labels is None


def test_images_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "MOST_CLASSES", 3)
    for i in range(4):
        save(tmp_path / f"mine/train/{i}/a.png")
    with pytest.raises(
        UserError, match="mine/train: 4 folders would be as many classes; if they are not clas"
    ):
        build(tmp_path)
