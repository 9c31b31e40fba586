"""Networks.

To add a backbone, write a builder(image_size) that returns a module, images (B, 3, S, S) -> features (B, D),
such as another library's network without its classifier, and enter it in BACKBONES. D may be any number.
Networks of timm and torchvision need no entry: see pretrained_backbones.py.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from errors import UserError, did_you_mean, first_line

from .heads import ClusteringModel, ContrastiveModel, PretrainedModel
from .pretrained_backbones import IMAGENET, Preprocessing, VectorInputs, library_network
from .resnet import resnet10_narrow, resnet10_narrow_pool, resnet18, resnet50

# name: builder(image_size) of a module; `image_size`: side of the images in pixels
BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "resnet10_narrow": resnet10_narrow,
    "resnet10_narrow_pool": resnet10_narrow_pool,
}

# Image sizes that decide the stem. The published networks have a stem by dataset, not by crop size, and their
# files do not show which: keys and shapes are the same. For all other datasets the crop size decides.
IMAGE_SIZE = {"cifar-10": 32, "cifar-20": 32, "stl-10": 96}

# For callers who read a YAML file without load_config: defaults of keys that may be missing. A test compares
# them with the table of keys in utils/run/schema.py.
MODEL_DEFAULTS = {"model_kwargs": {}, "num_heads": 1, "transformation_kwargs": {"crop_size": 32}}


def build_model(config: Mapping[str, Any]) -> ContrastiveModel | ClusteringModel | PretrainedModel:
    """Build the network that an experiment describes, with fresh weights, without network access.

    Args:
        config: the mapping that a YAML experiment file gives. Steps `simclr` and `moco` give a
            ContrastiveModel, `pretrained` a PretrainedModel, `scan` and `selflabel` a ClusteringModel.

    Raises:
        UserError: unknown setup or backbone, or a backbone that cannot take images of that size.
    """
    config = {**MODEL_DEFAULTS, **config}
    backbone, dim = build_backbone(config)
    match config["setup"]:
        case "simclr" | "moco":
            return ContrastiveModel(backbone, dim, **config["model_kwargs"])
        case "scan" | "selflabel":
            return ClusteringModel(backbone, dim, config["num_classes"], config["num_heads"])
        case "pretrained":
            if config.get("features") == "head":
                raise UserError(
                    "features: setup pretrained has no contrastive head; set features to backbone"
                )
            return PretrainedModel(backbone)
    known = "simclr, moco, pretrained, scan, selflabel"
    raise UserError(f"setup: unknown step {config['setup']!r}, known: {known}")


def build_backbone(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The backbone of a configuration, and the width D of its features (B, D)."""
    name, crop_size = config["backbone"], config["transformation_kwargs"]["crop_size"]
    if name.startswith("features"):
        if not config.get("features_file"):
            raise UserError(f"backbone {name}: takes vectors in the place of images; set features_file")
        vectors = VectorInputs(name)
        return vectors, len(vectors.zeros)
    if name not in BACKBONES and "/" not in name:
        question = did_you_mean(name, BACKBONES)
        raise UserError(
            f"backbone: unknown name {name!r}, known: {', '.join(BACKBONES)}, timm/NAME, torchvision/NAME"
            f"{'; ' if question else ''}{question}"
        )
    library = library_network(name)
    image_size = crop_size if library else IMAGE_SIZE.get(config.get("train_db_name", ""), crop_size)
    try:
        backbone = library.build(image_size) if library else BACKBONES[name](image_size)
        return backbone, feature_width(backbone, image_size)
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"backbone {name}: cannot take images of {image_size} pixels ({first_line(error)}); set "
            "another backbone or crop size"
        ) from None


def preprocessing(backbone: str) -> Preprocessing:
    """The images that a backbone's pretrained weights expect; those of ImageNet if it does not say.

    Raises UserError for an unknown network of a library.
    """
    library = None if backbone.startswith("features/") else library_network(backbone)
    return library.preprocessing if library else IMAGENET


def feature_width(backbone: nn.Module, image_size: int) -> int:
    """D of a backbone's features (B, D).

    It comes from a forward pass of one black image through a copy in eval mode, which draws no random number
    and leaves nothing behind. On the meta device a pass would compute nothing, but make torch import its
    compiler: 2 s.
    """
    weight = next(backbone.parameters(), torch.empty(0))
    with torch.no_grad():
        features = copy.deepcopy(backbone).eval()(weight.new_zeros(1, 3, image_size, image_size))
    if features.dim() != 2:
        raise ValueError(f"its features are {tuple(features.shape)} instead of one vector per image")
    return features.size(1)
