"""The experiment files for a folder of images: the templates in configs/own/, filled in.

The network, the size of the images and the number of epochs follow what the machine can do in the time that
the user gives; that is measured, and told, before anything is trained.
"""

import json
import os
from functools import partial
from pathlib import Path

import torch
import yaml

import data
import models
from data.memory import available_memory
from errors import UserError
from losses import SimCLRLoss
from simclr import simclr_step
from utils.analysis import duplicates
from utils.files import atomic, write_json
from utils.run import machine
from utils.run.config import read_yaml
from utils.training import cost

TEMPLATES = Path(__file__).parent / "configs/own"
BACKBONE = "timm/vit_small_patch14_dinov2.lvd142m"
# networks and image sizes to choose from with --from-scratch, the best first
FROM_SCRATCH = ("resnet18", 96), ("resnet10_narrow", 96), ("resnet10_narrow", 32)
VIEWS = 600_000  # images that learning from scratch should see: 300 epochs of 2 000
MOST_EPOCHS, FEWEST_EPOCHS = 500, 20
ITERATIONS = 400  # of the clustering step, at least: few images would otherwise give few
FEWEST = 21  # images, of which each has 20 neighbors
PLAN = "cluster.json"  # the command line that the experiment files were made for


def experiment_files(args, folder):
    """The paths of the experiment files, by step, written unless an earlier run of this command did.

    Raises:
        UserError: bad images, or results of another command.
    """
    plan, configs = folder / PLAN, folder / "configs"
    asked = {key: str(value) for key, value in vars(args).items() if value not in (None, False)}
    kept = json.loads(plan.read_text()) if plan.exists() else None
    if kept and kept["arguments"] != asked:
        changed = sorted(
            key for key in {*asked, *kept["arguments"]} if asked.get(key) != kept["arguments"].get(key)
        )
        raise UserError(
            f"{folder}: holds results of a command with another {', '.join(changed)}; give that again, or "
            f"keep this one apart with --name {args.name}-2"
        )
    if not kept:
        contents = fitted(args, folder)
        configs.mkdir(parents=True, exist_ok=True)
        for step, content in contents.items():
            write_yaml(content, configs / f"{step}.yml")
        kept = {"arguments": asked, "steps": list(contents)}
        write_json(kept, plan)
    return {step: configs / f"{step}.yml" for step in kept["steps"]}


def write_yaml(content, path):
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")


def change(path, **values):
    """Change top-level keys of an experiment file."""
    write_yaml({**read_yaml(path), **values}, path)


def fitted(args, folder):
    """The templates in configs/own/, filled in for these images: dict step -> content of its file.

    Says what the first step will take, before anything is trained.
    """
    pretext = "simclr" if args.from_scratch else "pretrained"
    names = {"pretext": pretext, "scan": "scan"} | ({"selflabel": "selflabel"} if args.from_scratch else {})
    contents = {step: read_yaml(TEMPLATES / f"{name}.yml") for step, name in names.items()}
    size, normalize = args.size, None
    if args.from_scratch:
        backbone, size = args.backbone or FROM_SCRATCH[0][0], args.size or FROM_SCRATCH[0][1]
    elif args.features:
        backbone = data.vector_backbone(args.features)
    else:
        backbone = args.backbone or BACKBONE
        found = models.preprocessing(backbone)
        size, normalize = args.size or found["size"], {key: found[key] for key in ("mean", "std")}
    most = max(
        args.clusters or [2]
    )  # of several numbers, the one for the heads is chosen after the first step
    for content in contents.values():
        content.update(
            image_folder=str(args.images), folder_labels="none", resize=args.resize,
            train_db_name=args.name, val_db_name=args.name, num_classes=most, seed=args.seed,
            num_workers=min(8, os.cpu_count() or 1), backbone=backbone,
        )  # fmt: skip
        if args.features:
            content["features_file"] = str(args.features.resolve())
        set_size(content, size or 112, normalize)

    n = len(data.list_images(args.images)[0])
    device = machine.choose_device("auto")
    if args.from_scratch:
        fit_from_scratch(args, contents, n, device)
        contents["scan"]["cache_features"] = 8
    elif not args.features:
        tell_cost_of_features(contents["pretext"], n, device)
    dataset = data.build_dataset({**contents["pretext"], "root_dir": folder.parent}, "train")
    n = duplicates.count_distinct(duplicates.first_copies(dataset))
    if n < max(FEWEST, most):
        copies = f" ({len(dataset) - n} more are copies)" if n < len(dataset) else ""
        what = f"{most} clusters" if most > n else "nearest neighbors"
        raise UserError(f"{args.images}: {n} images{copies} are too few for {what}")
    for content in contents.values():
        content["batch_size"] = min(content["batch_size"], n)
    scan = contents["scan"]
    iterations = n // scan["batch_size"]  # of an epoch
    scan["epochs"] = max(scan["epochs"], -(-ITERATIONS // iterations))
    scan["num_neighbors"] = max(5, min(20, n // (2 * most)))
    return contents


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


def tell_cost_of_features(content, n, device):
    backbone = build_backbone(content, device)
    size = content["transformation_kwargs"]["crop_size"]
    seconds = n * cost.of_features(backbone, size, device)
    print(
        f"features of {n} images by {content['backbone']} at {size} pixels: about {cost.duration(seconds)} "
        f"on {device}; then a minute or so for the clusters"
    )
    if seconds > 1800:
        print("much faster, and less exact: --backbone torchvision/mobilenet_v2, or a smaller --size")


def build_backbone(content, device):
    model = models.build_model({**content, "setup": "scan", "num_heads": 1})
    return model.backbone.to(device, memory_format=torch.channels_last).eval()


def fit_from_scratch(args, contents, n, device):
    """Choose the network, its image size, its batches and the epochs so that step 1 takes at most --hours."""
    pretext = contents["pretext"]
    wanted = min(MOST_EPOCHS, max(FEWEST_EPOCHS, VIEWS // n))
    networks = [(args.backbone or name, args.size or size) for name, size in FROM_SCRATCH]
    for backbone, size in dict.fromkeys(networks):
        set_size(pretext, size)
        seconds, memory = cost_of_epoch({**pretext, "backbone": backbone}, n, device)
        epochs = min(wanted, int(3600 * args.hours / seconds))
        enough = epochs >= wanted / 3
        print(
            f"{backbone} at {size} pixels: about {cost.duration(seconds)} an epoch on {device}; "
            + (f"{epochs} epochs" if enough else f"too long for --hours {args.hours:g}")
        )
        if enough:
            break
    epochs = max(epochs, FEWEST_EPOCHS)
    if not enough:
        print(f"{epochs} epochs of that, {cost.duration(epochs * seconds)}; more --hours would do better")
    for content in contents.values():
        content["backbone"] = backbone
        set_size(content, size)
    pretext["epochs"] = epochs
    room = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_memory()
    while pretext["batch_size"] > 32 and memory * pretext["batch_size"] > 0.7 * room:
        pretext["batch_size"] //= 2
    batch = pretext["batch_size"]
    print(
        f"batches of {batch} images, {memory * batch / 1e9:.1f} GB of the {room / 1e9:.0f} GB that are free"
    )
    pretext["optimizer_kwargs"]["lr"] *= batch / 256


def cost_of_epoch(content, n, device):
    """Seconds of an epoch of SimCLR on n images, and bytes that it keeps for each image of a batch."""
    model = models.build_model(content).to(device, memory_format=torch.channels_last).train()
    precision = machine.choose_precision("auto", device)
    autocast = partial(torch.autocast, device.type, precision, enabled=precision != torch.float32)
    step = partial(simclr_step, model, SimCLRLoss(content["temperature"]))
    size = content["transformation_kwargs"]["crop_size"]
    seconds, memory = cost.of_training(step, model, size, device, autocast)
    return n * seconds, memory
