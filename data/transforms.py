"""Batched augmentations: a whole batch at once, independent randomness per image, on any device.

Images are uint8 (B, 3, H, W) in and float32 (B, 3, S, S) out. Every augmentation comes in two
parts: one that draws the random parameters, on the CPU, so that no GPU ever waits for a value, and
one that applies given parameters, which the tests compare with Pillow image by image.
"""

import math

import torch

from errors import UserError

from . import strong

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow's "L"


# --- normalisation and center crop ---------------------------------------------------------------


class Normalize:
    """0-255 images -> (x / 255 - mean) / std, float32."""

    def __init__(self, mean, std):
        mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        self.scale = 1 / (255 * std)
        self.shift = -mean / std

    def __call__(self, images):
        self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return torch.addcmul(self.shift, images.float(), self.scale)


def center_crop(images, size):
    """(B, 3, H, W) -> (B, 3, size, size). Raises UserError for images smaller than that."""
    height, width = images.shape[-2:]
    _require_size(height, width, size)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def _require_size(height, width, size):
    if min(height, width) < size:
        raise UserError(
            f"crop_size {size} is larger than the images ({height} x {width}); "
            f"set it to {min(height, width)} or less"
        )


# --- random resized crop and flip ----------------------------------------------------------------


def draw_resized_crops(n, height, width, scale, ratio=(3 / 4, 4 / 3)):
    """Boxes by torchvision's rules: (top, left, height, width), int64 (n,) each.

    Ten tries of an area uniform in `scale` and an aspect log-uniform in `ratio`; if none fits, the
    largest centered box whose aspect is within `ratio`.
    """
    area = height * width * torch.empty(n, 10).uniform_(*scale)
    aspect = torch.empty(n, 10).uniform_(math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # the first try that fits
    none = ~fits.any(1)
    fallback_w = min(width, round(height * ratio[1]))
    fallback_h = min(height, round(width / ratio[0]))
    w = w.gather(1, first).squeeze(1).masked_fill(none, fallback_w)
    h = h.gather(1, first).squeeze(1).masked_fill(none, fallback_h)
    top = (torch.rand(n) * (height - h + 1)).long()
    left = (torch.rand(n) * (width - w + 1)).long()
    top = torch.where(none, (height - h) // 2, top)
    left = torch.where(none, (width - w) // 2, left)
    return top, left, h, w


def _resampling_matrix(start, length, full, size):
    """Pillow's bilinear filter as matrices (B, size, full): output pixel <- input pixels of the box.

    A triangle that reaches one input pixel to each side, or further when shrinking, cut at the box and
    normalised, so that nothing outside the box bleeds in.
    """
    scale = length.view(-1, 1, 1) / size
    center = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    position = torch.arange(full, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    inside = (position >= 0) & (position < length.view(-1, 1, 1))
    weights = (1 - (position + 0.5 - center).abs() / scale.clamp(min=1)).clamp(min=0) * inside
    return weights / weights.sum(-1, keepdim=True)


def resized_crop(images, top, left, height, width, size, flip):
    """Crop the boxes, resize, mirror where `flip` (B,): float32 (B, 3, size, size) in 0-255."""
    b, c, full_height, full_width = images.shape
    top, left, height, width, flip = (
        values.to(images.device, non_blocking=True) for values in (top, left, height, width, flip)
    )
    rows = _resampling_matrix(top, height, full_height, size)  # (B, S, H)
    columns = _resampling_matrix(left, width, full_width, size)  # (B, S, W)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    out = torch.bmm(images.float().view(b, c * full_height, full_width), columns.mT)  # (B, 3H, S)
    return torch.matmul(rows.unsqueeze(1), out.view(b, c, full_height, size))  # (B, 3, S, S)


def crop(images, top, left, size):
    """Cut a square of `size` out of each image at its own place, `top` and `left` (B, 1, 1)."""
    device = images.device
    within = torch.arange(size, device=device)
    rows = top.to(device, non_blocking=True) + within.view(1, -1, 1)  # (B, S, 1)
    columns = left.to(device, non_blocking=True) + within  # (B, 1, S)
    source = (rows * images.size(-1) + columns).flatten(1).unsqueeze(1)  # (B, 1, S * S)
    return images.flatten(2).gather(2, source.expand(-1, 3, -1)).unflatten(2, (size, size))


def flip_where(images, flip):
    """Mirror the images for which `flip` (B,) holds."""
    return torch.where(flip.to(images.device, non_blocking=True).view(-1, 1, 1, 1), images.flip(-1), images)


# --- colour --------------------------------------------------------------------------------------


def to_grey(images):
    """(B, 3, H, W) -> luma (B, 1, H, W)."""
    r, g, b = images.unbind(1)
    return (GREY[0] * r + GREY[1] * g + GREY[2] * b).unsqueeze(1)


def shift_hue(images, shift):
    """Turn the hue of 0-255 images by `shift` (B,), as a fraction of the circle."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # in sextants
    hue = hue + 6 * shift.view(-1, 1, 1)
    # HSV -> RGB, https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    k = torch.stack([hue + 5, hue + 3, hue + 1], dim=1) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def draw_color_jitter(n, p, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
    """Factors float32 (n, 4), hue as a shift, and the order of the four operations int64 (n, 4).

    With probability 1 - p an image gets the factors that change nothing.
    """
    factors = torch.empty(n, 4)
    for column, strength in enumerate((brightness, contrast, saturation)):
        factors[:, column].uniform_(max(0.0, 1 - strength), 1 + strength)
    factors[:, HUE].uniform_(-hue, hue)
    order = torch.rand(n, 4).argsort(1)
    unchanged = torch.rand(n) >= p
    factors[unchanged] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return factors, order


def color_jitter(images, factors, order):
    """Apply brightness, contrast, saturation and hue to float 0-255 images, each image in its own order.

    The first three are one blend, clamp(f x + (1 - f) d), with another d each: black, the mean grey,
    the grey image. So three rounds of a blend do for the whole batch, and hue, the costly one, is
    done before the first round or after one of them, once per image that it changes.
    """
    device = images.device
    hue_round = (order == HUE).int().argmax(1)  # (B,)
    blends = order[order != HUE].view(-1, 3)  # the three others, in order
    blend_factors = factors.gather(1, blends).to(device, non_blocking=True)
    takes_mean = (blends == CONTRAST).float().to(device, non_blocking=True)
    takes_grey = (blends == SATURATION).float().to(device, non_blocking=True)
    for r in range(4):
        if r > 0:
            f, mean, grey = (x[:, r - 1].view(-1, 1, 1, 1) for x in (blend_factors, takes_mean, takes_grey))
            luma = to_grey(images)
            other = grey * luma + mean * luma.mean((2, 3), keepdim=True)
            images = torch.addcmul((1 - f) * other, f, images).clamp_(0, 255)
        chosen = ((hue_round == r) & (factors[:, HUE] != 0)).nonzero().squeeze(1)
        if len(chosen):
            shift = factors[chosen, HUE].to(device, non_blocking=True)
            chosen = chosen.to(device, non_blocking=True)
            images = images.index_copy(0, chosen, shift_hue(images[chosen], shift))
    return images


def grey_where(images, chosen):
    """Replace the images for which `chosen` (B,) holds by their luma in three channels."""
    index = chosen.nonzero().squeeze(1).to(images.device, non_blocking=True)
    return images.index_copy(0, index, to_grey(images[index]).expand(-1, 3, -1, -1))


# --- the three training augmentations and the evaluation transform -------------------------------


class SimCLRAugmentation:
    """`simclr`, and `standard` where the colour arguments are left out.

    Args: as the YAML keys of `augmentation_kwargs`; `random_horizontal_flip: {p}` defaults to 0.5.
    """

    def __init__(
        self,
        random_resized_crop,
        normalize,
        color_jitter=None,
        color_jitter_random_apply=None,
        random_grayscale=None,
        random_horizontal_flip=None,
    ):
        self.size, self.scale = random_resized_crop["size"], random_resized_crop["scale"]
        self.flip = (random_horizontal_flip or {"p": 0.5})["p"]
        self.jitter = color_jitter
        self.jitter_p = (color_jitter_random_apply or {"p": 1.0})["p"]
        self.grey = (random_grayscale or {"p": 0.0})["p"]
        self.normalize = Normalize(**normalize)

    def __call__(self, images):
        n, _, height, width = images.shape
        boxes = draw_resized_crops(n, height, width, self.scale)
        images = resized_crop(images, *boxes, self.size, flip=torch.rand(n) < self.flip)
        if self.jitter:
            images = color_jitter(images, *draw_color_jitter(n, self.jitter_p, **self.jitter))
        if self.grey:
            images = grey_where(images, torch.rand(n) < self.grey)
        return self.normalize(images)


class StrongAugmentation:
    """`ours`: flip, crop, a few of the fourteen operations, normalise, Cutout (SCAN, section 3.1).

    Args: as the YAML keys of `augmentation_kwargs`; `random_horizontal_flip: {p}` defaults to 0.5.
    """

    def __init__(self, crop_size, num_strong_augs, cutout_kwargs, normalize, random_horizontal_flip=None):
        self.crop_size = crop_size
        self.num_strong_augs = num_strong_augs
        self.cutout = cutout_kwargs
        self.flip = (random_horizontal_flip or {"p": 0.5})["p"]
        self.normalize = Normalize(**normalize)

    def __call__(self, images):
        n = len(images)
        images = flip_where(images, torch.rand(n) < self.flip)
        images = self._random_crop(images)
        for _ in range(self.num_strong_augs):
            images = strong.apply_operations(images, *strong.draw_operations(n))
        images = self.normalize(images)
        return strong.cut_out(images, *strong.draw_holes(n, images.shape[-2:], **self.cutout))

    def _random_crop(self, images):
        n, _, height, width = images.shape
        size = self.crop_size
        _require_size(height, width, size)
        if height == width == size:
            return images
        top = torch.randint(height - size + 1, (n, 1, 1))
        left = torch.randint(width - size + 1, (n, 1, 1))
        return crop(images, top, left, size)


class EvalTransform:
    """Evaluation, and the weak view of step 3: center crop and normalise."""

    def __init__(self, crop_size, normalize):
        self.crop_size = crop_size
        self.normalize = Normalize(**normalize)

    def __call__(self, images):
        return self.normalize(center_crop(images, self.crop_size))


# name: (class, the keys of `augmentation_kwargs` that it must have besides `normalize`)
AUGMENTATIONS = {
    "standard": (SimCLRAugmentation, {"random_resized_crop"}),
    "simclr": (
        SimCLRAugmentation,
        {"random_resized_crop", "color_jitter", "color_jitter_random_apply", "random_grayscale"},
    ),
    "ours": (StrongAugmentation, {"crop_size", "num_strong_augs", "cutout_kwargs"}),
}


def build_train_transform(config):
    """The training augmentation that `augmentation_strategy` and `augmentation_kwargs` describe.

    Keys of another strategy are ignored, as published files carry some. Raises UserError for an
    unknown strategy or a missing key.
    """
    name = config["augmentation_strategy"]
    if name not in AUGMENTATIONS:
        raise UserError(f"augmentation_strategy: unknown name {name!r}, known: {', '.join(AUGMENTATIONS)}")
    augmentation, keys = AUGMENTATIONS[name]
    given = config["augmentation_kwargs"]
    missing = (keys | {"normalize"}) - set(given)
    if missing:
        raise UserError(f"augmentation_kwargs: '{name}' needs {', '.join(sorted(missing))}")
    wanted = keys | {"normalize", "random_horizontal_flip"}
    return augmentation(**{key: value for key, value in given.items() if key in wanted})


def build_eval_transform(config):
    """The evaluation transform that `transformation_kwargs` describes."""
    return EvalTransform(**config["transformation_kwargs"])
