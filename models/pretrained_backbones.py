"""Networks of other libraries, without their classifier, and vectors in the place of images.

`timm/NAME[.TAG]` and `torchvision/NAME[.WEIGHTS]` are built without weights and without network access; only
`download` needs either. The libraries take seconds to import, so they are imported where they are needed.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from errors import UserError, did_you_mean


class Preprocessing(NamedTuple):
    """The images that pretrained weights expect."""

    size: int  # side of the crop in pixels
    mean: list[float]  # of each of the three channels
    std: list[float]


IMAGENET = Preprocessing(224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# DINOv2's configured size: more than five times the work of 224 pixels, far too slow on a CPU. timm resamples
# the position embeddings.
TOO_LARGE = {518: 224}

# Parts of timm's tags. Tags with neither, such as those of CLIP's descendants, do not say.
UNLABELED = {"dino", "mae", "fcmae", "ijepa", "seer", "lvd142m", "lvd1689m", "sat493m"}
IMAGENET_LABELS = re.compile(r"inw?\d+k")  # in1k, in12k, in21k, in22k
OTHER_TEACHERS = {"mim", "eupe"}  # that learned by imitating networks of mixed origin


class TimmNetwork:
    """timm/NAME[.TAG]; without a tag, timm's default one.

    Attributes:
        weights: full name of the pretrained weights; None if the library has none.
        labels: whether these were learned with labels: True, False, or None where the name does not tell.
        preprocessing: what the weights were trained with.
    """

    weights: str | None = None
    labels: bool | None = None

    def __init__(self, name: str):
        try:
            import timm
        except ImportError:
            raise UserError(f"backbone timm/{name}: timm is not installed; pip install timm") from None
        self.name, self.timm = name, timm
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            raise _unknown("network", "timm/", architecture, timm.list_models())
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise _unknown("weights", f"timm/{architecture}.", tag, tags)
        config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        if tags:
            self.weights = f"timm/{architecture}.{config.tag}"
            self.labels = learned_with_labels(config.tag or "")
        self.config = config
        size = config.input_size[-1]
        self.preprocessing = Preprocessing(TOO_LARGE.get(size, size), list(config.mean), list(config.std))

    def build(self, image_size: int, pretrained: bool = False) -> nn.Module:
        """The network without its classifier: images (B, 3, S, S) -> features (B, D)."""
        options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
        try:  # a transformer is built for one image size
            size: dict[str, Any] = {"img_size": image_size} if self.config.fixed_input_size else {}
            network = self.timm.create_model(self.name, **options, **size)
        except TypeError:  # some have a fixed size and do not take another
            network = self.timm.create_model(self.name, **options)
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        side = patch[0] if isinstance(patch, tuple) else patch
        if isinstance(side, int) and image_size % side:
            near = max(1, round(image_size / side)) * side
            raise UserError(
                f"backbone timm/{self.name}: {image_size} pixels do not divide into patches of {side}; set "
                f"the crop size to a multiple of that, such as {near}"
            )
        return network

    def download(self, image_size: int) -> dict[str, torch.Tensor]:
        """State dict of the pretrained weights, which the library caches. Raises whatever it does."""
        return self.build(image_size, pretrained=True).state_dict()

    def convert(self, backbone: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights in an original program's layout -> the backbone's; position embeddings are resampled."""
        # each architecture's module has one, under this name, if it needs one
        convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
        return convert(dict(weights), backbone) if convert else dict(weights)

    def classifiers(self) -> tuple[str, ...]:
        """Names of the classifier's modules in the library's network."""
        names = self.config.classifier or ()
        return (names,) if isinstance(names, str) else tuple(names)


class TorchvisionNetwork:
    """torchvision/NAME[.WEIGHTS], a classification network; attributes and methods as TimmNetwork."""

    labels = True  # all of its weights were trained to classify

    def __init__(self, name: str):
        from torchvision import models

        architecture, _, weights = name.partition(".")
        # these two give several outputs in training, and change their inputs
        known = set(models.list_models(module=models)) - {"googlenet", "inception_v3"}
        if architecture not in known:
            raise _unknown("network", "torchvision/", architecture, sorted(known))
        entries = models.get_model_weights(architecture).__members__
        if weights and weights not in entries:
            raise _unknown("weights", f"torchvision/{architecture}.", weights, list(entries))
        self.models, self.architecture = models, architecture
        self.entry = entries[weights or "DEFAULT"]
        self.weights = f"torchvision/{architecture}.{self.entry.name}"
        transform = self.entry.transforms()
        self.preprocessing = Preprocessing(transform.crop_size[0], list(transform.mean), list(transform.std))

    def build(self, image_size: int) -> nn.Module:
        size = {"image_size": image_size} if self.architecture.startswith("vit_") else {}
        network = self.models.get_model(self.architecture, weights=None, **size)
        network.set_submodule(_classifier(network), nn.Identity())
        return network

    def download(self, image_size: int) -> dict[str, torch.Tensor]:
        return self.entry.get_state_dict(
            progress=True, check_hash=True, weights_only=True, map_location="cpu"
        )

    def convert(self, backbone: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "encoder.pos_embedding"  # a transformer's, (1, 1 + G * G, D)
        own, given = backbone.state_dict().get(name), weights.get(name)
        if own is None or given is None or own.shape == given.shape:
            return dict(weights)
        resample = self.models.vision_transformer.interpolate_embeddings
        return resample(backbone.image_size, backbone.patch_size, dict(weights))

    def classifiers(self) -> tuple[str, ...]:
        return (_classifier(self.models.get_model(self.architecture, weights=None)),)


LibraryNetwork = TimmNetwork | TorchvisionNetwork


def library_network(name: str) -> LibraryNetwork | None:
    """The network that a `backbone` of the form LIBRARY/NAME means; None for a name without a slash.

    Raises UserError: unknown library, network or weights; timm is not installed.
    """
    library, slash, rest = name.partition("/")
    if not slash:
        return None
    if library == "timm":
        return TimmNetwork(rest)
    if library == "torchvision":
        return TorchvisionNetwork(rest)
    raise UserError(f"backbone: unknown library {library!r} in {name!r}, known: timm, torchvision")


def _unknown(what: str, prefix: str, found: str, known: Iterable[str]) -> UserError:
    known = list(known)
    hint = did_you_mean(found, known, lambda near: f"'{prefix}{near}'")
    if not hint:
        hint = f"known: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "it has none"
    return UserError(f"backbone {prefix}{found}: unknown {what} {found!r}; {hint}")


def _classifier(network: nn.Module) -> str:
    """Name of the layer that classifies: the last one with an output for each of ImageNet's 1000 classes."""
    return [
        name
        for name, module in network.named_modules()
        if 1000 in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ][-1]


def learned_with_labels(tag: str) -> bool | None:
    """Whether timm's weights with this tag were learned with labels: True, False, or None where unknown."""
    parts = set(tag.split("_"))
    with_labels = any(map(IMAGENET_LABELS.fullmatch, parts)) or None
    if "ft" in parts:  # fine-tuned
        return with_labels
    if parts & OTHER_TEACHERS:
        return None
    return False if parts & UNLABELED else with_labels


class VectorInputs(nn.Module):
    """The backbone `features/D`: the inputs are features already, (B, D), and stay as they are.

    Raises UserError if D is not a positive whole number.
    """

    zeros: torch.Tensor  # of length D, so that a file of weights shows it

    def __init__(self, name: str):
        super().__init__()
        width = name.removeprefix("features/")
        if not re.fullmatch(r"[1-9]\d{0,5}", width):
            raise UserError(
                f"backbone {name}: expected features/D, such as features/384, D the vectors' length"
            )
        self.register_buffer("zeros", torch.zeros(int(width)))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + self.zeros
