"""What the tests that need other data than the digits' own share: files of them, and tables of neighbors."""

import numpy as np
import torch

import data

DIGITS = {"train_db_name": "digits", "val_db_name": "digits"}


def write_digits(folder, name="digits", train=1437, test=360, images=np.asarray, labels=np.asarray):
    """`{name}.npz` with that many digits of each split, and without the split where that is None.

    `images` and `labels` are functions of a split's array, (N, 8, 8, 3) or (N,), to the one that is written;
    with `labels=None` there are none. Returns the setting with which a step reads the file.
    """
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        if count is None:
            continue
        digits = data.build_dataset(DIGITS, split)
        arrays[f"{split}_images"] = images(digits.images[:count].permute(0, 2, 3, 1).numpy())
        if labels:
            arrays[f"{split}_labels"] = labels(digits.labels[:count].numpy())
    np.savez(folder / f"{name}.npz", **arrays)
    return f"data_dir={folder}"


def neighbor_table(others):
    """Neighbors (N, K) -> a table as it is mined, (N, 1 + K), in which each image is its own first one."""
    return torch.cat([torch.arange(len(others)).unsqueeze(1), others], 1)


def random_neighbors(n, k):
    """A table of k different neighbors of each of n images."""
    return neighbor_table(torch.rand(n, n).fill_diagonal_(-1).topk(k).indices)
