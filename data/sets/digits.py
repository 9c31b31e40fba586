"""scikit-learn's 1 797 handwritten digits, 8 x 8 pixels: real images that need no download."""

from pathlib import Path

import numpy as np

from .arrays import ArrayImages, to_channels_first


def build_digits(data_dir: Path, split: str, size: int) -> ArrayImages:
    """`train` (1 437 images) or `test` (360): a fixed split, stratified by class."""
    from sklearn.datasets import load_digits  # takes seconds, so only where it is needed
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0
    )
    index = test if split == "test" else train
    return ArrayImages(to_channels_first(images[index], "digits"), bunch.target[index])
