"""The table of keys agrees with itself, with the code that takes the values, and with the shipped files."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from digits_steps import run

import data
import losses
import models
from data.augment.strong import draw_holes
from data.augment.transforms import draw_color_jitter
from data.folder.splits import build_folder
from errors import UserError, did_you_mean
from models import ContrastiveModel
from utils.analysis import metrics
from utils.run import checkpoint, schema
from utils.run.config import experiment_of, load_config, mismatches, with_defaults
from utils.run.schema import EXPERIMENT, Key, PerSetup, When
from utils.run.script import parse_arguments
from utils.training.optim import learning_rate

SETUPS = ["simclr", "moco", "pretrained", "scan", "selflabel"]
KEYS = {key.name: key for key in schema.ENVIRONMENT + EXPERIMENT}
OPTIONS = schema.within(EXPERIMENT, "criterion_kwargs")
SHIPPED = [str(path) for path in sorted(Path(__file__).parents[2].glob("configs/*/*.yml"))]
DIGITS = {
    "simclr": "configs/pretext/simclr_digits.yml",
    "scan": "configs/scan/scan_digits.yml",
    "selflabel": "configs/selflabel/selflabel_digits.yml",
}


def load(path, *overrides, training=True):
    set_ = ["--set", *overrides] if overrides else []
    return load_config(parse_arguments(["--config_exp", str(path), *set_], ""), SETUPS, training)


def names_in(content, prefix=""):
    """Dotted names of all keys of nested dicts."""
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from names_in(value, f"{prefix}{key}.")


def written_without(path, name, folder):
    """A copy of a file without the dotted key."""
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    *groups, last = name.split(".")
    inner = content
    for group in groups:
        inner = inner[group]
    del inner[last]
    copy = folder / "experiment.yml"
    copy.write_text(yaml.safe_dump(content))
    return copy


# --- the rows ------------------------------------------------------------------------------------


def test_each_key_has_one_row():
    assert len(KEYS) == len(schema.ENVIRONMENT) + len(EXPERIMENT)
    for name in KEYS:
        group = name.rpartition(".")[0]
        assert not group or KEYS[group].group, name


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_row(key):
    assert key.help.endswith(".") and key.check.words
    values = key.default.values() if isinstance(key.default, PerSetup) else [key.default]
    for value in values:
        assert key.default is None or key.check.convert(value) == value
    for condition in (key.required, key.only):
        if isinstance(condition, When):
            for value in condition.values:
                assert KEYS[condition.key].check.convert(value) == value
    assert not isinstance(key.default, PerSetup) or set(key.default) <= set(SETUPS)


def test_criteria_are_those_of_the_losses():
    assert schema.SETUP_OF_CRITERION.keys() == losses.CRITERIA.keys()
    for name, loss in losses.CRITERIA.items():
        options = {option for option, key in OPTIONS.items() if name in key.only.values}
        assert options <= inspect.signature(loss).parameters.keys()


# --- defaults are the same everywhere ------------------------------------------------------------


@pytest.mark.parametrize("defaults", [data.DATA_DEFAULTS, models.MODEL_DEFAULTS])
def test_defaults_of_the_packages(defaults):
    for name, value in defaults.items():
        default = KEYS[name].default
        found = set(map(str, default.values())) if isinstance(default, PerSetup) else {str(default)}
        if KEYS[name].required != schema.ALWAYS:
            assert found == {str(value)}, name


def test_defaults_of_modules():
    parameters = inspect.signature(build_folder).parameters
    for name in ("num_workers", "max_unreadable"):
        assert parameters[name].default == KEYS[name].default
    for name in ("MIN_PROBABILITY", "MIN_LOG"):
        assert getattr(metrics, name) == getattr(losses.scan, name)


GROUPS = {
    "model_kwargs": ContrastiveModel,
    "optimizer_kwargs": torch.optim.SGD,
    "scheduler_kwargs": learning_rate,
    "criterion_kwargs": None,  # the losses that an option is for
    "augmentation_kwargs.color_jitter": draw_color_jitter,
    "augmentation_kwargs.cutout_kwargs": draw_holes,
}


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_within_a_group_are_those_of_the_function(group):
    for name, key in schema.within(EXPERIMENT, group).items():
        takers = [GROUPS[group]] if GROUPS[group] else [losses.CRITERIA[loss] for loss in key.only.values]
        for taker in takers:
            default = inspect.signature(taker).parameters[name].default
            if key.default is not None:
                assert default == key.default, name
            elif not key.required:
                assert default is inspect.Parameter.empty


def test_the_defaults_depend_on_the_setup():
    files = {**DIGITS, "moco": "configs/pretext/moco_imagenet50.yml"}
    found = {setup: load(path) for setup, path in files.items()}
    assert [found[setup].get("features") for setup in files] == ["head", None, None, "backbone"]
    assert [found[setup].get("validation") for setup in files] == [None, "test", None, None]
    assert load(DIGITS["simclr"], "features=backbone").features == "backbone"


def test_an_older_experiment_is_one_with_the_defaults():
    for path in SHIPPED:
        config = load(path, training=False)
        here = experiment_of(config)
        written = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        read = {key: written[key] for key in ("num_workers", "image_folder", "knn_every") if key in written}
        assert with_defaults({**written, "seed": 0}) == {**here, **read}
        assert not mismatches(config)
    assert "max_unreadable" not in here


def test_a_training_of_before_a_key_was_new_goes_on(copied):
    path = copied / "digits/scan/checkpoint.pth.tar"
    saved = checkpoint.load(path)
    del saved["identity"]["validation"]
    checkpoint.save(saved, path)
    run("scan", copied, "epochs=3")
    saved = checkpoint.load(path)
    assert (saved["epoch"], saved["identity"]["validation"]) == (3, "test")


# --- the shipped files ---------------------------------------------------------------------------


@pytest.mark.parametrize("setup", DIGITS)
def test_each_required_key_is_missed(setup, tmp_path):
    config, missed = load(DIGITS[setup]), set()
    for name in names_in(yaml.safe_load(Path(DIGITS[setup]).read_text(encoding="utf-8"))):
        path = written_without(DIGITS[setup], name, tmp_path)
        if not KEYS[name].is_required(config, training=True):
            load(path)
            continue
        missed.add(name)
        with pytest.raises(UserError, match="missing|needs|setup is None") as error:
            load(path)
        assert name in str(error.value)
    assert {"setup", "backbone", "epochs", "optimizer_kwargs.lr"} < missed


def test_evaluation_requires_less(tmp_path):
    path = written_without(DIGITS["scan"], "epochs", tmp_path)
    path = written_without(path, "criterion_kwargs.entropy_weight", tmp_path)
    load(path, training=False)
    path = written_without(path, "num_classes", tmp_path)
    with pytest.raises(UserError, match="missing num_classes$"):
        load(path, training=False)


# --- a new row -----------------------------------------------------------------------------------


def with_rows(monkeypatch, *rows):
    monkeypatch.setattr(schema, "EXPERIMENT", (*EXPERIMENT, *rows))


def test_one_row_makes_a_key(monkeypatch):
    with_rows(
        monkeypatch,
        Key(schema.POSITIVE, "Epochs.", PerSetup(scan=5), name="warmup"),
        Key(schema.POSITIVE, "A.", only=schema.for_criterion("scan"), name="criterion_kwargs.margin"),
    )
    config = load(DIGITS["scan"])
    assert (
        config["warmup"] == experiment_of(config)["warmup"] == 5 and "margin" not in config.criterion_kwargs
    )
    config = load(DIGITS["scan"], "warmup=7", "criterion_kwargs.margin=2")
    assert (config["warmup"], config.criterion_kwargs["margin"]) == (7, 2)
    assert "warmup" not in load(DIGITS["simclr"])
    with pytest.raises(UserError, match="--set: warmup must be a whole number of at least 1, found 0"):
        load(DIGITS["scan"], "warmup=0")
    with pytest.raises(UserError, match="unknown key 'warmpu'; did you mean 'warmup'"):
        load(DIGITS["scan"], "warmpu=3")
    with pytest.raises(UserError, match="criterion_kwargs.margin needs criterion scan; other losses have no"):
        load(DIGITS["simclr"], "criterion_kwargs.margin=2")
    assert "  warmup: Epochs." in schema.listing()


def test_one_entry_and_one_row_make_a_criterion(monkeypatch, tmp_path):
    monkeypatch.setitem(schema.SETUP_OF_CRITERION, "soft", "selflabel")
    check = schema.one_of(*schema.SETUP_OF_CRITERION)
    rows = [replace(key, check=check) if key.name == "criterion" else key for key in EXPERIMENT]
    soft, name = schema.for_criterion("soft"), "criterion_kwargs.power"
    option = Key(schema.POSITIVE, "A.", required=schema.ALWAYS, only=soft, name=name)
    monkeypatch.setattr(schema, "EXPERIMENT", (*rows, option))
    load(DIGITS["selflabel"])
    for step, message in (
        ("selflabel", f"missing {name}"),
        ("scan", "scan needs criterion scan, found soft"),
    ):
        with pytest.raises(UserError, match=message):
            load(DIGITS[step], "criterion=soft")
    with pytest.raises(UserError, match="apply_class_balancing needs criterion confidence-cross-entropy or"):
        load(DIGITS["selflabel"], "criterion=soft", f"{name}=2")
    path = written_without(DIGITS["selflabel"], "criterion_kwargs.apply_class_balancing", tmp_path)
    assert load(path, "criterion=soft", f"{name}=2").criterion_kwargs == {"power": 2}


# --- --list-keys ---------------------------------------------------------------------------------


def test_list_keys(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(["--list-keys"], "")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(map(len, lines)) <= schema.LISTING_WIDTH
    listed = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert listed == list(KEYS)
    text = " ".join(text.split())
    for key in KEYS.values():
        assert f" {key.name}: {key.help} {key.check.words}" in text
    assert "one of head, backbone; default head (simclr), backbone (moco), backbone (pretrained)" in text
    assert "a number above 0; required in its group; only with criterion simclr " in text
    assert "required with scheduler step" in text and "required to train selflabel " in text


def test_did_you_mean():
    assert did_you_mean("epoch", ["epochs", "seed"]) == "did you mean 'epochs'?"
    assert did_you_mean("epoch", ["epochs"], str.upper) == "did you mean EPOCHS?"
    assert did_you_mean(17, ["epochs"]) == ""
