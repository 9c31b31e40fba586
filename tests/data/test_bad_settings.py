"""Settings that do not go with the images: each is refused in one line that names the key."""

import pytest
import torch
from digits_steps import config_of
from mistakes import refused

import data


def load(config):
    data.Loader(data.build_dataset(config, "train"), None, config.batch_size, train=True)


def both_splits(config):
    return [data.build_dataset(config, split) for split in ("train", "test")]


def evaluate(config):
    data.build_eval_transform(config)(both_splits(config)[0].images[:2])


def augment(config):
    data.build_train_transform(config)(both_splits(config)[0].images[:2])


def pair(config):
    data.AnchorNeighborView(None, torch.zeros(1437, 21, dtype=torch.int64), config.num_neighbors)


SETTINGS = [
    ("scan", "batch_size=1000000000000", load, "batch_size 1000000000000", "1437 images"),
    ("pretext", "train_db_name=digit", both_splits, "dataset 'digit': unknown", "did you mean 'digits'?"),
    ("scan", "val_db_name=digts", both_splits, "dataset 'digts': unknown", "did you mean 'digits'?"),
    ("pretext", "transformation_kwargs.crop_size=32", evaluate, "crop", "32", "8"),
    (
        "pretext",
        "augmentation_strategy=ours",
        augment,
        "'ours' needs crop_size, cutout_kwargs, num_strong_augs",
    ),
    ("scan", "augmentation_strategy=simclr", augment, "'simclr' needs color_jitter"),
    ("scan", "augmentation_kwargs.crop_size=9", augment, "crop", "9", "8"),
    ("scan", "num_neighbors=500", pair, "num_neighbors 500 is more than the 20 neighbors", "to 20 or less"),
]


@pytest.mark.parametrize("row", SETTINGS, ids=[f"{row[0]}-{row[1]}" for row in SETTINGS])
def test_refused(row):
    step, override, function, *words = row
    refused(words, function, config_of(step, override))


def test_no_augmentation_at_all():
    config = config_of("pretext")
    config.augmentation_kwargs = {}
    refused(["augmentation_kwargs: 'simclr' needs color_jitter"], augment, config)
