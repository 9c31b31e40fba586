"""Networks of other libraries, without their classifier, and vectors in the place of images.

`timm/NAME[.TAG]` and `torchvision/NAME[.WEIGHTS]` are built without weights and without network access; only
`download` needs either. The libraries take seconds to import, so they are imported where they are needed.
"""

import re
import sys

import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError, did_you_mean

IMAGENET = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
# DINOv2's configured size: more than five times the work of 224 pixels, far too slow on a CPU. timm resamples
# the position embeddings.
TOO_LARGE = {518: 224}

# Parts of timm's tags. Tags with neither, such as those of CLIP's descendants, do not say.
UNLABELED = {"dino", "mae", "fcmae", "ijepa", "seer", "lvd142m", "lvd1689m", "sat493m"}
IMAGENET_LABELS = re.compile(r"inw?\d+k")  # in1k, in12k, in21k, in22k
OTHER_TEACHERS = {"mim", "eupe"}  # that learned by imitating networks of mixed origin


def library_network(name):
    """The network that a `backbone` of the form LIBRARY/NAME means; None for a name without a slash.

    Raises UserError: unknown library, network or weights; timm is not installed.
    """
    library, slash, rest = name.partition("/")
    if not slash:
        return None
    if library not in LIBRARIES:
        raise UserError(f"backbone: unknown library {library!r} in {name!r}, known: {', '.join(LIBRARIES)}")
    return LIBRARIES[library](rest)


class TimmNetwork:
    """timm/NAME[.TAG]; without a tag, timm's default one.

    Attributes:
        weights: full name of the pretrained weights; None if timm has none.
        labels: whether these were learned with labels: True, False, or None where the name does not tell.
        preprocessing: dict of `size` (pixels), `mean` and `std` that the weights were trained for.
        classifiers: names of the classifier's modules in the library's network.
    """

    def __init__(self, name):
        try:
            import timm
        except ImportError:
            raise UserError(f"backbone timm/{name}: timm is not installed; pip install timm") from None
        self.name, self.timm = name, timm
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            _refuse(f"timm/{architecture}", "network", timm.list_models(), "timm/")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            _refuse(f"timm/{name}", "weights", tags, f"timm/{architecture}.")
        config = timm.get_pretrained_cfg(name)
        self.resizable = config is not None and config.fixed_input_size
        self.weights, self.labels, self.classifiers, self.preprocessing = None, None, (), IMAGENET
        if config is not None:
            size = config.input_size[-1]
            if tags:
                self.weights = f"timm/{architecture}.{config.tag}"
                self.labels = learned_with_labels(config.tag)
            self.classifiers = _names(config.classifier)
            self.preprocessing = {
                "size": TOO_LARGE.get(size, size),
                "mean": list(config.mean),
                "std": list(config.std),
            }

    def build(self, image_size, pretrained=False):
        """The network without its classifier: images (B, 3, S, S) -> features (B, D)."""
        options = {"pretrained": pretrained, "num_classes": 0}
        try:  # a transformer is built for one image size
            size = {"img_size": image_size} if self.resizable else {}
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

    def download(self, image_size):
        """State dict of the pretrained weights, by timm, which caches them. Raises whatever it does."""
        return self.build(image_size, pretrained=True).state_dict()

    def convert(self, backbone, weights):
        """Weights in an original program's layout -> timm's; position embeddings are resampled."""
        # each architecture's module has one, under this name, if it needs one
        convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
        return convert(dict(weights), backbone) if convert else weights


class TorchvisionNetwork:
    """torchvision/NAME[.WEIGHTS], a classification network; attributes and methods as TimmNetwork."""

    labels = True  # all of its weights were trained to classify

    def __init__(self, name):
        import torchvision.models

        self.name, self.models = name, torchvision.models
        self.architecture, _, weights = name.partition(".")
        # these two give several outputs in training, and change their inputs
        known = set(self.models.list_models(module=self.models)) - {"googlenet", "inception_v3"}
        if self.architecture not in known:
            _refuse(f"torchvision/{self.architecture}", "network", sorted(known), "torchvision/")
        enum = self.models.get_model_weights(self.architecture)
        if weights and weights not in enum.__members__:
            _refuse(
                f"torchvision/{name}", "weights", list(enum.__members__), f"torchvision/{self.architecture}."
            )
        self.entry = enum[weights or "DEFAULT"]
        self.weights = f"torchvision/{self.architecture}.{self.entry.name}"
        transform = self.entry.transforms()
        self.preprocessing = {
            "size": transform.crop_size[0],
            "mean": list(transform.mean),
            "std": list(transform.std),
        }

    @property
    def classifiers(self):
        return (_classifier(self.models.get_model(self.architecture, weights=None)),)

    def build(self, image_size):
        """The network without its classifier: images (B, 3, S, S) -> features (B, D)."""
        size = {"image_size": image_size} if self.architecture.startswith("vit_") else {}
        network = self.models.get_model(self.architecture, weights=None, **size)
        network.set_submodule(_classifier(network), nn.Identity())
        return network

    def download(self, image_size):
        """State dict of the pretrained weights, by torchvision, which caches them in torch.hub's folder."""
        return self.entry.get_state_dict(
            progress=True, check_hash=True, weights_only=True, map_location="cpu"
        )

    def convert(self, backbone, weights):
        """Resample a transformer's position embeddings, (1, 1 + G * G, D), to its own grid."""
        name = "encoder.pos_embedding"
        own, given = backbone.state_dict().get(name), weights.get(name)
        if own is None or given is None or own.shape == given.shape:
            return weights
        resample = self.models.vision_transformer.interpolate_embeddings
        return resample(backbone.image_size, backbone.patch_size, dict(weights))


LIBRARIES = {"timm": TimmNetwork, "torchvision": TorchvisionNetwork}


def _refuse(name, what, known, prefix):
    found = name.removeprefix(prefix)
    hint = did_you_mean(found, known, lambda near: f"'{prefix}{near}'")
    hint = (
        hint or f"known: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        if known
        else "it has none"
    )
    raise UserError(f"backbone {name}: unknown {what} {found!r}; {hint}")


def _names(names):
    return (names,) if isinstance(names, str) else tuple(names or ())


def _classifier(network):
    """Name of the layer that classifies: the last one with an output for each of ImageNet's 1000 classes."""
    return [
        name
        for name, module in network.named_modules()
        if 1000 in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ][-1]


def learned_with_labels(tag):
    """Whether timm's weights with this tag were learned with labels: True, False, or None where unknown."""
    parts = set(tag.split("_"))
    with_labels = any(map(IMAGENET_LABELS.fullmatch, parts))
    if "ft" in parts:  # fine-tuned
        return True if with_labels else None
    if parts & OTHER_TEACHERS:
        return None
    if parts & UNLABELED:
        return False
    return True if with_labels else None


# --- models ----------------------------------------------------------------------------------------


class PretrainedModel(nn.Module):
    """A backbone alone, with features that others learned: images -> L2-normalized features (B, D)."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return F.normalize(self.backbone(images).float(), dim=1)

    def features_from(self, part):
        """The model itself; `part` can only be "backbone". Raises UserError for "head"."""
        if part != "backbone":
            raise UserError(f"features: {part} needs a contrastive head, and setup pretrained has none")
        return self


class VectorInputs(nn.Module):
    """The backbone `features/D`: the inputs are features already, (B, D), and stay as they are."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("zeros", torch.zeros(width))  # so that a file of weights shows the width

    def forward(self, vectors):
        return vectors + self.zeros


def vector_inputs(name):
    """The VectorInputs of `features/D`. Raises UserError if D is not a positive whole number."""
    width = name.removeprefix("features/")
    if not re.fullmatch(r"[1-9]\d{0,5}", width):
        raise UserError(f"backbone {name}: expected features/D, such as features/384, D the vectors' length")
    return VectorInputs(int(width))
