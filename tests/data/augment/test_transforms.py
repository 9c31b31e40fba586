"""Crops and colors against Pillow and torchvision image by image; the laws of their random parameters."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from data.augment import strong, transforms
from errors import UserError

NORMALIZE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


def batch(n=24, height=32, width=32):
    """Images with both smooth parts and edges."""
    walk = torch.randn(n, 3, height, width).cumsum(-1).cumsum(-2) * 4 + 128
    return walk.clamp(0, 255).to(torch.uint8)


def as_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# --- random resized crop -------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (40, 24, 16), (8, 8, 20)])
def test_resized_crop_equals_pillow(height, width, size):
    images = batch(24, height, width)
    boxes = transforms.draw_resized_crops(24, height, width, (0.1, 1.0))
    flip = torch.rand(24) < 0.5
    out = transforms.resized_crop(images, boxes, size, flip)
    for i, (top, left, h, w) in enumerate(zip(*(values.tolist() for values in boxes), strict=True)):
        crop = as_pil(images[i]).crop((left, top, left + w, top + h))
        expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)).astype(float)
        expected = expected[:, ::-1] if flip[i] else expected
        # Pillow rounds to bytes after each of its two passes
        assert np.abs(out[i].permute(1, 2, 0).numpy() - expected).max() <= 1.01


def test_nothing_outside_the_box_bleeds_in():
    images = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    images[:, :, 4:12, 4:12] = 7
    box = [torch.tensor([v]) for v in (4, 4, 8, 8)]
    out = transforms.resized_crop(images, box, 16, torch.tensor([False]))
    assert torch.allclose(out, torch.tensor(7.0))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 48)])
def test_boxes_are_distributed_as_torchvisions_and_lie_inside(height, width):
    n, scale = 4000, (0.2, 1.0)
    ours = torch.stack(transforms.draw_resized_crops(n, height, width, scale)).double()
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)])
    theirs = theirs.T.double()
    spread = theirs.std(1) / math.sqrt(n)
    assert ((ours.mean(1) - theirs.mean(1)).abs() < 6 * spread).all()
    assert ((ours.std(1) / theirs.std(1) - 1).abs() < 0.06).all()
    top, left, h, w = ours
    assert (ours >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_box_that_never_fits_falls_back_to_the_center():
    top, left, h, w = transforms.draw_resized_crops(3, 10, 100, (1.0, 1.0))  # ten times wider than high
    assert (top.tolist(), left.tolist(), h.tolist(), w.tolist()) == ([0] * 3, [43] * 3, [10] * 3, [13] * 3)


# --- color --------------------------------------------------------------------------------------


ADJUST = [tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue]


def test_color_jitter_equals_torchvision_in_the_same_order():
    images = batch(48)
    factors, order = transforms.draw_color_jitter(48, 0.8, 0.4, 0.4, 0.4, 0.1)
    out = transforms.color_jitter(images.float(), factors, order)
    for image, result, f, steps in zip(images, out, factors.tolist(), order.tolist(), strict=True):
        expected = image / 255
        for step in steps:
            expected = ADJUST[step](expected, f[step])
        # torchvision's luma has one digit less for red (0.2989)
        torch.testing.assert_close(result, expected * 255, atol=0.15, rtol=0)


def test_color_jitter_draws():
    factors, order = transforms.draw_color_jitter(24_000, 0.8, 0.4, 0.4, 0.4, 0.1)
    unchanged = (factors == torch.tensor([1.0, 1.0, 1.0, 0.0])).all(1)
    assert unchanged.float().mean().item() == pytest.approx(0.2, abs=0.015)
    drawn = factors[~unchanged]
    for column, (low, high) in enumerate([(0.6, 1.4)] * 3 + [(-0.1, 0.1)]):
        values = drawn[:, column]
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high >= values.max() > high - 0.01 * (high - low)
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    permutations = (order * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(permutations) == 24
    assert (permutations - 1000).abs().max() < 5 * 1000**0.5


def test_gray_where():
    images = batch(6).float()
    chosen = torch.tensor([True, False] * 3)
    out = transforms.gray_where_(images.clone(), chosen)
    assert torch.equal(out[1::2], images[1::2])
    for image, result in zip(images[::2], out[::2], strict=True):
        expected = np.asarray(as_pil(image.byte()).convert("L")).astype(float)
        assert np.abs(result.numpy() - expected).max() <= 0.51
        assert result.shape == image.shape


# --- whole augmentations -------------------------------------------------------------------------

SIMCLR = {
    "random_resized_crop": {"size": 24, "scale": [0.2, 1.0]},
    "color_jitter_random_apply": {"p": 0.8},
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "random_grayscale": {"p": 0.2},
    "normalize": NORMALIZE,
}
OURS: dict = {
    "crop_size": 24,
    "num_strong_augs": 4,
    "cutout_kwargs": {"n_holes": 1, "length": 16, "random": True},
    "normalize": NORMALIZE,
}


@pytest.mark.parametrize(("name", "kwargs"), [("standard", SIMCLR), ("simclr", SIMCLR), ("ours", OURS)])
def test_augmentation(name, kwargs):
    """Every image has its own randomness, and the network's precision does not reach the images."""
    images = batch(1).repeat(64, 1, 1, 1)
    out = augmented(images, name, kwargs)
    assert (out.shape, out.dtype) == ((64, 3, 24, 24), torch.float32)
    assert len(out.flatten(1).unique(dim=0)) > 60
    with torch.autocast("cpu", torch.bfloat16):
        again = augmented(images, name, kwargs)
    assert torch.equal(again, out)


def augmented(images, name, kwargs):
    """The whole augmentation; afterwards the random numbers are back where it started, to be drawn again."""
    augment = transforms.build_train_transform({"augmentation_strategy": name, "augmentation_kwargs": kwargs})
    state = torch.get_rng_state()
    out = augment(images)
    torch.set_rng_state(state)
    return out


@pytest.mark.parametrize("name", ["simclr", "standard"])
def test_simclr_is_crop_jitter_gray_normalize(name):
    """`standard` does not use the color keys, which published files carry for all strategies."""
    images = batch(16)
    out = augmented(images, name, SIMCLR)
    boxes = transforms.draw_resized_crops(16, 32, 32, (0.2, 1.0))
    x = transforms.resized_crop(images, boxes, 24, torch.rand(16) < 0.5)
    if name == "simclr":
        x = transforms.color_jitter(x, *transforms.draw_color_jitter(16, 0.8, 0.4, 0.4, 0.4, 0.1))
        x = transforms.gray_where_(x, torch.rand(16) < 0.2)
    torch.testing.assert_close(out, tvf.normalize(x / 255, **NORMALIZE), atol=1e-5, rtol=1e-5)


def test_ours_is_flip_crop_four_operations_normalize_cutout():
    images = batch(16)
    out = augmented(images, "ours", OURS)
    x = transforms.flip_where(images, torch.rand(16) < 0.5)
    top, left = torch.randint(9, (16, 1, 1)), torch.randint(9, (16, 1, 1))
    x = torch.stack([tvf.crop(x[i], int(top[i]), int(left[i]), 24, 24) for i in range(16)])
    for _ in range(4):
        x = strong.apply_operations(x, *strong.draw_operations(16))
    x = tvf.normalize(x / 255, **NORMALIZE)
    x = strong.cut_out(x, *strong.draw_holes(16, (24, 24), n_holes=1, length=16, random=True))
    torch.testing.assert_close(out, x, atol=1e-5, rtol=1e-5)


def test_flips_can_be_switched_off():
    images = torch.arange(24, dtype=torch.uint8).view(1, 1, 1, 24).expand(20, 3, 24, 24)
    kwargs = {**OURS, "num_strong_augs": 0, "random_horizontal_flip": {"p": 0.0}}
    kwargs["cutout_kwargs"] = {"n_holes": 0, "length": 1, "random": True}
    out = transforms.StrongAugmentation(**kwargs)(images)
    assert (out[:, 0, 0, 0] < out[:, 0, 0, -1]).all()


def test_evaluation_transform_equals_torchvision():
    images = batch(4, 37, 32)
    out = transforms.EvalTransform(32, NORMALIZE)(images)
    expected = tvf.normalize(tvf.center_crop(images, [32, 32]).float() / 255, **NORMALIZE)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [transforms.EvalTransform(48, NORMALIZE), transforms.StrongAugmentation(**{**OURS, "crop_size": 48})],
)
def test_images_smaller_than_the_crop_are_refused(transform):
    with pytest.raises(UserError, match=r"crop_size 48 is larger than the images \(32 x 32\)"):
        transform(batch(2))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("moco", {}, "unknown name 'moco'"),
        ("simclr", {}, "'simclr' needs color_jitter, color_jitter_random_apply, normalize, random_gray"),
        ("ours", SIMCLR, "'ours' needs crop_size, cutout_kwargs, num_strong_augs"),
    ],
)
def test_unknown_or_incomplete_strategy(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        transforms.build_train_transform({"augmentation_strategy": name, "augmentation_kwargs": kwargs})
