"""Small images for a page: many in one JPEG, since each file would need headers of its own."""

import base64
import io
import math

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

# Sides in pixels: multiples of 16, the blocks of a JPEG, so that an image does not bleed into the next one
SIDES = 96, 80, 64, 48, 32, 16
PIXELS = 24e6  # of all thumbnails: about 10 MB
SHEET = 1920  # side of a sheet in pixels: divisible by all SIDES
QUALITY = 82


def thumbnail_side(count, largest):
    """Side of `count` thumbnails of images whose longer side is `largest` pixels."""
    enough = next((side for side in reversed(SIDES) if side >= largest), SIDES[0])
    return next((side for side in SIDES if side <= enough and count * side**2 <= PIXELS), SIDES[-1])


def draw_sheets(dataset, indices):
    """Draw the images at `indices` of a dataset as thumbnails.

    Returns:
        dict: `side` of a thumbnail in pixels; `columns` of a sheet; `per_sheet`, its thumbnails, of which the
        last sheet may have fewer; `sheets`, list of JPEGs in base64.
    """
    side = thumbnail_side(len(indices), max(dataset.raw(indices[0]).shape[1:]))
    columns = SHEET // side
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
        sheet.save(file, "JPEG", quality=QUALITY)
        sheets.append(base64.b64encode(file.getvalue()).decode())
    progress.close()
    return {"side": side, "columns": columns, "per_sheet": per_sheet, "sheets": sheets}


def _thumbnail(image, side):
    """A square thumbnail of an image, uint8 (3, H, W); what is not square gets black bars."""
    image = Image.fromarray(np.ascontiguousarray(image.numpy().transpose(1, 2, 0)))
    # pixels that are few stay sharp
    how = Image.Resampling.NEAREST if side >= 2 * max(image.size) else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (side, side), how)
