"""Decode new image files as they come."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from ..messages import say_once
from .decode import ResizeSpec
from .decode_pass import decode_batches
from .sanity_checks import WHITE

log = logging.getLogger(__name__)


def stream_images(
    files: Sequence[str], spec: ResizeSpec, white: int | None, num_workers: int
) -> Iterator[tuple[list[str], torch.Tensor, dict[str, str]]]:
    """See `data.stream`; `white`: the value of 16-bit files that is shown white, or None if not known."""
    paths = iter(files)
    for records, pixels in decode_batches(files, spec, white or WHITE, num_workers):
        if white is None and any(record.brightest >= 0 for record in records):
            message = f"new images have 16 bits, of which {WHITE} is assumed to be white, because the"
            say_once(log.warning, f"{message} training images do not say so; set white_level")
        batch = list(islice(paths, len(records)))
        reasons = {path: record.reason for path, record in zip(batch, records, strict=True) if record.reason}
        if pixels is None:
            pixels = torch.empty(0, 3, spec.size, spec.size, dtype=torch.uint8)
        yield [path for path in batch if path not in reasons], pixels, reasons
