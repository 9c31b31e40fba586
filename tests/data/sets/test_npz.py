"""Array files, and those that cannot be used: each is refused in one line that names file and array."""

import re

import numpy as np
import pytest
from image_folders import config, pictures, splits
from mistakes import npy, refused, zipped

import data
from errors import UserError


@pytest.mark.parametrize("gray", [False, True])
def test_npz(tmp_path, gray):
    images = pictures(10, 20, 24)[..., 0] if gray else pictures(10, 20, 24)
    labels = np.array([[0], [1], [2], [0], [1], [2]], dtype=np.uint8)  # (N, 1), as MedMNIST writes them
    np.savez(tmp_path / "mine.npz", train_images=images[:6], train_labels=labels, test_images=images[6:])
    found, unlabelled = splits(config("mine", tmp_path))
    expected = np.stack([images] * 3, axis=3) if gray else images
    np.testing.assert_array_equal(found.images.permute(0, 2, 3, 1), expected[:6])
    assert (found.labels.tolist(), found.classes) == ([0, 1, 2, 0, 1, 2], ["0", "1", "2"])
    assert (len(unlabelled), unlabelled.labels, unlabelled.classes) == (4, None, None)


def test_unlabeled_images_of_an_npz(tmp_path, caplog):
    caplog.set_level("INFO")
    path, settings = tmp_path / "stl-10.npz", config("stl-10", tmp_path)
    arrays = {"train_images": pictures(6, 20, 24), "train_labels": np.arange(6)}
    more = pictures(9, 20, 24, seed=1)
    np.savez(path, **arrays, unlabeled_images=more)
    everything = data.build_dataset(settings, "train+unlabeled")
    assert everything.labels is None
    both = np.concatenate([arrays["train_images"], more])
    np.testing.assert_array_equal(everything.images.permute(0, 2, 3, 1), both)
    assert "no array" not in caplog.text
    np.savez(path, **arrays)
    assert len(data.build_dataset(settings, "train+unlabeled")) == 6
    assert "stl-10.npz: has no array 'unlabeled_images', so only the train split" in caplog.text
    np.savez(path, **arrays, unlabeled_images=pictures(9, 24, 24))
    with pytest.raises(UserError, match=r"unlabeled_images are of size \(24, 24\), train_images of \(20, 24"):
        data.build_dataset(settings, "train+unlabeled")


# --- what is refused -----------------------------------------------------------------------------

IMAGES = np.zeros((30, 8, 8, 3), np.uint8)


# Each of these gives a function that makes the file.


def arrays(*without, **changes):
    """A file that would be good but for these arrays."""
    content = {"train_images": IMAGES, "train_labels": np.arange(30) % 3,
               "test_images": IMAGES[:10], "test_labels": np.arange(10) % 3, **changes}  # fmt: skip
    return lambda path: np.savez(path, **{key: content[key] for key in content if key not in without})


def npz(damage):
    """A good file whose bytes are changed."""

    def write(path):
        arrays()(path)
        path.write_bytes(damage(path.read_bytes()))

    return write


ARRAYS = [
    (arrays("train_images"), "mine.npz: has no array 'train_images', only", "test_images"),
    (arrays(train_images=IMAGES / 255), "train_images: images must be uint8", "float64"),
    (arrays(train_images=np.array([{}] * 30)), "mine.npz: cannot be read", "Object arrays|object"),
    (arrays(train_images=np.uint8(3)), "images must be uint8", "()"),
    (arrays(train_images=IMAGES.transpose(0, 3, 1, 2)), "(N, H, W, 3)", "(30, 3, 8, 8)"),
    (arrays("train_labels", train_images=IMAGES[:0]), "'mine', split 'train': holds no images"),
    (arrays(train_labels=np.arange(30) - 1), "train_labels holds negative labels"),
    (arrays(train_labels=np.arange(31)), "train_labels must be integers of shape (30,)", "(31,)"),
    (arrays(train_labels=np.arange(30) % 2 > 0), "train_labels must be integers", "bool"),
    (arrays(train_labels=np.full(30, 10**12)), "train_labels", "1000000000000"),
    (arrays(test_labels=np.arange(9)), "test_labels must be integers of shape (10,)", "(9,)"),
    (arrays(classes=np.array(["a", "b"])), "'classes' has 2 names, but a label is 2"),
    (npz(lambda content: b""), "mine.npz: not a readable .npz file"),
    (npz(lambda content: content[:200] + b"damage" + content[206:]), "mine.npz: cannot be read"),
    (npz(lambda content: re.sub(rb"(?s)(PK\x01\x02.{4})\x00", b"\\g<1>\x01", content)), "encrypted"),
    (npz(lambda content: content.replace(b"(30, 8", b"(90, 8")), "mine.npz: cannot be read"),
    (npz(lambda content: npy(IMAGES)), "mine.npz: holds a single array", "train_images"),
    (npz(lambda content: zipped("a.txt", "text")), "has no array 'train_images', only a.txt"),
    (npz(lambda content: zipped("train_images.npy", npy(IMAGES)[:300])), "mine.npz: cannot be read"),
]


@pytest.mark.parametrize("row", ARRAYS, ids=[f"{i}-{row[1]}" for i, row in enumerate(ARRAYS)])
def test_refused(row, tmp_path):
    write, *words = row
    write(tmp_path / "mine.npz")
    refused(words, splits, config("mine", tmp_path))
