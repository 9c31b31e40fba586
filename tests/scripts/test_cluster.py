"""cluster.py: a folder of images in, clusters out."""

import argparse
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from digits_files import DIGITS
from digits_steps import ROOT, fails, figures, rows_of
from PIL import Image

import cluster
import data
import predict
import scan
import simclr
from errors import CannotTrainError, UserError
from utils.files import read_json, write_json
from utils.run.config import read_yaml
from utils.run.folder import Run
from utils.training import features
from workflows import fit_to_images, label_free_choices, own_clusters, own_experiment
from workflows.own_command import numbers_argument

N, COPIES = 200, 3
QUICK = ["num_workers=0", "device=cpu"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A short clustering."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_to_images, "ITERATIONS", 60)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of digits in nested folders, with copies of the first ones on top."""
    folder = tmp_path_factory.mktemp("in") / "my digits"
    digits = data.build_dataset(DIGITS, "train")
    for i in range(N):
        path = folder / f"class {digits.labels[i] % 4}" / f"n{i % 3}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.raw(i).permute(1, 2, 0).numpy()).save(path)
        if i < COPIES:
            shutil.copy(path, folder / f"copy{i}.png")
    return folder


@pytest.fixture(scope="module")
def vectors(photos):
    """File of the images' pixels, in the order of their names."""
    rows = []
    for path in sorted(photos.rglob("*.png"), key=str):
        with Image.open(path) as image:
            rows.append(np.asarray(image.convert("L"), np.float32).ravel() / 255)
    path = photos.parent / "vectors.npy"
    np.save(path, np.stack(rows))
    return path


@pytest.fixture(scope="module")
def command(photos, vectors, tmp_path_factory):
    """A command line that has run; and the folder of its results."""
    root = tmp_path_factory.mktemp("out")
    argv = [str(photos), "--clusters", "4", "--features", str(vectors), "--labels", "subfolders"]
    argv += ["--root_dir", str(root), "--set", "precision=fp32", *QUICK]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cluster.main(argv)
    return argv, root / "my_digits"


def copied(command, tmp_path):
    """The same command with a copy of its results."""
    argv, folder = command
    shutil.copytree(folder, tmp_path / "out" / folder.name)
    argv = [str(tmp_path / "out") if arg == str(folder.parent) else arg for arg in argv]
    return argv, tmp_path / "out" / folder.name


def clusters_of(folder):
    """The rows of the table of all images."""
    return rows_of(folder / "clusters.csv")


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.pth.tar")}


def test_every_image_has_a_cluster(command, photos):
    _, folder = command
    rows, found = clusters_of(folder), figures(folder)
    assert [row["file"] for row in rows] == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    sizes = torch.bincount(torch.tensor([int(row["cluster"]) for row in rows]), minlength=4)
    assert found["cluster_sizes"] == sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert all(1 >= float(r["confidence"]) >= float(r["runner_up_confidence"]) >= 0 for r in rows)
    for cluster_, prototype in enumerate(found["prototypes"]):
        assert int(rows[prototype]["cluster"]) == cluster_
        assert float(rows[prototype]["prototype_similarity"]) == pytest.approx(1, abs=1e-3)
    assert found["acc"] > 0.3 and found["neighbors"]["verdict"] == "go"
    for name in ("kmeans", "ward"):
        same = np.mean([row["cluster"] == row[name] for row in rows])
        assert same == pytest.approx(found["agreement"][name]["matched"]) and same > 0.4
    assert all(row["x"] and row["y"] for row in rows)
    unlike = [float(row["unlike"]) for row in rows]
    assert min(unlike) == 0 and max(unlike) == pytest.approx(100 * (N - 1) / N)
    page = (folder / "report.html").read_text(encoding="utf-8")
    places = str(photos.parent), str(folder.parent), str(Path.home()), "file:", "my%20digits/"
    assert "203 images" in page and not [place for place in places if place in page]
    assert (folder / "prototypes.png").exists()
    assert {p.name for p in (folder / "clusters").iterdir()} == {f"{c}.png" for c in range(4) if sizes[c]}


def test_new_vectors_are_compared_with_the_training_images(command, vectors, tmp_path):
    """An image that is given again has the number of clusters.csv, but for float16."""
    _, folder = command
    pixels = np.load(vectors)
    np.save(tmp_path / "new.npy", np.concatenate([pixels, pixels.max() - pixels[:20]]))
    argv = [str(folder), str(tmp_path / "new.npy"), "--output", str(tmp_path / "x.csv"), "--unlike", "100"]
    predict.main([*argv, "--device", "cpu"])
    found, rows = rows_of(tmp_path / "x.csv"), clusters_of(folder)
    same, negatives = found[: len(rows)], found[len(rows) :]
    ours, theirs = (torch.tensor([float(row["unlike"]) for row in part]) for part in (same, rows))
    torch.testing.assert_close(ours, theirs, atol=2, rtol=0)
    for old, new in zip(rows, same, strict=True):
        assert (old["cluster"], old["runner_up"]) == (new["cluster"], new["runner_up"])
    assert [row["note"] for row in negatives] == ["unlike"] * 20


def test_copies_are_listed_and_share_their_cluster(command):
    _, folder = command
    rows = {row["file"]: row for row in clusters_of(folder)}
    pairs = {name: row["copy_of"] for name, row in rows.items() if row["copy_of"]}
    assert len(pairs) == COPIES == figures(folder)["copy"]
    assert all(rows[name]["cluster"] == rows[first]["cluster"] for name, first in pairs.items())
    mined = np.load(folder / "pretext/topk-train-neighbors.npy")
    places = [i for i, row in enumerate(rows.values()) if row["copy_of"]]
    assert not np.isin(np.delete(mined, places, 0), places).any()


def test_results_that_were_interrupted_are_made_again(command, tmp_path, monkeypatch):
    """So are pictures that a full disk left out."""
    argv, folder = copied(command, tmp_path)

    def written():
        return {p.name: p.read_bytes() for p in [*(folder / "clusters").iterdir(), folder / "clusters.csv"]}

    before = written()
    (folder / "clusters/0.png").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(own_clusters.sheets, "save_clusters", mock.Mock(side_effect=KeyboardInterrupt))
        cluster.main(argv)
    assert not (folder / "metrics.json").exists()
    shutil.rmtree(folder / "clusters")
    cluster.main(argv)
    assert before == written() and figures(folder)["num_clusters"] == 4


def test_results_of_a_newer_version(command, tmp_path, capsys):
    """They are used, what this one does not know is not, and one line tells."""
    argv, folder = copied(command, tmp_path)
    before = times(folder)
    for path in (folder / "cluster.json", *folder.glob("*/fingerprint.json")):
        write_json({**read_json(path), "version": "2.1.0", "of_the_future": []}, path)
    cluster.main(argv)
    assert before == times(folder)
    assert capsys.readouterr().err.count(f"{folder}: made by version 2.1.0, which") == 1


def test_a_step_can_be_repeated_from_its_file(command, tmp_path):
    _, folder = command
    shutil.copytree(folder / "pretext", tmp_path / "my_digits/pretext")
    settings = ["--set", f"root_dir={tmp_path}", "precision=fp32", *QUICK]
    scan.main(["--config_exp", str(folder / "configs/scan.yml"), *settings])
    assert rows_of(tmp_path / "my_digits/scan/assignment.csv") == rows_of(folder / "scan/assignment.csv")


# --- another command -----------------------------------------------------------------------------


def test_another_number_of_clusters(command, tmp_path, capsys):
    """The first step stays, and the earlier results are kept."""
    argv, folder = copied(command, tmp_path)
    pretext, before = times(folder / "pretext"), clusters_of(folder)
    cluster.main([*argv[:2], "5", *argv[3:]])
    assert f"the earlier results are kept in {folder / 'earlier-1'}" in capsys.readouterr().out
    assert pretext == times(folder / "pretext") and len(figures(folder)["cluster_sizes"]) == 5
    assert clusters_of(folder / "earlier-1") == before
    assert (folder / "earlier-1/scan/model.pth.tar").exists()


def test_two_commands_at_once(command, tmp_path, capsys):
    """The second one, and one that would move a step away in which a run by hand works, change nothing."""
    argv, folder = copied(command, tmp_path)
    another = [*argv[:2], "5", *argv[3:]]

    def state():
        """Of all files but those that list what was decoded."""
        paths = set(folder.rglob("*")) - {
            folder / ".lock",
            folder / "images",
            folder / "images/unreadable.txt",
        }
        return {path: path.stat().st_mtime_ns for path in paths}

    for place, holder in ((folder / ".lock", f" (process {os.getpid()} on "), (folder / "scan/log.txt", "")):
        files = state()
        with open(place, "ab") as file:
            pytest.importorskip("fcntl").flock(file, 2)  # LOCK_EX
            message = fails(capsys, cluster.main, another)
        assert f"{place.parent}: another run is using this folder{holder}" in message and "--name" in message
        assert files == state()


@pytest.mark.parametrize("place", ["write_json", "atomic"])  # the new settings do not count yet, and do
def test_killed_while_the_files_change(command, tmp_path, place):
    """The command from before, given again, takes nothing over from the one that was killed."""
    argv, folder = copied(command, tmp_path)
    killed = mock.patch(f"workflows.own_experiment.{place}", side_effect=KeyboardInterrupt)
    with killed, pytest.raises(KeyboardInterrupt):
        cluster.main([*argv[:2], "5", *argv[3:]])
    with mock.patch("workflows.own_clusters.write_results"):
        cluster.main(argv)
    assert read_yaml(folder / "configs/scan.yml")["num_classes"] == 4
    assert read_yaml(folder / "scan/config.yml")["num_classes"] == 4


def test_another_command(command, tmp_path, capsys):
    argv, folder = copied(command, tmp_path)
    another = [*argv[:3], "--seed", "1", *argv[3:]]
    cluster.main(another)
    assert (folder / "earlier-1/pretext/model.pth.tar").exists()
    assert read_yaml(folder / "configs/scan.yml")["seed"] == 1
    assert len(clusters_of(folder)) == N + COPIES
    # a mistake moves nothing
    models = times(folder)
    assert "did you mean" in fails(capsys, cluster.main, [*argv, "epoch=3"])
    assert not (folder / "earlier-2").exists()
    cluster.main(another)
    assert models == times(folder)
    (folder / "cluster.json").unlink()
    assert "holds results of other scripts; give --name my_digits-2" in fails(capsys, cluster.main, argv)


def test_labels_are_no_other_command(command, capsys):
    """They change nothing of what was trained."""
    argv, folder = command
    models, where = times(folder), argv.index("--labels")
    cluster.main([*argv[:where], *argv[where + 2 :]])
    assert "acc" not in figures(folder)
    cluster.main(argv)
    assert "acc" in figures(folder) and models == times(folder)
    assert capsys.readouterr().out.count("done before") == 4


def test_another_environment_file(command, tmp_path, capsys):
    argv, folder = copied(command, tmp_path)
    models, where = times(folder), argv.index("--root_dir")
    (tmp_path / "mine.yml").write_text(f"root_dir: {folder.parent}")
    cluster.main([*argv[:where], "--config_env", str(tmp_path / "mine.yml"), *argv[where + 2 :]])
    assert models == times(folder)
    assert capsys.readouterr().out.count(f"--config_env {tmp_path / 'mine.yml'} --config_exp") == 2


def test_an_image_is_added(command, photos, tmp_path, capsys):
    """The features file no longer fits, and nothing changes."""
    argv, folder = copied(command, tmp_path)
    argv[0] = str(shutil.copytree(photos, tmp_path / "my digits"))
    Image.effect_noise((8, 8), 90).save(tmp_path / "my digits/zzz.png")
    message = fails(capsys, cluster.main, argv)
    assert f"holds {N + COPIES} vectors, but there are {N + COPIES + 1} images" in message
    assert not (folder / "earlier-1").exists() and len(clusters_of(folder)) == N + COPIES


def test_what_the_steps_share_is_made_once(tmp_path, monkeypatch, capsys):
    """And only when nothing is left to refuse: here, one unreadable image among few."""
    folder = write_few(tmp_path / "few", 30)
    (folder / "bad.png").write_bytes(b"no image")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 5)))
    argv = [str(folder), "--clusters", "2", "--features", str(tmp_path / "x.npy")]
    argv += ["--root_dir", str(tmp_path / "out"), "--set", *QUICK]
    assert "set max_unreadable" in fails(capsys, cluster.main, argv)
    calls = {}
    for place, name in ((data, "_build_images"), (yaml, "load"), (Run, "start_logging")):
        calls[name] = mock.create_autospec(getattr(place, name), side_effect=getattr(place, name))
        monkeypatch.setattr(place, name, calls[name])
    cluster.main([*argv, "max_unreadable=0.5"])
    assert len(clusters_of(tmp_path / "out/few")) == 30
    assert calls["_build_images"].call_count == 1 and calls["start_logging"].call_count <= 3
    read = [call.args[0] for call in calls["load"].call_args_list]
    files = Counter(source.name for source in read if not isinstance(source, str))
    assert len(files) == 3 and max(files.values()) <= 2  # env.yml and the templates of two steps


def test_settings_of_one_step(command, tmp_path, capsys):
    """Each step's command has its own; a key that another step does not take is refused."""
    argv, folder = copied(command, tmp_path)
    setting = "criterion_kwargs.entropy_weight=1"
    assert "needs criterion scan; other losses" in fails(capsys, cluster.main, [*argv, setting])
    assert "did you mean" in fails(capsys, cluster.main, [*argv, "scan.epoch=3"])
    message = fails(capsys, cluster.main, [*argv, "selflabel.epochs=3"])
    assert "--set selflabel.epochs=3: this step runs only with --from-scratch" in message
    assert not (folder / "earlier-1").exists()
    cluster.main([*argv, f"scan.{setting}", "pretext.batch_size=9"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$")]
    assert [line.split("num_workers=0 device=cpu")[1] for line in lines] == [" batch_size=9", f" {setting}"]
    assert read_yaml(folder / "scan/config.yml")["criterion_kwargs"]["entropy_weight"] == 1
    assert read_yaml(folder / "pretext/config.yml")["batch_size"] == 9
    assert f"scan.{setting}" in json.loads((folder / "cluster.json").read_text())["arguments"]["overrides"]


# --- from scratch --------------------------------------------------------------------------------


def test_from_scratch(photos, tmp_path, capsys, monkeypatch):
    images = shutil.copytree(photos, tmp_path / "in")
    argv = [str(images), "--clusters", "4", "--from-scratch", "--backbone", "resnet10_narrow", "--size", "8"]
    argv += ["--hours", "0.00001", "--root_dir", str(tmp_path / "out"), "--set", *QUICK]
    argv += ["epochs=10", "batch_size=32", "precision=fp32"]
    cluster.main(argv)
    out = capsys.readouterr().out
    assert re.search(r"resnet10_narrow at 8 pixels: about \d+ s an epoch", out)  # how many is the machine's
    assert "more --hours would do better" in out
    folder = tmp_path / "out/in"
    assert len(clusters_of(folder)) == N + COPIES and "acc" not in figures(folder)
    pretext = read_yaml(folder / "configs/pretext.yml")
    assert pretext["epochs"] == fit_to_images.FEWEST_EPOCHS
    assert pretext["scheduler_kwargs"]["warmup_epochs"] == 1
    assert figures(folder / "scan")["image_side"] == 9  # all steps see the same images

    shutil.rmtree(folder / "selflabel", ignore_errors=True)
    with mock.patch.object(label_free_choices, "choose_threshold", side_effect=CannotTrainError("why; x")):
        cluster.main(argv)
    assert (figures(folder)["model"], figures(folder)["self_labeling"]) == (
        "scan/model.pth.tar",
        "left out: why",
    )
    assert "left out: why" in (folder / "report.html").read_text(encoding="utf-8")

    message = fails(capsys, cluster.main, [*argv, "--seed", "1"])  # nothing that took long is replaced
    assert "holds a training by another command (seed: None -> 1)" in message and "--name in-2" in message
    models = times(folder)
    (images / "copy0.png").unlink()
    Image.effect_noise((8, 8), 90).save(images / "zzz.png")
    with mock.patch("utils.training.features.infer", wraps=features.infer) as computed:
        cluster.main(argv)  # the training stays, and so do the features
    assert len(computed.call_args.args[1].anchors) == 1
    assert models == times(folder) and len(clusters_of(folder)) == N + COPIES
    kept = max(folder.glob("*/features-*.npy"), key=lambda path: path.stat().st_mtime_ns)
    before = np.load(kept)
    kept.unlink()
    (folder / "report.html").unlink()
    cluster.main(argv)
    np.testing.assert_allclose(np.load(kept), before, atol=1e-5)
    (folder / "scan/fingerprint.json").unlink()  # as if it were not finished
    message = fails(capsys, cluster.main, argv)
    assert "its images have changed since" in message and "--name in-2" in message

    monkeypatch.setattr(simclr, "SMALL", 10)
    monkeypatch.setattr(scan, "run_step", None)  # not called
    message = fails(capsys, cluster.main, [*argv, "epochs=2", "--name", "no"])
    assert "did not learn to tell these images apart" in message


def write_assignment(folder, rows):
    folder.mkdir(exist_ok=True)
    lines = "".join(f"{i},{cluster},{confidence}\n" for i, (cluster, confidence) in enumerate(rows))
    (folder / "assignment.csv").write_text(f"image,cluster,confidence\n{lines}")


@pytest.mark.parametrize(
    ("confident", "clusters", "expected"),
    [(0.995, 1, 0.99), (0.96, 1, 0.95), (0.85, 1, 0.8), (0.6, 1, None), (0.995, 2, 0.99), (0.995, 3, None)],
)
def test_threshold_of_self_labeling(tmp_path, confident, clusters, expected):
    """Three of ten images are confident; all of them are in one cluster."""
    write_assignment(tmp_path, [(0, confident)] * 3 + [(i % clusters, 0.4) for i in range(7)])
    if expected:
        assert label_free_choices.choose_threshold(tmp_path) == expected
    else:
        with pytest.raises(CannotTrainError, match="too few clusters, have a confidence above 0.8"):
            label_free_choices.choose_threshold(tmp_path)


@pytest.mark.parametrize(
    ("now", "why", "tried"),
    [
        ([0, 1, 2, 2], "", 2),
        ([0, 1, 1, 1], "it lost 1 of 3 clusters to others", 1),
        ([0, 0, 1, 2], "it lost 1 of 3 clusters to others", 1),
        (CannotTrainError("the loss is nan; lower the rate"), "the loss is nan", 1),
        (UserError("the disk is full; free some space"), "the disk is full; free some space", 2),
    ],
)
def test_self_labeling_that_is_left_out(tmp_path, caplog, now, why, tried):
    write_assignment(tmp_path / "scan", [(i, 1) for i in (0, 1, 2, 2)])
    (tmp_path / "scan/model.pth.tar").write_bytes(b"model")

    def run(step):
        write_assignment(tmp_path / step, [(0, 1)])
        if isinstance(now, Exception):
            raise now
        write_assignment(tmp_path / step, [(i, 1) for i in now])
        experiment.folders[step] = tmp_path / step
        return tmp_path / step

    calls = mock.Mock(wraps=run)
    for _ in range(2):  # the same command again
        experiment = mock.Mock(folder=tmp_path, folders={"scan": tmp_path / "scan"}, run=calls, left_out="")
        label_free_choices.self_label(experiment)
        assert experiment.left_out == why
        assert [*experiment.folders] == ["scan"] + ["selflabel"] * (not why)
    assert calls.call_count == tried and caplog.text.count(f"before it: {why}") == 2 * bool(why)
    assert (tmp_path / "selflabel").exists() == (tried == 2)
    assert len(list(tmp_path.glob("selflabel*"))) == 1


# --- the number of clusters ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "compared"), [("3:6", [3, 4, 5, 6]), ("auto", [2, 3, 4, 5, 6, 7, 8, 10, 12, 15])]
)
def test_the_number_of_clusters_is_chosen(photos, vectors, tmp_path, capsys, numbers, compared):
    argv = [str(photos), "--clusters", numbers, "--features", str(vectors), "--root_dir", str(tmp_path)]
    argv += ["--set", *QUICK, "epochs=2"]
    cluster.main(argv)
    folder = tmp_path / "my_digits"
    chosen = json.loads((folder / "numbers.json").read_text())
    suggestion = chosen["suggestion"]
    rows = rows_of(folder / "numbers.csv")
    assert [int(row["clusters"]) for row in rows][: len(compared)] == compared
    assert int(max(rows, key=lambda row: float(row["modularity"]))["clusters"]) == suggestion
    assert read_yaml(folder / "configs/scan.yml")["num_classes"] == suggestion
    assert len(figures(folder)["cluster_sizes"]) == suggestion
    assert figures(folder)["groups"]["verdict"] == chosen["groups"]
    assert f"suggested: {suggestion} clusters" in capsys.readouterr().out
    cluster.main(argv)
    assert capsys.readouterr().out.count("done before") == 2


def test_numbers_of_clusters():
    for text, levels, candidates in (
        ("7", [7], []), ("10,5,10", [5, 10], []), ("auto", [], []), ("5:8", [], [5, 6, 7, 8]),
    ):  # fmt: skip
        assert numbers_argument(text) == (levels, candidates)
    for text in ("0", "1", "5,1", "many", "", "3,,4", "1:5", "5:", ":5", "2:3:4", "2:3,4", "-3"):
        with pytest.raises(argparse.ArgumentTypeError, match="with numbers of 2 or more"):
            numbers_argument(text)
    for text in ("5:5", "9:3", "2:5000"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected LOW < HIGH <= 1000"):
            numbers_argument(text)


def test_levels(command, photos, tmp_path, capsys):
    """Fewer clusters that are merged of the others; nothing is trained again, whichever they are."""
    argv, folder = copied(command, tmp_path)
    models, before = times(folder), clusters_of(folder)
    for numbers, coarse in (("2,3,4", [2, 3]), ("2,4", [2]), ("4", [])):
        cluster.main([*argv[:2], numbers, *argv[3:]])
        assert models == times(folder) and not (folder / "earlier-1").exists()
        rows, levels = clusters_of(folder), figures(folder)["levels"]
        assert [level["clusters"] for level in levels] == [*coarse, 4] * bool(coarse)
        names = [f"level_{i}" for i in range(1, 1 + len(levels))]
        assert [*rows[0]] == [*before[0], *names]
        for row, old in zip(rows, before, strict=True):
            for name, level in zip(names, levels, strict=True):
                assert int(row.pop(name)) == level["of_cluster"][int(row["cluster"])]
            assert row == old
        assert all(len(set(level["of_cluster"])) == level["clusters"] for level in levels)
        assert capsys.readouterr().out.count("merged into") == len(coarse)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("x: damaged (a; b), get it again", "x: damaged (a; b), get it again"),
        ("x: in use; wait for it, or keep this one apart with --run NAME", "x: in use; wait for it"),
        (
            "x: written by another (lr: 1 -> 2; seed: 0 -> 1); undo the change, add --accept_changes to go on"
            ", add --pretrained m.pth to mine, or add --fresh to start over",
            "x: written by another (lr: 1 -> 2; seed: 0 -> 1); undo the change",
        ),
    ],
)
def test_advice_of_the_steps(message, expected, tmp_path):
    found = own_experiment.in_words_of_cluster(message, tmp_path / "photos")
    apart = "; or keep this one apart with --name photos-2" if "--" in message else ""
    assert found == expected + apart


def write_few(folder, n):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.effect_noise((9, 9), 50).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (lambda f: f / "none", [], "no such folder"),
        (lambda f: Path(shutil.copy(__file__, f)), [], "is a file, and no image; give a folder"),
        (lambda f: f, [], "no images found"),
        (lambda f: f, ["--set", "foo.epochs=1"], "foo is no step; the steps are pretext, scan, selflabel"),
        (lambda f: write_few(f / "few", 5), [], "5 images are too few; 21 are needed"),
        (lambda f: write_few(f / "few", 25), ["--clusters", "30"], "few; 30 clusters need as many: lower -"),
        (lambda f: f, ["--from-scratch", "--pretrained", "x"], "give only one of them"),
        (lambda f: f, ["--features", "x.npy", "--size", "9"], "leave out --backbone and --size"),
        (lambda f: f, ["--hours", "0"], "must be above 0"),
        (lambda f: f, ["--set", "scan.pages=all"], "give --pages instead"),
        (lambda f: f, ["--name", "a/b"], "use letters, digits"),
        (lambda f: write_few(f / "out/few", 25), [], "the results would lie among the images"),
        (lambda f: write_few(f / "few", 25), ["--features", "none.npy"], "no such file"),
        (lambda f: write_few(f / "few", 25), ["--labels", "subfolders"], "the images are in 0 folders"),
    ],
)
def test_bad_input(make, more, message, tmp_path, capsys):
    argv = [str(make(tmp_path)), "--clusters", "3", "--backbone", "torchvision/squeezenet1_1", "--size", "32"]
    if "--features" in more:
        argv = argv[:3]
    argv += ["--root_dir", str(tmp_path / "out"), *more, "--set", "num_workers=0"]
    assert message in fails(capsys, cluster.main, argv)
    assert not list(tmp_path.rglob("model.pth.tar"))
