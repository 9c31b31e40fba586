"""Every key of a configuration. A new option is one row here, and the code that reads it.

A new criterion is one entry of CRITERIA, one row for each of its options, and the loss.
"""

import textwrap
from typing import NamedTuple

from .checks import (
    BOOLEAN,
    DATASET,
    DEVICE,
    MEAN,
    ON_OR_OFF,
    POSITIVE,
    PROBABILITY,
    SCALE,
    SIDE,
    STD,
    STRING,
    Check,
    count,
    list_of,
    number,
    one_of,
)

# --- what a row says -----------------------------------------------------------------------------

ALWAYS = "always"  # required wherever the key may be given; within a group, wherever the group is given
GROUP = Check("a group of keys", dict)
COLUMNS = 80  # of the listing


class When(NamedTuple):
    """The condition that a top-level key has one of these values."""

    key: str
    values: tuple
    why: str = ""  # the reason, for the message when the condition fails

    def holds(self, config):
        return config.get(self.key) in self.values

    def __str__(self):
        return f"{self.key} {' or '.join(map(str, self.values))}"


def to_train(*setups):
    return When("setup", setups)


class PerSetup(dict):
    """A default that depends on `setup`: {setup: default}. Other setups have none."""


class Key(NamedTuple):
    """A row of the table."""

    name: str  # dotted within a group: optimizer_kwargs.lr
    check: Check
    help: str
    # The value if the key is not given; None: the key is then absent. load_config fills in the defaults of
    # top-level keys. A key in a group gets its default from the function that takes the group.
    default: object = None
    required: object = None  # ALWAYS, or a When; evaluation requires only keys without any condition
    only: When | None = None  # training rejects the key unless this holds
    affects_results: bool = True

    def is_required(self, config, training):
        """Whether this configuration must give the key, if it gives the key's group."""
        conditions = [condition for condition in (self.required, self.only) if isinstance(condition, When)]
        holds = all(condition.holds(config) for condition in conditions)
        return self.required is not None and holds and (training or not conditions)

    def default_of(self, setup):
        return self.default.get(setup) if isinstance(self.default, PerSetup) else self.default


TRAINED = to_train("simclr", "scan", "selflabel")

# The criteria of losses.CRITERIA, and the step that each trains. Their options are the rows that are
# `only=criterion(NAME, ...)`.
CONFIDENCE, VOTE = "confidence-cross-entropy", "neighbor-vote-cross-entropy"
CRITERIA = {"simclr": "simclr", "scan": "scan", CONFIDENCE: "selflabel", VOTE: "selflabel"}


def criterion(*names):
    return When("criterion", names)


# --- the table -----------------------------------------------------------------------------------

ENVIRONMENT = (
    Key("root_dir", STRING, "Folder of the results: {train_db_name}/{step}/ in it.", default="results"),
    Key("data_dir", STRING, "Folder of the datasets: {name}.npz or {name}/ in it.", default="datasets"),
    Key("device", DEVICE, "What computes. auto: CUDA if there is one, else the CPU.", default="auto"),
    Key(
        "precision", one_of("auto", "bf16", "fp32"),
        "Precision of the network in training; reported figures are computed in fp32. auto: bf16 where the "
        "hardware computes in it.",
        default="auto",
    ),
    Key(
        "compile", ON_OR_OFF,
        "Compile the network. auto: on a GPU, for runs long enough to repay a minute or two.", default="auto",
    ),
    Key(
        "search", one_of("auto", "faiss", "torch"),
        "What mines the neighbors. auto: faiss if it is installed, else torch.", default="auto",
    ),
)  # fmt: skip

EXPERIMENT = (
    Key(
        "setup", one_of("simclr", "moco", "pretrained", "scan", "selflabel"), "Step of the method.",
        required=ALWAYS,
    ),
    Key("seed", number(0, 2**31, whole=True), "Seed of all random numbers.", default=0),
    # the network
    Key(
        "backbone", STRING,
        "Entry of models.BACKBONES, such as resnet18; timm/NAME[.TAG] or torchvision/NAME[.WEIGHTS]; or "
        "features/D for a features_file of vectors of length D.",
        required=ALWAYS,
    ),
    Key(
        "model_kwargs", GROUP, "Projection head of the pretext network.",
        default=PerSetup(simclr={}, moco={}),
    ),
    Key("model_kwargs.head", one_of("mlp", "linear"), "Two layers, or one.", default="mlp"),
    Key("model_kwargs.features_dim", count(1, 100_000), "Width of the head's output.", default=128),
    Key(
        "num_heads", count(1, 1000), "Cluster heads, of which the best is kept; self-labeling has one.",
        default=PerSetup(scan=1, selflabel=1), required=to_train("scan"),
    ),
    # the data
    Key("train_db_name", DATASET, "Dataset whose train split is learned from.", required=ALWAYS),
    Key("val_db_name", DATASET, "Dataset whose test split is evaluated.", required=ALWAYS),
    Key("num_classes", count(2, 100_000), "Number of clusters.", required=ALWAYS),
    Key("batch_size", POSITIVE, "Images per iteration, without their other views.", required=ALWAYS),
    Key(
        "num_workers", count(0, 1000), "Processes that decode image files.",
        default=0, affects_results=False,
    ),
    Key(
        "max_unreadable", PROBABILITY,
        "Share of a folder's images that may be left out because they cannot be read.",
        default=0.01, affects_results=False,  # the datasets' fingerprints say which were read
    ),
    Key(
        "image_folder", STRING,
        "Folder of images to learn from, wherever it is and whatever train_db_name is.",
        affects_results=False,  # the datasets' fingerprints say which images they are
    ),
    Key(
        "folder_labels", one_of("auto", "none"),
        "What folders in a folder of images mean. auto: train/ and test/ are splits, others are classes. "
        "none: nothing; all images below are in both splits.",
        default="auto", affects_results=False,
    ),
    Key(
        "resize", one_of("crop", "pad", "squeeze"),
        "How image files become squares: the middle, the whole with bars, the whole distorted.",
        default="crop",
    ),
    Key(
        "white_level", count(1, 65535),
        "Value of 16-bit gray files that is shown white. Not given: 1023, 4095 or 65535, by the brightest "
        "of the training images.",
    ),
    Key(
        "features_file", STRING,
        "Vectors in the place of images, FILE.npy: a row for each image of the train split, then of the test "
        "split, if that has other images.",
        only=When("setup", ("pretrained", "scan"), "the other steps augment images"),
        affects_results=False,  # the datasets' fingerprints say which they are
    ),
    # the pretext step
    Key(
        "temperature", number(above=0), "Temperature of the weighted k-NN that measures the features.",
        default=PerSetup(simclr=0.1, moco=0.1, pretrained=0.1), required=to_train("simclr"),
    ),
    Key(
        "knn_every", POSITIVE, "Epochs between two measurements of the k-NN accuracy; the last is measured.",
        default=PerSetup(simclr=1), affects_results=False,
    ),
    Key(
        "features", one_of("head", "backbone"), "Part of the network whose features neighbors are mined by.",
        default=PerSetup(simclr="head", moco="backbone", pretrained="backbone"),
    ),
    # semantic clustering
    Key(
        "num_neighbors", POSITIVE, "Number of nearest neighbors that an image's partner is drawn from.",
        required=to_train("scan"),
    ),
    Key("update_cluster_head_only", BOOLEAN, "Freeze the backbone.", default=False),
    Key(
        "cache_features", number(0, whole=True),
        "Train the heads on the features of this many augmented views of each image, computed once; 0: of "
        "the images themselves, without augmentation.",
        only=When(
            "update_cluster_head_only", (True,),
            "the features of a backbone that trains change at every iteration",
        ),
    ),
    Key(
        "head_init", one_of("random", "graph"),
        "What the heads start from: random weights, or clusters of the graph of neighbors, another "
        "clustering for each head.",
        default=PerSetup(scan="random"),
    ),
    Key(
        "validation", one_of("test", "train_holdout"),
        "Images whose loss chooses the epoch and the head: the test split's, or a tenth of the train "
        "split's, which then do not train.",
        default=PerSetup(scan="test"),
    ),
    # self-labeling
    Key(
        "confidence_threshold", number(0, below=1), "Probability above which a prediction is a pseudo-label.",
        required=to_train("selflabel"),
    ),
    Key(
        "use_ema", BOOLEAN, "After each iteration replace the weights by their running average.",
        default=False,
    ),
    Key(
        "ema_alpha", PROBABILITY, "Weight of the old average at each iteration.",
        required=When("use_ema", (True,)),
    ),
    # the loss
    Key("criterion", one_of(*CRITERIA), "Loss; each step has its own.", required=TRAINED),
    Key("criterion_kwargs", GROUP, "Options of the loss.", required=TRAINED),
    Key(
        "criterion_kwargs.temperature", number(above=0), "Temperature that divides the similarities.",
        required=ALWAYS, only=criterion("simclr"),
    ),
    Key(
        "criterion_kwargs.entropy_weight", number(0), "Weight of the mean prediction's entropy, lambda.",
        required=ALWAYS, only=criterion("scan"),
    ),
    Key(
        "criterion_kwargs.apply_class_balancing", BOOLEAN,
        "Weigh each pseudo-label by the inverse of its frequency.",
        required=ALWAYS, only=criterion(CONFIDENCE, VOTE),
    ),
    Key(
        "criterion_kwargs.num_neighbors", POSITIVE, "Neighbors of an image that vote on its pseudo-label.",
        default=20, only=criterion(VOTE),
    ),
    Key(
        "criterion_kwargs.agreement", number(above=0, high=1),
        "Share of the image and its neighbors that must be in the cluster they vote for.",
        default=0.8, only=criterion(VOTE),
    ),
    # the optimizer
    Key("epochs", POSITIVE, "Passes over the training images.", required=TRAINED),
    Key("optimizer", one_of("sgd", "adam"), "Optimizer.", required=TRAINED),
    Key("optimizer_kwargs", GROUP, "Arguments of the optimizer.", required=TRAINED),
    Key("optimizer_kwargs.lr", number(above=0), "Learning rate at the start.", required=ALWAYS),
    Key("optimizer_kwargs.momentum", number(0, below=1), "Momentum, of sgd only.", default=0),
    Key("optimizer_kwargs.weight_decay", number(0), "Weight decay, of all parameters.", default=0),
    Key("optimizer_kwargs.nesterov", BOOLEAN, "Nesterov's momentum, of sgd only.", default=False),
    Key(
        "scheduler", one_of("cosine", "step", "constant"),
        "Course of the learning rate; cosine ends at lr * lr_decay_rate ** 3.", required=TRAINED,
    ),
    Key("scheduler_kwargs", GROUP, "Arguments of the scheduler.", default={}),
    Key(
        "scheduler_kwargs.lr_decay_rate", number(above=0, high=1), "Factor of step; see cosine.", default=0.1
    ),
    Key(
        "scheduler_kwargs.lr_decay_epochs", list_of(number(0, whole=True)),
        "Epochs after which step multiplies the learning rate by lr_decay_rate.",
        required=When("scheduler", ("step",)),
    ),
    Key(
        "scheduler_kwargs.warmup_epochs", number(0, whole=True),
        "Epochs in which the learning rate rises, linearly, to what the scheduler says.", default=0,
    ),
    # the training images; data.augment.transforms.AUGMENTATIONS says which of these keys a strategy needs
    Key(
        "augmentation_strategy", one_of("standard", "simclr", "ours"),
        "standard: random crops. simclr: and random colors. ours: strong augmentations and Cutout.",
        required=TRAINED,
    ),
    Key(
        "augmentation_kwargs", GROUP, "Settings of the strategy; those of another one are ignored.",
        required=TRAINED,
    ),
    Key("augmentation_kwargs.random_resized_crop", GROUP, "Random crop of standard and simclr."),
    Key("augmentation_kwargs.random_resized_crop.size", SIDE, "Its side in pixels.", required=ALWAYS),
    Key(
        "augmentation_kwargs.random_resized_crop.scale", SCALE, "Share of the image that it shows.",
        required=ALWAYS,
    ),
    Key("augmentation_kwargs.random_horizontal_flip", GROUP, "Mirroring.", default={"p": 0.5}),
    Key("augmentation_kwargs.random_horizontal_flip.p", PROBABILITY, "Its probability.", required=ALWAYS),
    Key("augmentation_kwargs.color_jitter_random_apply", GROUP, "Whether simclr changes the colors."),
    Key("augmentation_kwargs.color_jitter_random_apply.p", PROBABILITY, "Probability.", required=ALWAYS),
    Key("augmentation_kwargs.color_jitter", GROUP, "How much simclr changes the colors."),
    Key("augmentation_kwargs.color_jitter.brightness", number(0), "Largest change, a factor.", default=0),
    Key("augmentation_kwargs.color_jitter.contrast", number(0), "Largest change, a factor.", default=0),
    Key("augmentation_kwargs.color_jitter.saturation", number(0), "Largest change, a factor.", default=0),
    Key("augmentation_kwargs.color_jitter.hue", number(0, 0.5), "Largest change, in turns.", default=0),
    Key("augmentation_kwargs.random_grayscale", GROUP, "Whether simclr removes the colors."),
    Key("augmentation_kwargs.random_grayscale.p", PROBABILITY, "Probability.", required=ALWAYS),
    Key("augmentation_kwargs.normalize", GROUP, "Normalization, which every strategy needs."),
    Key("augmentation_kwargs.normalize.mean", MEAN, "Mean of each channel, in 0 to 1.", required=ALWAYS),
    Key("augmentation_kwargs.normalize.std", STD, "Standard deviation of each.", required=ALWAYS),
    Key("augmentation_kwargs.crop_size", SIDE, "Side in pixels of the random crop of ours."),
    Key("augmentation_kwargs.num_strong_augs", number(0, whole=True), "Operations of ours on an image."),
    Key("augmentation_kwargs.cutout_kwargs", GROUP, "Cutout of ours."),
    Key("augmentation_kwargs.cutout_kwargs.n_holes", number(0, whole=True), "Squares.", required=ALWAYS),
    Key("augmentation_kwargs.cutout_kwargs.length", POSITIVE, "Their side in pixels.", required=ALWAYS),
    Key("augmentation_kwargs.cutout_kwargs.random", BOOLEAN, "Draw it from 1 to length.", default=True),
    # the images of the evaluation
    Key("transformation_kwargs", GROUP, "Evaluation transform.", required=ALWAYS),
    Key("transformation_kwargs.crop_size", SIDE, "Side in pixels of the center crop.", required=ALWAYS),
    Key("transformation_kwargs.normalize", GROUP, "Normalization, as in training.", required=ALWAYS),
    Key("transformation_kwargs.normalize.mean", MEAN, "Mean of each channel, in 0 to 1.", required=ALWAYS),
    Key("transformation_kwargs.normalize.std", STD, "Standard deviation of each.", required=ALWAYS),
)  # fmt: skip


# --- queries -------------------------------------------------------------------------------------


def within(keys, group=""):
    """The rows of the keys directly in a group, or at the top level: {last part of the name: row}."""
    found = {}
    for key in keys:
        parent, _, name = key.name.rpartition(".")
        if parent == group:
            found[name] = key
    return found


def options_of(name):
    """The rows of a criterion's options: {name within criterion_kwargs: row}."""
    rows = within(EXPERIMENT, "criterion_kwargs")
    return {option: key for option, key in rows.items() if name in key.only.values}


def defaults(setup):
    """{key: default} of the top-level keys that have one."""
    values = {name: key.default_of(setup) for name, key in within(ENVIRONMENT + EXPERIMENT).items()}
    return {name: value for name, value in values.items() if value is not None}


def listing():
    """The table as text, for --list-keys."""
    lines = []
    for title, keys in (("environment, --config_env", ENVIRONMENT), ("experiment, --config_exp", EXPERIMENT)):
        lines += [title, ""]
        for key in keys:
            lines += _wrapped(f"{key.name}: {key.help}", "  ", "    ")
            lines += _wrapped("; ".join(_facts(key)), "        ", "        ")
        lines.append("")
    return "\n".join([*lines, "On the command line: --set KEY=VALUE ..."])


def _wrapped(text, first, others):
    return textwrap.wrap(
        text, COLUMNS, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )


def _facts(key):
    """What a row says besides its help, in words."""
    yield key.check.words
    if isinstance(key.default, PerSetup):
        yield "default " + ", ".join(f"{value} ({setup})" for setup, value in key.default.items())
    elif key.default is not None:
        yield f"default {key.default}"
    if key.required == ALWAYS:
        yield "required in its group" if "." in key.name else "required"
    elif key.required:
        setups = key.required.values if key.required.key == "setup" else ()
        yield f"required to train {', '.join(setups)}" if setups else f"required with {key.required}"
    if key.only:
        yield f"only with {key.only}"
