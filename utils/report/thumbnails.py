"""Small images for a page: many in one JPEG, because each file would need its own headers."""

import base64
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

if TYPE_CHECKING:
    from data import Dataset

# Sides in pixels: multiples of 16, the blocks of a JPEG, so that an image does not bleed into the next one
SIDES = 96, 80, 64, 48, 32, 16
MAX_PIXELS = 24e6  # of all thumbnails: about 10 MB
SHEET_SIDE = 1920  # in pixels: divisible by all SIDES
JPEG_QUALITY = 82


def thumbnail_side(count: int, largest: int) -> int:
    """Side of `count` thumbnails of images whose longer side is `largest` pixels."""
    enough = next((side for side in reversed(SIDES) if side >= largest), SIDES[0])
    return next((side for side in SIDES if side <= enough and count * side**2 <= MAX_PIXELS), SIDES[-1])


def draw_sheets(dataset: "Dataset", indices: list[int]) -> dict[str, Any]:
    """Draw the images at `indices` of a dataset as thumbnails.

    Returns:
        dict: `side` of a thumbnail in pixels; `columns` of a sheet; `per_sheet`, its thumbnails, of which the
        last sheet may have fewer; `sheets`, list of JPEGs in base64.
    """
    side = thumbnail_side(len(indices), max(dataset.raw(indices[0]).shape[1:]))
    columns = SHEET_SIDE // side
    per_sheet = columns**2
    sheets = []
    progress = tqdm(total=len(indices), desc="thumbnails", leave=False, disable=None)
    for start in range(0, len(indices), per_sheet):
        part = indices[start : start + per_sheet]
        sheet = Image.new("RGB", (side * columns, side * math.ceil(len(part) / columns)))
        for place, index in enumerate(part):
            row, column = divmod(place, columns)
            sheet.paste(_thumbnail(dataset.raw(index), side), (side * column, side * row))
            progress.update()
        file = io.BytesIO()
        sheet.save(file, "JPEG", quality=JPEG_QUALITY)
        sheets.append(base64.b64encode(file.getvalue()).decode())
    progress.close()
    return {"side": side, "columns": columns, "per_sheet": per_sheet, "sheets": sheets}


def _thumbnail(pixels: torch.Tensor, side: int) -> Image.Image:
    """A square thumbnail of an image, uint8 (3, H, W); an image that is not square gets black bars."""
    image = Image.fromarray(np.ascontiguousarray(pixels.numpy().transpose(1, 2, 0)))
    # the pixels of a very small image stay sharp
    resampling = Image.Resampling.NEAREST if side >= 2 * max(image.size) else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (side, side), resampling)
