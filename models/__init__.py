"""Networks. A new backbone is one entry of BACKBONES."""

import difflib

from errors import UserError

from .heads import ClusteringModel, ContrastiveModel
from .resnet import resnet10_narrow, resnet18, resnet50

__all__ = ["BACKBONES", "ClusteringModel", "ContrastiveModel", "build_model"]

# name: (builder that takes the image size in pixels, width of the features)
BACKBONES = {
    "resnet18": (resnet18, 512),
    "resnet50": (resnet50, 2048),
    "resnet10_narrow": (resnet10_narrow, 128),
}

# The published networks differ by dataset, not by crop size: same keys, another stem.
IMAGE_SIZE = {"cifar-10": 32, "cifar-20": 32, "stl-10": 96}


def build_model(config):
    """Build the network that an experiment describes, with fresh weights.

    Args:
        config: the mapping that a YAML experiment file gives. Steps `simclr` and `moco` give a
            ContrastiveModel, `scan` and `selflabel` a ClusteringModel.

    Raises:
        UserError: unknown setup or backbone.
    """
    name = config["backbone"]
    if name not in BACKBONES:
        near = difflib.get_close_matches(str(name), BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"backbone: unknown name {name!r}, known: {', '.join(BACKBONES)}{hint}")
    builder, dim = BACKBONES[name]
    image_size = IMAGE_SIZE.get(config.get("train_db_name"))
    if image_size is None:
        image_size = config.get("transformation_kwargs", {}).get("crop_size", 32)
    backbone = builder(image_size)

    if config["setup"] in ("simclr", "moco"):
        return ContrastiveModel(backbone, dim, **config.get("model_kwargs", {}))
    if config["setup"] in ("scan", "selflabel"):
        return ClusteringModel(backbone, dim, config["num_classes"], config.get("num_heads", 1))
    raise UserError(f"setup: unknown step {config['setup']!r}, known: simclr, moco, scan, selflabel")
