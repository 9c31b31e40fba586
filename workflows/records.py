"""docs/records/: what reproduce.py --record keeps of its runs, and the page and figures made of that.

NAME.json holds the summary; NAME-seedN.npz the labels of the test images and the clusters of each step and
baseline; NAME-curves.csv a row for each step, seed and epoch. Others' runs on the same dataset are drawn
beside ours, from DATASET-others-curves.csv.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.analysis import plots
from utils.files import atomic, read_json, write_csv, write_json
from utils.run.folder import read_epochs
from workflows.experiments import Plan
from workflows.tables import (
    METHODS,
    METRICS,
    Summary,
    markdown,
    markdown_table,
    mean_and_std,
    training_minutes,
    worst,
)

ABOUT_RESULTS = """# Results

Made by `reproduce.py --record` from `docs/records/`; nothing is typed by hand. Test split, in %, mean ±
standard deviation (n - 1) over the seeds. The clusters that each seed found are in `docs/records/`, too, and
a test computes the figures again from them. [LOG.md](LOG.md) says how the settings of the experiment files
were chosen: by labels of the train split, or without any; self-labeling of cifar-10-cpu is the exception,
set after a look at the test split. The files of MNIST, Fashion-MNIST and cifar-10-cpu use two options
that are not of the paper, `head_init: graph` and `neighbor-vote-cross-entropy` ([RUNS.md](RUNS.md)).
k-means clusters the normalized features of the network's head and of its backbone; first comes what mining
uses, and the part that is missing was not kept. Figures of k-means follow from the records only where these
hold its clusters. The CPUs were shared with other work. MNIST and Fashion-MNIST are not
downloaded by themselves: `python benchmarks/data/known.py mnist` makes the file, see
[IMAGES.md](IMAGES.md#array-files).
"""
# step: what its figure shows of the logged numbers
SHOWN = {
    "pretext": ("loss", "knn_accuracy"),
    "scan": ("loss", "consistency", "entropy", "val_acc"),
    "selflabel": ("loss", "confident", "voted", "val_acc"),
}
Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]  # step, number, run: (epoch, value) pairs


def keep(
    name: str,
    summary: Summary,
    plans: dict[int, Plan],
    labels: torch.Tensor,
    baselines: list[dict[str, Any]],
    folder: Path,
) -> None:
    """Keep the runs behind a summary as NAME, and write the page and the figure anew.

    Args:
        plans: by seed.
        labels: int64 (N,), of the test images.
        baselines: of each seed, by method, with `assigned`, the clusters of the test images.
        folder: docs/records.
    """
    epochs: list[dict[str, Any]] = []
    for (seed, plan), found in zip(plans.items(), baselines, strict=True):
        arrays = {"labels": labels.numpy()}
        for step in METHODS:
            with open(plan[step].folder / "assignment.csv", encoding="utf-8") as file:
                arrays[step] = np.array([int(row["cluster"]) for row in csv.DictReader(file)])
        arrays |= {method: np.array(figures["assigned"]) for method, figures in found.items()}
        small: dict[str, Any] = {key: a.astype(np.min_scalar_type(a.max())) for key, a in arrays.items()}
        with atomic(folder / f"{name}-seed{seed}.npz") as path, open(path, "wb") as file:
            np.savez_compressed(file, **small)
        for step, planned in plan.items():
            epochs += [{"step": step, "run": f"seed {seed}", **line} for line in read_epochs(planned.folder)]
    lists = {key for line in epochs for key, value in line.items() if isinstance(value, list)}
    columns = [key for key in dict.fromkeys(key for line in epochs for key in line) if key not in lists]
    rows = [[line.get(key, "") for key in columns] for line in epochs]
    write_csv(columns, rows, folder / f"{name}-curves.csv")
    write_json(summary, folder / f"{name}.json")
    draw(name, summary["dataset"], folder)
    with atomic(folder.parent / "RESULTS.md") as path:
        path.write_text(results_page(folder), encoding="utf-8")


def read_curves(path: Path) -> Curves:
    """The curves in a CSV file of `keep`."""
    curves: Curves = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in SHOWN[row["step"]]:
                if row.get(name):
                    runs = curves.setdefault(row["step"], {}).setdefault(name, {})
                    runs.setdefault(row["run"], []).append((int(row["epoch"]), float(row[name])))
    return curves


def draw(name: str, dataset: str, folder: Path) -> None:
    """Draw the curves of NAME, and of others' runs on the dataset, into docs/curves_NAME.png."""
    curves, others = read_curves(folder / f"{name}-curves.csv"), folder / f"{dataset}-others-curves.csv"
    for step, numbers in (read_curves(others) if others.exists() else {}).items():
        for number, runs in numbers.items():
            curves.setdefault(step, {}).setdefault(number, {}).update(runs)
    plots.save_run_curves(curves, folder.parent / f"curves_{name}.png")


def results_page(folder: Path) -> str:
    """RESULTS.md: all that is kept in `folder`, in Markdown."""
    rows = [["data", "method", "ACC", "worst", "NMI", "ARI", "seeds", "minutes a seed", "machine"]]
    sections = []
    for path in sorted(folder.glob("*.json")):
        summary: Any = read_json(path)
        settings = " (other settings, see below)" if summary["settings"] else ""
        seeds = len(summary["seeds"])
        minutes = f"{training_minutes(summary) / seeds:.0f}"
        machines = ", ".join(dict.fromkeys(maker["machine"] for maker in summary["made_with"]))
        for method, figures in summary["methods"].items():
            acc, nmi, ari = (mean_and_std(figures[name]) for name in METRICS)
            row = [summary["dataset"] + settings, method, acc, worst(figures["acc"]), nmi, ari]
            rows.append([*row, str(seeds), minutes, machines])
        sections.append(markdown(summary))
        if path.with_name(f"{path.stem}-curves.csv").exists():
            sections.append(f"![Curves of the steps, epoch by epoch](curves_{path.stem}.png)\n")
    return "\n".join([ABOUT_RESULTS, *markdown_table(rows), "", *sections])
