"""The fourteen operations against Pillow, image by image and byte for byte; Cutout; the random draws."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from data.augment import strong


def pillow(name, v, image):
    """The operation on one PIL image, by Pillow's own functions."""
    width, height = image.size

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    return {
        "Identity": lambda: image,
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Rotate": lambda: image.rotate(v),
        "Solarize": lambda: ImageOps.solarize(image, v),
        "Color": lambda: ImageEnhance.Color(image).enhance(v),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(v),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(v),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(v),
        "ShearX": lambda: affine(1, v, 0, 0, 1, 0),
        "TranslateX": lambda: affine(1, 0, v * width, 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, v * height),
        "Posterize": lambda: ImageOps.posterize(image, int(v)),
        "ShearY": lambda: affine(1, 0, 0, v, 1, 0),
    }[name]()


def noise(n, height, width, high=256):
    return torch.randint(high, (n, 3, height, width), dtype=torch.uint8)


def smooth(n, height, width):
    walk = torch.randn(n, 3, height, width).cumsum(-1) * 9 + torch.rand(n, 3, 1, 1) * 200
    return walk.clamp(0, 255).to(torch.uint8)


def constant(n, height, width):
    return noise(n, 1, 1).expand(n, 3, height, width).contiguous()


@pytest.mark.parametrize(
    "make", [noise, smooth, constant, lambda n, height, width: noise(n, height, width, 3)]
)
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (33, 17), (2, 5)])
def test_equals_pillow(make, size):
    torch.manual_seed(hash(size) % 1000)
    images = make(140, *size)
    before = images.clone()
    operation, magnitude = strong.draw_operations(140)
    batch = strong.apply_operations(images, operation, magnitude)
    assert torch.equal(images, before)
    for image, op, v, out in zip(images, operation.tolist(), magnitude.tolist(), batch, strict=True):
        name = list(strong.OPERATIONS)[op]
        expected = np.asarray(pillow(name, v, Image.fromarray(image.permute(1, 2, 0).numpy())))
        np.testing.assert_array_equal(out.permute(1, 2, 0), expected, err_msg=f"{name} {v}")


def test_draws():
    torch.manual_seed(0)
    n = 140_000
    operation, magnitude = strong.draw_operations(n)
    counts = operation.bincount(minlength=14)
    assert (counts - n / 14).abs().max() < 5 * (n / 14) ** 0.5
    for name, (low, high, _) in strong.OPERATIONS.items():
        values = magnitude[operation == strong.INDEX[name]]
        assert values.min() >= low
        assert values.max() <= high
        quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        expected = low + (high - low) * torch.tensor([0.25, 0.5, 0.75])
        assert (quartiles - expected).abs().max() <= 0.02 * (high - low)


# --- Cutout --------------------------------------------------------------------------------------


def test_cut_out_loop():
    torch.manual_seed(0)
    images = torch.rand(50, 3, 9, 13) + 1
    centers, lengths = strong.draw_holes(50, (9, 13), n_holes=2, length=8)
    out = strong.cut_out(images, centers, lengths)
    for image, holes, length, result in zip(images, centers.tolist(), lengths.tolist(), out, strict=True):
        expected = image.clone()
        for row, column in holes:
            top, left = max(0, row - length // 2), max(0, column - length // 2)
            expected[:, top : row + length // 2, left : column + length // 2] = 0
        assert torch.equal(result, expected)


def test_hole_draws():
    torch.manual_seed(0)
    centers, lengths = strong.draw_holes(20_000, (32, 20), n_holes=1, length=16)
    for values, low, high in ((centers[..., 0], 0, 31), (centers[..., 1], 0, 19), (lengths, 1, 16)):
        counts = (values.flatten() - low).bincount(minlength=high - low + 1).float()
        assert (values.min(), values.max()) == (low, high)
        assert (counts - counts.mean()).abs().max() < 5 * counts.mean() ** 0.5
    _, lengths = strong.draw_holes(10, (8, 8), n_holes=1, length=5, random=False)
    assert lengths.tolist() == [5] * 10
