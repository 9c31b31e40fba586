"""Array files."""

import numpy as np
import pytest
from image_folders import config, pictures

import data
from errors import UserError


@pytest.mark.parametrize("gray", [False, True])
def test_npz(tmp_path, gray):
    train, test = pictures(6, 20, 24), pictures(4, 20, 24, seed=1)
    if gray:
        train, test = train[..., 0], test[..., 0]
    labels = np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8)  # (N, 1), as MedMNIST writes them
    np.savez(tmp_path / "mine.npz", train_images=train, train_labels=labels, test_images=test)
    found = data.build_dataset(config("mine", tmp_path), "train")
    assert found.images.shape == (6, 3, 20, 24)
    expected = train if not gray else np.repeat(train[..., None], 3, axis=3)
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1), expected)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.classes == ["0", "1", "2"]
    unlabelled = data.build_dataset(config("mine", tmp_path), "test")
    assert (len(unlabelled), unlabelled.labels, unlabelled.classes) == (4, None, None)


def test_unlabeled_images_of_an_npz(tmp_path, caplog):
    caplog.set_level("INFO")
    arrays = {"train_images": pictures(6, 20, 24), "train_labels": np.arange(6)}
    more = {"unlabeled_images": pictures(9, 20, 24, seed=1)}
    for name, found in (("with", {**arrays, **more}), ("without", arrays)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "stl-10.npz", **found)
    everything = data.build_dataset(config("stl-10", tmp_path / "with"), "train+unlabeled")
    assert everything.labels is None
    both = np.concatenate([arrays["train_images"], more["unlabeled_images"]])
    np.testing.assert_array_equal(everything.images.permute(0, 2, 3, 1), both)
    assert "no array" not in caplog.text
    assert len(data.build_dataset(config("stl-10", tmp_path / "without"), "train+unlabeled")) == 6
    assert "stl-10.npz: has no array 'unlabeled_images', so only the train split" in caplog.text
    np.savez(tmp_path / "stl-10.npz", **arrays, unlabeled_images=pictures(9, 24, 24))
    with pytest.raises(
        UserError, match=r"unlabeled_images are of size \(24, 24\), train_images of \(20, 24\)"
    ):
        data.build_dataset(config("stl-10", tmp_path), "train+unlabeled")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pictures(2)}, "has no array 'train_images', only images"),
        ({"train_images": pictures(2) / 255}, "must be uint8"),
        ({"train_images": np.zeros((4, 5), np.uint8)}, "must be uint8"),
        ({"train_images": pictures(2).transpose(0, 3, 1, 2)}, r"\(N, H, W, 3\)"),
        ({"train_images": pictures(0)}, "no images"),
        ({"train_images": pictures(2), "train_labels": np.array([0, 1, 2])}, "train_labels must be"),
        ({"train_images": pictures(2), "train_labels": np.array([0.0, 1.0])}, "train_labels must be"),
        ({"train_images": pictures(2), "train_labels": np.array([0, -1])}, "negative"),
        ({"train_images": np.array([{}, {}], dtype=object)}, "cannot be read"),
        (
            {"train_images": pictures(2), "train_labels": np.array([0, 3]), "classes": np.array(["a", "b"])},
            "2 names",
        ),
    ],
)
def test_npz_that_cannot_be_used(tmp_path, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=message):
        data.build_dataset(config("mine", tmp_path), "train")


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 cut short"])
def test_npz_that_is_none(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(UserError, match="not a readable .npz"):
        data.build_dataset(config("mine", tmp_path), "train")
