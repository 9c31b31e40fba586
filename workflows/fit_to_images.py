"""Fill in the templates of configs/own/ for a folder of images.

The network, the size of the images and the number of epochs follow what the machine can do in the time that
the user gives. That is measured, and told, before anything is trained.
"""

import os
from functools import partial
from typing import Any

import torch

import data
import models
from data.folder.memory import available_memory
from losses import SimCLRLoss
from simclr import simclr_step
from utils.analysis import duplicates
from utils.run.config import Config, read_yaml
from utils.run.machine import Machine
from utils.training import cost
from utils.training.features import digest_of
from workflows import own_experiment
from workflows.final_head import hashes_of
from workflows.own_command import BACKBONE, ClusterOptions
from workflows.own_experiment import OwnExperiment
from workflows.run_steps import SCRIPTS

# networks and image sizes to choose from with --from-scratch, the best first
FROM_SCRATCH = ("resnet18", 96), ("resnet10_narrow", 96), ("resnet10_narrow", 32)
VIEWS = 600_000  # images that learning from scratch should see: 300 epochs of 2 000
MOST_EPOCHS, FEWEST_EPOCHS = 500, 20
# of the clustering step on augmented views; at least so many iterations, which few images would not give
EPOCHS_ON_VIEWS, ITERATIONS = 40, 400


def fit(experiment: OwnExperiment, n: int) -> None:
    """Fill in the templates for n images, and save them.

    Says what the first step will take, before anything is trained. Results of earlier files are moved aside.
    Raises UserError for bad settings or images, before that.
    """
    options = experiment.options
    contents = {
        step: read_yaml(path) for step, path in own_experiment.templates(options.from_scratch).items()
    }
    record = experiment.record
    record.contents = contents
    clusters = (options.clusters or [2])[-1]  # unless it is chosen after the first step
    name = experiment.folder.name
    for content in contents.values():
        content.update(
            **options.source_keys(), folder_labels="none", resize=options.resize,
            train_db_name=name, val_db_name=name, num_classes=clusters, seed=options.seed,
            num_workers=min(8, os.cpu_count() or 1),
        )  # fmt: skip
    set_network(contents, *default_network(options))
    config = experiment.plan_all()[0].config  # with the user's settings; a mistake in them shows now
    if options.from_scratch:
        fit_training(options, contents, n, Machine.start(config))
        config = experiment.plan_all()[0].config
    elif not options.features:
        tell_cost_of_features(config, n)

    dataset = experiment.build_dataset(config, "train")
    distinct = duplicates.count_distinct(duplicates.first_copies(dataset))
    own_experiment.require_enough_images(options, distinct, len(dataset) - distinct)
    for content in contents.values():
        content["batch_size"] = min(content["batch_size"], distinct)
    scan = contents["scan"]
    scan["num_neighbors"] = own_experiment.neighbors_to_use(clusters, distinct)
    if options.from_scratch:
        scan.pop("crop_ratio")  # that of the first step
        iterations = distinct // scan["batch_size"]  # of an epoch
        scan.update(cache_features=8, epochs=max(EPOCHS_ON_VIEWS, -(-ITERATIONS // iterations)))
        pretext = contents["pretext"]
        pretext["optimizer_kwargs"]["lr"] *= pretext["batch_size"] / 256
        # at the full rate, the first iterations can make all features the same
        pretext["scheduler_kwargs"]["warmup_epochs"] = config.epochs // 10
    record.images, record.places = digest_of(dataset), dataset.fingerprint()
    record.trained, record.distinct = list(hashes_of(dataset)), distinct
    experiment.plan_all()
    if own_experiment.has_begun(experiment.folder):
        own_experiment.move_to_earlier(experiment.folder, list(SCRIPTS))
    experiment.save()


def default_network(options: ClusterOptions) -> tuple[str, int, dict[str, list[float]] | None]:
    """The backbone, the size of its images in pixels, and their normalization, if it has one of its own."""
    if options.from_scratch:
        return options.backbone or FROM_SCRATCH[0][0], options.size or FROM_SCRATCH[0][1], None
    if options.features:
        return data.read_vectors(options.features).backbone, 128, None  # the size of the pictures
    backbone = options.backbone or BACKBONE
    expected = models.preprocessing(backbone)
    return backbone, options.size or expected.size, {"mean": expected.mean, "std": expected.std}


def set_network(
    contents: dict[str, dict[str, Any]], backbone: str, size: int, normalize: dict[str, list[float]] | None
) -> None:
    """Set the backbone in all files, and the images' size and normalization wherever a file has them."""
    for content in contents.values():
        content["backbone"] = backbone
        train, test = content.get("augmentation_kwargs", {}), content["transformation_kwargs"]
        test["crop_size"] = size
        if "random_resized_crop" in train:
            train["random_resized_crop"]["size"] = size
        if "cutout_kwargs" in train:
            train["crop_size"] = size
            train["cutout_kwargs"]["length"] = max(1, size // 3)
        for part in (train, test):
            if normalize and "normalize" in part:
                part["normalize"] = dict(normalize)


def tell_cost_of_features(config: Config, n: int) -> None:
    """Say how long the features of n images will take."""
    machine, size = Machine.start(config), config.transformation_kwargs.crop_size
    backbone = machine.place(models.build_model(config).backbone).eval()
    seconds = n * cost.seconds_per_image(backbone, size, machine.device)
    print(
        f"features of {n} images by {config.backbone} at {size} pixels: about {cost.duration(seconds)} "
        f"on {machine.device}; then a minute or so for the clusters"
    )
    if seconds > 1800:
        print("much faster, and less exact: --backbone torchvision/mobilenet_v2, or a smaller --size")


def fit_training(
    options: ClusterOptions, contents: dict[str, dict[str, Any]], n: int, machine: Machine
) -> None:
    """Choose network, image size, batches and epochs so that step 1 takes at most --hours for n images.

    Takes the best network of FROM_SCRATCH that can train at least a third of the wanted epochs in --hours, or
    else the smallest.
    """
    pretext = contents["pretext"]
    wanted = min(MOST_EPOCHS, max(FEWEST_EPOCHS, VIEWS // n))
    networks = [(options.backbone or name, options.size or size) for name, size in FROM_SCRATCH]
    for backbone, size in dict.fromkeys(networks):
        set_network(contents, backbone, size, None)
        seconds, memory = cost_of_image(pretext, machine)
        epochs = min(wanted, int(3600 * options.hours / (n * seconds)))
        enough = epochs >= wanted / 3
        print(
            f"{backbone} at {size} pixels: about {cost.duration(n * seconds)} an epoch on {machine.device}; "
            + (f"{epochs} epochs" if enough else f"too long for --hours {options.hours:g}")
        )
        if enough:
            break
    epochs = max(epochs, FEWEST_EPOCHS)
    if not enough:
        print(f"{epochs} epochs of that, {cost.duration(epochs * n * seconds)}; more --hours would do better")
    room = torch.cuda.mem_get_info()[0] if machine.device.type == "cuda" else available_memory()
    batch = min(pretext["batch_size"], n)
    while batch > 32 and memory * batch > 0.7 * room:
        batch //= 2
    print(
        f"batches of {batch} images, {memory * batch / 1e9:.1f} GB of the {room / 1e9:.0f} GB that are free"
    )
    pretext.update(epochs=epochs, batch_size=batch)


def cost_of_image(content: dict[str, Any], machine: Machine) -> tuple[float, float]:
    """Seconds that SimCLR trains on an image, and bytes that it keeps for each image of a batch."""
    model = machine.place(models.build_model(content)).train()
    step = partial(simclr_step, model, SimCLRLoss(content["temperature"]))
    size = content["transformation_kwargs"]["crop_size"]
    return cost.training_cost(step, model, size, machine.device, machine.autocast)
