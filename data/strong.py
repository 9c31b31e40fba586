"""The fourteen operations of the strong augmentation, and Cutout: batched, exact to Pillow's bytes.

The semantics are those of Pillow's ImageOps, ImageEnhance and Image.transform (nearest, fill 0).
The operations fall into three families, so that a batch in which every image draws its own
operation costs three calls and not fourteen:

    warp    Rotate, ShearX, ShearY, TranslateX, TranslateY   pixels looked up through an affine map
    blend   Color, Contrast, Brightness, Sharpness           other + factor * (image - other)
    table   AutoContrast, Equalize, Solarize, Posterize      each value looked up in a table of 256
"""

import torch

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


def draw_operations(n):
    """One operation per image: their index in OPERATIONS, int64 (n,), and magnitudes, float64 (n,)."""
    low, high, mirrored = torch.tensor(list(OPERATIONS.values()), dtype=torch.float64).unbind(1)
    operation = torch.randint(len(OPERATIONS), (n,))
    low, high, mirrored = low[operation], high[operation], mirrored[operation]
    magnitude = low + (high - low) * torch.rand(n, dtype=torch.float64)
    return operation, torch.where((mirrored > 0) & (torch.rand(n) < 0.5), -magnitude, magnitude)


def apply_operations(images, operation, magnitude):
    """Apply to each uint8 image (B, 3, H, W) its operation, an index (B,), with its magnitude (B,)."""
    images = images.clone()
    for family, names in FAMILIES.items():
        members = torch.tensor([INDEX[name] for name in names])
        chosen = torch.isin(operation, members).nonzero().squeeze(1)
        if len(chosen):
            on_device = chosen.to(images.device, non_blocking=True)
            images[on_device] = family(images[on_device], operation[chosen], magnitude[chosen])
    return images


def _warp(images, operation, magnitude):
    n, _, height, width = images.shape
    # Output pixel (x, y) takes the input pixel (a x + b y + c, d x + e y + f).
    identity = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.float64)
    a, b, c, d, e, f = identity.repeat(n, 1).unbind(1)

    def only(name, value):
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
    def fixed(value):
        return (value * 65536 + 0.5).floor().long().view(-1, 1, 1).to(images.device, non_blocking=True)

    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    x = (fixed(c + a * 0.5 + b * 0.5) + fixed(a) * columns + fixed(b) * rows) >> 16  # (n, H, W)
    y = (fixed(f + d * 0.5 + e * 0.5) + fixed(d) * columns + fixed(e) * rows) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    source = torch.where(inside, y * width + x, 0).view(n, 1, -1).expand(-1, 3, -1)
    return images.flatten(2).gather(2, source).view_as(images) * inside.unsqueeze(1)


def _blend(images, operation, factor):
    operation = operation.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    factor = factor.float().to(images.device, non_blocking=True).view(-1, 1, 1, 1)
    luma = _luma(images)  # (n, 1, H, W)
    mean = (luma.sum((2, 3), keepdim=True).double() / luma[0].numel() + 0.5).floor()
    other = torch.where(operation == INDEX["Color"], luma, 0)
    other = torch.where(operation == INDEX["Contrast"], mean.to(other.dtype), other)
    other = torch.where(operation == INDEX["Sharpness"], _smooth(images), other).float()
    return (other + factor * (images - other)).to(torch.uint8)  # Pillow cuts off, too


def _luma(images):
    """Pillow's "L": int32 (n, 1, H, W), in 16-bit fixed point."""
    r, g, b = images.int().unbind(1)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).unsqueeze(1)


def _smooth(images):
    """Pillow's SMOOTH, the 3 x 3 kernel of ones with 5 in the middle, over 13; border pixels stay: int32."""
    images = images.int()
    if min(images.shape[-2:]) < 3:
        return images
    columns = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    box = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = (2 * (box + 4 * images[..., 1:-1, 1:-1]) + 13) // 26
    return smooth


def _table(images, operation, magnitude):
    n = len(images)
    device = images.device
    value = torch.arange(256, device=device).view(1, 1, 256)
    table = value.expand(n, 3, 256).clone()

    def members(name):
        chosen = (operation == INDEX[name]).nonzero().squeeze(1)
        values = magnitude[chosen].view(-1, 1, 1)
        return chosen.to(device, non_blocking=True), values.to(device, non_blocking=True)

    chosen, threshold = members("Solarize")
    table[chosen] = torch.where(value < threshold, value, 255 - value).expand(-1, 3, -1)
    chosen, bits = members("Posterize")
    table[chosen] = (value & (-1 << (8 - bits.long()))).expand(-1, 3, -1)
    chosen, _ = members("AutoContrast")
    table[chosen] = _autocontrast_table(images[chosen], value)
    chosen, _ = members("Equalize")
    table[chosen] = _equalize_table(images[chosen], value)
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def _autocontrast_table(images, value):
    """Stretch each channel so that its darkest value becomes 0 and its lightest 255."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    # `255 / tensor` would round twice, as 255 * (1 / tensor)
    scale = torch.full_like(high, 255) / (high - low)
    stretched = (value * scale - low * scale).clamp(0, 255).nan_to_num().long()
    return torch.where(high > low, stretched, value)


def _equalize_table(images, value):
    """Spread each channel's histogram evenly, in ImageOps.equalize's integer arithmetic."""
    n = len(images)
    channel = torch.arange(n * 3, device=images.device).view(n, 3, 1) * 256
    bins = (images.flatten(2).long() + channel).flatten()
    counts = torch.zeros(n * 3 * 256, dtype=torch.int64, device=images.device)
    histogram = counts.scatter_add_(0, bins, torch.ones_like(bins)).view(n, 3, 256)
    last = torch.where(histogram > 0, value, -1).amax(2, keepdim=True).clamp(min=0)
    step = (histogram.sum(2, keepdim=True) - histogram.gather(2, last)) // 255
    below = histogram.cumsum(2) - histogram  # pixels darker than each value
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, spread, value)


FAMILIES = {
    _warp: ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    _blend: ("Color", "Contrast", "Brightness", "Sharpness"),
    _table: ("AutoContrast", "Equalize", "Solarize", "Posterize"),
}


# --- Cutout --------------------------------------------------------------------------------------


def draw_holes(n, size, n_holes, length, random=True):
    """Square holes: centers (row, column), int64 (n, n_holes, 2), and side lengths, int64 (n,).

    With `random` the length is uniform in 1..length, one per image; otherwise it is `length`.
    """
    centers = torch.stack([torch.randint(side, (n, n_holes)) for side in size], dim=2)
    lengths = torch.randint(1, length + 1, (n,)) if random else torch.full((n,), length)
    return centers, lengths


def cut_out(images, centers, lengths):
    """Set rows and columns [center - l // 2, center + l // 2) of each hole to 0, in normalised images."""
    device = images.device
    centers, lengths = centers.to(device, non_blocking=True), lengths.to(device, non_blocking=True)
    half = (lengths // 2).view(-1, 1, 1)
    keep = torch.ones(len(images), 1, *images.shape[-2:], dtype=torch.bool, device=device)
    rows = torch.arange(images.shape[-2], device=device).view(1, -1, 1)
    columns = torch.arange(images.shape[-1], device=device).view(1, 1, -1)
    for row, column in (hole.unbind(1) for hole in centers.unbind(1)):
        row, column = row.view(-1, 1, 1), column.view(-1, 1, 1)
        in_rows = (rows >= row - half) & (rows < row + half)
        in_columns = (columns >= column - half) & (columns < column + half)
        keep &= ~(in_rows & in_columns).unsqueeze(1)
    return images * keep
