"""Images that all look the same log a warning."""

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data.folder import cache, decode_pass


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


# --- 16-bit files --------------------------------------------------------------------------------


def gray_16(folder, highest, n=5):
    """Images of 16 bits whose values are 0 to about `highest`, which one of them reaches."""
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, highest - highest // 9, (n, 37, 37)).astype(np.uint16)
    values[n // 2, 5, 5] = highest
    for i, pixels in enumerate(values):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return values


@pytest.mark.parametrize(
    ("highest", "white", "bits"),
    [(900, 1023, 10), (1023, 1023, 10), (1024, 4095, 12), (4095, 4095, 12), (4096, 65535, 16)],
)
@pytest.mark.parametrize("kept", [None, "memory", "file", "nothing"])
def test_10_and_12_bits_in_files_of_16(tmp_path, caplog, monkeypatch, kept, highest, white, bits):
    """The brightest image of all decides."""
    values = gray_16(tmp_path / "mine/train", highest)
    Image.fromarray(np.full((37, 37, 3), 200, np.uint8)).save(tmp_path / "mine/train/8 bits.png")
    config = {"train_db_name": "mine", "data_dir": str(tmp_path), "transformation_kwargs": {"crop_size": 32}}
    if kept:
        config["root_dir"] = str(tmp_path / "results")
    if kept == "nothing":
        monkeypatch.setattr(cache.DecodedCache, "new_file", no_disk)
    if kept in ("file", "nothing"):
        monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: False)
    for _ in range(2):
        found = data.build_dataset(config, "train")
        images = next(found.fetch([torch.arange(6)], "cpu"))
        expected = torch.from_numpy(values.astype(float) * 255 / white)
        torch.testing.assert_close(images[:5, 0].double(), expected, atol=0.51, rtol=0)
        assert (images[5] == 200).all()
        line = (
            f"no value of its 5 images of 16 bits is above {highest}, so {white} is shown white, as of {bits}"
        )
        assert caplog.text.count(line) == (white < 65535)
        assert "almost black" not in caplog.text
        caplog.clear()
        if kept == "nothing":
            break  # the notes tell the next process, which does not look at the images again
        monkeypatch.setattr(decode_pass, "_finished", {})


def no_disk(*args):
    raise OSError(28, "No space left on device")


def test_dark_images_of_16_bits(tmp_path, caplog):
    """The remedy that the line names."""
    values = gray_16(tmp_path / "mine/train", 4095)
    config = {"train_db_name": "mine", "data_dir": str(tmp_path), "transformation_kwargs": {"crop_size": 32}}
    images = data.build_dataset({**config, "white_level": 65535}, "train")
    assert (images.raw(0)[0].numpy() == (values[0] * 255.0 / 65535).round()).all()
    assert "is shown white" not in caplog.text
    data.build_dataset({**config, "white_level": 1000}, "train")
    assert "5 of its 5 images of 16 bits have values above 1000, up to 4095, which are all" in caplog.text


def test_new_images_are_scaled_as_the_training_images(tmp_path, caplog):
    gray_16(tmp_path / "mine/train", 4000)
    values = gray_16(tmp_path / "mine/test", 1000)
    gray_16(tmp_path / "new", 1000)
    config = {
        "train_db_name": "mine", "val_db_name": "mine", "data_dir": str(tmp_path),
        "root_dir": str(tmp_path / "results"), "transformation_kwargs": {"crop_size": 32},
    }  # fmt: skip
    data.build_dataset(config, "train")
    files, _ = data.list_images(tmp_path / "new")
    of_test = data.build_dataset(config, "test").raw(0)
    of_new = data.build_dataset({**config, "val_db_name": "new"}, "test").raw(0)
    ((_, streamed, _),) = data.stream(files, config)
    expected = torch.from_numpy(values[0] * 255.0 / 4095)
    for image in (of_test, of_new, streamed[0]):
        torch.testing.assert_close(image[0].double(), expected, atol=0.51, rtol=0)


def test_the_white_level_is_known_only_if_images_tell(tmp_path, monkeypatch):
    gray_16(tmp_path / "mine/train", 4000)
    for split, color in (("test", 1), ("other", 2)):
        (tmp_path / "mine" / split).mkdir()
        Image.new("RGB", (37, 37), (color, 0, 0)).save(tmp_path / f"mine/{split}/0.png")
    (tmp_path / "mine/other").rename(tmp_path / "other")
    config = {
        "train_db_name": "mine", "val_db_name": "mine", "data_dir": str(tmp_path),
        "root_dir": str(tmp_path / "results"), "transformation_kwargs": {"crop_size": 32},
    }  # fmt: skip
    assert data.build_dataset(config, "train").white_level == 4095
    assert data.build_dataset(config, "test").white_level == 4095  # as the training images
    alone = {**config, "train_db_name": "other", "val_db_name": "other"}
    assert data.build_dataset(alone, "train").white_level is None
    assert data.build_dataset({**alone, "white_level": 999}, "train").white_level == 999
    monkeypatch.setattr(decode_pass, "_finished", {})
    assert data.build_dataset(config, "train").white_level == 4095


def test_dark_colors_of_16_bits_are_warned_of(tmp_path, caplog):
    """Pillow gives only the upper half of their bits."""
    (tmp_path / "mine/train").mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 16, (5, 9, 9, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"mine/train/{i}.png")
    data.build_dataset({"train_db_name": "mine", "data_dir": str(tmp_path)}, "train")
    assert "almost black, with no value above 16 of 255; likely cause: 10 or 12 bits" in caplog.text


# --- shapes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resize", "tall", "warned"), [("crop", 2, 1), ("crop", 1, 0), ("pad", 9, 0)])
def test_a_crop_of_long_images_is_warned_of(tmp_path, caplog, resize, tall, warned):
    (tmp_path / "mine/train").mkdir(parents=True)
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (32 if i < tall else 30, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"mine/train/{i}.png")
    data.build_dataset({"train_db_name": "mine", "data_dir": str(tmp_path), "resize": resize}, "train")
    line = "20 % of the images are over 1.5 times as long as wide, and the crop to a square leaves out more"
    assert caplog.text.count(line) == caplog.text.count("resize: pad or squeeze") == warned
