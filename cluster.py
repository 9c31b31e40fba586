"""Sort a folder of images into clusters, without labels, in one command.

python cluster.py PHOTOS --clusters 10 [--from-scratch]

By default the images are clustered by the features of a network that learned from other photos.
--from-scratch learns from your images alone, which is right for what no photo shows: scans, microscopy, ...

ROOT_DIR/NAME/ will hold report.html (open it in a browser), clusters.csv (a row for each image),
prototypes.png (an image for each cluster), clusters/ (a sheet of images for each cluster), metrics.json, the
experiment files in configs/, and each step's results. If it is interrupted, give the same command again.
"""

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

import data
from errors import UserError
from steps import sheets
from steps.describe_clusters import describe_clusters
from steps.load_model import load_model
from steps.options import BuildDataset
from utils import report
from utils.analysis import baselines, health, plots
from utils.files import digest, write_json
from utils.run import distributed
from utils.run.config import Config, read_yaml
from utils.run.folder import Run, read_epochs
from utils.run.machine import Machine
from utils.run.script import add_overrides, default_environment, file_argument, run_script
from utils.training.features import backbone_features, digest_of
from utils.training.inference import infer
from workflows import own_images, subfolder_classes
from workflows.fit_to_images import BACKBONE
from workflows.label_free_choices import choose_number, choose_threshold
from workflows.own_experiment import ClusterArguments
from workflows.run_steps import DatasetCache, PlannedStep
from workflows.subfolder_classes import compare_with_classes, labels_of

SHEET, SHEET_LEAST = 80, 20  # images on a contact sheet: the most and the least confident of a cluster


def main(argv: list[str] | None = None) -> None:
    arguments = read_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    environment = read_yaml(default_environment())
    folder = make_folder(arguments, environment)
    if arguments.labels:
        subfolder_classes.require_classes(arguments.images, folder)
    build_dataset = DatasetCache()
    experiment = own_images.prepare(arguments, folder, environment, build_dataset)
    folders = {"pretext": experiment.run("pretext", build_dataset)}
    require_learned(folders["pretext"])
    if len(arguments.clusters) != 1:
        number = choose_number(arguments.clusters, folder, folders["pretext"], arguments.seed)
        experiment.set_number(number)
    folders["scan"] = experiment.run("scan", build_dataset)
    if "selflabel" in experiment.contents:
        threshold = choose_threshold(folders["scan"])
        if threshold:
            experiment.set_threshold(threshold)
            folders["selflabel"] = experiment.run("selflabel", build_dataset)
    last = experiment.plan(list(folders)[-1])
    write_results(last, folder, folders, arguments.labels, build_dataset)


# --- the command line ----------------------------------------------------------------------------


def read_arguments(argv: list[str] | None) -> ClusterArguments:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "images", metavar="PHOTOS", type=file_argument, help="folder of images, nested or not"
    )
    parser.add_argument(
        "--clusters", metavar="K", required=True, type=numbers_argument,
        help="number of clusters; several to compare, K,K,...; or auto, to compare many and take the best",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the results folder (default: the name of PHOTOS)")
    parser.add_argument("--root_dir", help="folder of all results (default: that of configs/env.yml)")
    parser.add_argument(
        "--backbone", metavar="NAME",
        help=f"network: timm/..., torchvision/... (default: {BACKBONE}); with --from-scratch also "
        "resnet18, ... (default: the best for which --hours are enough)",
    )  # fmt: skip
    parser.add_argument(
        "--pretrained", metavar="FILE", type=file_argument, help="file of the backbone's weights"
    )
    parser.add_argument(
        "--features", metavar="FILE.npy", type=file_argument,
        help="cluster by these vectors, one for each image in the order of their names, from any model",
    )  # fmt: skip
    parser.add_argument(
        "--from-scratch", action="store_true", help="learn the features from these images alone"
    )
    parser.add_argument("--size", metavar="PIXELS", type=int, help="side to which images are brought")
    parser.add_argument("--resize", choices=["crop", "pad", "squeeze"], default="crop", help="how they are")
    parser.add_argument(
        "--hours", type=float, default=2.0, help="budget of --from-scratch for step 1 (default: %(default)g)"
    )
    parser.add_argument(
        "--labels",
        choices=["subfolders"],
        help="the names of subfolders are classes: compare, after clustering",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_overrides(parser, "override a key of all experiment files")
    args = parser.parse_args(argv)
    distributed.require_one_process("cluster.py")
    sources = {
        "--features": args.features, "--pretrained": args.pretrained, "--from-scratch": args.from_scratch,
    }  # fmt: skip
    given = [flag for flag, value in sources.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give only one of them")
    if args.features and (args.backbone or args.size):
        raise UserError("--features replaces the network: leave out --backbone and --size")
    if args.hours <= 0:
        raise UserError(f"--hours {args.hours:g}: must be above 0")
    if not args.images.is_dir():
        what = "is a file; give the folder that holds it" if args.images.exists() else "no such folder"
        raise UserError(f"{args.images}: {what}")
    args.images = args.images.resolve()
    args.name = args.name or re.sub(r"[^\w.-]+", "_", args.images.name).strip("._-") or "images"
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        raise UserError(f"--name {args.name}: use letters, digits, '_', '-' and '.'")
    return ClusterArguments(**vars(args))


def numbers_argument(text: str) -> list[int]:
    """argparse type of --clusters: list of numbers; empty for auto."""
    if text == "auto":
        return []
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 2:
        raise argparse.ArgumentTypeError(f"expected numbers of 2 or more, or auto; found {text!r}")
    return found


def make_folder(arguments: ClusterArguments, environment: dict[str, Any]) -> Path:
    """Make the folder of the results. Raises UserError if it is that of the images, or cannot be made."""
    root = Path(arguments.root_dir or environment.get("root_dir", "results")).expanduser()
    folder = root / arguments.name
    if folder.resolve() == arguments.images:
        raise UserError(
            f"{folder}: the results would lie among the images; give another --name or --root_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --root_dir") from None
    return folder


def require_learned(pretext: Path) -> None:
    """Raise UserError if the pretext step, of which this is the folder, has learned nothing."""
    if json.loads((pretext / "metrics.json").read_text()).get("collapsed"):
        raise UserError(
            f"{pretext}: the network did not learn to tell these images apart (loss: curves.png), so that "
            "clusters would mean nothing; try again with --name NEW and another --seed or --backbone"
        )


# --- the results ---------------------------------------------------------------------------------


def write_results(
    last: PlannedStep,
    folder: Path,
    folders: dict[str, Path],
    labels: str | None,
    build_dataset: BuildDataset,
) -> None:
    """Write clusters.csv, report.html, prototypes.png, clusters/*.png and metrics.json.

    Args:
        last: the step whose model gives the clusters.
        folder: of the results.
        folders: of the steps' results, by step.
        labels: "subfolders": compare the clusters with the images' folders.
    """
    step, config = last.name, last.config
    dataset = build_dataset(config, "train")
    made_of = [digest(folders[step] / "model.pth.tar"), digest_of(dataset), labels]
    done = folder / "metrics.json"  # written at the end: it says that the others are complete
    figures = json.loads(done.read_text()) if done.exists() else {}
    if figures.get("made_of") != made_of or not (folder / "report.html").exists():
        done.unlink(missing_ok=True)
        run = Run(config, folders[step], Machine.start(config))
        features, probabilities = predictions(run, folders, step, dataset)
        epochs = {name: read_epochs(path) for name, path in folders.items()}
        described = describe_clusters(
            dataset, features, probabilities, run.machine, config.search, folders["pretext"]
        )
        opinions = baselines.cluster(features, config.num_classes, config.seed)
        agreement, opinions = baselines.compare(described.assignment.cluster, opinions, config.num_classes)
        figures = {
            "made_of": made_of,
            "folder": str(config.image_folder),
            "num_images": len(dataset),
            "num_clusters": config.num_classes,
            "model": f"{step}/model.pth.tar",
            **described.figures,
            **health_figures(folders, epochs[step]),
            "agreement": agreement,
        }
        truth = report.GroundTruth(*labels_of(dataset.names()), "subfolders") if labels else None
        if truth:
            figures |= compare_with_classes(probabilities, truth.labels, truth.classes)
        context = report.ReportContext(
            title=folder.name,
            results=folder,
            facts=facts(config, figures),
            advice=health.ADVICE[step],
            epochs=epochs,
            image_url=f"{Path(config.image_folder).expanduser().resolve().as_uri()}/",
            truth=truth,
            columns={name: clusters.tolist() for name, clusters in opinions.items()},
            seed=config.seed,
        )
        report.write_report(folder, dataset, features, described.assignment, figures, context)
        sheets.save_prototypes(dataset, figures, folder / "prototypes.png")
        save_contact_sheets(dataset, probabilities, folder / "clusters")
        write_json(figures, done)
    tell(figures, health.ADVICE[step], folder)


def predictions(
    run: Run, folders: dict[str, Path], step: str, dataset: data.Dataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 (N, D) and probabilities (N, C) of all images by the model of the last step."""
    loaded = load_model(run.config, folders[step] / "model.pth.tar")
    model = run.machine.place(loaded.model).eval()
    loading = run.machine.loading(run.config)
    loader = data.eval_loader(dataset, run.config, **loading)
    kept = folders["pretext" if step == "scan" else step]  # where the features of that backbone are
    features = backbone_features(run, kept, model, loader, "features")
    logits = model.cluster_head[loaded.head]
    loader = data.feature_loader(features, **loading)
    return features, infer(lambda batch: logits(batch).softmax(1), loader, "clusters").cpu()


def facts(config: Config, figures: dict[str, Any]) -> dict[str, object]:
    """What the report says about its making: term -> value."""
    made_with = {"images": config.image_folder, "model": figures["model"], "network": config.backbone}
    if "weights" in figures:
        made_with["features of"] = figures["weights"]
    return made_with


def health_figures(folders, epochs):
    """What can be said about the clusters without labels, for metrics.json."""
    troubles = [trouble for epoch in epochs for trouble in epoch.get("warned_of", ())]
    return {
        "neighbors": json.loads((folders["scan"] / "metrics.json").read_text())["train_neighbors"],
        "troubles": troubles,
    }


def save_contact_sheets(dataset: data.Dataset, probabilities: torch.Tensor, folder: Path) -> None:
    """A picture of each cluster's images, the most confident first and the least confident last."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    confidence, clusters = probabilities.max(1)
    for cluster in clusters.unique().tolist():
        members = (clusters == cluster).nonzero().squeeze(1)
        members = members[confidence[members].argsort(descending=True)].tolist()
        most, least = members[:SHEET], members[SHEET:][-SHEET_LEAST:]
        cells = [(dataset.raw(i), f"{100 * confidence[i]:.0f} %") for i in most + least]
        shown = "" if len(members) == len(cells) else f"; {len(most)} most and {len(least)} least confident"
        title = f"cluster {cluster}: {len(members)} images{shown}"
        plots.save_contact_sheet(
            cells, title, folder / f"{cluster:0{len(str(probabilities.size(1) - 1))}d}.png"
        )


def tell(figures: dict[str, Any], advice: dict[str, str], folder: Path) -> None:
    """Print what was found, and where it is."""
    sizes = torch.tensor(figures["cluster_sizes"])
    print(f"\n{figures['num_images']} images in {len(sizes)} clusters of {health.counted(sizes)}")
    for verdict in report.verdicts(figures, advice):
        print(f"{verdict.text} {verdict.advice}".strip())
    if "acc" in figures:
        how = ", by features that were learned with labels" if figures.get("labels_in_pretraining") else ""
        acc, nmi = 100 * figures["acc"], 100 * figures["nmi"]
        print(f"against the subfolders: ACC {acc:.1f}  NMI {nmi:.1f} %{how}")
        if len(sizes) != len(figures["classes"]):
            vote = 100 * figures["majority_vote_acc"]
            n = len(figures["classes"])
            print(f"{len(sizes)} clusters for {n} folders, matched one to one; by majority vote {vote:.1f} %")
    for name in ("report.html", "clusters.csv", "prototypes.png", "clusters", "metrics.json"):
        if (folder / name).exists():
            print(f"  {folder / name}")


if __name__ == "__main__":
    run_script(main, "give the same command again to go on")
