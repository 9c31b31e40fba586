"""Sort a folder of images into clusters, without labels, in one command.

python cluster.py PHOTOS --clusters 10 [--from-scratch]

By default the images are clustered by the features of a network that learned from other photos.
--from-scratch learns from your images alone, which is right for what no photo shows: scans, microscopy, ...

ROOT_DIR/NAME/ will hold report.html (open it in a browser), clusters.csv (a row for each image),
prototypes.png (an image for each cluster), clusters/ (a sheet of images for each cluster), metrics.json, the
experiment files in configs/, and each step's results. If it is interrupted, give the same command again.
"""

import argparse
import csv
import json
import logging
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch

import data
import models
from errors import UserError
from eval import learned_by_others, prototype_cells, save_sheet
from scan import NEIGHBORS
from utils import report
from utils.analysis import baselines, choose_k, health, metrics, plots
from utils.analysis.prototypes import find_prototypes
from utils.files import digest, write_csv, write_json
from utils.run import distributed
from utils.run.config import read_yaml
from utils.run.folder import Run, read_epochs
from utils.run.machine import Machine
from utils.run.script import add_overrides, default_environment, file_argument, run_script, yaml_text
from utils.run.weights import choose_head, load_weights, read_weights
from utils.training.features import backbone_features, digest_of
from utils.training.inference import infer
from workflows import own_images, run_steps

NEIGHBORS_OF_NUMBERS = 15  # of each image, by which numbers of clusters are compared
THRESHOLDS = 0.99, 0.95, 0.9, 0.8  # of self-labeling
SPLITS = "train", "test", "val"  # folders that are no classes
SHEET, SHEET_LEAST = 80, 20  # images on a contact sheet: the most and the least confident of a cluster


def main(argv=None):
    args = read_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    root = Path(args.root_dir or read_yaml(default_environment()).get("root_dir", "results")).expanduser()
    folder = root / args.name
    if folder.resolve() == args.images:
        raise UserError(
            f"{folder}: the results would lie among the images; give another --name or --root_dir"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --root_dir") from None
    settings = [f"root_dir={yaml_text(root)}", *args.overrides]
    if args.labels:
        require_classes(args.images, folder)
    files, distinct = own_images.experiment_files(args, folder, settings)
    flags = {"pretext": ["--pretrained", str(args.pretrained)]} if args.pretrained else {}
    run = partial(run_steps.run_steps, settings=settings, flags=flags)
    folders = run({"pretext": files["pretext"]})
    require_learned(folders["pretext"])
    if len(args.clusters) != 1:
        own_images.set_number(
            files, choose_number(args.clusters, folder, folders["pretext"], args.seed), distinct
        )
    folders |= run({"scan": files["scan"]})
    if "selflabel" in files and set_threshold(files["selflabel"], folders["scan"]):
        folders |= run({"selflabel": files["selflabel"]})
    configs = run_steps.check_steps({step: files[step] for step in folders}, settings)
    write_results(configs, folder, folders, args.labels)


# --- the command line ----------------------------------------------------------------------------


def read_arguments(argv):
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
        help=f"network: timm/..., torchvision/... (default: {own_images.BACKBONE}); with --from-scratch also "
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
    return args


def numbers_argument(text):
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


# --- between the steps ---------------------------------------------------------------------------


def require_learned(pretext):
    """Raise UserError if the pretext step, of which this is the folder, has learned nothing."""
    if json.loads((pretext / "metrics.json").read_text()).get("collapsed"):
        raise UserError(
            f"{pretext}: the network did not learn to tell these images apart (loss: curves.png), so that "
            "clusters would mean nothing; try again with --name NEW and another --seed or --backbone"
        )


def choose_number(candidates, folder, pretext, seed):
    """The number of clusters that the neighbors suggest, among `candidates`, or many if that is empty.

    Writes numbers.csv and numbers.png. `pretext` is the folder of the first step's results.
    """
    mined = torch.from_numpy(np.load(pretext / NEIGHBORS[0]))[:, : NEIGHBORS_OF_NUMBERS + 1]
    made_of = [digest(pretext / NEIGHBORS[0]), candidates]
    kept = folder / "numbers.json"
    content = json.loads(kept.read_text()) if kept.exists() else {}
    if content.get("made_of") != made_of:
        print("\ncomparing numbers of clusters ...", flush=True)
        few = [number for number in choose_k.NUMBERS if number * choose_k.FEWEST <= len(mined)]
        rows = choose_k.compare(mined, candidates or few or [2], seed)
        best, alike = choose_k.suggest(rows)
        content = {"made_of": made_of, "suggestion": best, "alike": alike, "numbers": rows}
        write_json(content, kept)
    rows, best = content["numbers"], content["suggestion"]
    write_csv(rows[0], [row.values() for row in rows], folder / "numbers.csv")
    plots.save_numbers(rows, best, folder / "numbers.png")
    for row in rows:
        print(
            f"{row['clusters']:4} clusters of {row['mean_smallest']:.0f} to {row['mean_largest']:.0f} "
            f"images: modularity {row['modularity']:.3f} ± {row['modularity_std']:.3f}, "
            f"stability {row['stability']:.2f}"
        )
    alike = ", ".join(map(str, content["alike"]))
    print(f"suggested: {best} clusters; as good, as far as one can tell: {alike}")
    return best


def set_threshold(path, scan):
    """Set the confidence threshold of the self-labeling file at `path`, without using labels.

    It is the highest of THRESHOLDS that a fifth of the images exceed after the clustering step, of which
    `scan` is the folder. Returns False, after saying so, if there is none.
    """
    with open(scan / "assignment.csv", encoding="utf-8") as file:
        confidence = torch.tensor([float(row["confidence"]) for row in csv.DictReader(file)])
    good = [threshold for threshold in THRESHOLDS if (confidence > threshold).float().mean() >= 0.2]
    if not good:
        print(f"no self-labeling: too few images have a confidence above {THRESHOLDS[-1]:g}")
        return False
    own_images.change(path, confidence_threshold=good[0])
    return True


# --- the results ---------------------------------------------------------------------------------


def write_results(configs, folder, folders, labels=None):
    """Write clusters.csv, report.html, prototypes.png, clusters/*.png and metrics.json.

    Args:
        configs: dict step -> configuration.
        folder: pathlib.Path of the results.
        folders: dict step -> pathlib.Path of its results.
        labels: "subfolders": compare the clusters with the images' folders.
    """
    step, config = list(configs.items())[-1]
    dataset = data.build_dataset(config, "train")
    made_of = [digest(folders[step] / "model.pth.tar"), digest_of(dataset), labels]
    done = folder / "metrics.json"  # written at the end: it says that the others are complete
    figures = json.loads(done.read_text()) if done.exists() else {}
    if figures.get("made_of") != made_of or not (folder / "report.html").exists():
        done.unlink(missing_ok=True)
        run = Run(config, folders[step], Machine.start(config))
        features, probabilities = predictions(run, folders, step, dataset)
        epochs = {name: read_epochs(path) for name, path in folders.items()}
        prototypes = find_prototypes(features, probabilities)
        found = report.describe(
            dataset, features, probabilities, prototypes, run.machine.device, config.search
        )
        opinions = baselines.cluster(features, config.num_classes, config.seed)
        agreement, opinions = baselines.compare(found["cluster"], opinions, config.num_classes)
        figures = {
            "made_of": made_of,
            "folder": str(config.image_folder),
            "num_images": len(dataset),
            "num_clusters": config.num_classes,
            "model": f"{step}/model.pth.tar",
            **learned_by_others(folders["pretext"]),
            "prototypes": prototypes,
            **health_figures(found, config.num_classes, folders, epochs[step]),
            "agreement": agreement,
        }
        truth = truth_of(dataset.names()) if labels else None
        if truth:
            figures |= compared(probabilities, *truth[:2])
        about = {
            "title": folder.name,
            "results": folder,
            "facts": facts(config, figures),
            "advice": health.ADVICE[step],
            "epochs": epochs,
            "folder": f"{Path(config.image_folder).expanduser().resolve().as_uri()}/",
        }
        columns = {name: clusters.tolist() for name, clusters in opinions.items()}
        report.write(folder, dataset, features, found, figures, about, truth, columns, config.seed)
        save_sheet(prototype_cells(dataset, figures), folder / "prototypes.png")
        save_contact_sheets(dataset, probabilities, folder / "clusters")
        write_json(figures, done)
    tell(figures, health.ADVICE[step], folder)


def predictions(run, folders, step, dataset):
    """Features float32 (N, D) and probabilities (N, C) of all images by the model of the last step."""
    source = folders[step] / "model.pth.tar"
    weights, head = read_weights(source, ["clustering"])
    model = models.build_model(run.config)
    load_weights(model, weights, source)
    model = run.machine.place(model).eval()
    loader = data.eval_loader(dataset, run.config, **run.machine.loading(run.config))
    kept = folders["pretext" if step == "scan" else step]  # where the features of that backbone are
    features = backbone_features(run, kept, model, loader, "features")
    logits = model.cluster_head[choose_head(weights, head, source)]
    loader = data.feature_loader(features, **run.machine.loading(run.config))
    return features, infer(lambda batch: logits(batch).softmax(1), loader, "clusters").cpu()


def require_classes(images, folder):
    """Raise UserError now unless the subfolders of `images` can be compared with clusters, see `class_of`."""
    files, _ = data.list_images(images, but=(folder.parent, folder))
    classes = {class_of(Path(file).relative_to(images)) for file in files} - {None}
    if len(classes) < 2:
        raise UserError(f"--labels subfolders: the images are in {len(classes)} folders; leave --labels out")


def class_of(name):
    """The first folder of an image's name that is no split; None for an image without such a folder."""
    return next((part for part in Path(name).parts[:-1] if part not in SPLITS), None)


def truth_of(names):
    """Labels int64 (N,) by `class_of` the names, -1 for none; their names; and what they are."""
    found = [class_of(name) for name in names]
    classes = sorted({name for name in found if name})
    indices = {name: number for number, name in enumerate(classes)}
    return torch.tensor([indices.get(name, -1) for name in found]), classes, "subfolders"


def compared(probabilities, labels, classes):
    """Metrics of the clusters; images without a class do not count."""
    labeled = labels >= 0
    figures = metrics.clustering_metrics(probabilities[labeled], labels[labeled], len(classes))
    return {"classes": classes, "num_labeled": int(labeled.sum()), **figures}


def facts(config, figures):
    """What the report says of its making: list of (term, text)."""
    made_with = {"images": config.image_folder, "model": figures["model"], "network": config.backbone}
    if "weights" in figures:
        made_with["features of"] = figures["weights"]
    return [[term, str(text)] for term, text in made_with.items()]


def health_figures(found, num_clusters, folders, epochs):
    """What can be said about the clusters without labels, for metrics.json."""
    troubles = [trouble for epoch in epochs for trouble in epoch.get("warned_of", ())]
    return {
        "neighbors": json.loads((folders["scan"] / "metrics.json").read_text())["train_neighbors"],
        "troubles": troubles,
        **report.figures_of(found, num_clusters),
    }


def save_contact_sheets(dataset, probabilities, folder):
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


def tell(figures, advice, folder):
    sizes = torch.tensor(figures["cluster_sizes"])
    print(f"\n{figures['num_images']} images in {len(sizes)} clusters of {health.counted(sizes)}")
    for verdict in report.verdicts(figures, advice):
        print(f"{verdict['text']} {verdict['advice']}".strip())
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
