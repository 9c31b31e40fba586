"""reproduce.py --ablation: variants that share what they have in common, and a table and figure of them."""

import csv
import json
import re
import shutil
from unittest import mock

import pytest
from digits_steps import fails
from PIL import Image

import reproduce
from utils.analysis import metrics, plots
from utils.files import digest
from utils.run.config import read_yaml
from workflows import ablations, run_steps, tables

SEEDS = (3, 1)
TWO = {"strong": "ours", "SimCLR": "simclr"}
VARIANTS = ("strong, strong", "SimCLR, strong", "SimCLR, SimCLR")
# where each step of each variant lies, in the folder of a seed
OWN, SIMCLR = "digits", "augmentation-simclr-strong/digits"
NESTED = "augmentation-simclr-strong/augmentation-simclr-simclr/digits"
PLACES = {
    ("strong, strong", "scan"): OWN,
    ("strong, strong", "selflabel"): OWN,
    ("SimCLR, strong", "scan"): SIMCLR,
    ("SimCLR, strong", "selflabel"): SIMCLR,
    ("SimCLR, SimCLR", "scan"): SIMCLR,
    ("SimCLR, SimCLR", "selflabel"): NESTED,
}


def command(root, name="augmentation", *more, seeds=SEEDS):
    budget = ["--set", "epochs=1", "confidence_threshold=0.2"]
    seeds = map(str, seeds)
    return ["digits", "--ablation", name, "--seeds", *seeds, "--root_dir", str(root), *more, *budget]


@pytest.fixture(scope="module")
def finished(made_once):
    """Folder of the results of an ablation, and the names of the scripts that trained, in order."""

    def make(root):
        called = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ablations, "STRATEGIES", TWO)
            count(patch, called)
            reproduce.main(command(root))
        (root / "called.json").write_text(json.dumps(called))

    root = made_once("ablation", make)
    return root, json.loads((root / "called.json").read_text())


@pytest.fixture
def called(monkeypatch):
    """Names of the scripts that train from now on, in order."""
    monkeypatch.setattr(ablations, "STRATEGIES", TWO)
    names = []
    count(monkeypatch, names)
    return names


def configs_of(*arguments, **named):
    return run_steps.configs_of(run_steps.plan_steps(*arguments, **named))


def count(patch, called):
    for scripts in run_steps.SCRIPTS.values():
        for script in scripts.values():

            def noted(*arguments, script=script, original=script.run_step):
                called.append(script.__name__)
                original(*arguments)

            patch.setattr(script, "run_step", noted)


def shown(values):
    return tables.mean_and_std(metrics.spread(values))


def figures_of(root, label, step, seed):
    return json.loads((root / f"seed-{seed}" / PLACES[label, step] / step / "metrics.json").read_text())


def test_what_variants_share_is_trained_once(finished):
    root, called = finished
    assert called == len(SEEDS) * ["simclr", "scan", "selflabel", "scan", "selflabel", "selflabel"]
    for seed in SEEDS:
        folder = root / f"seed-{seed}"
        starts = {}
        for (label, step), place in PLACES.items():
            config = read_yaml(folder / place / step / "config.yml")
            strategy = TWO[label.split(", ")[step == "selflabel"]]
            assert (config["augmentation_strategy"], config["seed"]) == (strategy, seed)
            starts[label, step] = json.loads((folder / place / step / "fingerprint.json").read_text())
        models = {place: digest(folder / place / "scan/model.pth.tar") for place in (OWN, SIMCLR)}
        for label, scan in zip(VARIANTS, (OWN, SIMCLR, SIMCLR), strict=True):
            assert starts[label, "selflabel"]["inputs"] == {"scan/model.pth.tar": models[scan]}
        assert len(set(models.values())) == 2
        assert len(list(folder.rglob("model.pth.tar"))) == 6


def test_table_and_figure_say_what_the_steps_found(finished, tmp_path, called, pictures, capsys):
    root = tmp_path / "results"
    shutil.copytree(finished[0], root)
    reproduce.main(command(root))
    printed = capsys.readouterr().out
    assert not called and printed.count("done before: ") == 6 * len(SEEDS)

    with open(root / "digits-ablation-augmentation.csv", newline="") as file:
        rows = {(row["variant"], row["method"], int(row["seed"])): row for row in csv.DictReader(file)}
    assert len(rows) == len(PLACES) * len(SEEDS)
    text = (root / "digits-ablation-augmentation.md").read_text()
    for label in VARIANTS:
        cells = [f"{label} (as in the files)" if label == "strong, strong" else label]
        for step, method in tables.METHODS.items():
            found = [figures_of(root, label, step, seed) for seed in SEEDS]
            for seed, figures in zip(SEEDS, found, strict=True):
                row = rows[label, method, seed]
                assert all(
                    float(row[name]) == figures[name] for name in (*tables.METRICS, "majority_vote_acc")
                )
            acc, nmi = ([figures[name] for figures in found] for name in ("acc", "nmi"))
            cells += [shown(acc), f"{100 * min(acc):.1f}", shown(nmi)]
        assert f"| {' | '.join(cells)} |" in text
        assert re.search(r"\s+".join(map(re.escape, cells)) + "$", printed, re.M)
    assert (
        "`python reproduce.py digits --ablation augmentation --seeds 3 1 "
        "--set epochs=1 confidence_threshold=0.2`" in text
    )
    with Image.open(root / "digits-ablation-augmentation.png") as picture:
        assert picture.width < 600
    assert (root / "digits-ablation-augmentation.png").stat().st_size < 30_000


def test_only_what_is_missing_is_trained_again(finished, tmp_path, called):
    root = tmp_path / "results"
    shutil.copytree(finished[0], root)
    before = (root / "digits-ablation-augmentation.csv").read_text()
    (root / "seed-3" / NESTED / "selflabel/model.pth.tar").unlink()
    (root / "seed-1" / SIMCLR / "scan/fingerprint.json").unlink()
    reproduce.main(command(root))
    assert called == ["selflabel", "scan"]
    assert (root / "digits-ablation-augmentation.csv").read_text() == before


def test_over_clustering_counts_by_majority_vote(finished, tmp_path, called, monkeypatch, capsys):
    """And another ablation starts from the same files' own results."""
    root = tmp_path / "results"
    shutil.copytree(finished[0], root)
    monkeypatch.setattr(ablations, "FACTORS", (2,))
    reproduce.main(command(root, "overclustering", seeds=[1]))
    assert called == ["scan", "selflabel"]
    summary = json.loads((root / "digits-ablation-overclustering.json").read_text())
    assert list(summary["variants"]) == ["10", "20"]
    for label, variant in summary["variants"].items():
        folder = root / "seed-1" / ("digits" if label == "10" else f"overclustering-{label}/digits")
        for step, method in tables.METHODS.items():
            found = json.loads((folder / step / "metrics.json").read_text())
            assert found["num_clusters"] == int(label)
            acc = variant["figures"][method]["majority_vote_acc"]
            assert acc["values"] == [found["majority_vote_acc"]] and acc["std"] is None
    printed = capsys.readouterr().out
    assert "ACC by majority vote" in printed and "labels decide" in printed


def test_steps_after_the_last_one_shown_do_not_run(tmp_path, called, monkeypatch, capsys):
    """And a rehearsal is called one."""
    few = ablations.values_of("scan", "num_neighbors", (2,))
    monkeypatch.setitem(ablations.ABLATIONS, "neighbors", ablations.Ablation("number", ("scan",), few))
    reproduce.main(command(tmp_path, "neighbors", "--rehearse", seeds=[1]))
    assert called == ["simclr", "scan", "scan"]
    folder = tmp_path / "rehearsal"
    assert not list(folder.rglob("selflabel"))
    text = (folder / "digits-ablation-neighbors.md").read_text()
    assert text.index("| 2 |") < text.index("| 5 (as in the files) |")
    assert "the figures mean nothing" in text and "the figures mean nothing" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", reproduce.EXPERIMENTS)
@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_variants_of_every_dataset(name, dataset, tmp_path):
    """They are valid, differ from each other, and the files' own settings are among them."""
    experiment = reproduce.chosen_experiment(reproduce.read_arguments([dataset, "--root_dir", str(tmp_path)]))
    own = experiment.plan(0)
    variants = ablations.ABLATIONS[name].variants(run_steps.configs_of(own))
    assert len(variants) >= 3
    plans = ablations.plan_variants(name, variants, experiment, 0)
    assert plans.keys() == variants.keys()
    first = next(iter(plans.values()))
    assert {step: own[step].config for step in first} == run_steps.configs_of(first)
    found = {label: run_steps.configs_of(plan) for label, plan in plans.items()}
    steps = {id(step): step for plan in plans.values() for step in plan.values()}
    assert len({step.folder for step in steps.values()}) == len(steps)  # nothing is written over
    pipelines = [json.dumps({**configs}, sort_keys=True, default=str) for configs in found.values()]
    without_folders = {re.sub(r'"root_dir": "[^"]*"', "", text) for text in pipelines}
    assert len(without_folders) == len(variants)


def test_frozen_and_cached_features_are_not_cached_when_all_trains():
    files = {"scan": "configs/scan/scan_digits.yml"}
    configs = configs_of(files, ["cache_features=4"])
    changes = ablations.trained_parts(configs)["all"]
    found = configs_of(files, ["cache_features=4"], changes)["scan"]
    assert not found.update_cluster_head_only and "cache_features" not in found


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--ablation", "neighbours"],
            r"--ablation neighbours: .*did you mean neighbors\? there are neighbors, ",
        ),
        (["--ablation", "xyz"], "--ablation xyz: unknown; there are neighbors, entropy_weight, "),
        (["--ablation", "heads", "--record", "mine"], "--record mine: not with --ablation"),
    ],
)
def test_refused(argv, message, tmp_path, capsys):
    argv = ["digits", *argv, "--root_dir", str(tmp_path / "results")]
    assert re.search(message, fails(capsys, reproduce.main, argv))
    assert not (tmp_path / "results").exists()


def test_a_figure_that_fails_is_a_warning(finished, tmp_path, monkeypatch, caplog):
    root, _ = finished
    summary = json.loads((root / "digits-ablation-augmentation.json").read_text())
    monkeypatch.setattr(plots.Figure, "savefig", mock.Mock(side_effect=OSError("no space left")))
    tables.write_tables(summary, tmp_path / "again")
    ablations.save_figure(summary, tmp_path / "again.png")
    assert "again.png: no picture (OSError: no space left)" in caplog.text
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".csv"}
