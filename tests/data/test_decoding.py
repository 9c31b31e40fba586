"""Image files as people see them."""

import numpy as np
import pytest
import torch
import torchvision
from image_folders import SIZE, build, gradient, only, write_images
from PIL import Image

from data import decoding, imagenet
from data.decoding import FolderImages
from data.transforms import center_crop
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


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
    np.testing.assert_allclose(
        np.asarray(decoding._as_seen(image, 65535)[0]), on_white((100,) * 3, 51)[0], atol=2
    )


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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (500, 3)])
def test_odd_sizes(folder, size):
    Image.new("RGB", size, (1, 2, 3)).save(folder / "a.png")
    assert (only(folder) == (1, 2, 3)).all()


# --- large photos --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "mpo")])
def test_large_photos_are_decoded_at_a_reduced_scale(folder, monkeypatch, mode, suffix):
    """As they would be at full scale, to a grey level or two, for the share of the time."""
    photo = gradient().resize((40 * SIZE, 30 * SIZE), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"format": "MPO", "save_all": True, "append_images": [photo]} if suffix == "mpo" else {}
    photo.save(folder / "a.jpg", exif=exif, quality=95, **more)
    sizes, as_seen = [], decoding._as_seen
    monkeypatch.setattr(
        decoding, "_as_seen", lambda image, *more: sizes.append(image.size) or as_seen(image, *more)
    )
    found = only(folder)
    assert sizes == [(40 * SIZE // 8, 30 * SIZE // 8)]
    monkeypatch.setattr(decoding.Image.Image, "draft", lambda *args: None)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *args: None)
    at_full_scale = build(folder, transformation_kwargs={"crop_size": 28}).decode(0).permute(1, 2, 0).numpy()
    assert sizes[1:] == [(40 * SIZE, 30 * SIZE)]
    np.testing.assert_allclose(found, at_full_scale, atol=3)


@pytest.mark.parametrize(
    ("side", "decoded"), [(4 * SIZE - 1,) * 2, (4 * SIZE, 2 * SIZE), (8 * SIZE, 2 * SIZE)]
)
def test_twice_the_pixels_that_are_wanted_are_left(folder, monkeypatch, side, decoded):
    Image.new("RGB", (side, 2 * side)).save(folder / "a.jpg")
    sizes, as_seen = [], decoding._as_seen
    monkeypatch.setattr(
        decoding, "_as_seen", lambda image, *more: sizes.append(image.size[0]) or as_seen(image, *more)
    )
    only(folder)
    assert sizes == [decoded]


# --- as torchvision does it -----------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(400, 300), (332, 500), (256, 343), (99, 1000), (257, 256)])
@pytest.mark.parametrize(("size", "crop"), [(256, 224), (37, None)])
def test_decoding_equals_the_plain_way(tmp_path, height, width, size, crop):
    """Resize(256) and CenterCrop(224) of torchvision, to the byte."""
    write_images(tmp_path / "a", 1, size=(height, width), suffix="png")
    dataset = FolderImages([tmp_path / "a" / "0.png"], None, None, size)
    image = torchvision.transforms.functional.resize(Image.open(tmp_path / "a" / "0.png"), size)
    expected = np.asarray(torchvision.transforms.functional.center_crop(image, size))
    np.testing.assert_array_equal(dataset.raw(0).permute(1, 2, 0), expected)
    if size == 256:
        direct = np.asarray(torchvision.transforms.functional.center_crop(image, crop))
        np.testing.assert_array_equal(center_crop(dataset.raw(0), crop).permute(1, 2, 0), direct)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named(tmp_path, workers):
    write_images(tmp_path / "a", 2)
    (tmp_path / "a" / "1.JPEG").write_bytes(b"no image")
    dataset = FolderImages(sorted((tmp_path / "a").iterdir()), None, None, 256)
    with pytest.raises(UserError, match=f"^{tmp_path}/a/1.JPEG: cannot be read[^\n]*$"):
        list(dataset.fetch([torch.tensor([0, 1])], "cpu", workers))
