"""Published figures follow from the clusters in docs/records/."""

import json

import numpy as np
import pytest
import torch
from digits_steps import ROOT

from reproduce import ON_FEATURES
from utils.analysis import calibration, metrics
from workflows import ablations, records, tables
from workflows.tables import METHODS

RECORDS = sorted((ROOT / "docs/records").glob("*.json"))
ABLATIONS = sorted((ROOT / "docs/records/ablations").glob("*.json"))
# of a run before there was --record: ACC, NMI, ARI in %, as in docs/LOG.md
FIGURES = {
    "cifar-10_h200_long_seed0": {"scan": (79.0, 67.4, 62.2), "selflabel": (82.7, 70.5, 67.1)},
    "cifar-10_h200_seed0": {"scan": (72.1, 59.8, 52.1), "selflabel": (81.5, 68.6, 65.1)},
}


def figures_of(found, step):
    """ACC, NMI and ARI of a step's clusters in a file of docs/records/."""
    labels, clusters = (torch.from_numpy(found[name].astype(np.int64)) for name in ("labels", step))
    c, classes = (int(numbers.max()) + 1 for numbers in (clusters, labels))
    again = metrics.clustering_metrics(torch.eye(c)[clusters], labels, classes)
    return [again[name] for name in tables.METRICS]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_recorded_figures_follow_from_the_clusters(path):
    summary = json.loads(path.read_text())
    for number, seed in enumerate(summary["seeds"]):
        found = np.load(path.with_name(f"{path.stem}-seed{seed}.npz"))
        assert METHODS.keys() <= set(found)
        for name in set(found) - {"labels"}:
            method = METHODS.get(name, name)
            figures = [summary["methods"][method][metric]["values"][number] for metric in tables.METRICS]
            assert figures_of(found, name) == pytest.approx(figures)


def test_the_page_of_results_is_that_of_the_records():
    page = ROOT / "docs/RESULTS.md"
    if RECORDS:
        assert page.read_text(encoding="utf-8") == records.results_page(ROOT / "docs/records")
    assert page.exists() == bool(RECORDS)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_readme_shows_the_records(path):
    summary = json.loads(path.read_text())
    features = next(name for name in summary["methods"] if name in ON_FEATURES.values())  # that mining uses
    accuracies = [summary["methods"][name]["acc"] for name in (features, *METHODS.values())]
    row = " | ".join([str(len(summary["seeds"])), *map(tables.mean_and_std, accuracies)])
    assert f"| {row} |" in (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")


def test_every_ablation_has_a_record():
    assert {f"digits-{name}" for name in ablations.ABLATIONS} <= {path.stem for path in ABLATIONS}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_tables_of_ablations_are_those_of_the_records(path):
    summary = json.loads(path.read_text())
    for variant in summary["variants"].values():
        for figures in variant["figures"].values():
            for found in figures.values():
                assert found == metrics.spread(found["values"])
                assert len(found["values"]) == len(summary["seeds"])
    table = "\n".join(tables.markdown_table(tables.ablation_rows(summary)))
    page = (ROOT / "docs/ABLATIONS.md").read_text(encoding="utf-8")
    assert table in page
    command = summary["command"].removeprefix("python ")
    assert f"`{command}`" in page or command.replace(summary["ablation"], "neighbors") in page


@pytest.mark.parametrize("run", FIGURES)
def test_figures_of_an_earlier_run(run):
    found = np.load(ROOT / f"docs/records/{run}.npz")
    for step, figures in FIGURES[run].items():
        assert [round(100 * figure, 1) for figure in figures_of(found, step)] == list(figures)


def calibration_row(dataset, step):
    """A row of the table in docs/RUNS.md: the mean over the seeds, in %."""
    kept = np.load(ROOT / "docs/records/calibration.npz")
    figures = []
    for seed in sorted({name.split("/")[1] for name in kept if name.startswith(f"{dataset}/")}):
        names = (f"{dataset}/{seed}/{step}/{name}" for name in ("confidence", "right"))
        confidence, right = (torch.from_numpy(kept[name]) for name in names)
        found = calibration.calibration_figures(confidence, right)
        sure, unsure, curve = found["sure"], found["unsure"], found["coverage"]["accuracy"]
        share = sure["count"] / len(right)
        figures.append([curve[-1], found["ece"], share, sure["accuracy"], unsure["accuracy"], curve[9]])
    cells = (f"{100 * value:.1f}" for value in np.mean(figures, 0))
    return f"| {dataset}, {METHODS[step]} | {' | '.join(cells)} |"


@pytest.mark.parametrize("step", METHODS)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "mnist-short", "fashion-mnist-short"])
def test_the_table_of_calibration(dataset, step):
    assert calibration_row(dataset, step) in (ROOT / "docs/RUNS.md").read_text(encoding="utf-8").splitlines()
