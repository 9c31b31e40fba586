"""reproduce.py: all steps of a dataset in one command, and a table that says what they found."""

import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from digits_files import write_digits
from digits_steps import ROOT, fails, read_json, rows_of
from image_folders import pictures

import reproduce
import scan
from utils.analysis import metrics
from utils.run import interrupt
from utils.run.config import read_yaml
from utils.run.folder import read_epochs
from utils.run.machine import Machine
from utils.run.script import run_script
from workflows import experiments, provenance, run_steps, tables
from workflows.records import read_curves

SETTINGS = ["--set", "epochs=2", "confidence_threshold=0.2"]
SEEDS = (3, 1)


def command(root, *more, seeds=SEEDS):
    return ["digits", "--seeds", *map(str, seeds), "--root_dir", str(root), *more, *SETTINGS]


@pytest.fixture(scope="module")
def finished(made_once):
    """Folder of the results of two seeds."""
    return made_once("reproduced", lambda root: reproduce.main(command(root)))


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished, tmp_path / "results")


@pytest.fixture
def signals(monkeypatch):
    """A signal that a test sends is forgotten after it."""
    monkeypatch.setattr(interrupt, "_noted", None)


def read_csv(root, dataset="digits"):
    """{(seed, method): {metric: value}}"""
    return {
        (int(row["seed"]), row["method"]): {name: float(row[name]) for name in tables.METRICS}
        for row in rows_of(root / f"{dataset}.csv")
    }


# --- the table -----------------------------------------------------------------------------------


def test_all_tables_say_what_the_steps_found(copied, steps_run, monkeypatch, capsys):
    """And what is finished is not computed again."""
    monkeypatch.setattr(run_steps, "evaluate_checkpoint", None)  # not called
    monkeypatch.setattr(reproduce.kmeans, "score", None)
    found = {}
    for seed in SEEDS:
        folder = copied / f"seed-{seed}/digits"
        kept = read_json(folder / "kmeans.json")["figures"]
        kept |= {method: read_json(folder / step / "metrics.json") for step, method in tables.METHODS.items()}
        found |= {(seed, method): {name: kept[method][name] for name in tables.METRICS} for method in kept}
    assert read_csv(copied) == found and len(found) == 10

    summary, text = read_json(copied / "digits.json"), (copied / "digits.md").read_text()
    reproduce.main(command(copied))
    assert read_json(copied / "digits.json") == summary and (copied / "digits.md").read_text() == text
    printed = capsys.readouterr().out
    assert not steps_run and printed.count("done before: ") == 6
    for method, figures in summary["methods"].items():
        cells = [method]
        for name in tables.METRICS:
            values = [found[seed, method][name] for seed in SEEDS]
            mean, std = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
            assert figures[name] == {"mean": pytest.approx(mean), "std": pytest.approx(std), "values": values}
            cells.append(f"{100 * mean:.1f} ± {100 * std:.1f}")
        cells.append(f"{100 * min(found[seed, method]['acc'] for seed in SEEDS):.1f}")
        assert f"| {' | '.join(cells)} |" in text
        assert re.search(r"\s+".join(map(re.escape, cells)) + "$", printed, re.M)
    for step, runs in summary["steps"].items():
        for run in runs:
            log = copied / f"seed-{run['seed']}/digits" / step / "metrics.jsonl"
            seconds = [json.loads(line)["seconds"] for line in log.read_text().splitlines()]
            assert run["epochs"] == len(seconds) == 2
            assert run["training_minutes"] == pytest.approx(sum(seconds) / 60)
    given = "python reproduce.py digits --seeds 3 1 --set epochs=2 confidence_threshold=0.2"
    assert summary["command"] == given
    assert all(line in text for line in (*tables.notes(summary), f"`{given}`"))
    assert summary["made_with"][0]["precision"] in ("float32", "bfloat16")
    assert "prototypes.png" in printed.split("Pictures of seed 1:")[1]


def test_results_are_recorded(copied, tmp_path, monkeypatch):
    records = tmp_path / "docs/records"
    records.mkdir(parents=True)
    monkeypatch.setattr(reproduce, "RECORDS", records)
    reproduce.main(command(copied, "--record", "mine"))
    summary = read_json(copied / "digits.json")
    assert read_json(records / "mine.json") == summary
    for number, seed in enumerate(SEEDS):
        found = np.load(records / f"mine-seed{seed}.npz")
        again = metrics.contingency(found["selflabel"].astype(int), found["labels"].astype(int), 10, 10)
        share = metrics.matched_share(again, metrics.hungarian_match(again))
        assert share == pytest.approx(summary["methods"]["self-labeling"]["acc"]["values"][number])
        assert {"k-means on pixels", "k-means on head outputs", "k-means on backbone features"} < set(found)
    curves = read_curves(records / "mine-curves.csv")
    logged = read_epochs(copied / "seed-3/digits/scan")
    assert curves["scan"]["entropy"]["seed 3"] == [(line["epoch"], line["entropy"]) for line in logged]
    assert curves["pretext"].keys() == {"loss", "knn_accuracy"} and len(curves["selflabel"]["loss"]) == 2
    assert (tmp_path / "docs/curves_mine.png").exists()
    page = (tmp_path / "docs/RESULTS.md").read_text()
    assert (copied / "digits.md").read_text() in page
    assert "| digits (other settings, see below) | self-labeling | " in page
    assert "(curves_mine.png)" in page


def test_published_figures_and_differences(copied, monkeypatch, capsys):
    rows = [("SCAN loss", "best model", 50.0, 40.0, 30.0), ("SCAN loss", "mean of 10 runs", 60.0)]
    monkeypatch.setitem(reproduce.PUBLISHED, "digits", rows)
    reproduce.main(command(copied, seeds=[1]))
    printed, text = capsys.readouterr().out, (copied / "digits.md").read_text()
    found = [100 * value for value in read_csv(copied)[1, "SCAN loss"].values()]
    best = " / ".join(f"{ours - theirs:+.1f}" for ours, theirs in zip(found, rows[0][2:], strict=True))
    ours = " | ".join(f"{value:.1f}" for value in found)
    assert f"| SCAN loss | {ours} | 50.0 / 40.0 / 30.0 (best model) | {best} |" in text
    assert f"| 60.0 (mean of 10 runs) | {found[0] - 60:+.1f} |" in text
    assert f"50.0 / 40.0 / 30.0 (best model)   {best}" in printed
    assert "±" not in text and "worst" not in text  # a single seed
    difference = read_json(copied / "digits.json")["published"][1]["difference"]
    assert difference == {"acc": pytest.approx(found[0] - 60)}


def test_published_figures_are_those_of_the_files():
    for dataset, rows in reproduce.PUBLISHED.items():
        best = {method: figures for method, of, *figures in rows if of == "best model"}
        files = experiments.experiment_files(dataset)
        for step, method in tables.METHODS.items():
            shown = " / ".join(map(str, best.pop(method)))
            assert f"Published (best model), ACC / NMI / ARI: {shown}\n" in (ROOT / files[step]).read_text()
        assert not best


def test_every_experiment_file_is_used():
    used = set()
    for dataset in experiments.EXPERIMENTS:
        for step, file in experiments.experiment_files(dataset).items():
            used.add(path := ROOT / file)
            content = read_yaml(path)
            assert content["train_db_name"] == content["val_db_name"] == dataset.removesuffix("-cpu")
            assert content["setup"] in run_steps.SCRIPTS[step]
    shipped = {path for step in run_steps.SCRIPTS for path in (ROOT / "configs" / step).glob("*.yml")}
    assert shipped - used == {ROOT / "configs/scan/imagenet_eval.yml"}  # a model to evaluate, no training


def test_what_k_means_could_not_do_is_told(copied, monkeypatch):
    monkeypatch.setattr(reproduce, "MOST_PIXELS", 0)
    monkeypatch.setattr(reproduce, "SLOW", 0)
    (copied / "seed-1/digits/kmeans.json").unlink()
    reproduce.main(command(copied, seeds=[1]))
    assert "k-means on pixels" not in read_json(copied / "digits.json")["methods"]
    text = (copied / "digits.md").read_text()
    assert "the best by inertia of 1 (head outputs) and 1 (backbone features)" in text
    assert "Not on pixels" in text


def test_k_means_with_fewer_clusters_than_classes():
    points = torch.tensor([0.0] * 4 + [9.0] * 3 + [9.1] * 2).unsqueeze(1)
    dataset = SimpleNamespace(labels=torch.tensor([0] * 4 + [1] * 3 + [2] * 2), classes=["a", "b", "c"])
    assert reproduce.k_means([points, points], dataset, clusters=2, seed=0)["acc"] == pytest.approx(7 / 9)


# --- the same command again ----------------------------------------------------------------------


def test_what_changed_since_is_made_again(copied, steps_run):
    before = read_csv(copied)
    (copied / "seed-3/digits/pretext/metrics.json").write_text("{}")
    (copied / "seed-1/digits/selflabel/model.pth.tar").unlink()
    reproduce.main(command(copied))
    assert steps_run == ["simclr", "selflabel"]
    assert read_csv(copied) == before


def test_stopped_within_an_epoch_and_resumed(finished, tmp_path, monkeypatch, capsys, signals):
    step, losses = scan.scan_step, []

    def stop(*args):
        losses.append(step(*args))
        if len(losses) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses[-1]

    monkeypatch.setattr(scan, "scan_step", stop)
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: reproduce.main(command(tmp_path, seeds=[1])))
    assert exit_.value.code == 143
    assert "the same command" in capsys.readouterr().err
    assert not (tmp_path / "digits.csv").exists()
    run_script(lambda: reproduce.main(command(tmp_path, seeds=[1])))
    printed = capsys.readouterr()
    assert printed.out.count("done before: ") == 1
    assert "resuming after epoch 1 and 2 batches" in printed.err
    assert len(losses) == 10
    whole = read_csv(finished)
    assert read_csv(tmp_path) == {key: figures for key, figures in whole.items() if key[0] == 1}
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: reproduce.main([*command(tmp_path / "long"), "epochs=9999", "--minutes", "0.002"]))
    assert exit_.value.code == 143 and "the same command" in capsys.readouterr().err


def test_each_machine_that_worked_on_a_step_is_told(tmp_path):
    for precision in (torch.float32, torch.bfloat16, torch.float32):
        provenance.note_maker(tmp_path / "scan", Machine(torch.device("cpu"), precision))
    makers = provenance.read_makers(tmp_path / "scan")
    assert [maker["precision"] for maker in makers] == ["float32", "bfloat16"]


def test_rehearsal(tmp_path, monkeypatch, capsys, steps_run):
    """On random pixels: every step, and the table."""
    random = np.random.default_rng(0)
    arrays = {"train_labels": random.integers(0, 10, 300), "test_labels": random.integers(0, 10, 150)}
    arrays |= {"train_images": pictures(300), "test_images": pictures(150)}
    np.savez(tmp_path / "cifar-10.npz", **arrays)
    monkeypatch.setattr(reproduce, "REHEARSAL_IMAGES", {"train": 250, "test": 120})
    budget = ["epochs=1", "batch_size=100", "confidence_threshold=0.0", "backbone=resnet10_narrow"]
    monkeypatch.setattr(reproduce, "REHEARSAL", dict.fromkeys(run_steps.SCRIPTS, budget))
    argv = ["cifar-10", "--rehearse", "--data_dir", str(tmp_path), "--root_dir", str(tmp_path / "out")]
    reproduce.main(argv)
    folder = tmp_path / "out/rehearsal"
    summary = read_json(folder / "cifar-10.json")
    assert summary["rehearsal"] and not summary["published"]
    assert "the figures mean nothing" in capsys.readouterr().out
    assert len(rows_of(folder / "seed-0/cifar-10/selflabel/assignment.csv")) == 120
    reproduce.main(argv)  # what is done is not done again
    assert steps_run == ["simclr", "scan", "selflabel"]


def test_settings_of_all_steps_and_of_one(tmp_path):
    overrides = ["--set", "epochs=2", "scan.epochs=3", "selflabel.optimizer_kwargs.lr=0.5"]
    args = reproduce.read_arguments(["digits", "--root_dir", str(tmp_path), *overrides])
    configs = run_steps.configs_of(reproduce.chosen_experiment(args).plan(0))
    assert [config.epochs for config in configs.values()] == [2, 3, 2]
    assert [config.optimizer_kwargs.lr == 0.5 for config in configs.values()] == [False, False, True]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cifar10"], r"cifar10: .*did you mean cifar-10\? there are digits, mnist"),
        (["imagenet"], "imagenet: configs/ holds no experiment files of all three steps"),
        (["digits", "--seeds", "1", "0", "1"], "--seeds 1 0 1: give each seed once"),
        (["digits", "--seeds", "0", "-1"], "seed must be a whole number of at least 0"),
        (["digits", "--minutes", "0"], "--minutes 0: must be above 0"),
        (["imagenet_50", "--rehearse"], "--rehearse: only for images in arrays"),
        (["digits", "--record", "a/b"], "--record a/b: use letters"),
        (["digits", "--record", "mine", "--rehearse"], "--record mine: --rehearse runs cannot be recorded"),
        (["digits", "--set", "seed=3"], "--set seed=3: give it by --seeds"),
        (["digits", "--set", "val_db_name=mine"], "give it by DATASET"),
        (["digits", "--ablation", "neighbor"], r"did you mean neighbors\? there are neighbors, "),
        (["digits", "--ablation", "xyz"], "--ablation xyz: unknown; there are neighbors, entropy_weight, "),
        (["digits", "--ablation", "heads", "--record", "mine"], "--record mine: not with --ablation"),
        (["digits", "--set", "scan.epoch=3"], "unknown key 'epoch'; did you mean 'epochs'"),
    ],
)
def test_refused_before_anything_is_done(argv, message, tmp_path, capsys):
    assert re.search(message, fails(capsys, reproduce.main, [*argv, "--root_dir", str(tmp_path / "results")]))
    assert not (tmp_path / "results").exists()


def test_several_processes_are_refused(monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "with python, not with torchrun" in fails(capsys, reproduce.read_arguments, ["digits"])


def test_results_of_other_settings_are_left_alone(copied, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    message = fails(capsys, reproduce.main, [*command(copied, seeds=[1]), "epochs=3"])
    assert "results of other settings (epochs: 2 -> 3)" in message and "--root_dir" in message
    assert before == {path: path.stat().st_mtime_ns for path in copied.rglob("*")}


def test_labels_are_needed(tmp_path, capsys):
    write_digits(tmp_path, labels=None)
    message = fails(capsys, reproduce.main, command(tmp_path, "--data_dir", str(tmp_path)))
    assert "digits: its test split has no labels" in message
