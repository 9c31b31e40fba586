"""Networks.

To add a backbone, write a builder(image_size) that returns a module, images (B, 3, S, S) -> features (B, D),
such as another library's network without its classifier, and enter it in BACKBONES. D may be any number.
"""

import copy

import torch

from errors import UserError, did_you_mean

from .heads import ClusteringModel, ContrastiveModel
from .resnet import resnet10_narrow, resnet18, resnet50

__all__ = ["BACKBONES", "ClusteringModel", "ContrastiveModel", "build_model"]

# name: builder(image_size) of a module; `image_size`: side of the images in pixels
BACKBONES = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet10_narrow": resnet10_narrow,
}

# Image sizes that decide the stem. The published networks have a stem by dataset, not by crop size, and their
# files do not show which: keys and shapes are the same. For all other datasets the crop size decides.
IMAGE_SIZE = {"cifar-10": 32, "cifar-20": 32, "stl-10": 96}

# For callers who read a YAML file without load_config: defaults of keys that may be missing. A test compares
# them with the table of keys in utils/run/schema.py.
DEFAULTS = {"model_kwargs": {}, "num_heads": 1, "transformation_kwargs": {"crop_size": 32}}


def build_model(config):
    """Build the network that an experiment describes, with fresh weights.

    Args:
        config: the mapping that a YAML experiment file gives. Steps `simclr` and `moco` give a
            ContrastiveModel, `scan` and `selflabel` a ClusteringModel.

    Raises:
        UserError: unknown setup or backbone, or a backbone that cannot take images of that size.
    """
    config = {**DEFAULTS, **config}
    name = config["backbone"]
    if name not in BACKBONES:
        question = did_you_mean(name, BACKBONES)
        hint = f"; {question}" if question else ""
        raise UserError(f"backbone: unknown name {name!r}, known: {', '.join(BACKBONES)}{hint}")
    image_size = IMAGE_SIZE.get(config.get("train_db_name"))
    if image_size is None:
        image_size = config["transformation_kwargs"]["crop_size"]
    backbone = BACKBONES[name](image_size)
    try:
        dim = feature_width(backbone, image_size)
    except RuntimeError as error:
        raise UserError(
            f"backbone {name}: cannot take images of {image_size} pixels ({str(error).splitlines()[0]}); set "
            "another backbone or crop size"
        ) from None

    if config["setup"] in ("simclr", "moco"):
        return ContrastiveModel(backbone, dim, **config["model_kwargs"])
    if config["setup"] in ("scan", "selflabel"):
        return ClusteringModel(backbone, dim, config["num_classes"], config["num_heads"])
    raise UserError(f"setup: unknown step {config['setup']!r}, known: simclr, moco, scan, selflabel")


def feature_width(backbone, image_size):
    """D of a backbone's features (B, D).

    It comes from a forward pass of a copy on the meta device, in eval mode. Such a pass computes no values,
    so that no random number is drawn, no statistic changes, and large images cost nothing.
    """
    on_meta = copy.deepcopy(backbone).to("meta").eval()
    return on_meta(torch.empty(1, 3, image_size, image_size, device="meta")).size(1)
