"""Image files as people see them."""

import struct
import zlib

import numpy as np
import pytest
import torchvision
from image_folders import SIZE, gradient, write_images
from PIL import Image

from data.augment.transforms import center_crop
from data.folder import decode
from data.folder.decode import ResizeSpec, decode_image
from data.folder.image_files import FolderImages
from data.sets import imagenet


def decoded(path, resize="crop", white=65535):
    """The image, uint8 (SIZE, SIZE, 3)."""
    return decode_image(str(path), ResizeSpec(SIZE, resize), white)[0].permute(1, 2, 0).numpy()


def as_turned(orientation):
    """EXIF data that says how to turn a photo."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture
def sizes(monkeypatch):
    """The sizes at which photos were decoded."""
    found, as_seen = [], decode._as_seen

    def noted(image, *levels):
        found.append(image.size)
        return as_seen(image, *levels)

    monkeypatch.setattr(decode, "_as_seen", noted)
    return found


MODES = "RGB a.png, RGB a.bmp, RGB a.webp, RGB a.jpeg, L a.png, L a.pgm, 1 a.png, LA a.png, RGBA a.png, "
MODES += "RGBA a.tiff, P a.png, P a.gif, CMYK a.jpg, CMYK a.tif"


@pytest.mark.parametrize("case", MODES.split(", "))
def test_modes_are_as_pillow_converts_them(tmp_path, case):
    mode, name = case.split()
    image = gradient("RGBA" if mode == "LA" else mode)
    if "A" in mode:
        image.putalpha(255)
    image.convert(mode).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decoded(tmp_path / name), expected)


def on_white(rgb, alpha):
    """By the definition: each a part of the color, the rest white."""
    share = np.asarray(alpha)[..., None] / 255
    return np.asarray(rgb) * share + 255 * (1 - share)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case", ["RGBA a.png", "RGBA a.tif", "RGBA a.webp", "LA a.png", "RGBA a.ico", "P a.png"]
)
def test_transparency_is_laid_on_white(tmp_path, case):
    mode, name = case.split()
    if mode == "P":
        rgb, alpha = gradient("P").convert("RGB"), gradient("P")
        gradient("P").save(tmp_path / name, transparency=bytes(range(256)))
    else:
        image, alpha = gradient(mode[:-1]), gradient("L").rotate(90)
        rgb = image.convert("RGB")
        image.putalpha(alpha)
        image.save(tmp_path / name, **({"lossless": True, "exact": True} if name.endswith("webp") else {}))
    np.testing.assert_allclose(decoded(tmp_path / name), on_white(rgb, alpha), atol=1)


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_rare_modes_with_alpha(mode):
    """Pillow makes them of some files, but writes none."""
    if mode == "PA":
        image = Image.new("P", (2, 2), 0).convert("PA")
        image.putpalette([100] * 3)
        image.putalpha(51)
    else:
        image = Image.new("RGBA", (2, 2), (100, 100, 100, 51))
        image = image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    found, _ = decode._as_seen(image, 65535)
    np.testing.assert_allclose(np.asarray(found), on_white((100,) * 3, 51)[0], atol=2)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("P", 44), ("L", 120), ("RGB", (8, 8, 247)), ("1", 0), ("I;16", 120 * 257)]
)
def test_a_transparent_color_is_white(tmp_path, mode, transparent):
    image = plain = gradient("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(plain).astype(np.uint16) * 257)
    image.save(tmp_path / "a.png", transparency=transparent)
    hidden = (np.asarray(image) == np.asarray(transparent)).reshape(SIZE, SIZE, -1).all(2)
    assert hidden.any()
    found = decoded(tmp_path / "a.png")
    assert (found[hidden] == 255).all()
    np.testing.assert_array_equal(found[~hidden], np.asarray(plain.convert("RGB"))[~hidden])


def png(depth, color, rows, transparent):
    """A PNG file with a depth that Pillow does not write: rows of bytes, and the value in its tRNS chunk."""
    head = struct.pack(">IIBBBBB", SIZE, SIZE, depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    file = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + head, b"tRNS" + transparent, b"IDAT" + pixels, b"IEND"):
        file += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return file


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("value", [0, 1])
def test_a_transparent_gray_of_any_depth_is_white(tmp_path, depth, value):
    levels = np.random.default_rng(0).integers(0, 2**depth, (SIZE, SIZE))
    bits = (levels[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8).reshape(SIZE, -1)
    rows = [np.packbits(row).tobytes() for row in bits]
    (tmp_path / "a.png").write_bytes(png(depth, 0, rows, struct.pack(">H", value)))
    found = decoded(tmp_path / "a.png")
    expected = np.where(levels == value, 255, levels * (255 // (2**depth - 1)))
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("color", [(0x1234, 0, 0xFFFF), (200, 5, 0), (300, 0, 1)])
def test_a_transparent_color_of_16_bits_is_white(tmp_path, color):
    pixels = np.full((SIZE, SIZE, 3), 0x4000, ">u2")
    pixels[:, ::2] = color
    (tmp_path / "a.png").write_bytes(
        png(16, 2, [row.tobytes() for row in pixels], struct.pack(">HHH", *color))
    )
    found = decoded(tmp_path / "a.png")
    assert (found[:, ::2] == 255).all()
    assert (found[:, 1::2] == 0x40).all()


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("pgm", np.uint16), ("tif", np.int32)]
)
def test_16_bits_are_scaled(tmp_path, suffix, dtype):
    values = np.linspace(0, 65535, SIZE * SIZE).astype(dtype).reshape(SIZE, SIZE)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = decoded(tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(found, np.repeat((values / 257)[..., None], 3, axis=2), atol=0.51)
    assert (found.min(), found.max()) == (0, 255)
    assert decoded(tmp_path / f"a.{suffix}", white=4095)[5, 0, 0] == 255


def test_the_brightest_value_is_known_before_decoding(tmp_path):
    values = np.arange(SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png", transparency=SIZE * SIZE - 1)
    Image.fromarray(values).save(tmp_path / "b.tif")
    gradient().save(tmp_path / "8 bits.png")
    for name, value in {"a.png": 1022, "b.tif": 1023, "8 bits.png": -1}.items():
        record = decode_image(str(tmp_path / name), ResizeSpec(SIZE), 65535)[1]
        assert decode.brightest_value(str(tmp_path / name), ResizeSpec(SIZE)) == record.brightest == value
    Image.fromarray(values * 70).save(tmp_path / "32 bits.tif")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    for name in ("32 bits.tif", "cut.png"):
        assert decode.brightest_value(str(tmp_path / name), ResizeSpec(SIZE)) == -1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned(tmp_path, orientation, bits):
    pixels = np.asarray(gradient() if bits == 8 else gradient("L"))
    stored = pixels if bits == 8 else pixels.astype(np.uint16) * 257
    Image.fromarray(stored).save(tmp_path / "a.png", exif=as_turned(orientation))
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    left_right, top_bottom = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    pixels = pixels[:: -1 if top_bottom else 1, :: -1 if left_right else 1]
    found = decoded(tmp_path / "a.png")
    np.testing.assert_array_equal(found if bits == 8 else found[..., 0], pixels)


def test_imagenet_is_not_turned(tmp_path):
    """Its published figures come from the images as they are stored."""
    (tmp_path / "imagenet/ILSVRC2012_img_train/n01").mkdir(parents=True)
    gradient().save(tmp_path / "imagenet/ILSVRC2012_img_train/n01/a.png", exif=as_turned(3))
    dataset = imagenet.build_imagenet(tmp_path, "train", SIZE)
    np.testing.assert_array_equal(dataset.raw(0).permute(1, 2, 0), np.asarray(gradient()))


def test_what_a_file_holds_besides_pixels_does_not_hinder(tmp_path):
    """Damaged EXIF data, another format's suffix, and more frames."""
    gradient().save(tmp_path / "a.jpg", format="PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff nonsense")
    np.testing.assert_array_equal(decoded(tmp_path / "a.jpg"), np.asarray(gradient()))
    white = Image.new("L", (SIZE, SIZE), 255)
    gradient("L").save(tmp_path / "a.gif", save_all=True, append_images=[white])
    np.testing.assert_array_equal(decoded(tmp_path / "a.gif")[..., 0], np.asarray(gradient("L")))


# --- large photos --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "mpo")])
def test_large_photos_are_decoded_at_a_reduced_scale(tmp_path, monkeypatch, sizes, mode, suffix):
    """As they would be at full scale, to a gray level or two, for the share of the time."""
    photo = gradient().resize((40 * SIZE, 30 * SIZE), Image.Resampling.BICUBIC).convert(mode)
    more = {"format": "MPO", "save_all": True, "append_images": [photo]} if suffix == "mpo" else {}
    photo.save(tmp_path / "a.jpg", exif=as_turned(6), quality=95, **more)
    found = decoded(tmp_path / "a.jpg")
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *args: None)
    np.testing.assert_allclose(found, decoded(tmp_path / "a.jpg"), atol=3)
    assert sizes == [(40 * SIZE // 8, 30 * SIZE // 8), (40 * SIZE, 30 * SIZE)]


@pytest.mark.parametrize(
    ("size", "resize", "decoded_size"),
    [
        ((2 * SIZE - 2, 4 * SIZE - 4), "crop", (2 * SIZE - 2, 4 * SIZE - 4)),
        ((2 * SIZE, 4 * SIZE), "crop", (SIZE, 2 * SIZE)),
        ((4 * SIZE + 2, 8 * SIZE + 4), "crop", (SIZE + 1, 2 * SIZE + 1)),
        ((8 * SIZE, 4 * SIZE), "crop", (2 * SIZE, SIZE)),
        ((8 * SIZE, 4 * SIZE), "pad", (SIZE, SIZE // 2)),
        ((8 * SIZE, 4 * SIZE), "squeeze", (2 * SIZE, SIZE)),
    ],
)
def test_the_pixels_that_are_wanted_are_left(tmp_path, sizes, size, resize, decoded_size):
    Image.new("RGB", size).save(tmp_path / "a.jpg")
    decoded(tmp_path / "a.jpg", resize)
    assert sizes == [decoded_size]


# --- squares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("resize", ["crop", "pad", "squeeze"])
def test_ways_to_make_a_square(tmp_path, resize, transposed):
    """Of an image twice as wide as high, with a red left half, a blue right one, and a white frame."""
    pixels = np.zeros((2 * SIZE, 4 * SIZE, 3), np.uint8)
    pixels[:, : 2 * SIZE, 0] = pixels[:, 2 * SIZE :, 2] = 255
    pixels[:16] = pixels[-16:] = pixels[:, :16] = pixels[:, -16:] = 255
    Image.fromarray(pixels.transpose(1, 0, 2) if transposed else pixels).save(tmp_path / "a.png")
    found = decoded(tmp_path / "a.png", resize).astype(int)
    found = found.transpose(1, 0, 2) if transposed else found
    half, quarter = SIZE // 2, SIZE // 4
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    middle = [tuple(found[half, column]) for column in (8, SIZE - 9)]
    assert middle == [red, blue]
    if resize == "crop":
        assert (tuple(found[half, 0]), tuple(found[half, -1])) == (red, blue)
    elif resize == "squeeze":
        assert tuple(found[0, 0]) == tuple(found[-1, -1]) == white
        assert tuple(found[11, 8]) == red
    else:
        assert (found[:quarter] == 255).all()  # the mean color of its border
        assert (found[-quarter:] == 255).all()
        assert tuple(found[quarter + 6, 8]) == red


@pytest.mark.parametrize("resize", ["crop", "pad", "squeeze"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (400, 1), (33, 32), (31, 40), (5000, 3)])
def test_odd_sizes(tmp_path, resize, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    found = decoded(tmp_path / "a.png", resize)
    assert found.shape == (SIZE, SIZE, 3)
    assert (found == (1, 2, 3)).all()


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
