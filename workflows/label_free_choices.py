"""What cluster.py chooses between the steps, without labels: the number of clusters, and a threshold."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import data
from steps.judged_clusters import FeatureSpace
from steps.load_model import load_model
from utils.analysis import choose_k, duplicates, plots
from utils.files import digest, read_json, write_csv, write_json
from utils.run.folder import MINED_TRAIN, Run
from utils.run.machine import Machine, threads_for
from utils.training.features import backbone_features
from workflows.run_steps import PlannedStep

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
        space = FeatureSpace(features, config.seed, Machine.start(config).device, config.search)
        few = [number for number in choose_k.CANDIDATES if number * choose_k.MIN_MEAN_SIZE <= len(mined)]
        with threads_for(len(features)):
            rows = choose_k.compare_numbers(mined, space.embedded, candidates or few or [2], space.seed)
        best, alike = choose_k.suggest(rows)
        content = {"made_of": made_of, "suggestion": best, "alike": alike, "numbers": rows}
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
    return best


def pretext_features(step: PlannedStep, dataset: data.Dataset) -> torch.Tensor:
    """Features float32 (N, D) of the backbone of the pretext step, which is finished."""
    run = Run(step.config, step.folder, Machine.start(step.config))
    model = run.machine.place(load_model(step.config, step.folder / "model.pth.tar", "pretext").model).eval()
    images = data.eval_loader(dataset, step.config, **run.machine.loading(step.config))
    return backbone_features(run, step.folder, model, images, "features")


def choose_threshold(scan: Path) -> float | None:
    """The confidence threshold of self-labeling, by the results of the clustering step in the folder `scan`.

    It is the highest of THRESHOLDS exceeded by at least 20 % of the images. If there is none: None, and a
    printed line says so.
    """
    with open(scan / "assignment.csv", encoding="utf-8") as file:
        confidence = torch.tensor([float(row["confidence"]) for row in csv.DictReader(file)])
    for threshold in THRESHOLDS:
        if (confidence > threshold).float().mean() >= 0.2:
            return threshold
    print(f"no self-labeling: too few images have a confidence above {THRESHOLDS[-1]:g}")
    return None
