"""Command line and YAML files -> one checked configuration."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from errors import UserError, did_you_mean

from . import schema
from .checks import DATASET

# --- reading -------------------------------------------------------------------------------------


def load_config(args: argparse.Namespace, setups: Sequence[str], training: bool = True) -> EasyDict:
    """Read the environment file and the experiment file that a command line names; see `merge_config`."""
    environment, experiment = read_yaml(args.config_env), read_yaml(args.config_exp)
    return merge_config(environment, experiment, args, setups, training)


def merge_config(
    environment: dict[str, Any],
    experiment: dict[str, Any],
    args: argparse.Namespace,
    setups: Sequence[str],
    training: bool = True,
) -> EasyDict:
    """Merge defaults, environment file, experiment file and `--set`, in this order, and check them.

    `--set KEY=null` takes a key of the files away.

    Args:
        environment, experiment: what the two files hold; not changed.
        args: what `parse_arguments` returned.
        setups: the values of `setup` that the calling script can work with.
        training: require the keys of training, too, not only those of evaluation.

    Returns:
        EasyDict of everything, so that `config.optimizer_kwargs.lr` works.

    Raises:
        UserError: unknown, missing or wrong key; the message names file and key.
    """
    environment = _checked(environment, schema.ENVIRONMENT, args.config_env)
    experiment = _checked(experiment, schema.EXPERIMENT, args.config_exp)
    keys = schema.ENVIRONMENT + schema.EXPERIMENT
    names = {key.name for key in keys if key.check is DATASET}
    for override in args.overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: expected KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
        if text == "null" and key in schema.within(keys):
            environment.pop(key, None)
            experiment.pop(key, None)
            continue
        if key in names and not isinstance(value, str | dict | list | None):
            value = text  # 2024, on or 1e3 are names, too
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(experiment, _checked(nested, keys, "--set"))
    given = {**environment, **experiment}
    if given.get("setup") not in setups:
        raise UserError(
            f"{args.config_exp}: setup is {given.get('setup')!r}, this script needs {' or '.join(setups)}"
        )
    config = {**schema.defaults(given["setup"]), **given}
    if args.run:
        config["root_dir"] = str(Path(config["root_dir"]) / args.run)
    if training:
        _require_criterion(given, args.config_exp)
        if config["setup"] == "selflabel" and config["num_heads"] != 1:
            raise UserError(
                f"{args.config_exp}: num_heads must be 1 for self-labeling, found {config['num_heads']}"
            )
    _require_keys(keys, given, config, training, args.config_exp)
    warmup = config.get("scheduler_kwargs", {}).get("warmup_epochs", 0)
    if training and warmup and warmup >= config["epochs"]:
        raise UserError(
            f"{args.config_exp}: scheduler_kwargs.warmup_epochs, {warmup}, must be less than epochs, "
            f"{config['epochs']}"
        )
    return EasyDict(config)


def read_resolved(path):
    """The configuration that a run wrote beside its results, checked.

    Keys that are new since then get their defaults. Raises UserError as `load_config`.
    """
    keys = schema.ENVIRONMENT + schema.EXPERIMENT
    given = _checked(read_yaml(path), keys, path)
    config = {**schema.defaults(given.get("setup")), **given}
    _require_keys(keys, given, config, False, path)
    return EasyDict(config)


def experiment_of(config):
    """The part of a configuration that decides the results: no paths, devices or worker counts.

    Nor is max_unreadable in it: the datasets' fingerprints say which images were read.
    """
    keys = {key.name for key in schema.EXPERIMENT if key.affects_results}
    return {key: value for key, value in to_dict(config).items() if key in keys}


def with_defaults(experiment):
    """Complete the result of `experiment_of` in an earlier version by the keys that are new since then.

    The default of a new key is the behavior from before there was the key.
    """
    return {**experiment_of(schema.defaults(experiment.get("setup"))), **experiment}


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
    """The result of `differences` as one line."""
    return "; ".join(f"{key}: {change}" for key, change in changes.items())


def mismatches(config):
    """Differences between the images of training and evaluation that are most likely a mistake.

    Returns:
        list of lines for warnings.
    """
    train, test = config.get("augmentation_kwargs", {}), config.transformation_kwargs
    if config.get("augmentation_strategy") == "ours":
        name, size = "crop_size", train.get("crop_size")
    else:
        name, size = "random_resized_crop.size", train.get("random_resized_crop", {}).get("size")
    lines = []
    # up to a third larger is no mistake: objects look larger in random resized crops (arXiv:1906.06423), and
    # as large in plain ones
    if size is not None and not size <= test.crop_size <= size * 4 / 3:
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
    """Rejects a key that is given twice; YAML would silently take the last."""

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
        names = [p.name for p in folder.glob("*.yml")]
        question = did_you_mean(Path(path).name, names, lambda name: folder / name)
        raise UserError(f"{path}: no such file" + (f"; {question}" if question else "")) from None
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


def _checked(content, keys, where, group=""):
    """Check the keys and values of a group, or of the top level, by the rows `keys`.

    Returns `content` with its values converted. Raises UserError for an unknown key or a wrong value.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: {group} must hold keys and values, found {content!r}")
    known = schema.within(keys, group)
    prefix = f"{group}." if group else ""
    result = {}
    for name, value in content.items():
        if name not in known:
            question = did_you_mean(name, known, lambda near: f"'{prefix}{near}'")
            hint = question or f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{prefix}{name}'; {hint}")
        key = known[name]
        if key.check is schema.GROUP:
            result[name] = _checked(value, keys, where, key.name)
            continue
        try:
            result[name] = key.check.convert(value)
        except ValueError as expected:
            raise UserError(f"{where}: {key.name} must be {expected}, found {value!r}") from None
    return result


def _require_criterion(given, where):
    """Raise UserError for a criterion of another step, or options that are not the criterion's own."""
    setup, found, options = (given.get(key) for key in ("setup", "criterion", "criterion_kwargs"))
    criteria = {name: schema.options_of(name) for name, step in schema.CRITERIA.items() if step == setup}
    if not criteria or found is None or options is None:  # no training, or a key is missing
        return
    known = criteria.get(found, {})
    needed = {option for option, key in known.items() if key.required}
    if found in criteria and needed <= options.keys() <= known.keys():
        return
    ways = []
    for name, keys in criteria.items():
        takes = ", ".join(f"{key.name}{'' if key.required else ' (optional)'}" for key in keys.values())
        ways.append(f"{name} with {takes}" if takes else name)
    raise UserError(
        f"{where}: setup {setup} needs criterion {' or '.join(ways)}, "
        f"found {found} with {', '.join(options) or 'nothing'}"
    )


def _require_keys(keys, given, config, training, where):
    """Raise UserError for keys that this configuration needs but lacks, or gives but must not."""
    missing = []
    for key in keys:
        group = key.name.rpartition(".")[0]
        there = not group or _holds(config, group)
        if there and key.is_required(config, training) and not _holds(given, key.name):
            by_another = isinstance(key.required, schema.When) and key.required.key != "setup"
            reason = f", which {str(key.required).removesuffix(' True')} needs" if by_another else ""
            missing.append(key.name + reason)
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    for key in keys:
        if training and key.only and not key.only.holds(config) and _holds(given, key.name):
            raise UserError(f"{where}: {key.name} needs {key.only}; {key.only.why}")


def _holds(content, name):
    """Whether nested dicts hold a dotted key."""
    *groups, last = name.split(".")
    for group in groups:
        content = content.get(group, {})
    return last in content


def _merge(target, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
