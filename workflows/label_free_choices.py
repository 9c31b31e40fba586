"""What cluster.py chooses between the steps, without labels: the number of clusters, and a threshold."""

import csv
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import data
from errors import CannotTrainError, UserError, first_line
from steps.judged_clusters import FeatureSpace
from steps.load_model import load_model
from utils.analysis import choose_k, duplicates, health, plots
from utils.analysis.groups import find_groups
from utils.files import digest, read_json, write_csv, write_json
from utils.run.folder import MINED_TRAIN, Run, rename
from utils.run.machine import Machine, threads_for
from utils.training.features import backbone_features
from workflows.own_experiment import LEFT_OUT, OwnExperiment
from workflows.run_steps import PlannedStep

log = logging.getLogger(__name__)

NEIGHBORS_OF_NUMBERS = 15  # of each image, by which numbers of clusters are compared
THRESHOLDS = 0.99, 0.95, 0.9, 0.8  # of self-labeling


def choose_number(
    candidates: Sequence[int], folder: Path, pretext: PlannedStep, dataset: data.Dataset
) -> int:
    """The number of clusters that the neighbors suggest, among `candidates`, or many if there are none.

    Writes numbers.csv and numbers.png to `folder`. `pretext` is the first step, which is finished, and
    `dataset` its images; copies among them do not count.
    """
    made_of = ["Ward's linkage", digest(pretext.folder / MINED_TRAIN), list(candidates)]
    path = folder / "numbers.json"
    content = read_json(path)
    if content.get("made_of") != made_of:
        print("\ncomparing numbers of clusters ...", flush=True)
        first = duplicates.first_copies(dataset)
        mined = torch.from_numpy(np.load(pretext.folder / MINED_TRAIN))[:, : NEIGHBORS_OF_NUMBERS + 1]
        mined = duplicates.among_distinct(mined, first)
        features = pretext_features(pretext, dataset)[first.unique()]
        config = pretext.config
        space = FeatureSpace.of(features, config.seed, Machine.start(config).device, config.search)
        few = [number for number in choose_k.CANDIDATES if number * choose_k.MIN_MEAN_SIZE <= len(mined)]
        with threads_for(len(features)):
            rows = choose_k.compare_numbers(mined, space.embedded, candidates or few or [2], space.seed)
            groups = find_groups(features, config.seed)["verdict"]
        best, alike = choose_k.suggest(rows)
        content = {
            "made_of": made_of, "suggestion": best, "alike": alike, "groups": groups, "numbers": rows,
        }  # fmt: skip
        write_json(content, path)
    rows, best = content["numbers"], content["suggestion"]
    write_csv(rows[0], [row.values() for row in rows], folder / "numbers.csv")
    plots.save_numbers(rows, best, folder / "numbers.png")
    for row in rows:
        print(
            f"{row['clusters']:4} clusters of {row['smallest']} to {row['largest']} images: modularity "
            f"{row['modularity']:.3f}, silhouette {row['silhouette']:.3f}, stability {row['stability']:.2f}"
        )
    print(f"suggested: {best} clusters; as good, as far as one can tell: {str(content['alike'])[1:-1]}")
    if content.get("groups") in ("none", "series", "unclear"):
        print("the features show no clear groups, so that no number is the right one: choose one by its use")
    return best


def pretext_features(step: PlannedStep, dataset: data.Dataset) -> torch.Tensor:
    """Features float32 (N, D) of the backbone of the pretext step, which is finished."""
    run = Run(step.config, step.folder, Machine.start(step.config))
    model = run.machine.place(load_model(step.config, step.folder / "model.pth.tar", "pretext").model).eval()
    images = data.eval_loader(dataset, step.config, **run.machine.loading(step.config))
    return backbone_features(run, step.folder, model, images, "features")


def self_label(experiment: OwnExperiment) -> None:
    """Run self-labeling, and leave what it made out if that is no gain: `experiment.left_out` says why.

    It is left out if it cannot train, fails, or loses clusters. Unless it failed, it is not tried again on
    the same clusters: its folder is renamed to LEFT_OUT, with the reason.
    """
    scan, here, aside = (experiment.folder / name for name in ("scan", "selflabel", LEFT_OUT))
    model = digest(scan / "model.pth.tar")
    before = read_json(aside / "reason.json")
    if before.get("scan") == model:
        why = before["reason"]
    else:
        try:
            experiment.set_threshold(choose_threshold(scan))
            experiment.run("selflabel")
            if "selflabel" in experiment.folders:  # it is not where a training stays that was without it
                require_no_loss(scan, here)
            return
        except CannotTrainError as error:
            why = str(error).partition("; ")[0]
            if here.exists():
                write_json({"scan": model, "reason": why}, here / "reason.json")
                shutil.rmtree(aside, ignore_errors=True)  # of other clusters
                rename(here, aside)
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            why = first_line(error)
    experiment.left_out = why
    experiment.folders.pop("selflabel", None)
    log.warning("self-labeling is left out, and these are the clusters before it: %s", why)


def choose_threshold(scan: Path) -> float:
    """The confidence threshold of self-labeling, by the results of the clustering step in the folder `scan`.

    It is the highest of THRESHOLDS that 20 % of the images exceed, and images of half of the clusters: one
    without pseudo-labels is lost to others. Raises CannotTrainError if there is none.
    """
    clusters, confidence = _assignment(scan)
    for threshold in THRESHOLDS:
        confident = confidence > threshold
        covered = len(clusters[confident].unique())
        if confident.float().mean() >= 0.2 and 2 * covered >= len(clusters.unique()):
            return threshold
    raise CannotTrainError(f"too few images, or in too few clusters, have a confidence above {threshold:g}")


def require_no_loss(scan: Path, selflabel: Path) -> None:
    """Raise CannotTrainError if self-labeling has emptied or merged clusters of the clustering step's folder.

    The user has asked for so many. How often neighbors agree could not tell: when clusters merge, it rises.
    """
    before, now = _assignment(scan)[0], _assignment(selflabel)[0]
    lost = len(before.unique()) - len(now.unique())
    merged = health.find_merged(before, now, int(before.max().maximum(now.max())) + 1)
    if lost > 0 or merged:
        lost = max(lost, sum(map(len, merged.values())) - len(merged))
        raise CannotTrainError(f"it lost {lost} of {len(before.unique())} clusters to others")


def _assignment(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The images' clusters, int64 (N,), and confidence (N,), in the folder of a step."""
    with open(folder / "assignment.csv", encoding="utf-8") as file:
        rows = [(int(row["cluster"]), float(row["confidence"])) for row in csv.DictReader(file)]
    clusters, confidence = zip(*rows, strict=True)
    return torch.tensor(clusters), torch.tensor(confidence)
