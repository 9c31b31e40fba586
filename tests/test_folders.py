"""Folders of anybody's images: shown as people see them; those that cannot be read are found and listed."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import decoding, folders, imagenet, unreadable
from errors import UserError

SIZE = 32  # side of the test images, and, with crop_size 28, of those that fetch gives


def gradient(mode="RGB"):
    """Dark on the left, bright on the right; top and bottom differ in red."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    pixels = np.stack([4 * x + 4 * y, 8 * x, 255 - 8 * y], axis=2).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """The training split of a dataset `mine`, with one image in its test split."""
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
    gradient().save(tmp_path / "mine/test/0.png")
    return tmp_path / "mine/train"


@pytest.fixture(autouse=True)
def another_process(monkeypatch):
    """What an earlier process found is known from its file only."""
    monkeypatch.setattr(unreadable, "_found", {})

    def start():
        unreadable._found.clear()
        folders._say.cache_clear()

    return start


@pytest.fixture
def no_room(monkeypatch):
    """The squares do not fit in memory."""
    monkeypatch.setattr(unreadable, "fits_in_memory", lambda size: False)


def build(folder, split="train", **settings):
    config = {"train_db_name": "mine", "val_db_name": "mine", "data_dir": str(folder.parent.parent)}
    return data.build_dataset(
        {**config, "transformation_kwargs": {"crop_size": 28}, "max_unreadable": 1, **settings}, split
    )


def only(folder):
    """The one image of the split, uint8 (SIZE, SIZE, 3)."""
    dataset = build(folder)
    assert len(dataset) == 1
    return next(dataset.fetch([torch.tensor([0])], "cpu"))[0].permute(1, 2, 0).numpy()


def names(dataset):
    return [os.path.basename(os.fsdecode(path)) for path in dataset.files]


def notes(folder, split="train"):
    """{name: reason} of the list of unreadable images."""
    lines = (folder.parent / f"unreadable-{split}.txt").read_text().splitlines()
    assert lines[0].startswith("# ")
    return dict(line.split("\t") for line in lines[1:])


# --- what can be read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("RGB", "a.png"),
        ("RGB", "a.PNG"),
        ("RGB", "a.bmp"),
        ("RGB", "a.webp"),
        ("RGB", "a.jpeg"),
        ("L", "a.png"),
        ("L", "a.pgm"),
        ("1", "a.png"),
        ("LA", "a.png"),
        ("RGBA", "a.png"),
        ("RGBA", "a.tiff"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
    ],
)
def test_modes_are_as_pillow_converts_them(folder, mode, name):
    image = gradient("RGBA" if mode == "LA" else mode)
    if "A" in mode:
        image.putalpha(255)
    image.convert(mode).save(folder / name)
    with Image.open(folder / name) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(only(folder), expected)


def on_white(rgb, alpha):
    """By the definition: each a part of the color, the rest white."""
    share = np.asarray(alpha)[..., None] / 255
    return np.asarray(rgb) * share + 255 * (1 - share)


ALPHA = gradient("L").rotate(90)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGBA", "a.png"), ("RGBA", "a.tif"), ("RGBA", "a.webp"), ("LA", "a.png"), ("RGBA", "a.ico")],
)
def test_transparency_is_laid_on_white(folder, mode, name):
    image = gradient(mode[:-1])
    rgb = image.convert("RGB")
    image.putalpha(ALPHA)
    image.save(folder / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    np.testing.assert_allclose(only(folder), on_white(rgb, ALPHA), atol=1)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_rare_modes_with_alpha(mode):
    """Pillow makes them of some files, but writes none."""
    if mode == "PA":
        image = Image.new("P", (2, 2), 0).convert("PA")
        image.putpalette([100] * 3)
        image.putalpha(51)
    else:
        image = (
            Image.new("RGBA", (2, 2), (100, 100, 100, 51))
            .convert("LA" if mode == "La" else mode)
            .convert(mode)
        )
    assert image.mode == mode
    np.testing.assert_allclose(np.asarray(decoding._as_seen(image)), on_white((100,) * 3, 51)[0], atol=2)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency(folder):
    gradient("P").save(folder / "a.png", transparency=bytes(range(256)))
    expected = on_white(gradient("P").convert("RGB"), np.asarray(gradient("P")))
    np.testing.assert_allclose(only(folder), expected, atol=1)


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (gradient("P"), 44),
        (gradient("L"), 120),
        (gradient("RGB"), (8, 8, 247)),
        (gradient("1"), 0),
        (Image.fromarray(np.asarray(gradient("L")).astype(np.uint16) * 257), 120 * 257),
    ],
    ids=["P", "L", "RGB", "1", "I;16"],
)
def test_a_transparent_color_is_white(folder, image, transparent):
    image.save(folder / "a.png", transparency=transparent)
    values = np.asarray(image)
    hidden = (values == np.asarray(transparent)).reshape(SIZE, SIZE, -1).all(2)
    assert hidden.any()
    found = only(folder)
    assert (found[hidden] == 255).all()
    plain = Image.fromarray((values // 257).astype(np.uint8)) if image.mode == "I;16" else image
    np.testing.assert_array_equal(found[~hidden], np.asarray(plain.convert("RGB"))[~hidden])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled(folder, suffix):
    values = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    Image.fromarray(values).save(folder / f"a.{suffix}")
    found = only(folder)
    np.testing.assert_allclose(found, np.repeat((values / 257)[..., None], 3, axis=2), atol=0.51)
    assert (found.min(), found.max()) == (0, 255)


def test_32_bit_integers_within_16_bits_are_scaled(folder):
    Image.fromarray(np.full((SIZE, SIZE), 65535 // 2, np.int32)).save(folder / "a.tif")
    assert (only(folder) == 127).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient().save(folder / "a.png", exif=exif)
    pixels = np.asarray(gradient())
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    left_right, top_bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    pixels = pixels[:: -1 if top_bottom else 1, :: -1 if left_right else 1]
    np.testing.assert_array_equal(only(folder), pixels)


def test_a_jpeg_and_16_bits_are_turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient().save(folder / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(only(folder), np.rot90(np.asarray(gradient()), -1), atol=40)
    (folder / "a.jpg").unlink()
    values = np.asarray(gradient("L")).astype(np.uint16) * 257
    Image.fromarray(values).save(folder / "b.png", exif=exif)
    np.testing.assert_array_equal(only(folder)[..., 0], np.rot90(np.asarray(gradient("L")), -1))


def test_damaged_exif_does_not_hinder(folder):
    gradient().save(folder / "a.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff nonsense")
    np.testing.assert_array_equal(only(folder), np.asarray(gradient()))


def test_imagenet_is_not_turned(tmp_path):
    """Its published figures come from the images as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "imagenet/ILSVRC2012_img_train/n01").mkdir(parents=True)
    gradient().save(tmp_path / "imagenet/ILSVRC2012_img_train/n01/a.png", exif=exif)
    dataset = imagenet.build_imagenet(tmp_path, "train", SIZE)
    np.testing.assert_array_equal(dataset.raw(0).permute(1, 2, 0), np.asarray(gradient()))


def test_first_frame_of_an_animation(folder):
    frames = [gradient("L"), Image.new("L", (SIZE, SIZE), 255)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(only(folder)[..., 0], np.asarray(frames[0]))


def test_content_decides_not_the_suffix(folder):
    gradient().save(folder / "a.jpg", format="PNG")
    np.testing.assert_array_equal(only(folder), np.asarray(gradient()))


def test_what_is_no_image_file_is_ignored(folder):
    gradient().save(folder / "a.png")
    (folder / "._a.png").write_bytes(b"\0\5\x16\7 macOS")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "read me.txt").write_text("")
    only(folder)
    assert notes(folder) == {}


def test_images_beside_class_folders_are_told_of(folder, caplog):
    (folder / "cat").mkdir()
    gradient().save(folder / "cat/a.png")
    gradient().save(folder / "b.png")
    assert names(build(folder)) == ["a.png"]
    assert "1 images beside the class folders are left out" in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (500, 3)])
def test_odd_sizes(folder, size):
    Image.new("RGB", size, (1, 2, 3)).save(folder / "a.png")
    assert (only(folder) == (1, 2, 3)).all()


# --- what cannot be read -------------------------------------------------------------------------


def truncated(path, suffix, share=0.6):
    gradient().resize((200, 200)).save(path.with_suffix(suffix))
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).rename(path)
    path.write_bytes(content[: int(share * len(content))])


DAMAGED = {
    "empty": (lambda path: path.write_bytes(b""), "empty, or not an image"),
    "text": (lambda path: path.write_text("no image"), "empty, or not an image"),
    "web page": (lambda path: path.write_text("<html>404</html>"), "empty, or not an image"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "empty, or not an image"),
    "truncated jpeg": (lambda path: truncated(path, ".jpeg"), "truncated"),
    "truncated png": (lambda path: truncated(path, ".png"), "truncated"),
    "truncated bmp": (lambda path: truncated(path, ".bmp"), "truncated"),
    "truncated tif": (lambda path: truncated(path, ".tif"), ""),
    "truncated webp": (lambda path: truncated(path, ".webp"), ""),
    "head only": (lambda path: truncated(path, ".png", 0.02), ""),
    "link to nowhere": (lambda path: path.symlink_to(path.parent / "none"), "No such file"),
    "floating point": (
        lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path, format="TIFF"),
        "floating-point pixels",
    ),
    "32 bits": (
        lambda path: Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path, format="TIFF"),
        "values beyond 16 bits",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_left_out_and_listed(folder, damage, caplog):
    write, reason = DAMAGED[damage]
    for name in "ac":
        gradient().save(folder / f"{name}.png")
    write(folder / "b.png")
    assert names(build(folder)) == ["a.png", "c.png"]
    assert list(notes(folder)) == ["b.png"]
    assert reason in notes(folder)["b.png"]
    listed = folder.parent / "unreadable-train.txt"
    assert f"{folder}: 1 of 3 images (33 %) cannot be read and are left out: {listed}" in caplog.text


def test_decompression_bomb(folder, monkeypatch):
    gradient().save(folder / "a.png")
    gradient().resize((200, 200)).save(folder / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 100)
    assert names(build(folder)) == ["a.png"]
    assert "decompression bomb" in notes(folder)["b.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_labels_are_kept(folder, workers):
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir()
        for i in range(15):
            Image.new("RGB", (SIZE, SIZE), (label, i, 0)).save(folder / name / f"{i:02}.png")
    for name in ("ant/03.png", "bee/00.png", "bee/14.png"):
        (folder / name).write_bytes(b"")
    dataset = build(folder, num_workers=workers)
    assert dataset.classes == ["ant", "bee", "cat"]
    assert dataset.labels.bincount().tolist() == [14, 13, 15]
    images = next(dataset.fetch([torch.arange(42)], "cpu", workers))
    assert torch.equal(images[:, 0, 0, 0].long(), dataset.labels)
    assert list(notes(folder)) == ["ant/03.png", "bee/00.png", "bee/14.png"]


def test_too_many(folder):
    for i in range(99):
        gradient().save(folder / f"{i}.png")
    (folder / "x.png").write_bytes(b"")
    assert len(build(folder, max_unreadable=0.01)) == 99
    (folder / "y.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"train: 2 of 101 images \(2 %\) cannot be read, such as x.png \(empty"
    ) as error:
        build(folder, max_unreadable=0.01)
    assert "max_unreadable (0.01)" in str(error.value)
    assert "unreadable-train.txt" in str(error.value)
    assert len(build(folder, max_unreadable=0.02)) == 99
    with pytest.raises(UserError, match="2 of 101"):  # the default
        data.build_dataset({"train_db_name": "mine", "data_dir": str(folder.parent.parent)}, "train")


def test_nothing_but_damaged_files(folder):
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds no images"):
        build(folder, max_unreadable=1)


# --- the list is remembered ----------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """How often all files were decoded."""
    calls, decode = [], unreadable._decode
    monkeypatch.setattr(unreadable, "_decode", lambda *args: calls.append(1) or decode(*args))
    return calls


@pytest.mark.parametrize(("room", "passes"), [(True, 3), (False, 1)])
def test_the_next_step_knows(folder, decoded, another_process, caplog, monkeypatch, room, passes):
    """Where the squares are kept, each process decodes once; where not, the first one does."""
    monkeypatch.setattr(unreadable, "fits_in_memory", lambda size: room)
    gradient().save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    for _ in range(3):
        another_process()
        caplog.clear()
        assert names(build(folder)) == names(build(folder)) == ["a.png"]
        assert caplog.text.count("1 of 2 images (50 %) cannot be read and are left out") == 1
        assert caplog.text.count("train: 1 images (.png 1), no class folders") == 1
    assert len(decoded) == passes


@pytest.mark.parametrize(
    "change", ["new file", "other size", "other time", "removed", "list damaged", "list removed"]
)
def test_changed_files_are_looked_at_again(folder, decoded, another_process, change):
    gradient().save(folder / "a.png")
    gradient().save(folder / "c.png")
    (folder / "b.png").write_bytes(b"")
    build(folder)
    listed = folder.parent / "unreadable-train.txt"
    another_process()
    if change == "new file":
        gradient().save(folder / "d.png")
    elif change == "other size":
        gradient().save(folder / "b.png")
    elif change == "other time":
        os.utime(folder / "a.png", ns=(1, 1))
    elif change == "removed":
        (folder / "c.png").unlink()
    elif change == "list damaged":
        listed.write_bytes(b"\xff\xfe")
    else:
        listed.unlink()
    build(folder)
    assert len(decoded) == 2
    assert list(notes(folder)) == ([] if change == "other size" else ["b.png"])


def test_folder_that_cannot_be_written(folder, another_process, caplog, monkeypatch):
    gradient().save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")

    def read_only(path, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", read_only)
    for _ in range(2):
        assert names(build(folder)) == ["a.png"]
    assert caplog.text.count("cannot be written (Read-only file system)") == 1
    assert [path.name for path in folder.parent.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "löwe 🦁.png", "\udce9.png", "\u2028.png"])
def test_names_of_any_bytes(folder, another_process, name):
    gradient().save(folder / "a.png")
    try:
        (folder / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system does not take the name")
    for _ in range(2):
        assert names(build(folder)) == ["a.png"]
        another_process()
    assert len((folder.parent / "unreadable-train.txt").read_text().split("\n")) == 3


def test_splits_have_their_own_lists(folder):
    gradient().save(folder / "a.png")
    (folder.parent / "test/1.png").write_bytes(b"")
    assert (len(build(folder)), len(build(folder, "test"))) == (1, 1)
    assert (notes(folder), list(notes(folder, "test"))) == ({}, ["1.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_during_the_training(folder, workers, no_room):
    gradient().save(folder / "a.png")
    gradient().save(folder / "b.png")
    dataset = build(folder)
    (folder / "b.png").unlink()
    with pytest.raises(UserError, match=f"^{folder}/b.png: cannot be read as an image .No such file[^\n]*$"):
        list(dataset.fetch([torch.tensor([0, 1])], "cpu", workers))


@pytest.fixture(autouse=True)
def log_level(caplog):
    caplog.set_level(logging.INFO)
