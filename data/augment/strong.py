"""The fourteen operations of the strong augmentation, and Cutout: batched, exact to Pillow's bytes.

The semantics are those of Pillow's ImageOps, ImageEnhance and Image.transform (nearest, fill 0).
Every image of a batch draws its own operation. The batch is sorted by operation, so that each function
works on a slice of it. Operations with the same arithmetic share a function.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..device import for_float64, to_device

# name: (low, high, mirrored): the magnitude is uniform in [low, high], negated with probability 1/2
OPERATIONS = {
    "Identity": (0.0, 0.0, False),
    "AutoContrast": (0.0, 0.0, False),
    "Equalize": (0.0, 0.0, False),
    "Rotate": (-30.0, 30.0, True),  # degrees, counter-clockwise
    "Solarize": (0.0, 256.0, False),  # values from here on are inverted
    "Color": (0.05, 0.95, False),
    "Contrast": (0.05, 0.95, False),
    "Brightness": (0.05, 0.95, False),
    "Sharpness": (0.05, 0.95, False),
    "ShearX": (-0.1, 0.1, True),
    "TranslateX": (-0.1, 0.1, True),  # of the width
    "TranslateY": (-0.1, 0.1, True),  # of the height
    "Posterize": (4.0, 8.0, False),  # bits kept, integer part
    "ShearY": (-0.1, 0.1, True),
}
INDEX = {name: i for i, name in enumerate(OPERATIONS)}


def draw_operations(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One operation per image: their index in OPERATIONS, int64 (n,), and magnitudes, float64 (n,)."""
    low, high, mirrored = torch.tensor(list(OPERATIONS.values()), dtype=torch.float64).unbind(1)
    operation = torch.randint(len(OPERATIONS), (n,))
    low, high, mirrored = low[operation], high[operation], mirrored[operation]
    magnitude = low + (high - low) * torch.rand(n, dtype=torch.float64)
    return operation, torch.where((mirrored > 0) & (torch.rand(n) < 0.5), -magnitude, magnitude)


def apply_operations(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Apply to each uint8 image (B, 3, H, W) its own operation, an index (B,), and magnitude (B,)."""
    function_of = FUNCTION_OF[operation]
    order = function_of.argsort()
    counts = function_of.bincount(minlength=len(FUNCTIONS)).tolist()
    # index_select copies whole rows: on a CPU ten times faster than images[order]
    images = images.index_select(0, to_device(order, images.device))
    parts = [values.split(counts) for values in (images, operation[order], magnitude[order])]
    done = [
        function(*part) if len(part[0]) else part[0]
        for function, *part in zip(FUNCTIONS, *parts, strict=True)
    ]
    return torch.cat(done).index_select(0, to_device(order.argsort(), images.device))


def _per_image(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """(n,) on the CPU -> (n, 1, 1, 1) on the device."""
    return to_device(values, device).view(-1, 1, 1, 1)


def _identity(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    return images


def _warp(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    n, _, height, width = images.shape
    # Output pixel (x, y) takes the input pixel (a x + b y + c, d x + e y + f).
    identity = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float64)
    a, b, c, d, e, f = identity.repeat(n, 1).unbind(1)

    def only(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.where(operation == INDEX[name], value, 0)

    angle = torch.deg2rad(only("Rotate", magnitude))  # about the image's center
    a, e = angle.cos(), angle.cos()
    b = b - angle.sin() + only("ShearX", magnitude)
    d = d + angle.sin() + only("ShearY", magnitude)
    turned = operation == INDEX["Rotate"]
    x, y = width / 2, height / 2
    c = c + torch.where(turned, x - a * x - b * y, 0) + only("TranslateX", magnitude * width)
    f = f + torch.where(turned, y - d * x - e * y, 0) + only("TranslateY", magnitude * height)

    # Pillow steps through the image in 16.16 fixed point; so do we, to the last bit.
    steps = torch.stack([c + a * 0.5 + b * 0.5, a, b, f + d * 0.5 + e * 0.5, d, e]) * 65536 + 0.5
    steps = to_device(steps.floor().int(), images.device).view(6, n, 1, 1)
    rows = torch.arange(height, device=images.device, dtype=torch.int32).view(-1, 1)
    columns = torch.arange(width, device=images.device, dtype=torch.int32)
    # (n, H, W) each
    x, y = (start + right * columns + down * rows for start, right, down in (steps[:3], steps[3:]))
    # The image gets a border of zeros, and places outside it are moved to the border.
    x, y = ((place >> 16).clamp_(-1, side) for place, side in ((x, width), (y, height)))
    source = y.mul_(width + 2).add_(x).add_(width + 3).long().view(n, 1, -1).expand(-1, 3, -1)
    return F.pad(images, (1, 1, 1, 1)).flatten(2).gather(2, source).view_as(images)


def _blend(images: torch.Tensor, operation: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Color, Contrast, Brightness: other + factor * (image - other); other is gray, mean gray, black."""
    takes_luma, takes_mean = (
        _per_image((operation == INDEX[name]).float(), images.device) for name in ("Color", "Contrast")
    )
    images = images.float()
    luma = _luma(images)  # (n, 1, H, W)
    mean = luma.to(for_float64(luma.device)).mean((2, 3), keepdim=True, dtype=torch.float64)
    mean = (mean + 0.5).floor().float().to(luma.device)
    return _enhance(images, luma.mul_(takes_luma).add_(mean * takes_mean), factor)


def _enhance(images: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    factor = _per_image(factor.float(), images.device)
    blend = images.sub_(other).mul_(factor).add_(other)
    return blend.to(torch.int16).to(torch.uint8)  # truncates, as Pillow does; straight to uint8 is slower


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Pillow's "L" of whole-numbered float images, exactly: (n, 1, H, W)."""
    r, g, b = (images[:, i : i + 1] for i in range(3))
    luma = torch.mul(r, 19595 / 65536).add_(g, alpha=38470 / 65536).add_(b, alpha=7471 / 65536)
    return luma.add_(0.5).floor_()


def _sharpness(images: torch.Tensor, operation: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    images = images.float()
    return _enhance(images, _smooth(images), factor)


def _smooth(images: torch.Tensor) -> torch.Tensor:
    """Pillow's SMOOTH of whole-numbered float images: 3x3 mean, weight 5 in the middle; same border."""
    smooth = images.clone()
    if min(images.shape[-2:]) >= 3:
        columns = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
        box = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
        box.add_(images[..., 1:-1, 1:-1], alpha=4)
        smooth[..., 1:-1, 1:-1] = box.add_(6.5).div_(13).floor_()
    return smooth


def _solarize(images: torch.Tensor, operation: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    value = torch.arange(256, device=images.device).view(1, 1, 256)
    threshold = to_device(threshold.ceil().int(), images.device).view(-1, 1, 1)  # as exact for whole numbers
    return _look_up(images, torch.where(value < threshold, value, 255 - value))


def _posterize(images: torch.Tensor, operation: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return images & _per_image((256 - (1 << (8 - bits.long()))).to(torch.uint8), images.device)


def _look_up(images: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Replace each value by its entry in the table of its image and channel, (n, 3 or 1, 256)."""
    table = table.to(images.device, torch.uint8).expand(-1, 3, -1)
    return table.gather(2, images.flatten(2).long()).view_as(images)


def _autocontrast(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Stretch each channel so that its darkest value becomes 0 and its lightest 255."""
    place, flat = for_float64(images.device), images.flatten(2)
    value = torch.arange(256, device=place).view(1, 1, 256)
    low, high = (limit(2, keepdim=True).to(place, torch.float64) for limit in (flat.amin, flat.amax))
    # `255 / tensor` would round twice, as 255 * (1 / tensor)
    scale = torch.full_like(high, 255) / (high - low)
    stretched = (value * scale - low * scale).clamp(0, 255).nan_to_num().long()
    return _look_up(images, torch.where(high > low, stretched, value))


def _equalize(images: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Spread each channel's histogram evenly, in ImageOps.equalize's integer arithmetic."""
    value = torch.arange(256, device=images.device, dtype=torch.int32).view(1, 1, 256)
    pixels = images.flatten(2).long()
    one = torch.ones((), device=images.device, dtype=torch.int32)
    histogram = torch.zeros(len(images), 3, 256, device=images.device, dtype=torch.int32)
    histogram.scatter_add_(2, pixels, one.expand_as(pixels))
    last = torch.where(histogram > 0, value, -1).amax(2, keepdim=True).clamp(min=0)
    step = (histogram.sum(2, keepdim=True) - histogram.gather(2, last.long())) // 255
    below = histogram.cumsum(2) - histogram  # pixels darker than each value
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, spread, value))


# function(images, operation, magnitude): the operations that it implements
FUNCTIONS: dict[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], tuple[str, ...]] = {
    _identity: ("Identity",),
    _warp: ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    _blend: ("Color", "Contrast", "Brightness"),
    _sharpness: ("Sharpness",),
    _solarize: ("Solarize",),
    _posterize: ("Posterize",),
    _autocontrast: ("AutoContrast",),
    _equalize: ("Equalize",),
}
# for each operation, by its index, the index of its function in FUNCTIONS
FUNCTION_OF = torch.tensor(
    [i for name in OPERATIONS for i, names in enumerate(FUNCTIONS.values()) if name in names]
)


# --- Cutout --------------------------------------------------------------------------------------


def draw_holes(
    n: int, size: Sequence[int], n_holes: int, length: int, random: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Square holes: centers (row, column), int64 (n, n_holes, 2), and side lengths, int64 (n,).

    With `random` the length is uniform in 1..length, one per image; otherwise it is `length`.
    """
    centers = torch.stack([torch.randint(side, (n, n_holes)) for side in size], dim=2)
    lengths = torch.randint(1, length + 1, (n,)) if random else torch.full((n,), length)
    return centers, lengths


def cut_out(images: torch.Tensor, centers: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Set rows and columns [center - l // 2, center + l // 2) of each hole to 0, in normalized images."""
    device = images.device
    centers, lengths = to_device(centers, device), to_device(lengths, device)
    half = (lengths // 2).view(-1, 1, 1)
    keep: torch.Tensor | float = 1.0
    rows = torch.arange(images.shape[-2], device=device).view(1, -1, 1)
    columns = torch.arange(images.shape[-1], device=device).view(1, 1, -1)
    for row, column in (hole.unbind(1) for hole in centers.unbind(1)):
        row, column = row.view(-1, 1, 1), column.view(-1, 1, 1)
        in_rows = ((rows >= row - half) & (rows < row + half)).float()
        in_columns = ((columns >= column - half) & (columns < column + half)).float()
        keep = keep * (1 - in_rows * in_columns).unsqueeze(1)
    return images * keep
