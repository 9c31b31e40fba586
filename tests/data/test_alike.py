"""Images that all look the same log a warning."""

import numpy as np
import pytest
from PIL import Image

import data


@pytest.mark.parametrize("source", ["folder", "npz"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "one color",
            "95 % of the images are of one color, so there is nothing to learn; likely causes: values of 0",
        ),
        ("noise", "95 % of the images are of one color"),
        (
            "equal",
            "95 % of the images are equal to each other, so there is nothing to learn; likely cause: copies",
        ),
        ("other", None),
    ],
)
def test_images_without_a_difference_are_warned_of(tmp_path, caplog, source, kind, message):
    images = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    alike = slice(5 if kind == "other" else 1, None)
    if kind == "noise":
        images[alike] = images[alike] % 2
    elif kind == "one color":
        images[alike] = images[alike, :1, :1]
    else:
        images[alike] = images[alike][:1]
    if source == "npz":
        np.savez(tmp_path / "mine.npz", train_images=images)
    else:
        (tmp_path / "mine/train").mkdir(parents=True)
        for i, pixels in enumerate(images):
            Image.fromarray(pixels).save(tmp_path / f"mine/train/{i:02}.png")
    data.build_dataset({"train_db_name": "mine", "data_dir": str(tmp_path)}, "train")
    assert message in caplog.text if message else "nothing to learn" not in caplog.text


def test_values_of_12_bits_in_files_of_16_are_warned_of(tmp_path, caplog):
    (tmp_path / "mine/train").mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 4096, (5, 9, 9)).astype(np.uint16)
    for i, pixels in enumerate(values):
        Image.fromarray(pixels).save(tmp_path / f"mine/train/{i}.png")
    data.build_dataset({"train_db_name": "mine", "data_dir": str(tmp_path)}, "train")
    assert "almost black, with no value above 16 of 255; likely cause: 10 or 12 bits" in caplog.text
