"""What people write into configurations: each mistake ends in one line with file, key and remedy."""

import pytest
import yaml
from digits_steps import ROOT, STEPS
from mistakes import refused

from utils.run.config import load_config
from utils.run.script import parse_arguments


def load(step, *argv):
    """The configuration of a step as its script loads it."""
    setup = step if step == "moco" else STEPS[step][0].__name__
    file = "configs/pretext/moco_imagenet50.yml" if step == "moco" else STEPS[step][1]
    return load_config(parse_arguments(["--config_exp", file, *argv], ""), [setup])


def names(rows):
    return [f"{step}-{str(given)[:40]}" for step, given, *_ in rows]


WHOLE = "must be a whole number of at least 1"
WHOLE_OR_0 = "must be a whole number of at least 0"

SETTINGS = [
    # keys of all steps
    ("pretext", "epochs=ten", "--set: epochs", WHOLE_OR_0, "'ten'"),
    ("pretext", "epochs=.nan", "--set: epochs", WHOLE_OR_0, "nan"),
    ("pretext", "epochs=2.5", "--set: epochs", WHOLE_OR_0, "2.5"),
    ("pretext", "epochs=0", "epochs must be a whole number of at least 1, found 0"),
    ("scan", ["epochs=0", "head_init=graph"], "epochs must be a whole number of at least 1, found 0"),
    ("scan", "seed=-1", "seed must be", "at least 0"),
    ("scan", "device=tpu", "--set: device must be auto, cpu, cuda, cuda:N or mps, found 'tpu'"),
    ("scan", "precision=bfp16", "did you mean 'bf16'"),
    ("pretext", "data_dir=7", "--set: data_dir must be a name, found 7"),
    ("pretext", "train_db_name=''", "train_db_name must be a name"),
    ("pretext", "train_db_name=../../x", "train_db_name must be", "found '../../x'"),
    ("pretext", 'train_db_name="a\\0b"', "train_db_name must be a name"),
    ("pretext", "setup=scan", "setup is 'scan', this script needs simclr"),
    ("scan", "setup=scam", "setup must be one of", "did you mean 'scan'"),
    ("pretext", "transformation_kwargs.normalize.mean=[0.1, 0.2]", "normalize.mean must be a list of 3"),
    ("pretext", "transformation_kwargs.normalize.std=[0, 0, 0]", "normalize.std must be", "above 0"),
    ("pretext", "transformation_kwargs.normalize.std=[a, b, c]", "normalize.std must be a number"),
    # the optimizer
    ("pretext", "optimizer_kwargs.lr=fast", "--set: optimizer_kwargs.lr must be a number above 0"),
    ("pretext", "optimizer_kwargs.momentum=1.5", "optimizer_kwargs.momentum must be", "below 1"),
    ("pretext", "optimizer_kwargs=fast", "optimizer_kwargs must hold keys and values, found 'fast'"),
    ("pretext", "scheduler_kwargs.warmup_epochs=500", "warmup_epochs, 500", "less than epochs, 500"),
    ("pretext", "scheduler_kwargs.lr_decay_epochs=[a]", "lr_decay_epochs must be", "whole number"),
    ("pretext", ["scheduler=step", "scheduler_kwargs.lr_decay_epochs=[]"], "lr_decay_epochs must be a list"),
    ("scan", "scheduler=step", "missing scheduler_kwargs.lr_decay_epochs, which scheduler step needs"),
    # the augmentations
    ("pretext", "augmentation_kwargs.random_resized_crop.scale=[0, 1]", "scale must be", "above 0"),
    ("pretext", "augmentation_kwargs.random_resized_crop.scale=[0.5]", "scale must be a list of 2"),
    ("pretext", "augmentation_kwargs.color_jitter.hue=0.7", "color_jitter.hue", "at most 0.5"),
    ("pretext", "augmentation_kwargs.color_jitter.hu=0.1", "augmentation_kwargs.color_jitter.hue'?"),
    # keys of one step
    ("pretext", "criterion=scan", "setup simclr needs criterion simclr, found scan"),
    ("scan", "num_classes=10000000000", "num_classes must be", "at most"),
    ("scan", "criterion_kwargs.temperature=0.1", "temperature needs criterion simclr; other losses"),
    ("scan", "update_cluster_head_only=2", "update_cluster_head_only must be True or False, found 2"),
    ("scan", ["cache_features=3", "update_cluster_head_only=False"], "needs update_cluster_head_only True"),
    ("selflabel", "use_ema=True", "missing ema_alpha, which use_ema needs"),
    # the syntax
    ("pretext", "epochs", "--set epochs: expected KEY=VALUE"),
    ("pretext", "=3", "--set", "unknown key ''"),
    ("pretext", "epochs=[", "--set epochs=[", "not a YAML value"),
    ("pretext", "epochs.a=3", "--set: epochs", WHOLE_OR_0),
    ("pretext", "EPOCHS=3", "--set: unknown key 'EPOCHS'", "did you mean 'epochs'|known keys"),
]


@pytest.mark.parametrize("row", SETTINGS, ids=names(SETTINGS))
def test_set(row):
    step, overrides, *words = row
    refused(words, load, step, "--set", *([overrides] if isinstance(overrides, str) else overrides))


CHANGES = [  # None removes the key
    ("pretext", {"epochs": None, "optimizer": None}, "mine.yml: missing epochs, optimizer"),
    ("pretext", {"augmentation_kwargs": {"color_jitter_random_apply": {}}}, "color_jitter_random_apply.p"),
    ("pretext", {"augmentation_kwargs": {"random_resized_crop": {"scale": [1, 0.2]}}}, "the smaller one"),
    ("pretext", {"epochs": True}, "epochs must be a whole number"),
    ("pretext", {"seed": 10**20}, "seed must be"),
    ("pretext", {"augmentation_kwargs": [1]}, "mine.yml: augmentation_kwargs must hold keys and values"),
    ("pretext", {"epoch": 3}, "mine.yml: unknown key 'epoch'; did you mean 'epochs'?"),
    ("scan", {"num_neighbours": 3}, "mine.yml: unknown key 'num_neighbours'; did you mean 'num_neighbors'?"),
]


@pytest.mark.parametrize("row", CHANGES, ids=names(CHANGES))
def test_experiment(row, tmp_path):
    step, changes, *words = row
    content = {**yaml.safe_load((ROOT / STEPS[step][1]).read_text()), **changes}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    refused(words, load, step, "--config_exp", str(tmp_path / "mine.yml"))


FILES = [
    ("--config_exp", "", "mine.yml: expected keys and values, found NoneType"),
    ("--config_exp", "just words", "mine.yml: expected keys and values, found str"),
    ("--config_exp", "setup: [simclr", "mine.yml, line 1: not valid YAML"),
    ("--config_exp", "setup: simclr\n\tepochs: 3", "mine.yml, line 2: not valid YAML"),
    ("--config_exp", "setup: *simclr", "mine.yml, line 1: not valid YAML", "simclr"),
    ("--config_exp", "setup: simclr\nepochs: 3\nepochs: 4", "mine.yml, line 3", "'epochs'", "twice"),
    ("--config_exp", "? [a, b]\n: 1", "mine.yml, line 1: not valid YAML"),
    ("--config_exp", "setup: !!python/object/apply:os.system [ls]", "mine.yml, line 1: not valid YAML"),
    ("--config_exp", "a: 1\n---\nb: 2", "mine.yml", "not valid YAML"),
    ("--config_exp", b"\xff\xfe\x00s", "mine.yml", "cannot be read"),
    ("--config_exp", "null: 2", "mine.yml: unknown key 'None'"),
    ("--config_exp", "model_kwargs: &m\n  head: *m", "mine.yml", "model_kwargs.head"),
    ("--config_env", "epochs: 3", "mine.yml: unknown key 'epochs'; known keys: root_dir"),
    ("--config_env", "root: x", "mine.yml: unknown key 'root'; did you mean 'root_dir'?"),
]


@pytest.mark.parametrize("row", FILES, ids=names(FILES))
def test_file(row, tmp_path):
    flag, content, *words = row
    (tmp_path / "mine.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(words, load, "pretext", flag, str(tmp_path / "mine.yml"))


PATHS = [
    ("pretext", ["--config_env", "configs/envi.yml"], "envi.yml: no such file; did you mean configs/env"),
    ("pretext", ["--config_exp", "nowhere/at/all.yml"], "nowhere/at/all.yml: no such file"),
    ("pretext", ["--config_exp", "configs"], "configs: cannot be read", "directory"),
    ("moco", ["--config_exp", STEPS["pretext"][1]], "setup is 'simclr', this script needs moco"),
]


@pytest.mark.parametrize("row", PATHS, ids=names(PATHS))
def test_path(row):
    step, argv, *words = row
    refused(words, load, step, *argv)
