"""Every key of a configuration. A new option is one row here, and the code that reads it.

A new criterion is one entry of SETUP_OF_CRITERION, one row for each of its options, and the loss.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

from .checks import (
    BOOLEAN,
    DATASET,
    DEVICE,
    ON_OR_OFF,
    POSITIVE,
    PROBABILITY,
    SCALE,
    SIDE,
    STRING,
    Check,
    list_of,
    number,
    one_of,
    one_or_several,
    satisfying,
)

# --- what a row says -----------------------------------------------------------------------------

ALWAYS = "always"  # required wherever the key may be given; within a group, wherever the group is given
LISTING_WIDTH = 80  # of the listing


class When(NamedTuple):
    """The condition that a top-level key has one of these values."""

    key: str
    values: tuple[object, ...]
    why: str = ""  # the reason, for the message when the condition fails

    def holds(self, config: dict[str, Any]) -> bool:
        return config.get(self.key) in self.values

    def __str__(self) -> str:
        return f"{self.key} {' or '.join(map(str, self.values))}"


def to_train(*setups: str) -> When:
    return When("setup", setups)


class PerSetup(dict[str, Any]):
    """A default that depends on `setup`: {setup: default}. Other setups have none."""


class Settings(dict[str, Any]):
    """A group of keys and their values; each row of a subclass can be read as an attribute, too."""


@dataclass
class Key:
    """A row of the table. It is a descriptor: on the class it is the row, on an instance the key's value."""

    check: Check
    help: str
    # The value if the key is not given; None: the key is then absent. `load_config` fills in the defaults of
    # top-level keys. A key in a group gets its default from the function that takes the group.
    default: object = None
    required: str | When | None = None  # ALWAYS or a When; for evaluation, conditional keys are optional
    only: When | None = None  # training rejects the key unless this holds
    affects_results: bool = True
    pretext_training: bool = True  # False: it may change after SimCLR training without retraining
    tunable: bool = False  # it may change when a training is resumed, if the user says so: --accept_changes
    name: str = ""  # dotted within a group: optimizer_kwargs.lr

    def __set_name__(self, owner: type[Settings], name: str) -> None:
        self.name = name

    def __get__(self, settings: Settings | None, owner: type[Settings]) -> Any:
        """The value, or its default; None for an optional key that is not given."""
        if settings is None:
            return self
        if self.name in settings:
            return settings[self.name]
        if self.required or isinstance(self.default, PerSetup):
            raise AttributeError(f"the configuration has no {self.name}")
        return self.default_of(None)

    def __set__(self, settings: Settings, value: object) -> None:
        settings[self.name] = value

    @property
    def group(self) -> type[Settings] | None:
        """The rows within a group of keys; None for a key with a value."""
        kind = self.check.convert
        return kind if isinstance(kind, type) and issubclass(kind, Settings) else None

    def is_required(self, config: dict[str, Any], training: bool) -> bool:
        """Whether this configuration must give the key, if it gives the key's group."""
        conditions = [condition for condition in (self.required, self.only) if isinstance(condition, When)]
        holds = all(condition.holds(config) for condition in conditions)
        return self.required is not None and holds and (training or not conditions)

    def default_of(self, setup: str | None) -> object:
        """The default in this step, of the type that a given value has."""
        value = self.default.get(setup or "") if isinstance(self.default, PerSetup) else self.default
        return value if value is None else self.check.convert(value)


def key(check: Check, help: str, **conditions: Any) -> Any:
    """A row; the annotation beside it says what type the value has."""
    return Key(check, help, **conditions)


def group_of(settings: type[Settings], help: str, **conditions: Any) -> Any:
    """The row of a group of keys."""
    return Key(Check("a group of keys", settings), help, **conditions)


TRAINED = to_train("simclr", "scan", "selflabel")

# The criteria of losses.CRITERIA, and the step that each trains. Their options are the rows that are
# `only=for_criterion(NAME, ...)`.
CONFIDENCE, VOTE = "confidence-cross-entropy", "neighbor-vote-cross-entropy"
SETUP_OF_CRITERION = {"simclr": "simclr", "scan": "scan", CONFIDENCE: "selflabel", VOTE: "selflabel"}


def for_criterion(*names: str) -> When:
    return When("criterion", names, "other losses have no such option")


# Upper bounds of whole numbers are far above any useful value, so that a typo does not fill the memory.

# --- the table: groups ---------------------------------------------------------------------------
# fmt: off


class ModelSettings(Settings):
    head: str = key(one_of("mlp", "linear"), "Two layers, or one.", default="mlp")
    features_dim: int = key(number(1, 100_000, whole=True), "Width of the head's output.", default=128)


class CriterionSettings(Settings):
    temperature: float = key(
        number(above=0), "Temperature that divides the similarities.",
        required=ALWAYS, only=for_criterion("simclr"),
    )
    entropy_weight: float = key(
        number(0), "Weight of the mean prediction's entropy, lambda.",
        required=ALWAYS, only=for_criterion("scan"),
    )
    apply_class_balancing: bool = key(
        BOOLEAN, "Weigh each pseudo-label by the inverse of its frequency.",
        required=ALWAYS, only=for_criterion(CONFIDENCE, VOTE),
    )
    num_neighbors: int = key(
        POSITIVE, "Neighbors of an image that vote on its pseudo-label.", default=20, only=for_criterion(VOTE)
    )
    agreement: float = key(
        number(above=0, high=1),
        "Share of the image and its neighbors that must be in the cluster they vote for.",
        default=0.8, only=for_criterion(VOTE),
    )


class OptimizerSettings(Settings):
    lr: float = key(number(above=0), "Learning rate at the start.", required=ALWAYS)
    momentum: float = key(number(0, below=1), "Momentum, of sgd only.", default=0)
    weight_decay: float = key(number(0), "Weight decay, of all parameters.", default=0)
    nesterov: bool = key(BOOLEAN, "Nesterov's momentum, of sgd only.", default=False)


class SchedulerSettings(Settings):
    lr_decay_rate: float = key(number(above=0, high=1), "Factor of step; see cosine.", default=0.1)
    lr_decay_epochs: list[int] = key(
        list_of(number(0, whole=True)),
        "Epochs after which step multiplies the learning rate by lr_decay_rate.",
        required=When("scheduler", ("step",)),
    )
    warmup_epochs: int = key(
        number(0, whole=True),
        "Epochs in which the learning rate rises, linearly, to what the scheduler says.", default=0,
    )


class Normalization(Settings):
    mean: list[float] = key(list_of(number(), 3), "Mean of each channel, in 0 to 1.", required=ALWAYS)
    std: list[float] = key(list_of(number(above=0), 3), "Standard deviation of each.", required=ALWAYS)


class ResizedCrop(Settings):
    size: int = key(SIDE, "Its side in pixels.", required=ALWAYS)
    scale: list[float] = key(SCALE, "Share of the image that it shows.", required=ALWAYS)


class Chance(Settings):
    p: float = key(PROBABILITY, "Its probability.", required=ALWAYS)


class ColorJitter(Settings):
    brightness: float = key(number(0), "Largest change, a factor.", default=0)
    contrast: float = key(number(0), "Largest change, a factor.", default=0)
    saturation: float = key(number(0), "Largest change, a factor.", default=0)
    hue: float = key(number(0, 0.5), "Largest change, in turns.", default=0)


class Cutout(Settings):
    n_holes: int = key(number(0, whole=True), "Squares.", required=ALWAYS)
    length: int = key(POSITIVE, "Their side in pixels.", required=ALWAYS)
    random: bool = key(BOOLEAN, "Draw it from 1 to length.", default=True)


class AugmentationSettings(Settings):
    """data.augment.transforms.AUGMENTATIONS says which of these keys a strategy needs."""

    random_resized_crop: ResizedCrop | None = group_of(ResizedCrop, "Random crop of standard and simclr.")
    random_horizontal_flip: Chance = group_of(Chance, "Mirroring.", default={"p": 0.5})
    color_jitter_random_apply: Chance | None = group_of(Chance, "Whether simclr changes the colors.")
    color_jitter: ColorJitter | None = group_of(ColorJitter, "How much simclr changes the colors.")
    random_grayscale: Chance | None = group_of(Chance, "Whether simclr removes the colors.")
    normalize: Normalization | None = group_of(Normalization, "Normalization, which every strategy needs.")
    crop_size: int | None = key(SIDE, "Side in pixels of the random crop of ours.")
    num_strong_augs: int | None = key(number(0, whole=True), "Operations of ours on an image.")
    cutout_kwargs: Cutout | None = group_of(Cutout, "Cutout of ours.")


class TransformationSettings(Settings):
    crop_size: int = key(SIDE, "Side in pixels of the center crop.", required=ALWAYS)
    normalize: Normalization = group_of(Normalization, "Normalization, as in training.", required=ALWAYS)


# --- the table: the two files --------------------------------------------------------------------


class Environment(Settings):
    """The keys of `--config_env`."""

    root_dir: str = key(STRING, "Folder of the results: {train_db_name}/{step}/ in it.", default="results")
    data_dir: str = key(STRING, "Folder of the datasets: {name}.npz or {name}/ in it.", default="datasets")
    device: str = key(DEVICE, "What computes. auto: CUDA if there is one, else the CPU.", default="auto")
    precision: str = key(
        one_of("auto", "bf16", "fp32"),
        "Precision of the network in training; reported figures are computed in fp32. auto: bf16 where the "
        "hardware computes in it.",
        default="auto",
    )
    compile: str = key(
        ON_OR_OFF,
        "Compile the network. auto: on a GPU, for runs long enough to repay a minute or two.", default="auto",
    )
    search: str = key(
        one_of("auto", "faiss", "torch"),
        "What mines the neighbors. auto: faiss if it is installed, else torch.", default="auto",
    )
    runtime: str = key(
        one_of("auto", "torch"),
        "What computes the features of a frozen backbone that are kept. auto: on a CPU ONNX Runtime where it "
        "is installed, equal and faster, else torch.",
        default="auto",
    )
    logger: str | list[str] | None = key(
        one_or_several(STRING), "What also shows the run: tensorboard, MODULE:CLASS; several with commas."
    )


class Experiment(Settings):
    """The keys of `--config_exp`."""

    setup: str = key(
        one_of("simclr", "moco", "pretrained", "scan", "selflabel"), "Step of the method.", required=ALWAYS
    )
    seed: int = key(number(0, 2**31, whole=True), "Seed of all random numbers.", default=0)
    # the network
    backbone: str = key(
        STRING,
        "Entry of models.BACKBONES, such as resnet18; timm/NAME[.TAG] or torchvision/NAME[.WEIGHTS]; or "
        "features/D for a features_file of vectors of length D.",
        required=ALWAYS,
    )
    model_kwargs: ModelSettings = group_of(
        ModelSettings, "Projection head of the pretext network.", default=PerSetup(simclr={}, moco={})
    )
    num_heads: int = key(
        number(1, 1000, whole=True), "Cluster heads, of which the best is kept; self-labeling has one.",
        default=PerSetup(scan=1, selflabel=1), required=to_train("scan"),
    )
    # the data
    train_db_name: str = key(DATASET, "Dataset whose train split is learned from.", required=ALWAYS)
    val_db_name: str = key(
        DATASET, "Dataset whose test split is evaluated.", required=ALWAYS, pretext_training=False
    )
    num_classes: int = key(
        number(2, 100_000, whole=True), "Number of clusters.", required=ALWAYS, pretext_training=False
    )
    batch_size: int = key(
        POSITIVE, "Images per iteration, without their other views.", required=ALWAYS, tunable=True
    )
    num_workers: int = key(
        number(0, 1000, whole=True), "Processes that decode image files.", default=0, affects_results=False
    )
    max_unreadable: float = key(
        PROBABILITY, "Share of a folder's images that may be left out because they cannot be read.",
        default=0.01, affects_results=False,  # the datasets' fingerprints say which were read
    )
    image_folder: str | list[str] | None = key(
        one_or_several(STRING),
        "Images to learn from, whatever train_db_name is: a folder, an image, a file of images "
        "(.zip, .tar, .parquet, .mp4, ...), a text file of paths; or a list of those.",
        affects_results=False,  # the datasets' fingerprints say which images they are
    )
    added_images: list[str] | None = key(
        list_of(STRING), "More of these that came later; the names of their images start with theirs.",
        affects_results=False,
    )
    every: float = key(
        number(above=0), "Seconds between the frames that are taken of a video.", default=1,
        affects_results=False,  # the datasets' fingerprints say which they are
    )
    folder_labels: str = key(
        one_of("auto", "none"),
        "What folders in a folder of images mean. auto: train/ and test/ are splits, others are classes. "
        "none: nothing; all images below are in both splits.",
        default="auto", affects_results=False,
    )
    resize: str = key(
        one_of("crop", "pad", "squeeze"),
        "How image files become squares: the middle, the whole with bars, the whole distorted.",
        default="crop",
    )
    crop_ratio: float = key(
        number(0.1, 1),
        "Share of the side that image files are brought to that the center crop takes; 1 leaves out nothing.",
        default=0.875,  # 224 of 256, as on ImageNet
    )
    pages: str = key(
        one_of("first", "middle", "all"),
        "What is shown of files of several pages or frames (TIFF, GIF, WebP, ...); all: each is an image.",
        default="first",
    )
    channels: list[int] | None = key(
        satisfying(lambda value: len(value) < 4, "a list of one to three numbers", list_of(POSITIVE).convert),
        "Channels, from 1, that are shown as red, green and blue; one as gray. Not given: the first three.",
    )
    black_level: int = key(
        number(-32768, 65535, whole=True),
        "Value of 16-bit files that is shown black; -1024 for CT. White is counted from there.", default=0,
    )
    max_pixels: float = key(
        number(1), "Pixels of an image above which it is not read.", default=1e9, affects_results=False
    )
    white_level: int | None = key(
        number(1, 65535, whole=True),
        "Value of 16-bit gray files that is shown white. Not given: 1023, 4095 or 65535, by the brightest "
        "of the training images.",
    )
    features_file: str | None = key(
        STRING,
        "File of vectors in the place of images, with the images' names, or a row for each image of the "
        "train split, then of the test split, if that has other images.",
        only=When("setup", ("pretrained", "scan"), "the other steps augment images"),
        affects_results=False,  # the datasets' fingerprints say which they are
    )
    # the pretext step
    temperature: float = key(
        number(above=0), "Temperature of the weighted k-NN that measures the features.",
        default=PerSetup(simclr=0.1, moco=0.1, pretrained=0.1), required=to_train("simclr"), tunable=True,
    )
    knn_every: int = key(
        POSITIVE, "Epochs between two measurements of the k-NN accuracy; the last is measured.",
        default=PerSetup(simclr=1), affects_results=False,
    )
    features: str = key(
        one_of("head", "backbone"), "Part of the network whose features neighbors are mined by.",
        default=PerSetup(simclr="head", moco="backbone", pretrained="backbone"), pretext_training=False,
    )
    # semantic clustering
    num_neighbors: int = key(
        POSITIVE, "Number of nearest neighbors that an image's partner is drawn from.",
        required=to_train("scan"),
    )
    update_cluster_head_only: bool = key(BOOLEAN, "Freeze the backbone.", default=False)
    cache_features: int | None = key(
        number(0, whole=True),
        "Train the heads on the features of this many augmented views of each image, computed once; 0: of "
        "the images themselves, without augmentation.",
        only=When(
            "update_cluster_head_only", (True,),
            "the features of a backbone that trains change at every iteration",
        ),
    )
    head_init: str = key(
        one_of("random", "graph", "judged"),
        "What the heads start from: random weights; clusters of the graph of neighbors, another clustering "
        "for each head; or the best of several clusterings, all heads alike.",
        default=PerSetup(scan="random"),
    )
    validation: str = key(
        one_of("test", "train_holdout"),
        "Images whose loss chooses the epoch and the head: the test split's, or a tenth of the train "
        "split's, which then do not train.",
        default=PerSetup(scan="test"),
    )
    # self-labeling
    confidence_threshold: float = key(
        number(0, below=1), "Probability above which a prediction is a pseudo-label.",
        required=to_train("selflabel"), tunable=True,
    )
    use_ema: bool = key(
        BOOLEAN, "After each iteration replace the weights by their running average.", default=False
    )
    ema_alpha: float = key(
        PROBABILITY, "Weight of the old average at each iteration.", required=When("use_ema", (True,))
    )
    # the loss
    criterion: str = key(one_of(*SETUP_OF_CRITERION), "Loss; each step has its own.", required=TRAINED)
    criterion_kwargs: CriterionSettings = group_of(
        CriterionSettings, "Options of the loss.", required=TRAINED, tunable=True
    )
    # the optimizer
    epochs: int = key(
        number(0, whole=True), "Passes over the training images; 0 only with head_init judged.",
        required=TRAINED, tunable=True,
    )
    optimizer: str = key(one_of("sgd", "adam"), "Optimizer.", required=TRAINED)
    optimizer_kwargs: OptimizerSettings = group_of(
        OptimizerSettings, "Arguments of the optimizer.", required=TRAINED, tunable=True
    )
    scheduler: str = key(
        one_of("cosine", "step", "constant"),
        "Course of the learning rate; cosine ends at lr * lr_decay_rate ** 3.",
        required=TRAINED, tunable=True,
    )
    scheduler_kwargs: SchedulerSettings = group_of(
        SchedulerSettings, "Arguments of the scheduler.", default={}, tunable=True
    )
    # the images
    augmentation_strategy: str = key(
        one_of("standard", "simclr", "ours"),
        "standard: random crops. simclr: and random colors. ours: strong augmentations and Cutout.",
        required=TRAINED,
    )
    augmentation_kwargs: AugmentationSettings = group_of(
        AugmentationSettings, "Settings of the strategy; those of another one are ignored.",
        required=TRAINED, tunable=True,
    )
    transformation_kwargs: TransformationSettings = group_of(
        TransformationSettings, "Evaluation transform.", required=ALWAYS, pretext_training=False
    )


# fmt: on


class Config(Environment, Experiment):
    """The checked configuration of a step: a mapping, whose values are attributes as well.

    An optional key without a default that was not given is None as an attribute, and not in the mapping.
    """

    @property
    def trains_on(self) -> Literal["images", "features", "augmented features"]:
        """What the clustering step's network sees: images, or features of a frozen backbone, computed once.

        The features are of the images themselves, or of `cache_features` augmented views of each.
        """
        if self.cache_features is None:
            return "images"
        return "augmented features" if self.cache_features else "features"


# --- queries -------------------------------------------------------------------------------------


def rows_of(settings: type[Settings], prefix: str = "") -> Iterator[Key]:
    """The rows of a class and of its groups, with their full names."""
    for name, row in vars(settings).items():
        if isinstance(row, Key):
            yield replace(row, name=prefix + name)
            if row.group:
                yield from rows_of(row.group, f"{prefix}{name}.")


ENVIRONMENT, EXPERIMENT = tuple(rows_of(Environment)), tuple(rows_of(Experiment))
TUNABLE = (*(row.name for row in EXPERIMENT if row.tunable), "data.train")  # the last: the images
AFTER_TRAINING = (*(row.name for row in EXPERIMENT if not row.pretext_training), "data.test")


def within(keys: tuple[Key, ...], group: str = "") -> dict[str, Key]:
    """The rows of the keys directly in a group, or at the top level: {last part of the name: row}."""
    names = [row.name.rpartition(".") for row in keys]
    return {name: row for row, (parent, _, name) in zip(keys, names, strict=True) if parent == group}


def defaults(setup: str | None) -> dict[str, Any]:
    """{key: default} of the top-level keys that have one."""
    values = {name: row.default_of(setup) for name, row in within(ENVIRONMENT + EXPERIMENT).items()}
    return {name: value for name, value in values.items() if value is not None}


def listing() -> str:
    """The table as text, for --list-keys."""
    wrap = partial(textwrap.wrap, width=LISTING_WIDTH, break_on_hyphens=False)
    lines = []
    for title, keys in (("environment, --config_env", ENVIRONMENT), ("experiment, --config_exp", EXPERIMENT)):
        lines += [title, ""]
        for row in keys:
            lines += wrap(f"{row.name}: {row.help}", initial_indent="  ", subsequent_indent="    ")
            lines += wrap("; ".join(_facts(row)), initial_indent=8 * " ", subsequent_indent=8 * " ")
        lines.append("")
    return "\n".join([*lines, "On the command line: --set KEY=VALUE ..."])


def _facts(row: Key) -> Iterator[str]:
    """What a row says besides its help, in words."""
    yield row.check.words
    if isinstance(row.default, PerSetup):
        yield "default " + ", ".join(f"{value} ({setup})" for setup, value in row.default.items())
    elif row.default is not None:
        yield f"default {row.default}"
    if row.required == ALWAYS:
        yield "required in its group" if "." in row.name else "required"
    elif isinstance(row.required, When):
        steps = ", ".join(map(str, row.required.values)) if row.required.key == "setup" else ""
        yield f"required to train {steps}" if steps else f"required with {row.required}"
    if row.only:
        yield f"only with {row.only}"
