"""What people get wrong, through the real scripts: each mistake ends in one line that names it."""

import io
import json
import re
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from steps import ROOT, STEPS, arguments, official_moco

import eval as evaluation
import moco
from utils.run import checkpoint
from utils.run.script import run_script

MAIN = {
    **{name: script.main for name, (script, *_) in STEPS.items()},
    "eval": evaluation.main,
    "moco": moco.main,
}
SMALL_MOCO = ["backbone=resnet10_narrow", "train_db_name=digits", "val_db_name=digits"]
SMALL_MOCO += ["transformation_kwargs.crop_size=8"]


class Place:
    """What a mistake is made in: a folder with the results of the steps before the one that is run."""

    def __init__(self, script, results, folder):
        self.script, self.results, self.folder, self.root = script, results, folder, folder / "results"
        (self.root / "digits").mkdir(parents=True)
        for step in {"scan": ["pretext"], "selflabel": ["pretext", "scan"]}.get(script, []):
            (self.root / "digits" / step).symlink_to(results / step)

    def argv(self):
        if self.script == "eval":
            model = str(self.results / "scan/model.pth.tar")
            return [
                "--config_exp",
                STEPS["scan"][1],
                "--model",
                model,
                "--output",
                str(self.folder / "out"),
                "--set",
                "num_heads=2",
            ]
        if self.script == "moco":
            config = "configs/pretext/moco_imagenet50.yml"
            return ["--config_exp", config, "--set", f"root_dir={self.root}", *SMALL_MOCO]
        return arguments(self.script, self.root)

    def own(self, step):
        """A copy of a step's results, to be damaged."""
        path = self.root / "digits" / step
        path.unlink(missing_ok=True)
        shutil.copytree(self.results / step, path)
        return path

    def file(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


# Each of these gives a function Place -> what to append to the command line.


def sets(*overrides):
    return lambda place: ["--set", *overrides]


def flags(*argv):
    return lambda place: list(argv)


def config_file(text, flag="--config_exp"):
    """A configuration file with this content."""
    return lambda place: [flag, place.file("mine.yml", text)]


def experiment(**changes):
    """The experiment file of the step with changes; None removes a key."""

    def write(place):
        content = {**yaml.safe_load((ROOT / STEPS[place.script][1]).read_text()), **changes}
        text = yaml.safe_dump({key: value for key, value in content.items() if value is not None})
        return config_file(text)(place)

    return write


def given(content, flag="--pretrained"):
    """A file of weights: bytes, or what torch.save takes, or a function of the results' folder to either."""

    def write(place):
        made = content(place.results) if callable(content) else content
        if not isinstance(made, bytes):
            file = io.BytesIO()
            torch.save(made, file)
            made = file.getvalue()
        return [flag, place.file("weights.pth.tar", made)]

    return write


def mine(place):
    return ["--set", "train_db_name=mine", "val_db_name=mine", f"data_dir={place.folder}"]


def arrays(*without, batch_size=256, **changes):
    """An .npz file that would be good but for these arrays."""

    def write(place):
        images = np.zeros((30, 8, 8, 3), np.uint8)
        content = {"train_images": images, "train_labels": np.arange(30) % 3,
                   "test_images": images[:10], "test_labels": np.arange(10) % 3, **changes}  # fmt: skip
        np.savez(place.folder / "mine.npz", **{k: v for k, v in content.items() if k not in without})
        return [*mine(place), f"batch_size={batch_size}"]

    return write


def npz(damage):
    """A good .npz file whose bytes are changed."""

    def write(place):
        argv = arrays()(place)
        path = place.folder / "mine.npz"
        path.write_bytes(damage(path.read_bytes()))
        return argv

    return write


def files(*paths, folders=()):
    """A dataset of files: an image where the path ends in .png, else a text; and of empty folders."""

    def write(place):
        for path in (place.folder / "mine" / path for path in paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20)).save(path) if path.suffix == ".png" else path.write_text("no image")
        for path in folders:
            (place.folder / "mine" / path).mkdir(parents=True)
        return mine(place)

    return write


def neighbors(array, name="train"):
    """An array, or bytes, in the place of the mined neighbors; a function of those makes it."""

    def write(place):
        path = place.own("pretext") / f"topk-{name}-neighbors.npy"
        made = array(np.load(path)) if callable(array) else array
        if isinstance(made, bytes):
            path.write_bytes(made)
        else:
            np.save(path, made)
        return []

    return write


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


def resumed(step="pretext", **changes):
    """An earlier training checkpoint of the step itself with changes; `...` removes a key."""

    def write(place):
        path = place.own(step) / "checkpoint.pth.tar"
        content = {**checkpoint.load(path), **changes}
        torch.save({key: value for key, value in content.items() if value is not ...}, path)
        return []

    return write


def damaged(name, content, step="pretext"):
    def write(place):
        (place.own(step) / name).write_bytes(content)
        return []

    return write


def model_of(step, **changes):
    """The state dict of a step's result; `changes` are functions of the weight whose name they end."""

    def read(results):
        weights = checkpoint.load(results / step / "model.pth.tar")
        weights = dict(weights.get("model", weights))
        for suffix, function in changes.items():
            key = next(key for key in weights if key.endswith(suffix.replace("_in_", ".")))
            weights[key] = function(weights[key])
        return weights

    return read


def part_of(step, pattern, **more):
    return lambda results: {
        **{key: value for key, value in model_of(step)(results).items() if re.search(pattern, key)},
        **more,
    }


def with_head(head):
    return lambda results: {"model": model_of("scan")(results), "head": head}


def eval_pretext(*argv):
    return lambda place: [
        *(
            "--config_exp",
            STEPS["pretext"][1],
            "--model",
            str(place.results / "pretext/model.pth.tar"),
            *argv,
        ),
    ]


WHOLE = "must be a whole number of at least 1"

SETTINGS = [
    # keys of all steps
    ("pretext", sets("epochs=ten"), "--set: epochs", WHOLE, "'ten'"),
    ("pretext", sets("epochs=-1"), "--set: epochs", WHOLE, "found -1"),
    ("pretext", sets("epochs=.inf"), "--set: epochs", WHOLE, "inf"),
    ("pretext", sets("epochs=.nan"), "--set: epochs", WHOLE, "nan"),
    ("pretext", sets("epochs=2.5"), "--set: epochs", WHOLE, "2.5"),
    ("pretext", sets("epochs="), "--set: epochs", WHOLE, "None"),
    ("pretext", sets("epochs=[1, 2]"), "--set: epochs", WHOLE, "[1, 2]"),
    ("pretext", sets("epochs={a: 1}"), "--set: epochs", WHOLE),
    ("pretext", sets("epochs=2020-01-01"), "--set: epochs", WHOLE),
    ("scan", sets("batch_size=0"), "--set: batch_size", WHOLE),
    ("scan", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("selflabel", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("pretext", sets("batch_size=1"), "batch_size 1", "2 or more"),
    ("scan", sets("batch_size=1000000000000"), "batch_size 1000000000000", "1437 images"),
    ("scan", sets("seed=-1"), "seed must be", "at least 0"),
    ("scan", sets("seed=4294967296"), "seed must be", "at most 2147483648"),
    ("scan", sets("num_workers=-2"), "num_workers must be", "at least 0"),
    ("scan", sets("num_workers=100000"), "num_workers must be", "at most"),
    ("scan", sets("device=tpu"), "--set: device must be auto, cpu, cuda or cuda:N, found 'tpu'"),
    ("scan", sets("device=[cpu]"), "--set: device must be auto, cpu"),
    ("scan", sets("precision=fp64"), "--set: precision must be one of auto, bf16, fp32"),
    ("scan", sets("precision=bfp16"), "did you mean 'bf16'"),
    ("scan", sets("compile=always"), "--set: compile must be one of auto, on, off"),
    ("scan", sets("compile=[on]"), "--set: compile must be one of auto, on, off"),
    ("scan", sets("compile={a: b}"), "--set: compile must be one of auto, on, off"),
    ("pretext", sets("root_dir="), "--set: root_dir must be a name, found None"),
    ("pretext", sets("data_dir=7"), "--set: data_dir must be a name, found 7"),
    ("pretext", sets("train_db_name=''"), "train_db_name must be a name"),
    (
        "pretext",
        lambda place: ["--set", f"train_db_name={place.folder}/x"],
        "train_db_name must be the name of",
    ),
    ("pretext", sets("train_db_name=../../x"), "train_db_name must be", "found '../../x'"),
    ("pretext", sets('train_db_name="a\\0b"'), "train_db_name must be a name"),
    ("pretext", lambda place: ["--set", f'root_dir="{place.folder}/a\\nb"'], "root_dir must be a name"),
    ("pretext", sets(f"val_db_name={'x' * 300}"), "xxx"),
    ("pretext", sets("train_db_name=digit"), "dataset 'digit': unknown", "did you mean 'digits'?"),
    ("scan", sets("val_db_name=digts"), "dataset 'digts': unknown", "did you mean 'digits'?"),
    ("pretext", sets("backbone=resnet_18"), "backbone", "known: resnet18", "did you mean 'resnet18'?"),
    ("scan", sets("backbone=vit"), "backbone: unknown name 'vit'", "known: resnet18"),
    ("pretext", sets("setup=scan"), "setup is 'scan', this script needs simclr"),
    ("scan", sets("setup=scam"), "setup must be one of", "did you mean 'scan'"),
    ("selflabel", sets("max_unreadable=2"), "max_unreadable must be a number of at least 0 of at most 1"),
    ("pretext", sets("max_unreadable=all"), "max_unreadable must be a number"),
    ("pretext", sets("transformation_kwargs.crop_size=-8"), "transformation_kwargs.crop_size", WHOLE),
    ("pretext", sets("transformation_kwargs.crop_size=32"), "crop", "32", "8"),
    (
        "pretext",
        sets("transformation_kwargs.normalize.mean=[0.1, 0.2]"),
        "normalize.mean must be a list of 3",
    ),
    ("pretext", sets("transformation_kwargs.normalize.std=[0, 0, 0]"), "normalize.std must be", "above 0"),
    ("pretext", sets("transformation_kwargs.normalize.std=[a, b, c]"), "normalize.std must be a number"),
    ("pretext", sets("transformation_kwargs.normalize.mean=[]"), "normalize.mean must be a list of 3"),
    ("pretext", sets("transformation_kwargs.normalize.mean=0.5"), "normalize.mean must be a list of 3"),
    # the optimiser
    ("pretext", sets("optimizer=sdg"), "optimizer must be one of sgd, adam", "did you mean 'sgd'"),
    ("pretext", sets("optimizer=[sgd]"), "optimizer must be one of sgd, adam"),
    ("pretext", sets("optimizer_kwargs.lr=fast"), "--set: optimizer_kwargs.lr must be a number above 0"),
    ("pretext", sets("optimizer_kwargs.lr=0"), "optimizer_kwargs.lr must be a number above 0, found 0"),
    ("scan", sets("optimizer_kwargs.lr=.nan"), "optimizer_kwargs.lr must be a number above 0, found nan"),
    ("scan", sets("optimizer_kwargs.lr=-0.1"), "optimizer_kwargs.lr must be", "found -0.1"),
    ("pretext", sets("optimizer_kwargs.momentum=1.5"), "optimizer_kwargs.momentum must be", "below 1"),
    ("pretext", sets("optimizer_kwargs.weight_decay=-1"), "optimizer_kwargs.weight_decay must be"),
    ("pretext", sets("optimizer_kwargs.nesterov=maybe"), "optimizer_kwargs.nesterov must be True or False"),
    ("pretext", sets("optimizer_kwargs.nesterov=True", "optimizer_kwargs.momentum=0"), "sgd cannot use them"),
    ("scan", sets("optimizer_kwargs.momentum=0.5"), "adam cannot use them", "momentum"),
    ("pretext", sets("optimizer_kwargs.learning_rate=1"), "unknown key 'optimizer_kwargs.learning_rate'"),
    ("pretext", sets("optimizer_kwargs.beta=1"), "unknown key 'optimizer_kwargs.beta'", "known keys: lr"),
    ("pretext", sets("optimizer_kwargs=fast"), "optimizer_kwargs must hold keys and values, found 'fast'"),
    ("pretext", sets("scheduler=linear"), "scheduler must be one of cosine, step, constant"),
    ("pretext", sets("scheduler_kwargs.lr_decay_rate=0"), "scheduler_kwargs.lr_decay_rate must be"),
    ("pretext", sets("scheduler_kwargs.lr_decay_rate=10"), "scheduler_kwargs.lr_decay_rate", "at most 1"),
    (
        "pretext",
        sets("scheduler_kwargs.lr_decay_epochs=5"),
        "scheduler_kwargs.lr_decay_epochs must be a list",
    ),
    ("pretext", sets("scheduler_kwargs.lr_decay_epochs=[a]"), "lr_decay_epochs must be", "whole number"),
    (
        "pretext",
        sets("scheduler=step", "scheduler_kwargs.lr_decay_epochs=[]"),
        "lr_decay_epochs must be a list",
    ),
    ("scan", sets("scheduler=step"), "missing scheduler_kwargs.lr_decay_epochs, which scheduler step needs"),
    # the augmentations
    ("pretext", sets("augmentation_strategy=strong"), "must be one of standard, simclr, ours"),
    ("pretext", sets("augmentation_strategy=simlr"), "did you mean 'simclr'"),
    ("pretext", sets("augmentation_strategy=ours"), "'ours' needs crop_size, cutout_kwargs, num_strong_augs"),
    ("scan", sets("augmentation_strategy=simclr"), "'simclr' needs color_jitter"),
    ("pretext", sets("augmentation_kwargs.random_resized_crop.size=0"), "random_resized_crop.size", WHOLE),
    ("pretext", sets("augmentation_kwargs.random_resized_crop.scale=[0, 1]"), "scale must be", "above 0"),
    ("pretext", sets("augmentation_kwargs.random_resized_crop.scale=[0.5]"), "scale must be a list of 2"),
    ("pretext", sets("augmentation_kwargs.random_resized_crop.scale=[]"), "scale must be a list of 2"),
    ("pretext", sets("augmentation_kwargs.random_resized_crop.scale=0.5"), "scale must be a list of 2"),
    ("pretext", sets("augmentation_kwargs.random_resized_crop=8"), "random_resized_crop must hold keys"),
    ("pretext", sets("augmentation_kwargs.color_jitter.hue=0.7"), "color_jitter.hue", "at most 0.5"),
    (
        "pretext",
        sets("augmentation_kwargs.color_jitter.hu=0.1"),
        "did you mean 'augmentation_kwargs.color_jitter.hue'",
    ),
    (
        "pretext",
        sets("augmentation_kwargs.random_grayscale.p=1.2"),
        "random_grayscale.p must be",
        "at most 1",
    ),
    ("scan", sets("augmentation_kwargs.random_horizontal_flip.p=-1"), "random_horizontal_flip.p must be"),
    ("scan", sets("augmentation_kwargs.num_strong_augs=-1"), "num_strong_augs must be", "at least 0"),
    ("scan", sets("augmentation_kwargs.num_strong_augs=many"), "num_strong_augs must be", "'many'"),
    ("scan", sets("augmentation_kwargs.cutout_kwargs.length=0"), "cutout_kwargs.length", WHOLE),
    ("scan", sets("augmentation_kwargs.cutout_kwargs.n_holes=1.5"), "cutout_kwargs.n_holes must be"),
    ("scan", sets("augmentation_kwargs.cutout_kwargs.random=often"), "cutout_kwargs.random must be True or"),
    ("scan", sets("augmentation_kwargs.crop_size=9"), "crop", "9", "8"),
    ("pretext", experiment(augmentation_kwargs={}), "augmentation_kwargs: 'simclr' needs color_jitter"),
    (
        "pretext",
        experiment(augmentation_kwargs=[1]),
        "mine.yml: augmentation_kwargs must hold keys and values",
    ),
    # keys of one step
    ("pretext", sets("temperature=-1"), "--set: temperature must be a number above 0"),
    ("pretext", sets("criterion_kwargs.temperature=cold"), "criterion_kwargs.temperature must be a number"),
    ("pretext", sets("criterion_kwargs.temperatur=1"), "did you mean 'criterion_kwargs.temperature'"),
    ("pretext", sets("criterion=scan"), "needs criterion simclr with criterion_kwargs.temperature"),
    ("pretext", sets("model_kwargs.head=mpl"), "model_kwargs.head must be one of mlp, linear", "'mlp'"),
    ("pretext", sets("model_kwargs.heads=mlp"), "unknown key", "did you mean 'model_kwargs.head'"),
    ("pretext", sets("model_kwargs.features_dim=0"), "model_kwargs.features_dim", WHOLE),
    ("pretext", sets("model_kwargs.features_dim=10000000000"), "model_kwargs.features_dim", "at most"),
    ("scan", sets("num_classes=1"), "num_classes must be a whole number of at least 2"),
    ("scan", sets("num_classes=ten"), "num_classes must be a whole number", "'ten'"),
    ("scan", sets("num_classes=10000000000"), "num_classes must be", "at most"),
    ("scan", sets("num_heads=0"), "num_heads", WHOLE),
    ("scan", sets("num_heads=1000000000"), "num_heads must be", "at most"),
    ("scan", sets("num_neighbors=0"), "num_neighbors", WHOLE),
    ("scan", sets("num_neighbors=500"), "num_neighbors 500 is more than the 20 neighbors", "to 20 or less"),
    ("scan", sets("criterion_kwargs.entropy_weight=-5"), "criterion_kwargs.entropy_weight must be"),
    (
        "scan",
        sets("criterion_kwargs.temperature=0.1"),
        "setup scan needs criterion scan with",
        "entropy_weight",
    ),
    ("scan", sets("update_cluster_head_only=2"), "update_cluster_head_only must be True or False, found 2"),
    ("scan", sets("cache_features=0"), "cache_features", WHOLE),
    ("scan", sets("cache_features=100000000"), "cache_features 100000000", "GB", "lower it"),
    ("scan", sets("validation=train"), "validation must be one of test, train_holdout"),
    ("selflabel", sets("confidence_threshold=1.5"), "confidence_threshold must be", "below 1"),
    ("selflabel", sets("confidence_threshold=-0.1"), "confidence_threshold must be", "at least 0"),
    ("selflabel", sets("confidence_threshold=high"), "confidence_threshold must be a number", "'high'"),
    ("selflabel", sets("use_ema=True"), "missing ema_alpha, which use_ema needs"),
    ("selflabel", sets("ema_alpha=2"), "ema_alpha must be", "at most 1"),
    ("selflabel", sets("use_ema='True'"), "use_ema must be True or False, found 'True'"),
    ("selflabel", sets("num_heads=3"), "num_heads must be 1 for self-labeling, found 3"),
    (
        "selflabel",
        sets("criterion_kwargs.apply_class_balancing=1"),
        "apply_class_balancing must be True or False",
    ),
    ("selflabel", sets("criterion=confidence-cross-entrop"), "did you mean 'confidence-cross-entropy'"),
    ("selflabel", sets("num_classes=12"), "scan/model.pth.tar: does not fit", "--set num_classes=10"),
]

FILES = [
    ("pretext", config_file(""), "mine.yml: expected keys and values, found NoneType"),
    ("pretext", config_file("- a\n- b"), "mine.yml: expected keys and values, found list"),
    ("pretext", config_file("just words"), "mine.yml: expected keys and values, found str"),
    ("pretext", config_file("setup: [simclr"), "mine.yml, line 1: not valid YAML"),
    ("pretext", config_file("setup: simclr\n\tepochs: 3"), "mine.yml, line 2: not valid YAML"),
    ("pretext", config_file("setup: simclr\n  epochs: 3"), "mine.yml, line 2: not valid YAML"),
    ("pretext", config_file("setup: simclr\nepochs 3\nseed: 1"), "mine.yml, line 3: not valid YAML"),
    ("pretext", config_file("setup: 'simclr"), "mine.yml", "not valid YAML"),
    ("pretext", config_file("setup: *simclr"), "mine.yml, line 1: not valid YAML", "simclr"),
    ("pretext", config_file("setup: simclr\nepochs: 3\nepochs: 4"), "mine.yml, line 3", "'epochs'", "twice"),
    ("pretext", config_file("? [a, b]\n: 1"), "mine.yml, line 1: not valid YAML"),
    (
        "pretext",
        config_file("setup: !!python/object/apply:os.system [ls]"),
        "mine.yml, line 1: not valid YAML",
    ),
    ("pretext", config_file("a: 1\n---\nb: 2"), "mine.yml", "not valid YAML"),
    ("pretext", config_file("setup: sim\0clr"), "mine.yml", "not valid YAML"),
    ("pretext", config_file(b"\xff\xfe\x00s"), "mine.yml", "cannot be read"),
    ("pretext", config_file(b"\x89PNG\r\n"), "mine.yml", "cannot be read"),
    ("pretext", config_file("1: 2"), "mine.yml: unknown key '1'"),
    ("pretext", config_file("null: 2"), "mine.yml: unknown key 'None'"),
    ("pretext", config_file("model_kwargs: &m\n  head: *m"), "mine.yml", "model_kwargs.head"),
    ("pretext", config_file("setup: simclr"), "mine.yml: missing backbone, train_db_name"),
    ("pretext", experiment(backbone=None), "mine.yml: missing backbone"),
    ("pretext", experiment(epoch=3), "mine.yml: unknown key 'epoch'; did you mean 'epochs'?"),
    (
        "scan",
        experiment(num_neighbours=3),
        "mine.yml: unknown key 'num_neighbours'; did you mean 'num_neighbors'?",
    ),
    ("scan", experiment(num_neighbors=None), "mine.yml: missing num_neighbors"),
    ("selflabel", experiment(threshold=0.9), "mine.yml: unknown key 'threshold'", "did you mean|known keys"),
    (
        "pretext",
        config_file("epochs: 3", "--config_env"),
        "mine.yml: unknown key 'epochs'; known keys: root_dir",
    ),
    (
        "pretext",
        config_file("root: x", "--config_env"),
        "mine.yml: unknown key 'root'; did you mean 'root_dir'?",
    ),
    ("pretext", config_file("root_dir: 5", "--config_env"), "mine.yml: root_dir must be a name, found 5"),
    ("pretext", config_file("device: gpu", "--config_env"), "mine.yml: device must be auto, cpu, cuda"),
    (
        "pretext",
        flags("--config_env", "configs/envi.yml"),
        "configs/envi.yml: no such file; did you mean configs/env.yml?",
    ),
    (
        "pretext",
        flags("--config_exp", "configs/pretext/simclr_digit.yml"),
        "did you mean configs/pretext/simclr_digits.yml?",
    ),
    ("pretext", flags("--config_exp", "nowhere/at/all.yml"), "nowhere/at/all.yml: no such file"),
    ("pretext", flags("--config_exp", "configs"), "configs: cannot be read", "directory"),
    ("pretext", flags("--config_exp", ""), "no such file"),
    ("pretext", flags("--config_exp", "README.md"), "README.md"),
    ("pretext", flags("--config_exp", STEPS["scan"][1]), "setup is 'scan', this script needs simclr"),
    ("selflabel", flags("--config_exp", STEPS["scan"][1]), "setup is 'scan', this script needs selflabel"),
    ("moco", flags("--config_exp", STEPS["pretext"][1]), "setup is 'simclr', this script needs moco"),
]

COMMAND_LINE = [
    ("pretext", flags("--run", "a/b"), "--run", "found 'a/b'"),
    ("pretext", flags("--run", ""), "--run", "found ''"),
    ("pretext", flags("--run", ".."), "--run", "found '..'"),
    (
        "pretext",
        flags("--pretrained", "https://host/model.pth.tar"),
        "--pretrained",
        "a file on this machine",
    ),
    ("pretext", flags("--pretrained", ""), "--pretrained", "expected a file"),
    ("pretext", flags("--pretrained"), "--pretrained", "expected one argument"),
    ("pretext", flags("--epochs", "3"), "unrecognized arguments: --epochs 3"),
    ("pretext", flags("--config_exp"), "--config_exp", "expected one argument"),
    ("pretext", flags("extra"), "extra"),
    ("pretext", sets("epochs"), "--set epochs: expected KEY=VALUE"),
    ("pretext", sets("=3"), "--set", "unknown key ''"),
    ("pretext", sets("epochs=["), "--set epochs=[", "not a YAML value"),
    ("pretext", sets("epochs==3"), "--set: epochs", WHOLE),
    ("pretext", sets(".epochs=3"), "--set: unknown key ''"),
    ("pretext", sets("epochs.a=3"), "--set: epochs", WHOLE),
    ("pretext", sets("optimizer_kwargs.=3"), "--set: unknown key 'optimizer_kwargs.'"),
    ("pretext", sets("EPOCHS=3"), "--set: unknown key 'EPOCHS'", "did you mean 'epochs'|known keys"),
    ("eval", flags("--model", "nowhere.pth.tar"), "nowhere.pth.tar: no such file"),
    ("eval", flags("--model", "http://host/m.pth"), "--model", "a file on this machine"),
    ("eval", flags("--kmeans"), "--kmeans clusters a pretext model's features, but setup is scan"),
    (
        "eval",
        eval_pretext("--visualize_prototypes"),
        "--visualize_prototypes needs clusters, but setup is simclr",
    ),
    ("eval", flags("--output", "README.md"), "README.md: cannot write results there", "--output"),
    ("eval", flags("--config_exp", STEPS["pretext"][1]), "a clustering model", "but a pretext model"),
    ("eval", sets("num_heads=3"), "scan/model.pth.tar: does not fit this model", "--set num_heads=2"),
    ("eval", sets("num_classes=11"), "does not fit this model", "--set num_classes=10"),
    (
        "eval",
        eval_pretext("--kmeans", "--set", "num_classes=2000"),
        "k-means needs at least 2000 training images",
    ),
    ("eval", flags("--features", "features.txt"), "expected a file FILE.npy, found 'features.txt'"),
    ("eval", flags("--features", "/proc/none/features.npy"), "No such file or directory: '/proc/none'"),
    ("moco", flags("--pretrained", "nowhere.pth.tar"), "nowhere.pth.tar: no such file"),
    (
        "pretext",
        lambda place: ["--set", f"root_dir={place.file('taken', '')}"],
        "taken/digits/pretext: cannot write",
    ),
    ("pretext", sets("device=cuda:63"), "cuda:63", "no such GPU", "set device to auto or cpu"),
]

IMAGES = np.zeros((30, 8, 8, 3), np.uint8)
ARRAYS = [
    ("pretext", arrays("train_images"), "mine.npz: has no array 'train_images', only", "test_images"),
    ("pretext", arrays("test_images"), "mine.npz: has no array 'test_images'"),
    ("pretext", arrays(train_images=IMAGES / 255), "train_images: images must be uint8", "float64"),
    ("pretext", arrays(train_images=IMAGES.astype(int)), "images must be uint8", "int64"),
    ("pretext", arrays(train_images=IMAGES > 0), "images must be uint8", "bool"),
    ("pretext", arrays(train_images=np.array([{}] * 30)), "mine.npz: cannot be read", "Object arrays|object"),
    ("pretext", arrays(train_images=np.array(["a.png"] * 30)), "images must be uint8", "(30,)"),
    ("pretext", arrays(train_images=IMAGES[..., 0, 0]), "images must be uint8", "(30, 8)"),
    ("pretext", arrays(train_images=IMAGES[None]), "images must be uint8", "(1, 30, 8, 8, 3)"),
    ("pretext", arrays(train_images=np.uint8(3)), "images must be uint8", "()"),
    ("pretext", arrays(train_images=IMAGES.transpose(0, 3, 1, 2)), "(N, H, W, 3)", "(30, 3, 8, 8)"),
    ("pretext", arrays(train_images=np.zeros((30, 8, 8, 4), np.uint8)), "(N, H, W, 3)", "(30, 8, 8, 4)"),
    ("pretext", arrays(train_images=np.zeros((30, 8, 8, 2), np.uint8)), "(N, H, W, 3)", "(30, 8, 8, 2)"),
    ("pretext", arrays("train_labels", train_images=IMAGES[:0]), "'mine', split 'train': holds no images"),
    ("pretext", arrays("test_labels", test_images=IMAGES[:0]), "'mine', split 'test': holds no images"),
    ("pretext", arrays("train_labels", train_images=IMAGES[:, :0]), "train_images", "(30, 0, 8, 3)"),
    ("pretext", arrays("train_labels", train_images=IMAGES[:1]), "cannot mine 20 neighbors among 1 images"),
    ("pretext", arrays("test_labels", test_images=IMAGES[:3]), "cannot mine 5 neighbors among 3 images"),
    (
        "pretext",
        arrays(test_images=IMAGES[:10, :4, :4], batch_size=20),
        "crop_size 8 is larger than the images (4 x 4)",
    ),
    ("pretext", arrays(train_labels=np.arange(30) - 1), "train_labels holds negative labels"),
    ("pretext", arrays(train_labels=np.arange(31)), "train_labels must be integers of shape (30,)", "(31,)"),
    ("pretext", arrays(train_labels=np.arange(30.0)), "train_labels must be integers", "float64"),
    ("pretext", arrays(train_labels=np.full(30, np.nan)), "train_labels must be integers", "float64"),
    ("pretext", arrays(train_labels=np.array(["cat"] * 30)), "train_labels must be integers"),
    ("pretext", arrays(train_labels=np.array([None] * 30)), "mine.npz: cannot be read"),
    ("pretext", arrays(train_labels=np.eye(30, dtype=int)), "train_labels must be integers", "(30, 30)"),
    ("pretext", arrays(train_labels=np.int64(3)), "train_labels must be integers", "()"),
    ("pretext", arrays(train_labels=np.arange(30) % 2 > 0), "train_labels must be integers", "bool"),
    ("pretext", arrays(train_labels=np.full(30, 10**12)), "train_labels", "1000000000000"),
    (
        "pretext",
        arrays(train_labels=np.full(30, 2**64 - 1, np.uint64)),
        "train_labels",
        "18446744073709551615",
    ),
    ("pretext", arrays(test_labels=np.arange(9)), "test_labels must be integers of shape (10,)", "(9,)"),
    ("pretext", arrays(classes=np.array(["a", "b"])), "'classes' has 2 names, but a label is 2"),
    ("pretext", arrays(classes=np.array("a")), "'classes'"),
    ("pretext", arrays(classes=np.array([{}])), "mine.npz: cannot be read"),
    ("pretext", npz(lambda content: b""), "mine.npz: not a readable .npz file"),
    ("pretext", npz(lambda content: b"<html>404</html>"), "mine.npz: not a readable .npz file"),
    ("pretext", npz(lambda content: content[: len(content) // 2]), "mine.npz: not a readable .npz file"),
    ("pretext", npz(lambda content: content[:-30]), "mine.npz: not a readable .npz file"),
    ("pretext", npz(lambda content: content[:200] + b"damage" + content[206:]), "mine.npz: cannot be read"),
    (
        "pretext",
        npz(lambda content: re.sub(rb"(?s)(PK\x01\x02.{4})\x00", lambda found: found[1] + b"\1", content)),
        "mine.npz: cannot be read",
        "encrypted",
    ),
    ("pretext", npz(lambda content: content.replace(b"(30, 8", b"(90, 8")), "mine.npz: cannot be read"),
    ("pretext", npz(lambda content: b"\x93NUMPY\1\0v\0"), "mine.npz: not a readable .npz file"),
    ("pretext", npz(lambda content: npy(IMAGES)), "mine.npz: holds a single array", "train_images"),
    ("pretext", npz(lambda content: zipped("a.txt", "text")), "has no array 'train_images', only a.txt"),
    ("pretext", npz(lambda content: zipped("train_images.npy", "text")), "mine.npz"),
    (
        "pretext",
        npz(lambda content: zipped("train_images.npy", npy(IMAGES)[:300])),
        "mine.npz: cannot be read",
    ),
]


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(name, content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def numbered(folder, n=30):
    return [f"{folder}/{i}.png" for i in range(n)]


FOLDERS = [
    ("pretext", files(*numbered("test")), "mine/train: no such folder", "training needs train/ beside test/"),
    ("pretext", files(*numbered("Train"), *numbered("Test")), "mine: has Test/, Train/; the splits must be"),
    ("pretext", files("train", *numbered("test")), "mine/train: no such folder"),
    ("pretext", files(folders=["train", "test"]), "mine/train: no images found", ".png"),
    ("pretext", files(*numbered("test"), folders=["train"]), "mine/train: no images found"),
    ("pretext", files(*numbered("train"), folders=["test"]), "mine/test: no images found"),
    ("pretext", files(*numbered("test"), "train/a.txt"), "mine/train: no images found"),
    ("pretext", files(*numbered("test"), folders=["train/cat", "train/dog"]), "mine/train: no images found"),
    ("pretext", files("train/0.png", *numbered("test")), "cannot mine 20 neighbors among 1 images"),
    ("pretext", files(*numbered("train"), "test/0.png"), "cannot mine 5 neighbors among 1 images"),
    (
        "pretext",
        files(*numbered("train/cat"), *numbered("train/dog"), *numbered("test/cow")),
        "train: has no class folder cow",
    ),
    (
        "pretext",
        files(*numbered("train"), "train/x.jpg", *numbered("test")),
        "1 of 31 images",
        "x.jpg (empty, or",
    ),
    (
        "pretext",
        files(*numbered("train"), *numbered("test"), "test/x.jpg"),
        "mine/test: 1 of 31",
        "unreadable-test",
    ),
    (
        "pretext",
        lambda place: ["--data_dir", place.file("data", "")] + ["--set", "train_db_name=x"],
        "dataset 'x'",
    ),
    (
        "pretext",
        lambda place: ["--set", "train_db_name=imagenet", f"data_dir={place.folder}"],
        "ImageNet is not there",
    ),
    (
        "pretext",
        lambda place: ["--set", "train_db_name=mine", f"data_dir={place.folder / 'none'}"],
        "'mine': unknown",
    ),
]

TABLE_IS = "expected a table of whole numbers; mine the neighbors again"
NEIGHBORS = [
    (
        "scan",
        neighbors(lambda a: a[:-1]),
        "topk-train-neighbors.npy",
        "of 1436 images, but the split has 1437",
    ),
    ("scan", neighbors(lambda a: a[:0]), "topk-train-neighbors.npy", "of 0 images, but the split has 1437"),
    ("scan", neighbors(lambda a: a[:, :1]), "0 neighbors of 1437 images"),
    ("scan", neighbors(lambda a: a[:, :0]), "topk-train-neighbors.npy"),
    ("scan", neighbors(lambda a: changed(a, (3, 2), 1437)), "holds indices outside 0..1436"),
    ("scan", neighbors(lambda a: changed(a, (3, 2), -1)), "holds indices outside 0..1436"),
    ("scan", neighbors(lambda a: a.astype(np.uint64) - np.uint64(1)), "holds indices outside 0..1436"),
    ("scan", neighbors(lambda a: a.astype(float)), TABLE_IS),
    ("scan", neighbors(lambda a: changed(a.astype(float), 0, np.nan)), TABLE_IS),
    ("scan", neighbors(lambda a: a.astype(str)), TABLE_IS),
    ("scan", neighbors(lambda a: a > 0), TABLE_IS),
    ("scan", neighbors(lambda a: a[:, 0]), TABLE_IS),
    ("scan", neighbors(lambda a: a[None]), TABLE_IS),
    ("scan", neighbors(np.int64(3)), TABLE_IS),
    ("scan", neighbors(lambda a: a.astype(object)), "not a readable .npy file; mine the neighbors again"),
    ("scan", neighbors(b""), "not a readable .npy file"),
    ("scan", neighbors(b"0 1 2\n1 0 2\n"), "not a readable .npy file"),
    ("scan", neighbors(lambda a: npy(a)[:5000]), "not a readable .npy file"),
    ("scan", neighbors(lambda a: npy(a)[:50]), "not a readable .npy file"),
    ("scan", neighbors(lambda a: npy(a).replace(b"(1437", b"(9999")), "not a readable .npy file"),
    ("scan", neighbors(lambda a: zipped("a.npy", npy(a))), "topk-train-neighbors.npy"),
    (
        "scan",
        neighbors(lambda a: a[:9], "val"),
        "topk-val-neighbors.npy",
        "of 9 images, but the split has 360",
    ),
    ("scan", neighbors(lambda a: a + 300, "val"), "topk-val-neighbors.npy", "outside 0..359"),
    ("scan", neighbors(lambda a: a / 1.0, "val"), "topk-val-neighbors.npy", TABLE_IS),
    (
        "scan",
        lambda place: (place.own("pretext") / "topk-val-neighbors.npy").unlink() or [],
        "run the pretext step",
    ),
]

NONE = "not a readable checkpoint"
CHECKPOINTS = [
    ("scan", given(b""), "weights.pth.tar", NONE, "it is empty"),
    ("scan", given(b"lr: 0.1\n"), NONE, "cut short"),
    ("scan", given(b"<!DOCTYPE html><html></html>"), NONE, "a web page"),
    ("scan", given(b"version https://git-lfs.github.com/spec/v1\n"), NONE, "git lfs pull"),
    ("scan", given(b"\x1f\x8b\x08"), NONE, "an archive; unpack it"),
    ("scan", given(npy(np.zeros(3))), NONE, "a NumPy array"),
    (
        "scan",
        given(lambda results: (results / "pretext/model.pth.tar").read_bytes()[:-900]),
        NONE,
        "cut short",
    ),
    (
        "scan",
        given(lambda results: (results / "pretext/model.pth.tar").read_bytes()[:900]),
        NONE,
        "cut short",
    ),
    ("scan", given({}), "holds no state dict, but nothing"),
    ("scan", given([1, 2]), "holds no state dict, but list"),
    ("scan", given({"a": 1}), "holds no state dict, but a"),
    ("scan", given({"model": print}), NONE, "could run code"),
    ("scan", given(model_of("scan")), "a clustering model", "but a pretext model"),
    ("scan", given({"conv1.weight": torch.zeros(1)}), "a model of another program", "conv1.weight"),
    ("scan", given(model_of("pretext", conv1_in_weight=lambda w: w + np.nan)), "1 weights are not finite"),
    ("scan", given(model_of("pretext", conv1_in_weight=lambda w: w / 0)), "weights are not finite"),
    (
        "scan",
        given(model_of("pretext", conv1_in_weight=lambda w: w[:, :1])),
        "does not fit",
        "of another shape",
    ),
    ("scan", given(model_of("pretext", bn1_in_bias=lambda w: w.to(torch.int8))), "of another type", "int8"),
    ("scan", given(part_of("pretext", "layer1|layer2")), "does not fit", "missing"),
    ("scan", given(part_of("pretext", "contrastive")), "a model of another program"),
    (
        "scan",
        given(lambda results: official_moco(model_of("pretext")(results))),
        "an official MoCo checkpoint",
    ),
    ("scan", sets("backbone=resnet18"), "pretext/model.pth.tar: does not fit", "its backbone is a ResNet-10"),
    ("scan", lambda place: ["--pretrained", str(place.results)], "a folder, not a checkpoint file"),
    ("scan", damaged("model.pth.tar", b""), "pretext/model.pth.tar: " + NONE),
    (
        "scan",
        lambda place: (place.own("pretext") / "model.pth.tar").unlink() or [],
        "run simclr.py or moco.py first",
    ),
    ("pretext", given(model_of("scan")), "a clustering model", "but a pretext model"),
    ("pretext", given(part_of("pretext", "backbone")), "does not fit this model: it has no contrastive head"),
    ("pretext", given(model_of("pretext", conv1_in_weight=lambda w: w * np.nan)), "weights are not finite"),
    (
        "pretext",
        given(model_of("pretext", conv1_in_weight=lambda w: w * 0 + 1e38)),
        "network's outputs are not finite for",
    ),
    ("selflabel", given(with_head(7)), "names head 7 as the best, but its heads are 0 to 1"),
    ("selflabel", given(with_head(-1)), "names head -1 as the best"),
    ("selflabel", given(with_head("best")), "its head must be the number of a cluster head, found 'best'"),
    ("selflabel", given(with_head(None)), "does not say which of its 2 heads is the best"),
    ("selflabel", given(model_of("pretext")), "a pretext model", "but a clustering model"),
    ("selflabel", given(part_of("scan", "cluster_head.0")), "does not fit this model: it has no backbone"),
    ("eval", given(model_of("pretext"), "--model"), "a pretext model", "but a clustering model"),
    ("eval", given(b"", "--model"), NONE, "it is empty"),
    ("eval", given(model_of("scan"), "--model"), "does not say which of its 2 heads"),
    ("eval", given(with_head(1.0), "--model"), "its head must be the number"),
    (
        "eval",
        given(
            lambda results: {
                "model": model_of("scan", conv1_in_weight=lambda w: w * 0 + 1e38)(results),
                "head": 0,
            },
            "--model",
        ),
        "network's outputs are not finite for",
    ),
    (
        "eval",
        lambda place: (
            eval_pretext("--kmeans")(place)
            + given(model_of("pretext", conv1_in_weight=lambda w: w * 0 + 1e38), "--model")(place)
        ),
        "network's outputs are not finite for",
    ),
    ("moco", given(b"<html>"), NONE, "a web page"),
    ("moco", given(model_of("scan")), "a clustering model", "but an official MoCo checkpoint"),
    ("moco", given({"state_dict": {"module.encoder_q.conv1.weight": torch.zeros(2)}}), "does not fit"),
    ("moco", given({"state_dict": {}}), "holds no state dict"),
    # what the same command left earlier
    ("pretext", damaged("checkpoint.pth.tar", b""), "checkpoint.pth.tar: " + NONE),
    ("pretext", damaged("checkpoint.pth.tar", b"PK\3\4"), "checkpoint.pth.tar: " + NONE),
    ("pretext", resumed(optimizer=...), "cannot be resumed, it has no optimizer", "--fresh"),
    ("pretext", resumed(epoch=...), "cannot be resumed, it has no epoch"),
    ("pretext", resumed(epoch="two"), "cannot be resumed, it has no number of epochs"),
    ("pretext", resumed(epoch=-3), "cannot be resumed, it has no number of epochs"),
    ("pretext", resumed(optimizer={}), "its optimiser is another one", "--fresh"),
    ("pretext", resumed(optimizer=3), "its optimiser is another one", "--fresh"),
    ("pretext", resumed(optimizer={"state": {}, "param_groups": []}), "its optimiser is another one"),
    ("pretext", resumed(identity=3), "written by another experiment", "--fresh"),
    ("pretext", resumed(identity={}), "written by another experiment|cannot be resumed", "--fresh"),
    ("pretext", resumed(model={}), "holds no state dict"),
    (
        "pretext",
        lambda place: resumed()(place) + ["--set", "temperature=0.9"],
        "temperature: ",
        "-> 0.9",
        "--fresh",
    ),
    ("pretext", lambda place: resumed()(place) + ["--set", "seed=4"], "seed: 0 -> 4", "--fresh"),
]

TABLE = [*SETTINGS, *FILES, *COMMAND_LINE, *ARRAYS, *FOLDERS, *NEIGHBORS, *CHECKPOINTS]


def refusal(capsys, main, argv):
    """Run a script as its command would; return its last line of output, which must tell the mistake."""
    with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_:
        run_script(lambda: main(argv))
    output = capsys.readouterr().err
    assert exit_.value.code in (1, 2), output  # argparse's is 2
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert "error:" in last, output
    return last


@pytest.mark.parametrize(
    "number", range(len(TABLE)), ids=[f"{i}-{row[0]}-{row[-1][:40]}" for i, row in enumerate(TABLE)]
)
def test_mistake(number, results, tmp_path, capsys):
    script, prepare, *words = TABLE[number]
    place = Place(script, results, tmp_path)
    extra = prepare(place)
    last = refusal(capsys, MAIN[script], place.argv() + extra)
    for word in words:
        assert any(part in last for part in word.split("|")), last


def test_eval_with_torchrun(results, tmp_path, capsys, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    place = Place("eval", results, tmp_path)
    assert "works in one process: start it with python" in refusal(capsys, evaluation.main, place.argv())


def test_there_are_many():
    assert len(TABLE) >= 300


# --- what looks wrong and is not -----------------------------------------------------------------


def figures(place, step, *extra):
    MAIN[step](arguments(step, place.root, *extra))
    return json.loads((place.root / "mine" / step / "metrics.json").read_text())


@pytest.mark.parametrize("labels", [[0, 2, 5], [3, 7]])
def test_classes_without_images(labels, results, tmp_path):
    """The figures are those of the same classes numbered without gaps."""
    from data.digits import build_digits

    found = []
    for name, numbers in (("gaps", labels), ("none", range(len(labels)))):
        place = Place("pretext", results, tmp_path / name)
        content = {}
        for split, n in (("train", 120), ("test", 60)):
            content[f"{split}_images"] = build_digits("", split).images[:n].permute(0, 2, 3, 1).numpy()
            content[f"{split}_labels"] = np.array(numbers)[np.arange(n) % len(labels)]
        np.savez(place.folder / "mine.npz", **content)
        more = [*mine(place)[1:], "batch_size=40", "epochs=1"]
        found.append([figures(place, step, *more) for step in ("pretext", "scan")])
    for gaps, none in zip(*found, strict=True):
        skipped = ("num_classes", "matches", "dataset")
        assert {k: v for k, v in gaps.items() if k not in skipped} == {
            k: v for k, v in none.items() if k not in skipped
        }
    clusters, same = (dict(run[1]["matches"]) for run in found)
    assert {c: labels[k] for c, k in same.items()}.items() <= clusters.items()
    assert found[0][1]["num_classes"] == max(labels) + 1


@pytest.mark.parametrize("name", ["17", "a: b", "{x}", "a #b", "null"])
def test_data_dir_is_no_yaml(name, results, tmp_path, capsys):
    place = Place("pretext", results, tmp_path)
    (tmp_path / name).mkdir()
    argv = [*place.argv(), "--data_dir", str(tmp_path / name), "--set", "train_db_name=faces"]
    assert f"neither {tmp_path / name}/faces.npz nor" in refusal(capsys, MAIN["pretext"], argv)


@pytest.mark.parametrize("content", ["", "3", "[]", "{}", '{"data": 3, "files": 3, "backbone": 1}'])
def test_damaged_fingerprint_is_as_none(content, results, tmp_path):
    place = Place("scan", results, tmp_path)
    (place.own("pretext") / "fingerprint.json").write_text(content)
    MAIN["scan"]([*place.argv(), "--set", "epochs=1"])


@pytest.mark.parametrize("content", ["3\n", "[1]\n", '{"loss": 1}\n', '{"epoch": "one"}\n', "\n"])
def test_damaged_metrics_are_forgotten(content, results, tmp_path):
    place = Place("pretext", results, tmp_path)
    (place.own("pretext") / "metrics.jsonl").write_text(content)
    MAIN["pretext"](place.argv())
    assert (place.root / "digits/pretext/metrics.jsonl").read_text() == ""
