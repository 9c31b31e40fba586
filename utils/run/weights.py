"""Weights from an earlier step or another program: recognize them, and check that they fit a model."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from errors import UserError

from . import checkpoint
from .config import read_yaml

log = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]

KINDS = {
    "pretext": "a pretext model (of simclr.py or moco.py)",
    "clustering": "a clustering model (of scan.py or selflabel.py)",
    "moco": "an official MoCo checkpoint (for moco.py)",
    "other": "a model of another program",
}


def read_weights(path: Path, kinds: Sequence[str], hint: str = "") -> tuple[StateDict, int | None]:
    """State dict and head index of a checkpoint file; see `unwrap`.

    `hint` says what to do when there is no such file. Raises UserError for a file that is not a checkpoint,
    or not of one of the accepted KINDS; its content decides its kind, not its name.
    """
    weights, head = unwrap(checkpoint.load(path, hint), path)
    found = anatomy(weights).kind
    if found not in kinds:
        needed = " or ".join(KINDS[kind] for kind in kinds)
        raise UserError(f"{path}: {KINDS[found]}, but {needed} is needed (keys {_some(weights)})")
    return weights, head


def unwrap(content: Any, source: str | Path) -> tuple[StateDict, int | None]:
    """State dict and head index of a checkpoint of any program for this method.

    A plain state dict; `{'model', 'head'}` as the clustering step saves; a training checkpoint
    `{'model', 'optimizer', ...}`; or MoCo's `{'state_dict', ...}`. Keys may start with `module.`.

    Raises UserError if there is no state dict in it.
    """
    head = None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            head = content.get("head")
            content = content[key]
    is_dict = isinstance(content, dict)
    if not is_dict or not content or not all(map(torch.is_tensor, content.values())):
        found = ", ".join(map(str, list(content)[:5])) if is_dict else type(content).__name__
        raise UserError(
            f"{source}: holds no state dict, but {found or 'nothing'}; "
            "expected weights of simclr.py, scan.py or selflabel.py"
        )
    if head is not None and not isinstance(head, int | np.integer):
        raise UserError(f"{source}: its head must be the number of a cluster head, found {head!r}")
    # without the prefixes of DataParallel and torch.compile
    weights = {re.sub(r"^((module|_orig_mod)\.)+", "", str(key)): value for key, value in content.items()}
    return weights, None if head is None else int(head)


class Anatomy(NamedTuple):
    """What a state dict is; the last three are named after the settings that decide them."""

    kind: str  # one of KINDS
    backbone: dict[str, tuple[int, ...]]  # shapes of its weights by their keys
    model_kwargs: str | None  # the contrastive head in words; None if there is none
    num_heads: int  # 0 if there is no cluster head
    num_classes: int | None  # None if there is no cluster head


def anatomy(weights: StateDict) -> Anatomy:
    """What a state dict is, according to its keys and shapes."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    heads = {key.split(".")[1] for key in shapes if key.startswith("cluster_head.")}
    projection = next((key for key in shapes if re.match(r"contrastive_head\.(2\.)?weight", key)), None)
    backbone = {key: shape for key, shape in shapes.items() if key.startswith("backbone.")}
    model_kwargs = None
    if projection:
        width = next(iter(shapes[projection]), None)
        model_kwargs = f"{'mlp' if '.2.' in projection else 'linear'} head to {width}"
    kind = "clustering" if heads else "pretext" if backbone else "other"
    if kind == "other" and any(key.startswith("encoder_q.") for key in shapes):
        kind = "moco"
    num_classes = next(iter(shapes.get("cluster_head.0.weight", ())), None)
    return Anatomy(kind, backbone, model_kwargs, len(heads), num_classes)


def read_best_head(weights: StateDict, head: int | None, source: str | Path) -> int:
    """The index of the best head: the one that the checkpoint names, or its only one.

    Raises UserError if it names none of several, or one that it does not have.
    """
    count = anatomy(weights).num_heads
    if head is None and count > 1:
        raise UserError(
            f"{source}: does not say which of its {count} heads is the best; a training checkpoint never "
            "does, and its weights are not the best epoch's; use scan.py's model.pth.tar"
        )
    if head is not None and not 0 <= head < count:
        raise UserError(f"{source}: names head {head} as the best, but its heads are 0 to {count - 1}")
    return head or 0


def load_weights(model: nn.Module, weights: StateDict, source: str | Path, part: str = "") -> None:
    """Load `weights` into `model`, if all keys, shapes and types match.

    `source` names their file in messages. With `part`, such as "backbone.", only keys that start with it are
    loaded, and the rest of the model does not change.

    Raises:
        UserError: missing or unexpected weights, or weights of another shape or type: the message counts them
            and gives the likely cause, the log file lists them all. Or weights that are not finite.
    """
    own = {key: value for key, value in model.state_dict().items() if key.startswith(part)}
    given = {key: value for key, value in weights.items() if key.startswith(part)}
    both = [(key, given[key], own[key]) for key in own if key in given]
    problems = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
            for key, theirs, ours in both
            if theirs.shape != ours.shape
        ],
        "of another type": [
            f"{key} {theirs.dtype}"
            for key, theirs, ours in both
            if theirs.is_floating_point() != ours.is_floating_point() or not _is_plain(theirs)
        ],
    }
    problems = {problem: keys for problem, keys in problems.items() if keys}
    if problems:
        for problem, keys in problems.items():
            log.debug("%s: %d weights %s\n  %s", source, len(keys), problem, "\n  ".join(keys))
        counts = "; ".join(f"{len(keys)} {problem} ({_some(keys)})" for problem, keys in problems.items())
        cause = _cause(given, own, set(problems) == {"missing"}, source)
        raise UserError(f"{source}: does not fit this model: {cause}: {counts}")
    broken = [key for key, value in given.items() if not value.isfinite().all()]
    if broken:
        raise UserError(
            f"{source}: {len(broken)} weights are not finite ({', '.join(broken[:3])}); its training failed"
        )
    model.load_state_dict(given, strict=False)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _cause(given: StateDict, own: StateDict, incomplete: bool, source: str | Path) -> str:
    """The first part in which two state dicts differ, and what to do about it."""
    theirs, ours = anatomy(given), anatomy(own)
    for setting in ("num_heads", "num_classes"):
        found = getattr(theirs, setting)
        if found and found != getattr(ours, setting):
            return f"it was made with {setting} {found}, try --set {setting}={found}"
    if ours.backbone and not theirs.backbone:
        return "it has no backbone"
    if not theirs.backbone.items() <= ours.backbone.items():
        return (
            "its backbone is not this configuration's; give the --config_exp that it was made with, or "
            f"--set backbone={_backbone_beside(source)}"
        )
    if ours.model_kwargs and not theirs.model_kwargs:
        return "it has no contrastive head"
    if incomplete:
        return "it is incomplete, or of a smaller network"
    if theirs.model_kwargs != ours.model_kwargs:
        return (
            f"its model_kwargs is a {theirs.model_kwargs}, here {ours.model_kwargs}; "
            "give the --config_exp that it was made with"
        )
    return "it is of another network"


def _backbone_beside(source: str | Path) -> str:
    """The name of a file's backbone according to config.yml beside it; "..." if there is none."""
    try:
        return read_yaml(Path(source).parent / "config.yml")["backbone"]
    except (UserError, KeyError):  # the file came from elsewhere
        return "..."


# --- weights of other programs ---------------------------------------------------------------------

# Prefixes of layers that are not part of a backbone: classifiers, projections, decoders.
HEADS = re.compile(r"fc|classif|heads?(_|$)|aux|proj|pred|prototype|queue|decoder|mask_token|last_linear")
# Prefixes of the network of a pair that we do not want: the momentum copy; in DINO the student.
SECOND_CHOICE = ("momentum", "encoder_k", "target", "student")


def find_backbone(content: Any, backbone: nn.Module, source: str | Path) -> tuple[StateDict, str]:
    """A backbone's weights in a file of any program, found by the last parts of the weights' names.

    Programs differ in what they put a network into: torchvision and timm save it alone, others below
    `state_dict.backbone.`, `teacher.module.backbone.`, `state_dict.module.encoder_q.`, ... What holds the
    most of the backbone's names is taken. lightly numbers the children of a network instead.

    `content` is what `checkpoint.load` returned. Returns the weights under the found prefix, heads included,
    and the prefix, such as "backbone.". Raises UserError if nothing in it has a name of this backbone's.
    """
    flat = dict(_flattened(content))
    own = backbone.state_dict().keys()
    numbers = {name: str(number) for number, (name, _) in enumerate(backbone.named_children())}
    layouts = {"": {key: key for key in own}, "numbered": {}}
    for key in own:
        first, dot, rest = key.partition(".")
        layouts["numbered"][numbers.get(first, first) + dot + rest] = key
    found: Counter[tuple[str, str]] = Counter()
    for layout, names in layouts.items():
        for key in flat:
            parts = key.split(".")
            for i in range(len(parts)):
                if ".".join(parts[i:]) in names:
                    found[layout, "".join(f"{part}." for part in parts[:i])] += 1
    if not found:
        raise UserError(
            f"{source}: holds no weights of this backbone: it has {_some(flat) or 'no weights'}, and the "
            f"backbone {_some(own)}"
        )

    def rank(place: tuple[str, str]) -> tuple[int, bool, bool]:
        prefix = place[1]
        return found[place], not any(word in prefix for word in SECOND_CHOICE), "ema" in prefix

    layout, prefix = max(found, key=rank)
    inside = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
    return {layouts[layout].get(key, key): value for key, value in inside.items()}, prefix


def load_backbone(model: nn.Module, weights: StateDict, source: str | Path) -> None:
    """Load weights that `find_backbone` found into `model.backbone`; see `load_weights`.

    Heads are left out. Old files lack BatchNorm's count of batches, which only training looks at.
    """
    own = model.get_submodule("backbone").state_dict()
    counts = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    weights = {
        f"backbone.{key}": value
        for key, value in {**counts, **weights}.items()
        if key in own or not HEADS.match(key.partition(".")[0])
    }
    load_weights(model, weights, source, "backbone.")


def _flattened(content: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted key, tensor) for each tensor in nested dicts."""
    if isinstance(content, dict):
        for key, value in content.items():
            if torch.is_tensor(value):
                yield f"{prefix}{key}", value
            else:
                yield from _flattened(value, f"{prefix}{key}.")


def _some(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
