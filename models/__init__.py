"""Networks. A new backbone is one entry of BACKBONES."""

from errors import UserError, did_you_mean

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

# What the mapping of a caller who has read a YAML file without load_config may lack; tests compare it with
# the table of keys, in utils/.
DEFAULTS = {"model_kwargs": {}, "num_heads": 1, "transformation_kwargs": {"crop_size": 224}}


def build_model(config):
    """Build the network that an experiment describes, with fresh weights.

    Args:
        config: the mapping that a YAML experiment file gives. Steps `simclr` and `moco` give a
            ContrastiveModel, `scan` and `selflabel` a ClusteringModel.

    Raises:
        UserError: unknown setup or backbone.
    """
    config = {**DEFAULTS, **config}
    name = config["backbone"]
    if name not in BACKBONES:
        question = did_you_mean(name, BACKBONES)
        hint = f"; {question}" if question else ""
        raise UserError(f"backbone: unknown name {name!r}, known: {', '.join(BACKBONES)}{hint}")
    builder, dim = BACKBONES[name]
    image_size = IMAGE_SIZE.get(config.get("train_db_name"))
    if image_size is None:
        image_size = config["transformation_kwargs"]["crop_size"]
    backbone = builder(image_size)

    if config["setup"] in ("simclr", "moco"):
        return ContrastiveModel(backbone, dim, **config["model_kwargs"])
    if config["setup"] in ("scan", "selflabel"):
        return ClusteringModel(backbone, dim, config["num_classes"], config["num_heads"])
    raise UserError(f"setup: unknown step {config['setup']!r}, known: simclr, moco, scan, selflabel")
