"""Command line and YAML files -> one checked configuration."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from errors import UserError, did_you_mean, refusal

from . import schema
from .checks import DATASET
from .schema import Config, Key

# --- reading -------------------------------------------------------------------------------------


def load_config(args: argparse.Namespace, setups: Sequence[str], training: bool = True) -> Config:
    """Read the environment file and the experiment file that a command line names; see `merge_config`."""
    environment, experiment = read_yaml(args.config_env), read_yaml(args.config_exp)
    return merge_config(environment, experiment, args, setups, training)


def read_environment(path: str | Path) -> dict[str, Any]:
    """Read and check an environment file. Raises UserError as `merge_config`."""
    return _checked(read_yaml(path), schema.ENVIRONMENT, path)


def merge_config(
    environment: dict[str, Any],
    experiment: dict[str, Any],
    args: argparse.Namespace,
    setups: Sequence[str],
    training: bool = True,
) -> Config:
    """Merge defaults, environment file, experiment file and `--set`, in this order, and check them.

    `--set KEY=null` takes a key of the files away.

    Args:
        environment, experiment: what the two files hold; not changed.
        args: what `parse_arguments` returned.
        setups: the values of `setup` that the calling script can work with.
        training: require the keys of training, too, not only those of evaluation.

    Raises:
        UserError: unknown, missing or wrong key; the message names file and key.
    """
    where = args.config_exp
    given = _checked(environment, schema.ENVIRONMENT, args.config_env)
    given |= _checked(experiment, schema.EXPERIMENT, where)
    keys = schema.ENVIRONMENT + schema.EXPERIMENT
    for override in args.overrides:
        _override(given, override, keys)
    if given.get("setup") not in setups:
        raise UserError(f"{where}: setup is {given.get('setup')!r}, this script needs {' or '.join(setups)}")
    config = Config({**schema.defaults(given["setup"]), **given})
    if args.run:
        config.root_dir = str(Path(config.root_dir) / args.run)
    if training:
        own = [name for name, step in schema.SETUP_OF_CRITERION.items() if step == config.setup]
        if own and given.get("criterion", own[0]) not in own:
            found = config.criterion
            raise UserError(
                f"{where}: setup {config.setup} needs criterion {' or '.join(own)}, found {found}"
            )
        if config.setup == "selflabel" and config.num_heads != 1:
            raise UserError(f"{where}: num_heads must be 1 for self-labeling, found {config.num_heads}")
    _require_keys(keys, given, config, training, where)
    if training and config.get("epochs") == 0 and config.get("head_init") != "judged":
        raise UserError(
            f"{where}: epochs must be a whole number of at least 1, found 0, which is for head_init judged"
        )
    warmup = config.scheduler_kwargs.warmup_epochs
    if training and warmup and warmup >= config.epochs:
        raise UserError(
            f"{where}: scheduler_kwargs.warmup_epochs, {warmup}, must be less than epochs, {config.epochs}"
        )
    return config


def _override(given: dict[str, Any], override: str, keys: tuple[Key, ...]) -> None:
    """Change the given keys by KEY=VALUE, as --set says."""
    name, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: expected KEY=VALUE")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
    row = schema.within(keys).get(name)
    if text == "null" and row:
        given.pop(name, None)
        return
    if row and row.check is DATASET and not isinstance(value, str | dict | list | None):
        value = text  # 2024, on or 1e3 are names, too
    for part in reversed(name.split(".")):
        value = {part: value}
    _merge(given, _checked(value, keys, "--set"))


def read_resolved(path: Path) -> Config:
    """The configuration that a run wrote beside its results, checked.

    Keys that are new since then get their defaults. Raises UserError as `merge_config`.
    """
    keys = schema.ENVIRONMENT + schema.EXPERIMENT
    given = _checked(read_yaml(path), keys, path)
    config = Config({**schema.defaults(given.get("setup")), **given})
    _require_keys(keys, given, config, False, path)
    return config


def experiment_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides the results: no paths, devices or worker counts.

    Nor is max_unreadable in it: the datasets' fingerprints say which images were read.
    """
    keys = {key.name for key in schema.EXPERIMENT if key.affects_results}
    return {key: value for key, value in to_dict(config).items() if key in keys}


def with_defaults(experiment: dict[str, Any]) -> dict[str, Any]:
    """Complete the result of `experiment_of` in an earlier version by the keys that are new since then.

    A new key's default must keep the old behavior.
    """
    return {**experiment_of(schema.defaults(experiment.get("setup"))), **experiment}


def to_dict(config: Any) -> Any:
    """Config -> plain dicts and lists, which YAML and checkpoints can hold."""
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(value) for value in config]
    return config


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Where two nested dicts differ: {dotted key: "old -> new"}."""
    found: dict[str, str] = {}
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = f"{a} -> {b}"
    return found


def listed(changes: dict[str, str]) -> str:
    """The result of `differences` as one line."""
    return "; ".join(f"{key}: {change}" for key, change in changes.items())


def mismatches(config: Config) -> list[str]:
    """Differences between the images of training and evaluation that are most likely a mistake.

    Returns:
        lines for warnings.
    """
    if "augmentation_kwargs" not in config:
        return []
    train, test = config.augmentation_kwargs, config.transformation_kwargs
    name, size = "crop_size", train.crop_size
    if config.get("augmentation_strategy") != "ours":
        crop = train.random_resized_crop
        name, size = "random_resized_crop.size", crop.size if crop else None
    lines = []
    # up to a third larger is no mistake: objects look larger in random resized crops (arXiv:1906.06423), and
    # as large in plain ones
    if size is not None and not size <= test.crop_size <= size * 4 / 3:
        lines.append(
            f"the network trains on images of {size} pixels (augmentation_kwargs.{name}) and is evaluated on "
            f"{test.crop_size} (transformation_kwargs.crop_size); set both to the same"
        )
    found = differences(train.normalize or test.normalize, test.normalize)
    if found:
        lines.append(
            "the network trains and is evaluated with other normalizations (augmentation_kwargs.normalize -> "
            f"transformation_kwargs.normalize: {'; '.join(found.values())}); set both to the same"
        )
    return lines


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects a key that is given twice; YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises UserError with file and line."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _UniqueKeyLoader)
    except FileNotFoundError:
        folder = Path(path).parent
        names = [p.name for p in folder.glob("*.yml")]
        question = did_you_mean(Path(path).name, names, lambda name: str(folder / name))
        raise UserError(f"{path}: no such file" + (f"; {question}" if question else "")) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); save it as such") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read {refusal(error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        raise UserError(
            f"{path}{where}: not valid YAML ({problem.splitlines()[0]}); "
            "write KEY: VALUE, indent with spaces, and quote values with ': ' or ' #' in them"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def _checked(
    content: Any, keys: tuple[Key, ...], where: str | Path, group: str = "", kind: type[dict] = dict
) -> dict[str, Any]:
    """Check the keys and values of a group, or of the top level, by the rows `keys`.

    Returns a `kind` of the values, converted. Raises UserError for an unknown key or a wrong value.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: {group} must hold keys and values, found {content!r}")
    known = schema.within(keys, group)
    prefix = f"{group}." if group else ""
    result = kind()
    for name, value in content.items():
        if name not in known:
            question = did_you_mean(name, known, lambda near: f"'{prefix}{near}'")
            hint = question or f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{prefix}{name}'; {hint}")
        key = known[name]
        if key.group:
            result[name] = _checked(value, keys, where, key.name, key.group)
            continue
        try:
            result[name] = key.check.convert(value)
        except ValueError as expected:
            raise UserError(f"{where}: {key.name} must be {expected}, found {value!r}") from None
    return result


def _require_keys(
    keys: tuple[Key, ...], given: dict[str, Any], config: Config, training: bool, where: str | Path
) -> None:
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
            why = f"; {key.only.why}" if key.only.why else ""
            raise UserError(f"{where}: {key.name} needs {key.only}{why}")


def _holds(content: dict[str, Any], name: str) -> bool:
    """Whether nested dicts hold a dotted key."""
    *groups, last = name.split(".")
    for group in groups:
        content = content.get(group, {})
    return last in content


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
