"""Files of several pages, of other channels than RGB or gray, of signed values, and large ones."""

import struct
import sys

import numpy as np
import pytest
from image_folders import SIZE, build_anywhere
from PIL import Image

import data
from errors import UserError


def save_pages(path, grays, **options):
    """A file with a page, or frame, of each gray."""
    images = [Image.new("RGB", (SIZE, SIZE), (gray, gray, gray)) for gray in grays]
    images[0].save(path, save_all=True, append_images=images[1:], **options)


def save_tiff(path, pixels, photometric=1):
    """An uncompressed TIFF of an array (H, W, C), as microscopes write it."""
    height, width, samples = pixels.shape
    kind = 2 if pixels.dtype.kind == "i" else 1
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8 * pixels.itemsize] * samples), (259, 3, [1])]
    tags += [(262, 3, [photometric]), (273, 4, None), (277, 3, [samples]), (278, 4, [height])]
    tags += [(279, 4, [pixels.nbytes]), (284, 3, [1])]
    extra = samples - (3 if photometric == 2 else 1)
    tags += [(338, 3, [0] * extra)] * (extra > 0) + [(339, 3, [kind] * samples)]
    size = {3: 2, 4: 4}
    start = 8 + 2 + 12 * len(tags) + 4
    large = sum(len(v) * size[t] for _, t, v in tags if v and len(v) * size[t] > 4)
    rows = more = b""
    for tag, t, values in tags:
        values = [start + large] if values is None else values
        raw = struct.pack(f"<{len(values)}{'H' if t == 3 else 'I'}", *values)
        if len(raw) > 4:
            raw, more = struct.pack("<I", start + len(more)), more + raw
        rows += struct.pack("<HHI", tag, t, len(values)) + raw.ljust(4, b"\0")
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + more + pixels.tobytes()
    path.write_bytes(content)


def of_channels(*values, dtype=np.uint8):
    """Pixels of which each channel is one value on the left, and a tenth of it on the right."""
    pixels = np.broadcast_to(np.array(values, dtype), (SIZE, SIZE, len(values))).copy()
    pixels[:, SIZE // 2 :] //= 10
    return pixels


def corner(dataset, index=0):
    return dataset.raw(index)[:, SIZE // 2, SIZE // 4].tolist()


# --- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_pages(tmp_path, caplog, suffix):
    """One of them is the image, or each, in a folder and as new images; the log says which."""
    (tmp_path / "in").mkdir()
    save_pages(
        tmp_path / f"in/b.{suffix}", [0, 40, 80, 120], **{"lossless": True} if suffix == "webp" else {}
    )
    Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / f"in/c.{suffix}")
    grays = {}
    for pages in ("first", "middle", "all"):
        dataset = build_anywhere(tmp_path / "in", folder_labels="none", pages=pages)
        grays[pages] = [corner(dataset, i)[0] for i in range(len(dataset))]
        told = f"1 of 2 files have several pages or frames; the {pages} one is used"
        assert (told in caplog.text) == (pages != "all")
        config = {"transformation_kwargs": {"crop_size": 28}, "pages": pages}
        files = data.images_of([tmp_path / "in"], pages=pages).files
        ((_, pixels, _),) = data.stream(files, config)
        assert pixels[:, 0, 9, 9].tolist() == grays[pages]
    assert grays == {"first": [0, 255], "middle": [80, 255], "all": [0, 40, 80, 120, 255]}
    assert dataset.names() == [*(f"b.{suffix}/{i:04}.tif" for i in range(4)), f"c.{suffix}"]
    assert len(set(dataset.content_hashes())) == 5


def test_smaller_copies_are_no_pages(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    large, small = (Image.new("L", (side, side), side) for side in (SIZE, SIZE // 2))
    large.save(tmp_path / "in/a.tif", save_all=True, append_images=[small, small])
    for pages in ("middle", "all"):
        dataset = build_anywhere(tmp_path / "in", pages=pages, folder_labels="none")
        assert len(dataset) == 1 and corner(dataset) == [SIZE] * 3
    assert "several pages" not in caplog.text


# --- channels ------------------------------------------------------------------------------------


def test_a_channel_that_is_left_out_is_said(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    save_tiff(tmp_path / "in/a.tif", of_channels(200, 100, 50, 250), photometric=2)
    save_tiff(tmp_path / "in/b.tif", of_channels(90, 250))
    dataset = build_anywhere(tmp_path / "in")
    assert corner(dataset) == [200, 100, 50] and corner(dataset, 1) == [90] * 3
    assert "2 of 2 files have 2 to 4 channels; used: at most the first three" in caplog.text


@pytest.mark.parametrize(
    ("channels", "expected"), [([3, 1, 2], [50, 200, 100]), ([2], [100] * 3), ([2, 1], [100, 200, 0])]
)
def test_chosen_channels(tmp_path, caplog, channels, expected):
    """Also of new images."""
    Image.fromarray(of_channels(200, 100, 50)).save(tmp_path / "a.png")
    assert corner(build_anywhere(tmp_path / "a.png", channels=channels)) == expected
    config = {"transformation_kwargs": {"crop_size": 28}, "channels": channels}
    ((_, pixels, _),) = data.stream([f"{tmp_path}/a.png"], config)
    assert pixels[0, :, 9, 9].tolist() == expected
    with pytest.raises(UserError, match="it has 3 channels, so no channel 4"):
        build_anywhere(tmp_path / "a.png", channels=[1, 4])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_more_channels_than_pillow_reads(tmp_path, caplog, dtype):
    """With tifffile they are shown; without, the message says so."""
    (tmp_path / "in").mkdir()
    scale = 1 if dtype == np.uint8 else 16
    save_tiff(tmp_path / "in/a.tif", of_channels(*np.multiply((250, 200, 100, 50, 150), scale), dtype=dtype))
    pytest.importorskip("tifffile")
    white = 255 if scale == 1 else 4095
    for channels, of in ((None, (250, 200, 100)), ([5, 4], (150, 50, 0))):
        dataset = build_anywhere(tmp_path / "in", **{"channels": channels} if channels else {})
        assert corner(dataset) == pytest.approx([value * scale * 255 / white for value in of], abs=1)
    assert "1 of 1 files have 5 channels; used: at most the first three" in caplog.text
    assert "5 channels; used: 5, 4" in caplog.text


def test_more_channels_without_a_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    save_tiff(tmp_path / "a.tif", of_channels(1, 2, 3, 4, 5, dtype=np.uint16))
    with pytest.raises(UserError, match="a TIFF of 5 channels of 16 bits, .*; pip install tifffile"):
        build_anywhere(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes(b"II*\0 and nothing else")
    with pytest.raises(UserError, match="empty, or not an image"):
        build_anywhere(tmp_path / "a.tif")


# --- values and sizes ----------------------------------------------------------------------------


def test_negative_values(tmp_path):
    """As of CT. Below black all is black; the white level counts from there."""
    pixels = of_channels(1976, dtype=np.int16)
    pixels[:, SIZE // 2 :] = -2000
    save_tiff(tmp_path / "a.tif", pixels)
    with pytest.raises(
        UserError, match=r"negative values \(-2000 to 1976\); set black_level, .*-1024 for CT"
    ):
        build_anywhere(tmp_path / "a.tif")
    dataset = build_anywhere(tmp_path / "a.tif", black_level=-1024)
    assert dataset.white_level == 4095 and corner(dataset) == [round(3000 * 255 / 4095)] * 3
    assert dataset.raw(0)[:, 9, -1].tolist() == [0] * 3


def test_large_images(tmp_path):
    """As large as the user says; a good file is not to be repaired."""
    Image.new("L", (16000, 12000), 77).save(tmp_path / "a.jpg", quality=30)
    assert corner(build_anywhere(tmp_path / "a.jpg")) == [77] * 3
    with pytest.raises(UserError, match=r"192 megapixels, more than max_pixels \(1e\+08\)") as error:
        build_anywhere(tmp_path / "a.jpg", max_pixels=1e8)
    assert "repair" not in str(error.value)
