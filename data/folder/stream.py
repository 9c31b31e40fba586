"""Decode new image files as they come."""

import logging
from pathlib import Path

import torch

from ..messages import say_once
from .decode import OwnImages
from .decode_pass import BATCH, Decoding

log = logging.getLogger(__name__)


def stream_squares(files, how, white, num_workers):
    """See `data.stream`; `how`: decoding.How; `white`: its value of white, or None if not known."""
    how = how._replace(white=white or how.white)
    batches = [range(i, min(i + BATCH, len(files))) for i in range(0, len(files), BATCH)]
    loader = Decoding(OwnImages(files, None, None, how, Path())).loader(batches, num_workers)
    for indices, (squares, seen) in zip(batches, loader, strict=True):
        reasons = {files[i]: facts.reason for i, facts in zip(indices, seen, strict=True) if facts.reason}
        read = [files[i] for i, facts in zip(indices, seen, strict=True) if not facts.reason]
        empty = torch.empty(0, 3, how.size, how.size, dtype=torch.uint8)
        if white is None and any(facts.brightest >= 0 for facts in seen):
            message = f"new images have 16 bits, of which {how.white} is assumed to be white, because the"
            say_once(log.warning, f"{message} training images do not say so; set white_level")
        yield read, empty if squares is None else squares, reasons
