"""reproduce.py --ablation: variants that share what they have in common, and a table and figure of them."""

import json
import re
import shutil

import pytest
from digits_steps import note_steps, read_json, rows_of
from PIL import Image

import reproduce
from utils.analysis import metrics
from utils.files import digest
from utils.run.config import read_yaml
from workflows import ablations, experiments, tables
from workflows.run_steps import configs_of

SEEDS = (3, 1)
TWO = {"strong": "ours", "SimCLR": "simclr"}
# where each step of each variant lies, in the folder of a seed
OWN, SIMCLR = "digits", "augmentation-simclr-strong/digits"
NESTED = "augmentation-simclr-strong/augmentation-simclr-simclr/digits"
PLACES = {
    "strong, strong": {"scan": OWN, "selflabel": OWN},
    "SimCLR, strong": {"scan": SIMCLR, "selflabel": SIMCLR},
    "SimCLR, SimCLR": {"scan": SIMCLR, "selflabel": NESTED},
}


def command(root, name="augmentation", *more, seeds=SEEDS):
    budget = ["--set", "epochs=1", "confidence_threshold=0.2"]
    seeds = map(str, seeds)
    return ["digits", "--ablation", name, "--seeds", *seeds, "--root_dir", str(root), *more, *budget]


@pytest.fixture(scope="module")
def finished(made_once):
    """Folder of the results of an ablation; steps.json names the scripts that trained, in order."""

    def make(root):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ablations, "STRATEGIES", TWO)
            names = note_steps(patch)
            reproduce.main(command(root))
        (root / "steps.json").write_text(json.dumps(names))

    return made_once("ablation", make)


@pytest.fixture
def root(finished, tmp_path, monkeypatch):
    """A copy of it that a test may change."""
    monkeypatch.setattr(ablations, "STRATEGIES", TWO)
    return shutil.copytree(finished, tmp_path / "results")


def test_what_variants_share_is_trained_once(finished):
    steps = ["simclr", "scan", "selflabel", "scan", "selflabel", "selflabel"]
    assert read_json(finished / "steps.json") == len(SEEDS) * steps
    for seed in SEEDS:
        folder = finished / f"seed-{seed}"
        models = {place: digest(folder / place / "scan/model.pth.tar") for place in (OWN, SIMCLR)}
        assert len(set(models.values())) == 2 and len(list(folder.rglob("model.pth.tar"))) == 6
        for label, places in PLACES.items():
            for (step, place), strategy in zip(places.items(), label.split(", "), strict=True):
                config = read_yaml(folder / place / step / "config.yml")
                assert (config["augmentation_strategy"], config["seed"]) == (TWO[strategy], seed)
            start = read_json(folder / places["selflabel"] / "selflabel/fingerprint.json")
            assert start["inputs"] == {"scan/model.pth.tar": models[places["scan"]]}


def test_table_and_figure_say_what_the_steps_found(root, steps_run, pictures, capsys):
    reproduce.main(command(root))
    printed = capsys.readouterr().out
    assert not steps_run and printed.count("done before: ") == 6 * len(SEEDS)

    found = rows_of(root / "digits-ablation-augmentation.csv")
    rows = {(row["variant"], row["method"], int(row["seed"])): row for row in found}
    assert len(rows) == 2 * len(PLACES) * len(SEEDS)
    text = (root / "digits-ablation-augmentation.md").read_text()
    for label, places in PLACES.items():
        cells = [f"{label} (as in the files)" if label == "strong, strong" else label]
        for step, method in tables.METHODS.items():
            files = [root / f"seed-{seed}" / places[step] / step / "metrics.json" for seed in SEEDS]
            found = [read_json(file) for file in files]
            for seed, figures in zip(SEEDS, found, strict=True):
                row = rows[label, method, seed]
                assert all(float(row[name]) == figures[name] for name in tables.ABLATION_METRICS)
            acc, nmi = (metrics.spread([figures[name] for figures in found]) for name in ("acc", "nmi"))
            cells += [tables.mean_and_std(acc), f"{100 * min(acc['values']):.1f}", tables.mean_and_std(nmi)]
        assert f"| {' | '.join(cells)} |" in text
        assert re.search(r"\s+".join(map(re.escape, cells)) + "$", printed, re.M)
    given = "digits --ablation augmentation --seeds 3 1 --set epochs=1 confidence_threshold=0.2"
    assert f"`python reproduce.py {given}`" in text
    picture = root / "digits-ablation-augmentation.png"
    assert Image.open(picture).width < 600 and picture.stat().st_size < 30_000


def test_over_clustering_counts_by_majority_vote(root, steps_run, monkeypatch, capsys):
    """And another ablation starts from the same files' own results."""
    monkeypatch.setattr(ablations, "FACTORS", (2,))
    reproduce.main(command(root, "overclustering", seeds=[1]))
    assert steps_run == ["scan", "selflabel"]
    summary = read_json(root / "digits-ablation-overclustering.json")
    assert list(summary["variants"]) == ["10", "20"]
    for label, variant in summary["variants"].items():
        folder = root / "seed-1" / ("digits" if label == "10" else f"overclustering-{label}/digits")
        for step, method in tables.METHODS.items():
            found = read_json(folder / step / "metrics.json")
            assert found["num_clusters"] == int(label)
            acc = variant["figures"][method]["majority_vote_acc"]
            assert acc["values"] == [found["majority_vote_acc"]] and acc["std"] is None
    printed = capsys.readouterr().out
    assert "ACC by majority vote" in printed and "labels decide" in printed


def test_steps_after_the_last_one_shown_do_not_run(tmp_path, steps_run, monkeypatch, capsys):
    """And a rehearsal is called one."""
    few = ablations.values_of("scan", "num_neighbors", (2,))
    monkeypatch.setitem(ablations.ABLATIONS, "neighbors", ablations.Ablation("number", ("scan",), few))
    reproduce.main(command(tmp_path, "neighbors", "--rehearse", seeds=[1]))
    assert steps_run == ["simclr", "scan", "scan"]
    text = (tmp_path / "rehearsal/digits-ablation-neighbors.md").read_text()
    assert text.index("| 2 |") < text.index("| 5 (as in the files) |")
    assert "the figures mean nothing" in text and "the figures mean nothing" in capsys.readouterr().out


@pytest.mark.parametrize("dataset", experiments.EXPERIMENTS)
@pytest.mark.parametrize("name", ablations.ABLATIONS)
def test_variants_of_every_dataset(name, dataset, tmp_path):
    """They are valid, differ from each other, and the files' own settings are among them."""
    args = reproduce.read_arguments([dataset, "--root_dir", str(tmp_path)])
    experiment = reproduce.chosen_experiment(args)
    own = configs_of(experiment.plan(0))
    variants = ablations.ABLATIONS[name].variants(own)
    plans = ablations.plan_variants(name, variants, experiment, 0)
    assert plans.keys() == variants.keys() and len(variants) >= 3
    assert configs_of(next(iter(plans.values()))).items() <= own.items()
    steps = {id(step): step for plan in plans.values() for step in plan.values()}
    assert len({step.folder for step in steps.values()}) == len(steps)  # nothing is written over
    pipelines = {json.dumps(configs_of(plan), sort_keys=True, default=str) for plan in plans.values()}
    without_folders = {re.sub(r'"root_dir": "[^"]*"', "", text) for text in pipelines}
    assert len(without_folders) == len(variants)


def test_frozen_and_cached_features_are_not_cached_when_all_trains(tmp_path):
    files, settings = {"scan": "configs/scan/scan_digits.yml"}, {"scan": ["cache_features=4"]}
    experiment = experiments.DatasetExperiment(tmp_path, files, settings)
    changes = ablations.trained_parts(configs_of(experiment.plan(0)))["all"]
    found = experiment.plan(0, changes=changes)["scan"].config
    assert not found.update_cluster_head_only and "cache_features" not in found
