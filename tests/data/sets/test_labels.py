"""Labels of every source: one class is no label."""

import numpy as np
import pytest
from image_folders import gradient

import data
from data import messages
from data.sets import labels
from errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def another_process():
    messages.say_once.cache_clear()


def build(folder, split="train"):
    config = {"train_db_name": "mine", "val_db_name": "mine", "data_dir": str(folder)}
    return data.build_dataset({**config, "transformation_kwargs": {"crop_size": 8}}, split)


@pytest.mark.parametrize(("values", "classes"), [([0], None), ([7], None), ([1], ["cat", "dog"])])
def test_one_class_in_an_array_file(tmp_path, caplog, values, classes):
    caplog.set_level("INFO")
    more = {} if classes is None else {"classes": np.array(classes)}
    both = np.arange(12) % 2
    np.savez(
        tmp_path / "mine.npz",
        **{"train_images": IMAGES, "train_labels": np.array(values * 12), **more},
        test_images=IMAGES,
        test_labels=both,
    )
    for _ in range(2):
        found = build(tmp_path)
        assert (found.labels, found.classes) == (None, None)
    name = "dog" if classes else values[0]
    line = f"dataset 'mine', split 'train': all images are of one class ({name}), which is no information"
    assert caplog.text.count(line) == 1
    assert build(tmp_path, "test").labels.tolist() == both.tolist()


@pytest.mark.parametrize("folders", [{"train": "all"}, {"train": "all", "test": "all"}, {"": "all"}])
def test_one_class_folder(tmp_path, caplog, folders):
    """Unlabelled images in one folder, as torchvision's ImageFolder needs them."""
    caplog.set_level("INFO")
    for split, name in folders.items():
        for i in range(3):
            path = tmp_path / "mine" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            gradient().rotate(i).save(path)
    for split in ("train", "test"):
        found = build(tmp_path, split)
        assert (found.labels, found.classes) == (None, None)
        assert found.names() == ["all/0.png", "all/1.png", "all/2.png"]
        assert f"split '{split}': all images are of one class (all)" in caplog.text


def test_one_class_of_several_in_a_split(tmp_path):
    """A collapsed clustering of it would be perfect by any figure."""
    for path in ("train/cat", "train/dog", "test/cat"):
        (tmp_path / "mine" / path).mkdir(parents=True)
        for i in range(3):
            gradient().rotate(i).save(tmp_path / "mine" / path / f"{i}.png")
    assert build(tmp_path).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert build(tmp_path, "test").labels is None


def test_images_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "MOST_CLASSES", 3)
    for i in range(4):
        (tmp_path / f"mine/train/{i}").mkdir(parents=True)
        gradient().save(tmp_path / f"mine/train/{i}/a.png")
    with pytest.raises(
        UserError, match="mine/train: 4 folders would be as many classes; if they are not classes, put"
    ):
        build(tmp_path)
