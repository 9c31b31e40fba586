"""Decode new image files as they come."""

from pathlib import Path

import torch

from .decoding import OwnImages
from .unreadable import BATCH, Decoding


def stream_squares(files, how, num_workers):
    """See `data.stream`; `how`: decoding.How."""
    batches = [range(i, min(i + BATCH, len(files))) for i in range(0, len(files), BATCH)]
    loader = Decoding(OwnImages(files, None, None, how, Path())).loader(batches, num_workers)
    for indices, (squares, seen) in zip(batches, loader, strict=True):
        reasons = {files[i]: facts.reason for i, facts in zip(indices, seen, strict=True) if facts.reason}
        read = [files[i] for i, facts in zip(indices, seen, strict=True) if not facts.reason]
        empty = torch.empty(0, 3, how.size, how.size, dtype=torch.uint8)
        yield read, empty if squares is None else squares, reasons
