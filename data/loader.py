"""Batches of a dataset, seen through a view."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

from errors import UserError

from .dataset import BatchSource
from .device import Device
from .views import View

# On a GPU, small batches are augmented several at a time, up to this many bytes of images: the kernels of a
# single one would take longer to launch than to run.
AT_ONCE = 2**23
SAMPLE = 4  # anchors of `Loader.sample`

Source = TypeVar("Source", bound=BatchSource)
Fetched = tuple[torch.Tensor, torch.Tensor]  # images, and their index


class Loader(Generic[Source]):
    """Iterate over a dataset in batches.

    Args:
        dataset: it is moved to `device` if it fits there.
        view: what a step of the method sees.
        batch_size: anchors per batch.
        anchors: int64 (M,), indices of the images to go through; by default all.
        train: shuffle and drop the last incomplete batch; otherwise neither.
        device: where the batches are made.
        num_workers: processes that decode image files; images in memory need none.
        rank, world_size: this is process `rank` of `world_size`, which share each batch in equal parts. An
            uneven batch is padded with its first images.

    Attributes:
        ahead: number of augmented batches that wait to be yielded. Their random numbers are drawn already, so
            a pass can be interrupted and resumed (`skip`) only where none waits, as always on a CPU.

    Raises:
        UserError: a training split smaller than one batch, which would train nothing; a training batch
            of one image, or one that does not divide by the processes.
    """

    def __init__(
        self,
        dataset: Source,
        view: View,
        batch_size: int,
        train: bool,
        device: Device = "cpu",
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        anchors: torch.Tensor | None = None,
    ):
        self.anchors = torch.arange(len(dataset)) if anchors is None else anchors
        if train:
            _check_batch_size(batch_size, world_size, len(self.anchors))
        dataset.to(device)
        self.dataset = dataset
        self.view = view
        self.batch_size = batch_size
        self.train = train
        self.device = device
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        self.at_once = AT_ONCE if train and torch.device(device).type == "cuda" else 0
        self.ahead = 0
        self._skip: tuple[int, torch.Tensor | None] = 0, None

    def __len__(self) -> int:
        if self.train:
            return len(self.anchors) // self.batch_size
        return -(-len(self.anchors) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Yield what the view makes of each batch: a tensor, or a tuple of tensors."""
        order = self.anchors[torch.randperm(len(self.anchors))] if self.train else self.anchors
        batches = order.split(self.batch_size)[: len(self)]
        indices = [self._share(self.view.index(anchors)) for anchors in batches]
        (skipped, random_state), self._skip = self._skip, (0, None)
        if self.world_size > 1:
            # all processes drew the same batches; from here on each draws its own augmentations
            torch.manual_seed(torch.initial_seed() + 500_009 * (self.rank + 1))
        elif random_state is not None:
            torch.set_rng_state(random_state)
        indices = indices[skipped:]
        fetched = self.dataset.fetch(indices, self.device, self.num_workers)
        for group in self._grouped(zip(fetched, indices, strict=True)):
            seen = self._see(group)
            for number, batch in enumerate(seen, start=1):
                self.ahead = len(seen) - number
                yield batch

    def _grouped(self, fetched: Iterable[Fetched]) -> Iterator[list[Fetched]]:
        """Lists of batches to augment in one call."""
        group: list[Fetched] = []
        for images, index in fetched:
            group.append((images, index))
            if (len(group) + 1) * images.nbytes > self.at_once:
                yield group
                group = []
        if group:
            yield group

    def _see(self, group: list[Fetched]) -> list[Any]:
        """Apply the view to several batches of one size in one call; returns a result for each."""
        if len(group) == 1:
            return [self.view(*group[0])]
        seen = self.view(*map(torch.cat, zip(*group, strict=True)))
        if isinstance(seen, torch.Tensor):
            return list(seen.chunk(len(group)))
        return list(zip(*(part.chunk(len(group)) for part in seen), strict=True))

    def sample(self) -> tuple[torch.Tensor, Any]:
        """A small batch, of the first anchors, outside any pass; the random state does not change.

        Returns:
            the fetched uint8 images, (n, ..., 3, H, W), or features; and what the view makes of them.
        """
        with torch.random.fork_rng(devices=[]):
            index = self.view.index(self.anchors[:SAMPLE])
            fetched = next(iter(self.dataset.fetch([index], self.device)))
            return fetched, self.view(fetched, index)

    def skip(self, batches: int, random_state: torch.Tensor | None) -> None:
        """Start the next pass after so many batches, with the random state that torch had there.

        Several processes do not share one random state: they draw new augmentations for the rest of the pass.
        """
        self._skip = batches, random_state

    def _share(self, index: torch.Tensor) -> torch.Tensor:
        size = -(-len(index) // self.world_size)
        return index[torch.arange(self.rank * size, (self.rank + 1) * size) % len(index)]


def _check_batch_size(batch_size: int, world_size: int, n: int) -> None:
    """Raise UserError for a batch size that `n` training images and `world_size` processes cannot have."""
    if batch_size < 2:
        raise UserError(
            f"batch_size {batch_size}: the losses compare images of a batch; set batch_size to 2 or more"
        )
    if batch_size % world_size:
        raise UserError(
            f"batch_size {batch_size} does not divide by {world_size} processes, which share a batch; "
            f"set it to {max(1, batch_size // world_size) * world_size}"
        )
    if n < batch_size:
        raise UserError(
            f"batch_size {batch_size} is larger than the training split ({n} images), "
            f"so no batch would be complete; set batch_size to {n} or less"
        )
