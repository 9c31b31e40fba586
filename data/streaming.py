"""Decode new image files as they come."""

from pathlib import Path

import torch

from .decoding import OwnImages, decoding_loader
from .unreadable import BATCH, Decoding


def stream_squares(files, size, num_workers):
    """See `data.stream`."""
    images = OwnImages(files, None, None, size, Path())
    batches = [range(i, min(i + BATCH, len(files))) for i in range(0, len(files), BATCH)]
    loader = decoding_loader(
        Decoding(images, keep=True), num_workers, batch_size=None, sampler=batches, collate_fn=tuple
    )
    for indices, (squares, _, reasons) in zip(batches, loader, strict=True):
        of = dict(zip((files[i] for i in indices), reasons, strict=True))
        read = [file for file, why in of.items() if not why]
        empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
        yield read, empty if squares is None else squares, {file: why for file, why in of.items() if why}
