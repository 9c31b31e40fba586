"""ImageNet's folders and the published lists of classes."""

import pytest
from image_folders import config, fetch, save, write_images

import data
from data.sets.imagenet import SUBSETS
from errors import UserError


def test_imagenet_folders(tmp_path):
    root = tmp_path / "imagenet" / "ILSVRC2012_img_train"
    write_images(root / "n02", 2, size=(600, 300))
    write_images(root / "n01", 1, mode="L", size=(100, 180))
    write_images(root / "n03", 1, mode="CMYK")
    found = data.build_dataset(config("imagenet", tmp_path), "train")
    assert found.classes == ["n01", "n02", "n03"]
    assert found.labels.tolist() == [0, 1, 1, 2]
    assert fetch(found, [[0, 3], [1, 2]]).shape == (2, 2, 3, 256, 256)
    with pytest.raises(UserError, match="ILSVRC2012_img_val: ImageNet is not there"):
        data.build_dataset(config("imagenet", tmp_path), "test")


def test_imagenet_classes_are_those_of_train(tmp_path):
    """A class without validation images must not shift the labels of the others."""
    write_images(tmp_path / "imagenet/ILSVRC2012_img_val", 2)
    with pytest.raises(UserError, match="no class folders; sort its images"):
        data.build_dataset(config("imagenet", tmp_path), "test")
    for split, wnids in (("train", ("n01", "n02", "n03")), ("val", ("n01", "n03"))):
        for wnid in wnids:
            write_images(tmp_path / f"imagenet/ILSVRC2012_img_{split}" / wnid, 1)
    with pytest.raises(UserError, match=r"1 class folders are missing \(n02\)"):
        data.build_dataset(config("imagenet", tmp_path), "test")
    (tmp_path / "imagenet/ILSVRC2012_img_val/n04").mkdir()
    with pytest.raises(UserError, match="has no class folder n04"):
        data.build_dataset(config("imagenet", tmp_path), "test")
    (tmp_path / "imagenet/ILSVRC2012_img_val/n04").rename(tmp_path / "imagenet/ILSVRC2012_img_val/n02")
    assert data.build_dataset(config("imagenet", tmp_path), "test").labels.tolist() == [0, 2]


def test_imagenet_subset_follows_the_published_list(tmp_path):
    lines = (SUBSETS / "imagenet_50.txt").read_text().splitlines()
    root = tmp_path / "imagenet" / "ILSVRC2012_img_val"
    for name in ["n99999999", *(line.split()[0] for line in lines)]:  # the first is outside the subset
        (root / name).mkdir(parents=True)
    save(root / lines[7].split()[0] / "a.JPEG")
    found = data.build_dataset(config("imagenet_50", tmp_path), "test")
    assert (found.labels.tolist(), len(found.classes)) == ([7], 50)
    assert found.classes[7] == lines[7].split(" ", 1)[1]


def test_subset_sizes():
    for n in (50, 100, 200):
        lines = (SUBSETS / f"imagenet_{n}.txt").read_text().splitlines()
        assert len({line.split()[0] for line in lines}) == n
