"""What all images of a folder have in common: warnings, and the white of 16-bit files."""

import numpy as np
import pytest
import torch
from image_folders import SIZE, build, fetch
from PIL import Image

import data
from data.folder import cache, decode_pass

pytestmark = pytest.mark.usefixtures("another_process")


def noise(n, highest=255, size=(SIZE, SIZE, 3), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, highest + 1, (n, *size)).astype(dtype)


def write(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return images


KINDS = {
    "one color": "95 % of the images are of one color, so there is nothing to learn; likely causes: val",
    "two values": "95 % of the images are of one color",
    "equal": "95 % of the images are equal to each other, so there is nothing to learn; likely cause: c",
    "dark": "almost black, with no value above 16 of 255; likely cause: 10 or 12 bits",  # in colors of 16
    "other": "",
}


@pytest.mark.parametrize("source", ["folder", "npz"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_without_a_difference_are_warned_of(folder, caplog, source, kind):
    images = noise(20)
    alike = images[5 if kind == "other" else 1 :]
    alike[:] = {"two values": alike % 2, "one color": alike[:, :1, :1], "dark": alike % 17}.get(
        kind, alike[:1]
    )
    if source == "npz":
        np.savez(folder.parent.parent / "mine.npz", train_images=images)
    else:
        write(folder, images)
    build(folder)
    assert KINDS[kind] in caplog.text
    assert ("likely cause" in caplog.text) == (kind != "other")


@pytest.mark.parametrize(("resize", "tall", "warned"), [("crop", 2, 1), ("crop", 1, 0), ("pad", 9, 0)])
def test_a_crop_of_long_images_is_warned_of(folder, caplog, resize, tall, warned):
    write(folder, [noise(1, size=(32 if i < tall else 30, 20, 3))[0] for i in range(10)])
    build(folder, resize=resize)
    line = "20 % of the images are over 1.5 times as long as wide, and the crop to a square leaves out more"
    assert caplog.text.count(line) == caplog.text.count("resize: pad or squeeze") == warned


# --- 16-bit files --------------------------------------------------------------------------------


def gray_16(folder, highest, n=5):
    """Images of 16 bits whose values are 0 to about `highest`, which one of them reaches."""
    values = noise(n, highest - highest // 9, (SIZE, SIZE), np.uint16)
    values[n // 2, 5, 5] = highest
    return write(folder, values)


def assert_scaled(images, values, white):
    expected = torch.from_numpy(values.astype(float) * 255 / white)
    torch.testing.assert_close(images[:, 0].double(), expected, atol=0.51, rtol=0)


@pytest.mark.parametrize(
    ("highest", "white", "bits"),
    [(900, 1023, 10), (1023, 1023, 10), (1024, 4095, 12), (4095, 4095, 12), (4096, 65535, 16)],
)
@pytest.mark.parametrize("kept", [None, "memory", "file", "nothing"])
def test_10_and_12_bits_in_files_of_16(
    folder, caplog, monkeypatch, another_process, kept, highest, white, bits
):
    """The brightest image of all decides."""
    values = gray_16(folder, highest)
    Image.fromarray(np.full((SIZE, SIZE, 3), 200, np.uint8)).save(folder / "8 bits.png")
    settings = {"root_dir": str(folder.parent / "results")} if kept else {}
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: kept in (None, "memory"))
    if kept == "nothing":
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: cache.shutil._ntuple_diskusage(1, 1, 1))
    for _ in range(2):
        another_process()
        images = fetch(build(folder, **settings), range(6))
        assert_scaled(images[:5], values, white)
        assert (images[5] == 200).all()
        line = f"of its 5 images of 16 bits is above {highest}, so {white} is shown white, as of {bits}"
        assert caplog.text.count(line) == (white < 65535)
        assert "almost black" not in caplog.text


def test_dark_images_of_16_bits(folder, caplog):
    """The remedy that the line names."""
    values = gray_16(folder, 4095)
    assert_scaled(fetch(build(folder, white_level=65535), range(5)), values, 65535)
    assert "is shown white" not in caplog.text
    build(folder, white_level=1000)
    assert "5 of its 5 images of 16 bits have values above 1000, up to 4095, which are all" in caplog.text


def test_new_images_are_scaled_as_the_training_images(folder, tmp_path):
    gray_16(folder, 4000)
    (folder.parent / "test/0.png").unlink()
    values = gray_16(folder.parent / "test", 1000)
    gray_16(tmp_path / "new", 1000)
    settings = {"root_dir": str(tmp_path / "results")}
    assert build(folder, **settings).white_level == 4095
    for more in ({}, {"val_db_name": "new"}):
        dataset = build(folder, "test", **more, **settings)
        assert dataset.white_level == 4095
        assert_scaled(fetch(dataset, range(5)), values, 4095)
    files, _ = data.list_images(tmp_path / "new")
    config = {"train_db_name": "mine", "transformation_kwargs": {"crop_size": 28}, **settings}
    ((_, streamed, _),) = data.stream(files, config)
    assert_scaled(streamed, values, 4095)
    write(tmp_path / "other", noise(1))  # 8 bits, which tell no white level
    alone = {"train_db_name": "other", "val_db_name": "other", **settings}
    assert build(folder, **alone).white_level is None
    assert build(folder, **alone, white_level=999).white_level == 999
