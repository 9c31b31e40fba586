"""What is held in memory as one tensor: images, and features of their views."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import torch

from errors import UserError

from .device import to_device

log = logging.getLogger(__name__)

CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # those of this process, and their files


class ArrayImages:
    """One split of a small dataset, kept where the arithmetic is.

    Args:
        images: uint8 tensor or array, (N, 3, H, W).
        labels: integers (N,), or None when there are none.
        classes: names of the classes; without them the labels themselves. None without labels.
    """

    def __init__(self, images, labels=None, classes=None):
        self.images = torch.as_tensor(images)
        self._stays = False
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.classes = None
        if labels is not None:
            self.classes = classes or [str(name) for name in range(int(self.labels.max()) + 1)]
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.size(1) != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise ValueError(f"{len(self.images)} images but labels of shape {tuple(self.labels.shape)}")

    def __len__(self):
        return len(self.images)

    def fingerprint(self):
        """Number of images and a hash of up to a thousand of them; labels do not enter."""
        some = self.images[:: max(1, len(self) // 1000)].cpu().contiguous()
        content = str(tuple(self.images.shape)).encode() + some.numpy().tobytes()
        return f"{len(self)} images ({hashlib.sha256(content).hexdigest()[:16]})"

    def names(self):
        """What to call the images: their places in the split."""
        return [str(index) for index in range(len(self))]

    def raw(self, index):
        """The image as it is, uint8 (3, H, W), on the CPU."""
        return self.images[index].cpu()

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the uint8 images of each index batch, (*index.shape, 3, H, W), on `device`."""
        self._move(torch.device(device))
        for index in index_batches:
            index = to_device(index, self.images.device)
            yield self.images[index].to(device, non_blocking=True)

    def _move(self, device):
        """Move the images to the device where they fit; where they do not, their batches will be copied."""
        if self._stays or self.images.device.type == device.type:
            return
        try:
            # twice their size: as much again is left to the training
            torch.empty(2, *self.images.shape, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:
            self._stays = True
            log.info("%d images find no room on %s; each batch is copied there", len(self), device)
        else:
            self.images = self.images.to(device)


class FeatureViews:
    """Features in the place of images: of several augmented views of each, one of which is drawn per use.

    Args:
        views: (V, N, D), kept where it is.
    """

    def __init__(self, views):
        self.views = views

    def __len__(self):
        return self.views.size(1)

    def fetch(self, index_batches, device, num_workers=0):
        """Yield the features of each index batch, (*index.shape, D)."""
        for index in index_batches:
            view = torch.randint(len(self.views), index.shape)
            yield self.views[to_device(view, self.views.device), to_device(index, self.views.device)]


def to_channels_first(images, where):
    """uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W) -> contiguous (N, 3, H, W); grey is repeated.

    Raises UserError, naming `where`, for anything else.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise UserError(
            f"{where}: images must be uint8 of shape (N, H, W, 3) or (N, H, W), "
            f"found {images.dtype} {images.shape}"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def fits_in_memory(size):
    """Whether so many bytes are at most a quarter of the memory, shared by this machine's processes of a run.

    The memory is what the system has available, or the limit of the job or container if that is less.
    """
    available = 4e9  # where the system does not tell
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
            available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return size <= min([available, *_memory_limits()]) / 4 / processes


def _memory_limits():
    """Limits in bytes that Linux sets on the memory of this process's control groups, of version 1 or 2."""
    try:
        lines = CONTROL_GROUPS[0].read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = CONTROL_GROUPS[1] / controllers
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        for folder in (top / group[1:], *(top / group[1:]).parents):
            try:
                limit = (folder / file).read_text().strip()
            except OSError:  # a container does not see the groups above its own
                continue
            if limit != "max":
                yield int(limit)
