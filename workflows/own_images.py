"""The experiment files for a folder of images: the templates in configs/own/, filled in.

The network, the size of the images and the number of epochs follow what the machine can do in the time that
the user gives; that is measured, and told, before anything is trained.
"""

import itertools
import json
import os
import shutil
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
import yaml

import data
import models
from data.folder.memory import available_memory
from errors import UserError
from losses import SimCLRLoss
from simclr import simclr_step
from utils.analysis import duplicates
from utils.files import atomic, write_json
from utils.run import machine
from utils.run.config import differences, listed, read_yaml
from utils.run.fingerprint import FINGERPRINT
from utils.training import cost
from utils.training.features import digest_of
from workflows import run_steps

TEMPLATES = Path(__file__).parents[1] / "configs/own"
BACKBONE = "timm/vit_small_patch14_dinov2.lvd142m"
# networks and image sizes to choose from with --from-scratch, the best first
FROM_SCRATCH = ("resnet18", 96), ("resnet10_narrow", 96), ("resnet10_narrow", 32)
VIEWS = 600_000  # images that learning from scratch should see: 300 epochs of 2 000
MOST_EPOCHS, FEWEST_EPOCHS = 500, 20
ITERATIONS = 400  # of the clustering step, at least: few images would otherwise give few
FEWEST = 21  # images, of which each has 20 neighbors
PLAN = "cluster.json"  # the command line and the images that the experiment files were made for
RESULTS = (
    "report.html", "clusters.csv", "clusters", "prototypes.png", "metrics.json", "numbers.csv", "numbers.png",
    "predictions", "export",
)  # fmt: skip
NOT_ASKED = "labels", "root_dir", "name"  # arguments that change nothing of what is trained


def experiment_files(args, folder, settings):
    """Write the experiment files, unless an earlier run of this command did and its first step has begun.

    Args:
        args: the command line of cluster.py.
        folder: pathlib.Path of the results.
        settings: KEY=VALUE strings for all steps.

    If the command or the images have changed since, the earlier results are set aside.

    Returns:
        dict step -> path of its file; number of distinct images.

    Raises:
        UserError: bad images or settings. From scratch, where much may be lost: another command or images.
    """
    files = {step: folder / "configs" / f"{step}.yml" for step in templates(args)}
    plan = folder / PLAN
    kept = json.loads(plan.read_text()) if plan.exists() else {}
    asked = {name: str(value) for name, value in vars(args).items() if name not in NOT_ASKED and value}
    begun = has_begun(folder)
    if begun and not kept:
        raise UserError(f"{folder}: holds results of other scripts; give --name {free_name(folder)}")
    changed = differences(kept["arguments"], asked) if begun else {}
    n = len(data.list_images(args.images, but=(folder.parent, folder))[0])
    require_enough(n, args)
    if changed.keys() == {"clusters"}:  # the first step does not depend on it
        with set_aside(folder, ("scan", "selflabel")):
            if len(args.clusters) == 1:
                set_number(files, args.clusters[0], kept["distinct"])
            write_json({**kept, "arguments": asked}, plan)
        return files, kept["distinct"]
    if changed and ("from_scratch" in asked or "from_scratch" in kept["arguments"]):
        raise UserError(
            f"{folder}: holds a training by another command ({listed(changed)}); give that again, or keep "
            f"this one apart with --name {free_name(folder)}"
        )
    if begun and not changed:
        config = run_steps.check_steps(files, settings)["pretext"]
        if digest_of(data.build_dataset(config, "train")) == kept["images"]:
            return files, kept["distinct"]
        if args.from_scratch:
            raise UserError(
                f"{args.images}: its images have changed since {folder} was made; keep a training on these "
                f"apart with --name {free_name(folder)}"
            )
    with set_aside(folder, run_steps.SCRIPTS) if begun else nullcontext():
        images, distinct = fit(args, n, files, settings)
    write_json({"arguments": asked, "images": images, "distinct": distinct}, plan)
    return files, distinct


@contextmanager
def set_aside(folder, steps):
    """Context in which the results of these steps, and what was made of them, are moved to earlier-N/.

    The experiment files are copied there. If the context ends with an error, all is as before.
    """
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    earlier = folder / f"earlier-{number}"
    shutil.copytree(folder / "configs", earlier / "configs")
    moved = [name for name in (*steps, *RESULTS) if (folder / name).exists()]
    for name in moved:
        (folder / name).rename(earlier / name)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder / "configs")
        for name in ("configs", *moved):
            (earlier / name).rename(folder / name)
        earlier.rmdir()
        raise
    print(f"the earlier results are kept in {earlier}")


def free_name(folder):
    """The name of a results folder beside `folder` that does not exist yet."""
    names = (f"{folder.name}-{n}" for n in itertools.count(2))
    return next(name for name in names if not (folder.parent / name).exists())


def has_begun(folder):
    """Whether a step has results, or a training that can be resumed."""
    names = FINGERPRINT, "checkpoint.pth.tar"
    return any((folder / step / name).exists() for step in run_steps.SCRIPTS for name in names)


def write_yaml(content, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def change(path, **values):
    """Change top-level keys of an experiment file."""
    write_yaml({**read_yaml(path), **values}, path)


def set_number(files, number, distinct):
    """Set the number of clusters of so many distinct images in the files of all steps but the first."""
    change(files["scan"], num_classes=number, num_neighbors=neighbors_to_use(number, distinct))
    if "selflabel" in files:
        change(files["selflabel"], num_classes=number)


def neighbors_to_use(number, distinct):
    """As many as the published 20, unless that is more than half of the average cluster."""
    return max(5, min(20, distinct // (2 * number)))


# --- filling in ----------------------------------------------------------------------------------


def templates(args):
    """Dict step -> file in configs/own/."""
    if args.from_scratch:
        names = {"pretext": "simclr", "scan": "scan", "selflabel": "selflabel"}
    else:
        names = {"pretext": "pretrained", "scan": "scan"}
    return {step: TEMPLATES / f"{name}.yml" for step, name in names.items()}


def fit(args, n, files, settings):
    """Write the files for these n images; say what the first step will take, before anything is trained.

    Returns:
        digest of the images; number of distinct ones.
    """
    most = max(args.clusters or [2])  # of several numbers, one is chosen after the first step
    contents = {step: read_yaml(path) for step, path in templates(args).items()}
    size, normalize = args.size, None
    if args.from_scratch:
        backbone, size = args.backbone or FROM_SCRATCH[0][0], args.size or FROM_SCRATCH[0][1]
    elif args.features:
        backbone, size = data.vector_backbone(args.features), 112  # of the pictures
    else:
        backbone = args.backbone or BACKBONE
        found = models.preprocessing(backbone)
        size, normalize = args.size or found["size"], {key: found[key] for key in ("mean", "std")}
    for content in contents.values():
        content.update(
            image_folder=str(args.images), folder_labels="none", resize=args.resize,
            train_db_name=args.name, val_db_name=args.name, num_classes=most, seed=args.seed,
            num_workers=min(8, os.cpu_count() or 1), backbone=backbone,
        )  # fmt: skip
        if args.features:
            content["features_file"] = str(args.features.resolve())
        set_size(content, size, normalize)

    def written():
        for step, content in contents.items():
            write_yaml(content, files[step])
        return run_steps.check_steps(files, settings)["pretext"]

    config = written()  # with the user's settings; a mistake in them shows now
    if args.from_scratch:
        fit_from_scratch(args, contents, n, config)
        config = written()
    elif not args.features:
        tell_cost_of_features(config, n)
    dataset = data.build_dataset(config, "train")
    n = duplicates.count_distinct(duplicates.first_copies(dataset))  # from here on the distinct ones
    require_enough(n, args, len(dataset) - n)
    for content in contents.values():
        content["batch_size"] = min(content["batch_size"], n)
    scan = contents["scan"]
    iterations = n // scan["batch_size"]  # of an epoch
    scan["epochs"] = max(scan["epochs"], -(-ITERATIONS // iterations))
    scan["num_neighbors"] = neighbors_to_use(most, n)
    if args.from_scratch:
        scan["cache_features"] = 8
        pretext = contents["pretext"]
        pretext["optimizer_kwargs"]["lr"] *= pretext["batch_size"] / 256
        # at the full rate, the first iterations can make all features the same
        pretext["scheduler_kwargs"]["warmup_epochs"] = config.epochs // 10
    written()
    return digest_of(dataset), n


def require_enough(n, args, copies=0):
    """Raise UserError if n distinct images are too few for neighbors or for that many clusters."""
    needed = max(FEWEST, *args.clusters, 0)
    if n < needed:
        more = f" (and {copies} copies of them)" if copies else ""
        raise UserError(
            f"{args.images}: {n} images{more}, but {needed} are the fewest that can be clustered so"
        )


def set_size(content, size, normalize=None):
    """Set the images' side in pixels, and the normalization, wherever a file has them."""
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


def tell_cost_of_features(config, n):
    device = machine.choose_device(config.device)
    backbone = models.build_model(config).backbone.to(device, memory_format=torch.channels_last).eval()
    size = config.transformation_kwargs.crop_size
    seconds = n * cost.of_features(backbone, size, device)
    print(
        f"features of {n} images by {config.backbone} at {size} pixels: about {cost.duration(seconds)} "
        f"on {device}; then a minute or so for the clusters"
    )
    if seconds > 1800:
        print("much faster, and less exact: --backbone torchvision/mobilenet_v2, or a smaller --size")


def fit_from_scratch(args, contents, n, config):
    """Choose the network, its image size, its batches and the epochs so that step 1 takes at most --hours.

    `config` is the checked configuration of the first step, for the device and the precision.
    """
    device, pretext = machine.choose_device(config.device), contents["pretext"]
    wanted = min(MOST_EPOCHS, max(FEWEST_EPOCHS, VIEWS // n))
    networks = [(args.backbone or name, args.size or size) for name, size in FROM_SCRATCH]
    for backbone, size in dict.fromkeys(networks):
        set_size(pretext, size)
        pretext["backbone"] = backbone
        seconds, memory = cost_of_image(pretext, device, machine.choose_precision(config.precision, device))
        epochs = min(wanted, int(3600 * args.hours / (n * seconds)))
        enough = epochs >= wanted / 3
        print(
            f"{backbone} at {size} pixels: about {cost.duration(n * seconds)} an epoch on {device}; "
            + (f"{epochs} epochs" if enough else f"too long for --hours {args.hours:g}")
        )
        if enough:
            break
    epochs = max(epochs, FEWEST_EPOCHS)
    if not enough:
        print(f"{epochs} epochs of that, {cost.duration(epochs * n * seconds)}; more --hours would do better")
    for content in contents.values():
        content["backbone"] = backbone
        set_size(content, size)
    room = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_memory()
    batch = min(pretext["batch_size"], n)
    while batch > 32 and memory * batch > 0.7 * room:
        batch //= 2
    print(
        f"batches of {batch} images, {memory * batch / 1e9:.1f} GB of the {room / 1e9:.0f} GB that are free"
    )
    pretext.update(epochs=epochs, batch_size=batch)


def cost_of_image(content, device, precision):
    """Seconds that SimCLR trains on an image, and bytes that it keeps for each image of a batch."""
    model = models.build_model(content).to(device, memory_format=torch.channels_last).train()
    autocast = partial(torch.autocast, device.type, precision, enabled=precision != torch.float32)
    step = partial(simclr_step, model, SimCLRLoss(content["temperature"]))
    return cost.of_training(step, model, content["transformation_kwargs"]["crop_size"], device, autocast)
