"""The published files load with the published values; mistakes are named with key, file and remedy."""

import pytest
import torch
import yaml
from digits_steps import ROOT

import data
from errors import UserError
from models import build_model
from utils.run.config import differences, load_config
from utils.run.schema import AugmentationSettings
from utils.run.script import parse_arguments
from utils.training.optim import build_optimizer

SETUPS = ["simclr", "moco", "scan", "selflabel"]


def load(path, *overrides, env=ROOT / "configs/env.yml", training=True):
    argv = ["--config_env", str(env), "--config_exp", str(path)]
    args = parse_arguments(argv + (["--set", *overrides] if overrides else []), "")
    return load_config(args, SETUPS, training)


def published(name):
    return load(ROOT / "configs" / name, training="eval" not in name)


@pytest.fixture
def write(tmp_path):
    """Write an experiment file: digits' pretext with changes."""

    def write_file(**changes):
        content = yaml.safe_load((ROOT / "configs/pretext/simclr_digits.yml").read_text())
        path = tmp_path / "experiment.yml"
        path.write_text(yaml.safe_dump({**content, **changes}))
        return path

    return write_file


# --- the published experiments -------------------------------------------------------------------

PUBLISHED = [
    *(f"pretext/{name}.yml" for name in ("simclr_cifar10", "simclr_cifar20", "simclr_stl10")),
    *(f"pretext/moco_imagenet{n}.yml" for n in (50, 100, 200)),
    *(f"scan/scan_{name}.yml" for name in ("cifar10", "cifar20", "stl10")),
    *(f"{step}/{step}_imagenet_{n}.yml" for step in ("scan", "selflabel") for n in (50, 100, 200)),
    *(f"selflabel/selflabel_{name}.yml" for name in ("cifar10", "cifar20", "stl10")),
    "scan/imagenet_eval.yml",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_builds_its_model_and_views_and_says_how_it_is_run(name):
    config = published(name)
    first_line, *_ = (ROOT / "configs" / name).read_text().splitlines()
    assert first_line.startswith("# python ") and name in first_line
    assert config.train_db_name == config.val_db_name
    size = {"cifar": 32, "stl": 96, "image": 224}[next(k for k in ("cifar", "stl", "image") if k in name)]
    assert config.transformation_kwargs.crop_size == size
    model = build_model(config)
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    assert data.build_eval_transform(config)(images).shape == images.shape
    if "augmentation_strategy" in config:
        assert config.augmentation_kwargs.normalize == config.transformation_kwargs.normalize
        assert data.build_train_transform(config)(images).shape == images.shape
        build_optimizer(model.parameters(), config.optimizer, config.optimizer_kwargs)


# columns as in the paper's code release: heads, heads only, neighbors, epochs, batch, optimizer, lr, decay
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", (10, 1, False, 20, 50, 128, "adam", 1e-4, 1e-4)),
        ("cifar20", (20, 1, False, 20, 100, 512, "adam", 1e-4, 1e-4)),
        ("stl10", (10, 1, False, 20, 100, 128, "adam", 1e-4, 1e-4)),
        ("imagenet_50", (50, 10, True, 50, 100, 512, "sgd", 5.0, 0.0)),
        ("imagenet_100", (100, 10, True, 50, 100, 1024, "sgd", 5.0, 0.0)),
        ("imagenet_200", (200, 10, True, 50, 100, 1024, "sgd", 5.0, 0.0)),
    ],
)
def test_clustering_values(name, expected):
    c = published(f"scan/scan_{name}.yml")
    assert expected == (
        *(c.num_classes, c.num_heads, c.update_cluster_head_only, c.num_neighbors, c.epochs, c.batch_size),
        *(c.optimizer, c.optimizer_kwargs.lr, c.optimizer_kwargs.weight_decay),
    )
    assert c.criterion_kwargs.entropy_weight == 5
    assert c.scheduler == "constant"
    assert c.augmentation_strategy == ("simclr" if "imagenet" in name else "ours")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", (True, False, 200, 1000, "adam", 1e-4, 16)),
        ("cifar20", (True, False, 200, 1000, "adam", 1e-4, 16)),
        ("stl10", (True, False, 100, 1000, "adam", 1e-4, 32)),
        *((f"imagenet_{n}", (False, True, 25, 512, "sgd", 0.03, 75)) for n in (50, 100, 200)),
    ],
)
def test_selflabel_values(name, expected):
    c = published(f"selflabel/selflabel_{name}.yml")
    assert expected == (
        *(c.criterion_kwargs.apply_class_balancing, c.use_ema, c.epochs, c.batch_size),
        *(c.optimizer, c.optimizer_kwargs.lr, c.augmentation_kwargs.cutout_kwargs.length),
    )
    assert c.confidence_threshold == 0.99
    assert c.augmentation_kwargs.num_strong_augs == 4
    assert c.augmentation_kwargs.cutout_kwargs.n_holes == 1
    if c.use_ema:
        assert c.ema_alpha == 0.999


@pytest.mark.parametrize("name", ["cifar10", "cifar20", "stl10"])
def test_pretext_values(name):
    c = published(f"pretext/simclr_{name}.yml")
    assert (c.backbone, c.model_kwargs.head, c.model_kwargs.features_dim) == ("resnet18", "mlp", 128)
    assert (c.temperature, c.criterion_kwargs.temperature, c.epochs, c.batch_size) == (0.1, 0.1, 500, 512)
    assert c.optimizer_kwargs == {"lr": 0.4, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": False}
    assert (c.scheduler, c.scheduler_kwargs.lr_decay_rate) == ("cosine", 0.1)
    a = c.augmentation_kwargs
    assert (a.random_resized_crop.scale, a.color_jitter_random_apply.p, a.random_grayscale.p) == (
        *([0.2, 1.0], 0.8, 0.2),
    )
    assert list(a.color_jitter.values()) == [0.4, 0.4, 0.4, 0.1]


def test_normalization():
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    values = {
        "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        "cifar20": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
        **{"stl10": imagenet, "imagenet_50": imagenet},
    }
    for name, expected in values.items():
        found = published(f"scan/scan_{name}.yml").transformation_kwargs.normalize
        assert (found.mean, found.std) == expected


# --- merging -------------------------------------------------------------------------------------


def test_the_command_line_wins(tmp_path, write):
    """Over files, in which YAML reads some numbers as strings."""
    path = write(
        seed=3, optimizer_kwargs={"lr": "1e-4", "weight_decay": "1e-4"}, epochs="20", batch_size="64"
    )
    (tmp_path / "env.yml").write_text("root_dir: /somewhere/results\n")
    settings = ["epochs=7", "optimizer_kwargs.lr=1e-3", "data_dir=/elsewhere"]
    config = load(path, *settings, env=tmp_path / "env.yml")
    assert (config.epochs, config.seed, config.batch_size) == (7, 3, 64)
    assert (config.data_dir, config.root_dir) == ("/elsewhere", "/somewhere/results")
    assert config.optimizer_kwargs == {"lr": 1e-3, "weight_decay": 1e-4}


def test_null_takes_a_key_of_the_files_away(tmp_path, write):
    (tmp_path / "env.yml").write_text("precision: bf16\nsearch: torch\n")
    nulls = ["white_level=null", "seed=null", "precision=null"]
    config = load(write(white_level=255, seed=3), *nulls, env=tmp_path / "env.yml")
    assert "white_level" not in config
    assert (config.seed, config.precision, config.search) == (0, "auto", "torch")
    for key, message in (("epochs", "missing epochs"), ("epoch", "unknown key 'epoch'")):
        with pytest.raises(UserError, match=message):
            load(write(), f"{key}=null")


def test_values_are_attributes():
    config = load(ROOT / "configs/scan/scan_digits.yml", "white_level=255")
    assert (config.seed, config.white_level, config.image_folder) == (0, 255, None)
    assert config.optimizer_kwargs.momentum == 0 and "momentum" not in config.optimizer_kwargs
    assert AugmentationSettings(crop_size=8).random_horizontal_flip.p == 0.5
    with pytest.raises(AttributeError, match="no knn_every"):  # simclr's
        _ = config.knn_every
    config.seed = 3
    assert config["seed"] == 3


def test_what_the_clustering_step_trains_on():
    for views, trains_on in (("null", "images"), (0, "features"), (2, "augmented features")):
        settings = ["update_cluster_head_only=True", f"cache_features={views}"]
        assert load(ROOT / "configs/scan/scan_digits.yml", *settings).trains_on == trains_on


def test_differences():
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}
    assert differences(old, new) == {"b.c": "2 -> 4", "e": "None -> 5"}


@pytest.mark.parametrize("name", ["2024", "on", "007", "1e3", "2024-01-01", "a b", "./mine/"])
def test_names_that_yaml_would_read_as_something_else(write, name):
    """And a slash at the end says nothing."""
    assert load(write(), f"train_db_name={name}").train_db_name == name.removeprefix("./").removesuffix("/")
