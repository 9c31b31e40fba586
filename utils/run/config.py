"""Command line and YAML files -> one checked configuration."""

import difflib
import re
from pathlib import Path

import yaml
from easydict import EasyDict

from errors import UserError

# --- what a configuration may hold ---------------------------------------------------------------
# A leaf is a check: it returns the value, converted if need be, or raises ValueError("a ...").


def _number(low=None, high=None, whole=False, above=None, below=None):
    kind = "a whole number" if whole else "a number"
    if above is not None:
        kind += f" above {above}"
    if low is not None:
        kind += f" of at least {low}"
    if high is not None:
        kind += f" of at most {high}"
    if below is not None:
        kind += f" below {below}"

    def check(value):
        try:  # YAML reads 1e-4 (without a dot) as a string
            value = float(value) if isinstance(value, str) else value
            good = not isinstance(value, bool) and value == value and (not whole or value == int(value))
            good = good and (low is None or value >= low) and (high is None or value <= high)
            good = good and (above is None or value > above) and (below is None or value < below)
            good = good and abs(value) != float("inf")
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise ValueError(kind)
        return int(value) if whole else value

    return check


def _one_of(*names):
    def check(value):
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1)
            raise ValueError(f"one of {', '.join(names)}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        return value

    return check


def _boolean(value):
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _string(value):
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise ValueError("a name")
    return value


def _dataset(value):
    path = Path(_string(value))  # it names folders of data and of results
    if path.is_absolute() or ".." in path.parts or path == Path():
        raise ValueError("the name of a dataset within data_dir")
    return str(path)  # without a slash at the end, as a shell completes it


def _list_of(check, length=None):
    def check_list(value):
        if not isinstance(value, (list, tuple)) or (length and len(value) != length):
            raise ValueError(f"a list of {length} numbers" if length else "a list")
        if not value:
            raise ValueError("a list that is not empty")
        return [check(item) for item in value]

    return check_list


def _device(value):
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", str(value)):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return value


def _on_or_off(value):
    if isinstance(value, bool):  # as YAML 1.1 reads on and off
        return "on" if value else "off"
    return _one_of("auto", "on", "off")(value)


def _scale(value):
    low, high = _list_of(_number(above=0, high=1), 2)(value)
    if low > high:
        raise ValueError("a list of two shares of the area, the smaller one first")
    return [low, high]


def _count(low, high):
    """A whole number; `high` is far beyond what is of use, so that a slip does not fill the memory."""
    return _number(low, high, whole=True)


_probability = {"p": _number(0, 1)}
_positive = _number(1, whole=True)
_side = _count(1, 10_000)  # of an image, in pixels
_normalize = {"mean": _list_of(_number(), 3), "std": _list_of(_number(above=0), 3)}

ENVIRONMENT = {
    "root_dir": _string,
    "data_dir": _string,
    "device": _device,
    "precision": _one_of("auto", "bf16", "fp32"),
    "compile": _on_or_off,
    "search": _one_of("auto", "faiss", "torch"),
}

EXPERIMENT = {
    "setup": _one_of("simclr", "moco", "scan", "selflabel"),
    "seed": _number(0, 2**31, whole=True),
    "backbone": _string,
    "model_kwargs": {"head": _one_of("mlp", "linear"), "features_dim": _count(1, 100_000)},
    "train_db_name": _dataset,
    "val_db_name": _dataset,
    "num_classes": _count(2, 100_000),
    "features": _one_of("head", "backbone"),
    "num_heads": _count(1, 1000),
    "num_neighbors": _positive,
    "update_cluster_head_only": _boolean,
    "cache_features": _positive,
    "validation": _one_of("test", "train_holdout"),
    "temperature": _number(above=0),
    "criterion": _one_of("simclr", "scan", "confidence-cross-entropy"),
    "criterion_kwargs": {
        "temperature": _number(above=0),
        "entropy_weight": _number(0),
        "apply_class_balancing": _boolean,
    },
    "confidence_threshold": _number(0, below=1),
    "use_ema": _boolean,
    "ema_alpha": _number(0, 1),
    "epochs": _positive,
    "optimizer": _one_of("sgd", "adam"),
    "optimizer_kwargs": {
        "lr": _number(above=0),
        "momentum": _number(0, below=1),
        "weight_decay": _number(0),
        "nesterov": _boolean,
    },
    "scheduler": _one_of("cosine", "step", "constant"),
    "scheduler_kwargs": {
        "lr_decay_rate": _number(above=0, high=1),
        "lr_decay_epochs": _list_of(_number(0, whole=True)),
    },
    "batch_size": _positive,
    "num_workers": _count(0, 1000),
    "max_unreadable": _number(0, 1),
    "augmentation_strategy": _one_of("standard", "simclr", "ours"),
    "augmentation_kwargs": {
        "random_resized_crop": {"size": _side, "scale": _scale},
        "random_horizontal_flip": _probability,
        "color_jitter_random_apply": _probability,
        "color_jitter": {
            "brightness": _number(0),
            "contrast": _number(0),
            "saturation": _number(0),
            "hue": _number(0, 0.5),
        },
        "random_grayscale": _probability,
        "normalize": _normalize,
        "crop_size": _side,
        "num_strong_augs": _number(0, whole=True),
        "cutout_kwargs": {"n_holes": _number(0, whole=True), "length": _positive, "random": _boolean},
    },
    "transformation_kwargs": {"crop_size": _side, "normalize": _normalize},
}

DEFAULTS = {
    "root_dir": "results",
    "data_dir": "datasets",
    "device": "auto",
    "precision": "auto",
    "compile": "auto",
    "search": "auto",
    "seed": 0,
    "num_workers": 0,
    "update_cluster_head_only": False,
    "use_ema": False,
    "scheduler_kwargs": {},
}

# where a pretext model's features come from, unless `features` says it
FEATURES = {"simclr": "head", "moco": "backbone"}

_TRAINING = ("criterion", "criterion_kwargs", "epochs", "optimizer", "optimizer_kwargs", "scheduler")
_TRAINING += ("augmentation_strategy", "augmentation_kwargs")
REQUIRED = ("backbone", "train_db_name", "val_db_name", "num_classes", "batch_size", "transformation_kwargs")
REQUIRED_TO_TRAIN = {
    "simclr": (*_TRAINING, "temperature"),
    "moco": (),
    "scan": (*_TRAINING, "num_heads", "num_neighbors"),
    "selflabel": (*_TRAINING, "confidence_threshold"),
}
# Within these, keys that must be there: the rest has defaults.
REQUIRED_WITHIN = {
    "optimizer_kwargs": ("lr",),
    "transformation_kwargs": ("crop_size", "normalize"),
    "normalize": ("mean", "std"),
    "random_resized_crop": ("size", "scale"),
    "cutout_kwargs": ("n_holes", "length"),
    "color_jitter_random_apply": ("p",),
    "random_grayscale": ("p",),
    "random_horizontal_flip": ("p",),
}

# the criterion of each step, and the key that its criterion_kwargs hold
CRITERION = {
    "simclr": ("simclr", "temperature"),
    "scan": ("scan", "entropy_weight"),
    "selflabel": ("confidence-cross-entropy", "apply_class_balancing"),
}


# --- reading -------------------------------------------------------------------------------------


def load_config(args, setups, training=True):
    """Merge defaults, environment file, experiment file and `--set`, in this order, and check them.

    Args:
        args: what `parse_arguments` returned.
        setups: the values of `setup` that the calling script can work with.
        training: demand the keys of training, too, not only those of evaluation.

    Returns:
        EasyDict of everything, so that `config.optimizer_kwargs.lr` works.

    Raises:
        UserError: unreadable file, unknown, missing or wrong key; the message names file and key.
    """
    config = dict(DEFAULTS)
    config.update(_checked(read_yaml(args.config_env), ENVIRONMENT, args.config_env))
    experiment = _checked(read_yaml(args.config_exp), EXPERIMENT, args.config_exp)
    for override in args.overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
        if EXPERIMENT.get(key) is _dataset and not isinstance(value, str | dict | list | None):
            value = text  # 2024, on or 1e3 are names, too
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(experiment, _checked(nested, {**ENVIRONMENT, **EXPERIMENT}, "--set"))
    config.update(experiment)
    if args.run:
        config["root_dir"] = str(Path(config["root_dir"]) / args.run)

    if config.get("setup") not in setups:
        raise UserError(
            f"{args.config_exp}: setup is {config.get('setup')!r}, this script needs {' or '.join(setups)}"
        )
    if config["setup"] in FEATURES:
        config.setdefault("features", FEATURES[config["setup"]])
    required = REQUIRED + (REQUIRED_TO_TRAIN[config["setup"]] if training else ())
    missing = [key for key in required if key not in config] + _missing_within(config)
    if config["use_ema"] and "ema_alpha" not in config:
        missing.append("ema_alpha, which use_ema needs")
    if config.get("scheduler") == "step" and "lr_decay_epochs" not in config["scheduler_kwargs"]:
        missing.append("scheduler_kwargs.lr_decay_epochs, which scheduler step needs")
    if missing:
        raise UserError(f"{args.config_exp}: missing {', '.join(missing)}")
    if "cache_features" in config and not config["update_cluster_head_only"]:
        raise UserError(
            f"{args.config_exp}: cache_features needs update_cluster_head_only True; the features of a "
            "backbone that trains change at every step"
        )
    if training and config["setup"] in CRITERION:
        name, key = CRITERION[config["setup"]]
        found, keys = config["criterion"], config["criterion_kwargs"]
        if found != name or set(keys) != {key}:
            raise UserError(
                f"{args.config_exp}: setup {config['setup']} needs criterion {name} with "
                f"criterion_kwargs.{key}, found {found} with {', '.join(keys) or 'nothing'}"
            )
    return EasyDict(config)


def experiment_of(config):
    """The part of a configuration that decides the results: no paths, devices or worker counts.

    Which images were readable is told by the datasets' fingerprints.
    """
    keys = EXPERIMENT.keys() - {"num_workers", "max_unreadable"}
    return {key: value for key, value in to_dict(config).items() if key in keys}


def to_dict(config):
    """EasyDict -> plain dicts and lists, which YAML and checkpoints can hold."""
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(value) for value in config]
    return config


def differences(old, new, prefix=""):
    """Where two nested dicts differ: {dotted key: "old -> new"}."""
    found = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = f"{a} -> {b}"
    return found


def listed(changes):
    """What `differences` found, as one line."""
    return "; ".join(f"{key}: {change}" for key, change in changes.items())


def mismatches(config):
    """What differs between the training's and the evaluation's images, although it hardly can be meant.

    Returns:
        list of lines for a warning.
    """
    train, test = config.get("augmentation_kwargs", {}), config.transformation_kwargs
    if config.get("augmentation_strategy") == "ours":
        name, size = "crop_size", train.get("crop_size")
    else:
        name, size = "random_resized_crop.size", train.get("random_resized_crop", {}).get("size")
    lines = []
    if size not in (None, test.crop_size):
        lines.append(
            f"the network trains on images of {size} pixels (augmentation_kwargs.{name}) and is evaluated on "
            f"{test.crop_size} (transformation_kwargs.crop_size); set both to the same"
        )
    found = differences(train.get("normalize", test.normalize), test.normalize)
    if found:
        lines.append(
            "the network trains and is evaluated with other normalisations (augmentation_kwargs.normalize -> "
            f"transformation_kwargs.normalize: {'; '.join(found.values())}); set both to the same"
        )
    return lines


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path):
    """Read a YAML file that holds a mapping. Raises UserError with file and line."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except FileNotFoundError:
        folder = Path(path).parent
        near = difflib.get_close_matches(Path(path).name, [p.name for p in folder.glob("*.yml")], n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise UserError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        raise UserError(f"{path}{where}: not valid YAML ({problem.splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def _checked(content, schema, where, prefix=""):
    """`content` with every key known to `schema` and every value converted by its check."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} must hold keys and values, found {content!r}")
    result = {}
    for key, value in content.items():
        if key not in schema:
            near = difflib.get_close_matches(str(key), schema, n=1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(schema)}"
            raise UserError(f"{where}: unknown key '{prefix}{key}'; {hint}")
        check = schema[key]
        if isinstance(check, dict):
            result[key] = _checked(value, check, where, f"{prefix}{key}.")
            continue
        try:
            result[key] = check(value)
        except ValueError as expected:
            raise UserError(f"{where}: {prefix}{key} must be {expected}, found {value!r}") from None
    return result


def _missing_within(content, prefix=""):
    """Paths of the keys that REQUIRED_WITHIN names and `content` lacks."""
    missing = []
    for key, value in content.items():
        if isinstance(value, dict):
            missing += [f"{prefix}{key}.{name}" for name in REQUIRED_WITHIN.get(key, ()) if name not in value]
            missing += _missing_within(value, f"{prefix}{key}.")
    return missing


def _merge(target, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
