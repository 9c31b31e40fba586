"""Folders of images that cannot be used: each is refused in one line that names the folder."""

import pytest
from mistakes import refused
from PIL import Image

import data


def numbered(folder, n=30):
    return [f"{folder}/{i}.png" for i in range(n)]


def files(*paths, folders=()):
    """Function that makes files: an image where the path ends in .png, else a text; and empty folders."""

    def write(root):
        for path in (root / path for path in paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(path) if path.suffix == ".png" else path.write_text("no image")
        for path in folders:
            (root / path).mkdir(parents=True)

    return write


FOLDERS = [
    (files(*numbered("test")), "mine/train: no such folder", "training needs train/ beside test/"),
    (files(*numbered("Train"), *numbered("Test")), "mine: has Test/, Train/; the splits must be"),
    (files("train", *numbered("test")), "mine/train: no such folder"),
    (files(folders=["train", "test"]), "mine/train: no images found", ".png"),
    (files(*numbered("test"), folders=["train"]), "mine/train: no images found"),
    (files(*numbered("train"), folders=["test"]), "mine/test: no images found"),
    (files(*numbered("test"), "train/a.txt"), "mine/train: no images found"),
    (files(*numbered("test"), folders=["train/cat", "train/dog"]), "mine/train: no images found"),
    (
        files(*numbered("train/cat"), *numbered("train/dog"), *numbered("test/cow")),
        "train: has no class folder cow",
    ),
    (files(*numbered("train"), "train/x.jpg", *numbered("test")), "1 of 31 images", "x.jpg (empty, or"),
    (files(*numbered("train"), *numbered("test"), "test/x.jpg"), "mine/test: 1 of 31", "unreadable-test"),
]


def build(data_dir, name):
    config = {"train_db_name": name, "val_db_name": name, "data_dir": str(data_dir)}
    config["transformation_kwargs"] = {"crop_size": 8}
    return [data.build_dataset(config, split) for split in ("train", "test")]


@pytest.mark.parametrize("number", range(len(FOLDERS)))
def test_refused(number, tmp_path):
    write, *words = FOLDERS[number]
    write(tmp_path / "mine")
    refused(words, build, tmp_path, "mine")


def test_no_such_folder(tmp_path):
    (tmp_path / "file").touch()
    refused(["dataset 'x'"], build, tmp_path / "file", "x")
    refused(["ImageNet is not there"], build, tmp_path, "imagenet")
    refused(["'mine': unknown"], build, tmp_path / "none", "mine")
