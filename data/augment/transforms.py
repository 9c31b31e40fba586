"""Batched augmentations: a whole batch at once, independent randomness per image, on any device.

Images are uint8 (B, 3, H, W) in and float32 (B, 3, S, S) out. Every augmentation comes in two parts: one
draws the random parameters, on the CPU, so that there is no GPU synchronization; the other applies given
parameters, and the tests compare it with Pillow image by image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from errors import UserError

from ..device import to_device
from ..views import Transform
from . import strong

GRAY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow's "L"


# --- normalization and center crop ---------------------------------------------------------------


class Normalize:
    """0-255 images, uint8 or float32 (overwritten), -> (x / 255 - mean) / std, float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        means, stds = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        self.scale = 1 / (255 * stds)
        self.shift = -means / stds

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.float().mul_(self.scale).add_(self.shift)


def center_crop(images: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, size, size). Raises UserError for images smaller than that."""
    height, width = images.shape[-2:]
    _require_size(height, width, size, "transformation_kwargs.crop_size")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def _require_size(height: int, width: int, size: int, key: str) -> None:
    if min(height, width) < size:
        raise UserError(
            f"{key}: crop_size {size} is larger than the images ({height} x {width}); "
            f"set it to {min(height, width)} or less"
        )


# --- random resized crop and flip ----------------------------------------------------------------

ASPECT = 3 / 4, 4 / 3  # width / height of a random crop: the narrowest and the widest
Boxes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # top, left, height, width: int64 (n,)


def draw_resized_crops(n: int, height: int, width: int, scale: Sequence[float]) -> Boxes:
    """Boxes by torchvision's rules.

    Ten tries of an area uniform in `scale` and an aspect log-uniform in ASPECT; if none fits, the largest
    centered box whose aspect is within ASPECT.
    """
    area = height * width * torch.empty(n, 10).uniform_(*scale)
    aspect = torch.empty(n, 10).uniform_(math.log(ASPECT[0]), math.log(ASPECT[1])).exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)  # the first try that fits
    none = ~fits.any(1)
    fallback_w = min(width, round(height * ASPECT[1]))
    fallback_h = min(height, round(width / ASPECT[0]))
    w = w.gather(1, first).squeeze(1).masked_fill(none, fallback_w)
    h = h.gather(1, first).squeeze(1).masked_fill(none, fallback_h)
    top = (torch.rand(n) * (height - h + 1)).long()
    left = (torch.rand(n) * (width - w + 1)).long()
    top = torch.where(none, (height - h) // 2, top)
    left = torch.where(none, (width - w) // 2, left)
    return top, left, h, w


def _resampling_matrix(
    start: torch.Tensor, length: torch.Tensor, full: int, size: int, mirror: torch.Tensor | None = None
) -> torch.Tensor:
    """Pillow's bilinear filter as matrices (B, size, full): output pixel <- input pixels of the box.

    A triangle that reaches one input pixel to each side, or further when shrinking. It is cut off at the box
    and normalized, so that nothing outside the box bleeds in. Where `mirror` (B,), the output is mirrored.
    """
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    output = torch.arange(size, device=start.device).view(1, -1, 1) + 0.5
    if mirror is not None:
        output = (output - mirror.view(-1, 1, 1) * size).abs()
    scale = length / size
    position = torch.arange(full, device=start.device).view(1, 1, -1) - start
    inside = (position >= 0) & (position < length)
    weights = (output * scale - 0.5 - position).abs_().div_(scale.clamp(min=1))
    weights = weights.neg_().add_(1).clamp_(min=0).mul_(inside.float())
    return weights.div_(weights.sum(-1, keepdim=True))


def resized_crop(images: torch.Tensor, boxes: Boxes, size: int, flip: torch.Tensor) -> torch.Tensor:
    """Crop the boxes, resize, mirror where `flip` (B,): float32 (B, 3, size, size) in 0-255."""
    b, c, full_height, full_width = images.shape
    top, left, height, width, flip = to_device(torch.stack([*boxes, flip]), images.device)
    rows = _resampling_matrix(top, height, full_height, size)  # (B, S, H)
    columns = _resampling_matrix(left, width, full_width, size, mirror=flip)  # (B, S, W)
    # always in float32: under the network's bfloat16 autocast, rounding would move pixels
    with torch.autocast(images.device.type, enabled=False):
        out = torch.bmm(images.float().view(b, c * full_height, full_width), columns.mT)  # (B, 3H, S)
        return torch.matmul(rows.unsqueeze(1), out.view(b, c, full_height, size))  # (B, 3, S, S)


def crop(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a square of `size` out of each image at its own place, `top` and `left` (B, 1, 1)."""
    device = images.device
    within = torch.arange(size, device=device)
    rows = to_device(top, device) + within.view(1, -1, 1)  # (B, S, 1)
    columns = to_device(left, device) + within  # (B, 1, S)
    source = (rows * images.size(-1) + columns).flatten(1).unsqueeze(1)  # (B, 1, S * S)
    return images.flatten(2).gather(2, source.expand(-1, 3, -1)).unflatten(2, (size, size))


def flip_where(images: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Mirror the images for which `flip` (B,) holds."""
    both = torch.cat([images, images.flip(-1)])
    chosen = torch.arange(len(images)) + len(images) * flip
    return both.index_select(0, to_device(chosen, images.device))


# --- color ---------------------------------------------------------------------------------------


def to_gray(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> luma (B, 1, H, W)."""
    r, g, b = images.split(1, dim=1)
    return (GRAY[0] * r).add_(g, alpha=GRAY[1]).add_(b, alpha=GRAY[2])


def shift_hue(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue of float 0-255 images by `shift` (B,), as a fraction of the circle."""
    red, green, blue = images.unbind(1)  # (B, H, W) each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # the hue in sixths of a turn: which channel is the largest, and where between the two others; chosen
    # by lerp with 0 or 1, ten times faster on a CPU than torch.where
    hue = (red - green).add_(chroma, alpha=4)
    hue.lerp_((blue - red).add_(chroma, alpha=2), (value == green).float())
    hue.lerp_(green - blue, (value == red).float())
    hue.div_((6 * chroma).clamp_(min=1e-8)).add_(shift.view(-1, 1, 1))  # in turns
    # HSV -> RGB: a channel is at its highest within a sixth of a turn of its own hue, and at its lowest
    # from a third of a turn on, https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
    away = torch.stack([hue, hue - 1 / 3, hue - 2 / 3], dim=1)  # (B, 3, H, W)
    away.sub_(away.round()).abs_()  # from the channel's own hue, at most 1/2
    return value.unsqueeze(1) - away.mul_(6).sub_(1).clamp_(0, 1).mul_(chroma.unsqueeze(1))


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
UNCHANGED = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the factors that change nothing


def draw_color_jitter(
    n: int,
    p: float,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors float32 (n, 4), hue as a shift, and the order of the four operations int64 (n, 4).

    With probability 1 - p an image gets the factors that change nothing.
    """
    factors = torch.empty(n, 4)
    for column, strength in enumerate((brightness, contrast, saturation)):
        factors[:, column].uniform_(max(0.0, 1 - strength), 1 + strength)
    factors[:, HUE].uniform_(-hue, hue)
    order = torch.rand(n, 4).argsort(1)
    unchanged = torch.rand(n) >= p
    factors[unchanged] = UNCHANGED
    return factors, order


def color_jitter(images: torch.Tensor, factors: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Apply brightness, contrast, saturation and hue to float 0-255 images, each image in its own order.

    The first three are the same blend, clamp(f x + (1 - f) d), with a different d: black, the mean gray, the
    gray image. So three rounds of blending serve all images. An image's hue is shifted before the first round
    or after one of the three; the images are sorted by that round, so that the shift works on a slice.
    """
    device = images.device
    changed = (factors != UNCHANGED).any(1)
    hue_round = torch.where(changed, (order == HUE).int().argmax(1), 4)  # (B,)
    by_round = hue_round.argsort()
    factors, order = factors[by_round], order[by_round]
    blends = order[order != HUE].view(-1, 3)  # the three others, in order
    per_blend = torch.stack(
        [factors.gather(1, blends), (blends == CONTRAST).float(), (blends == SATURATION).float()]
    )
    per_blend = to_device(per_blend, device).view(3, -1, 3, 1, 1, 1)  # (3, B, blend, 1, 1, 1)
    shift = to_device(factors[:, HUE], device)
    ends = hue_round.bincount(minlength=5).cumsum(0).tolist()

    images = images.index_select(0, to_device(by_round, device))
    jittered = images[: ends[3]]
    for r in range(4):
        if r > 0:
            factor, takes_mean, takes_gray = per_blend[:, : ends[3], r - 1]
            luma = to_gray(jittered)
            other = luma.mean((2, 3), keepdim=True) * takes_mean + luma * takes_gray
            jittered.mul_(factor).add_(other * (1 - factor)).clamp_(0, 255)
        turned = slice(ends[r - 1] if r else 0, ends[r])
        images[turned] = shift_hue(images[turned], shift[turned])
    return images.index_select(0, to_device(by_round.argsort(), device))


def gray_where_(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Overwrite the float images for which `chosen` (B,) holds by their luma in three channels."""
    index = to_device(chosen.nonzero().squeeze(1), images.device)
    return images.index_copy_(0, index, to_gray(images.index_select(0, index)).expand(-1, 3, -1, -1))


# --- the three training augmentations and the evaluation transform -------------------------------


class SimCLRAugmentation:
    """`simclr`; without the color arguments, `standard`.

    Args: as the YAML keys of `augmentation_kwargs`; `random_horizontal_flip: {p}` defaults to 0.5.
    """

    def __init__(
        self,
        random_resized_crop: Mapping[str, Any],
        normalize: Mapping[str, Any],
        color_jitter: Mapping[str, float] | None = None,
        color_jitter_random_apply: Mapping[str, float] | None = None,
        random_grayscale: Mapping[str, float] | None = None,
        random_horizontal_flip: Mapping[str, float] | None = None,
    ):
        self.size, self.scale = random_resized_crop["size"], random_resized_crop["scale"]
        self.flip = (random_horizontal_flip or {"p": 0.5})["p"]
        self.jitter = color_jitter
        self.jitter_p = (color_jitter_random_apply or {"p": 1.0})["p"]
        self.gray = (random_grayscale or {"p": 0.0})["p"]
        self.normalize = Normalize(**normalize)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        boxes = draw_resized_crops(n, height, width, self.scale)
        images = resized_crop(images, boxes, self.size, flip=torch.rand(n) < self.flip)
        if self.jitter:
            images = color_jitter(images, *draw_color_jitter(n, self.jitter_p, **self.jitter))
        if self.gray:
            images = gray_where_(images, torch.rand(n) < self.gray)
        return self.normalize(images)


class StrongAugmentation:
    """`ours`: flip, crop, a few of the fourteen operations, normalize, Cutout (SCAN, section 3.1).

    Args: as the YAML keys of `augmentation_kwargs`; `random_horizontal_flip: {p}` defaults to 0.5.
    """

    def __init__(
        self,
        crop_size: int,
        num_strong_augs: int,
        cutout_kwargs: Mapping[str, Any],
        normalize: Mapping[str, Any],
        random_horizontal_flip: Mapping[str, float] | None = None,
    ):
        self.crop_size = crop_size
        self.num_strong_augs = num_strong_augs
        self.cutout = cutout_kwargs
        self.flip = (random_horizontal_flip or {"p": 0.5})["p"]
        self.normalize = Normalize(**normalize)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        n = len(images)
        images = flip_where(images, torch.rand(n) < self.flip)
        images = self._random_crop(images)
        for _ in range(self.num_strong_augs):
            images = strong.apply_operations(images, *strong.draw_operations(n))
        images = self.normalize(images)
        return strong.cut_out(images, *strong.draw_holes(n, images.shape[-2:], **self.cutout))

    def _random_crop(self, images: torch.Tensor) -> torch.Tensor:
        n, _, height, width = images.shape
        size = self.crop_size
        _require_size(height, width, size, "augmentation_kwargs.crop_size")
        if height == width == size:
            return images
        top = torch.randint(height - size + 1, (n, 1, 1))
        left = torch.randint(width - size + 1, (n, 1, 1))
        return crop(images, top, left, size)


class EvalTransform:
    """The transform of evaluation, and of the weak view of step 3: center crop and normalize."""

    def __init__(self, crop_size: int, normalize: Mapping[str, Any]):
        self.crop_size = crop_size
        self.normalize = Normalize(**normalize)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalize(center_crop(images, self.crop_size))


# name: (class, the keys of `augmentation_kwargs` that it must have besides `normalize`)
AUGMENTATIONS: dict[str, tuple[Callable[..., Transform], set[str]]] = {
    "standard": (SimCLRAugmentation, {"random_resized_crop"}),
    "simclr": (
        SimCLRAugmentation,
        {"random_resized_crop", "color_jitter", "color_jitter_random_apply", "random_grayscale"},
    ),
    "ours": (StrongAugmentation, {"crop_size", "num_strong_augs", "cutout_kwargs"}),
}


def build_train_transform(config: Mapping[str, Any]) -> Transform:
    """The training augmentation that `augmentation_strategy` and `augmentation_kwargs` describe.

    Keys of other strategies are ignored, because published files contain some. With `features_file`, the
    vectors stay as they are. Raises UserError for an unknown strategy or a missing key.
    """
    if config.get("features_file"):
        return torch.nn.Identity()
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


def build_eval_transform(config: Mapping[str, Any]) -> Transform:
    """The evaluation transform that `transformation_kwargs` describes; none with `features_file`."""
    if config.get("features_file"):
        return torch.nn.Identity()
    return EvalTransform(**config["transformation_kwargs"])
