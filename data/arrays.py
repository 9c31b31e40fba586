"""What is held in memory as one tensor: images, `.npz` files of them, and features of their views."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from errors import UserError

MOST_CLASSES = 30_000  # more would need gigabytes to be compared with clusters


class ArrayImages:
    """One split of a small dataset, kept where the arithmetic is.

    Args:
        images: uint8 tensor or array, (N, 3, H, W).
        labels: integers (N,), or None when there are none.
        classes: names of the classes; without them the labels themselves. None without labels.
    """

    def __init__(self, images, labels=None, classes=None):
        self.images = torch.as_tensor(images)
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
        self.images = self.images.to(device)
        for index in index_batches:
            yield self.images[index.to(device, non_blocking=True)]


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
            yield self.views[view.to(device, non_blocking=True), index.to(device, non_blocking=True)]


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


def read_npz(path, split):
    """Read `{split}_images` and, if there, `{split}_labels` of an npz file. `split`: train or test.

    The file may carry `classes`, the class names. Labels may have shape (N,) or (N, 1), as
    MedMNIST's have. Raises UserError for a missing array or one of the wrong shape or type.
    """
    path = Path(path)
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can break the reader in any way
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: holds a single array; expected an .npz with {split}_images")
    with archive:
        if f"{split}_images" not in archive:
            raise UserError(
                f"{path}: has no array '{split}_images', only {', '.join(archive.files) or 'nothing'}"
            )
        try:
            images = archive[f"{split}_images"]
            labels, classes = archive.get(f"{split}_labels"), archive.get("classes")
        except Exception as error:
            raise UserError(f"{path}: cannot be read ({error}); write it again") from None
    images = to_channels_first(images, f"{path}: {split}_images")
    if classes is not None and classes.ndim != 1:
        raise UserError(f"{path}: 'classes' must be a list of names, found shape {classes.shape}")
    if labels is not None:
        labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise UserError(
                f"{path}: {split}_labels must be integers of shape ({len(images)},), "
                f"found {labels.dtype} {labels.shape}"
            )
        if len(labels) and labels.min() < 0:
            raise UserError(
                f"{path}: {split}_labels holds negative labels; leave the array out if there are none"
            )
        if len(labels) and labels.max() >= MOST_CLASSES:
            raise UserError(f"{path}: {split}_labels holds {labels.max()}; number the classes 0, 1, 2, ...")
        if classes is not None and len(labels) and labels.max() >= len(classes):
            raise UserError(f"{path}: 'classes' has {len(classes)} names, but a label is {labels.max()}")
    return ArrayImages(images, labels, None if classes is None else [str(name) for name in classes])
