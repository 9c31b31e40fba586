"""cluster.py: a folder of images in, clusters out."""

import argparse
import csv
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from digits_files import DIGITS
from digits_steps import ROOT, fails
from PIL import Image

import cluster
import data
import scan
import simclr
from utils.analysis import baselines
from utils.run.config import read_yaml
from workflows import fit_to_images, label_free_choices

N, COPIES = 200, 3


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A short clustering, and no UMAP: it is slow to start, and must not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_to_images, "ITERATIONS", 60)
        patch.setattr(baselines, "_umap", lambda *_: None)
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
    argv += ["--root_dir", str(root), "--set", "precision=fp32", "num_workers=0", "device=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        cluster.main(argv)
    return argv, root / "my_digits"


def rows_of(folder):
    with open(folder / "clusters.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_image_has_a_cluster(command, photos):
    _, folder = command
    rows = rows_of(folder)
    assert [row["file"] for row in rows] == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.png"))
    figures = json.loads((folder / "metrics.json").read_text())
    sizes = torch.bincount(torch.tensor([int(row["cluster"]) for row in rows]), minlength=4)
    assert figures["cluster_sizes"] == sizes.tolist()
    assert all(1 >= float(r["confidence"]) >= float(r["runner_up_confidence"]) >= 0 for r in rows)
    for cluster_, prototype in enumerate(figures["prototypes"]):
        assert int(rows[prototype]["cluster"]) == cluster_
        assert float(rows[prototype]["prototype_similarity"]) == pytest.approx(1, abs=1e-3)
    assert figures["acc"] > 0.3 and figures["neighbors"]["verdict"] == "go"
    for name in ("kmeans", "ward"):
        same = np.mean([row["cluster"] == row[name] for row in rows])
        assert same == pytest.approx(figures["agreement"][name]["matched"]) and same > 0.4
    assert all(row["x"] and row["y"] for row in rows)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "203 images" in page and "my digits/" not in page.replace("my%20digits/", "")
    assert (folder / "prototypes.png").exists()
    assert {p.name for p in (folder / "clusters").iterdir()} == {f"{c}.png" for c in range(4) if sizes[c]}


def test_copies_are_listed_and_share_their_cluster(command):
    _, folder = command
    rows = {row["file"]: row for row in rows_of(folder)}
    pairs = {name: row["copy_of"] for name, row in rows.items() if row["copy_of"]}
    assert len(pairs) == COPIES == json.loads((folder / "metrics.json").read_text())["copy"]
    assert all(rows[name]["cluster"] == rows[first]["cluster"] for name, first in pairs.items())
    mined = np.load(folder / "pretext/topk-train-neighbors.npy")
    places = [i for i, row in enumerate(rows.values()) if row["copy_of"]]
    assert not np.isin(np.delete(mined, places, 0), places).any()


def test_the_same_command_again_changes_nothing(command, capsys):
    argv, folder = command
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.pth.tar")}
    cluster.main(argv)
    assert capsys.readouterr().out.count("done before") == 2
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.pth.tar")}


def test_results_that_were_interrupted_are_made_again(command, tmp_path, monkeypatch):
    """Also those of a version that made no report."""
    argv, folder = copied(command, tmp_path)
    before = {p.name: p.read_bytes() for p in [*(folder / "clusters").iterdir(), folder / "clusters.csv"]}
    (folder / "report.html").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cluster.sheets, "save_clusters", mock.Mock(side_effect=KeyboardInterrupt))
        cluster.main(argv)
    assert not (folder / "metrics.json").exists()
    shutil.rmtree(folder / "clusters")
    cluster.main(argv)
    assert before == {
        p.name: p.read_bytes() for p in [*(folder / "clusters").iterdir(), folder / "clusters.csv"]
    }
    assert json.loads((folder / "metrics.json").read_text())["num_clusters"] == 4


def test_a_step_can_be_repeated_from_its_file(command, tmp_path):
    _, folder = command
    shutil.copytree(folder / "pretext", tmp_path / "my_digits/pretext")
    settings = ["--set", f"root_dir={tmp_path}", "precision=fp32", "device=cpu", "num_workers=0"]
    scan.main(["--config_exp", str(folder / "configs/scan.yml"), *settings])
    assert (tmp_path / "my_digits/scan/assignment.csv").read_bytes() == (
        folder / "scan/assignment.csv"
    ).read_bytes()


def copied(command, tmp_path):
    """The same command with a copy of its results."""
    argv, folder = command
    shutil.copytree(folder, tmp_path / "out" / folder.name)
    argv = [str(tmp_path / "out") if arg == str(folder.parent) else arg for arg in argv]
    return argv, tmp_path / "out" / folder.name


def test_another_number_of_clusters(command, tmp_path, capsys):
    """The first step stays, and the earlier results are kept."""
    argv, folder = copied(command, tmp_path)
    pretext = {path: path.stat().st_mtime_ns for path in (folder / "pretext").iterdir()}
    before = (folder / "clusters.csv").read_bytes()
    cluster.main([*argv[:2], "5", *argv[3:]])
    assert f"the earlier results are kept in {folder / 'earlier-1'}" in capsys.readouterr().out
    assert pretext == {path: path.stat().st_mtime_ns for path in (folder / "pretext").iterdir()}
    assert len(json.loads((folder / "metrics.json").read_text())["cluster_sizes"]) == 5
    assert (folder / "earlier-1/clusters.csv").read_bytes() == before
    assert (folder / "earlier-1/scan/model.pth.tar").exists()
    cluster.main([*argv[:2], "3,6", *argv[3:]])
    assert (folder / "earlier-2/scan").is_dir() and (folder / "numbers.csv").exists()


def test_another_command(command, tmp_path, capsys):
    argv, folder = copied(command, tmp_path)
    cluster.main([*argv[:3], "--seed", "1", *argv[3:]])
    assert (folder / "earlier-1/pretext/model.pth.tar").exists()
    assert read_yaml(folder / "configs/scan.yml")["seed"] == 1
    assert len(rows_of(folder)) == N + COPIES
    # a mistake moves nothing
    model = (folder / "scan/model.pth.tar").stat().st_mtime_ns
    assert "did you mean" in fails(capsys, cluster.main, [*argv, "epoch=3"])
    assert not (folder / "earlier-2").exists()
    cluster.main([*argv[:3], "--seed", "1", *argv[3:]])
    assert model == (folder / "scan/model.pth.tar").stat().st_mtime_ns


def test_results_of_other_scripts(command, tmp_path, capsys):
    argv, folder = copied(command, tmp_path)
    (folder / "cluster.json").unlink()
    assert "holds results of other scripts; give --name my_digits-2" in fails(capsys, cluster.main, argv)


def test_labels_and_a_place_are_no_other_command(command):
    """They change nothing of what was trained."""
    argv, folder = command
    model = (folder / "scan/model.pth.tar").stat().st_mtime_ns
    where = argv.index("--labels")
    cluster.main([*argv[:where], *argv[where + 2 :]])
    assert "acc" not in json.loads((folder / "metrics.json").read_text())
    cluster.main(argv)
    assert "acc" in json.loads((folder / "metrics.json").read_text())
    assert model == (folder / "scan/model.pth.tar").stat().st_mtime_ns


def test_mistakes_that_are_corrected(photos, vectors, tmp_path, capsys):
    """A command that was refused leaves nothing behind that the corrected one would trip over."""
    argv = [str(photos), "--clusters", "4", "--features", str(vectors), "--root_dir", str(tmp_path / "out")]
    argv += ["--set", "num_workers=0", "device=cpu"]
    assert "did you mean 'epochs'" in fails(capsys, cluster.main, [*argv, "epoch=2"])
    flat = write_few(tmp_path / "flat", 25)
    labels = [str(flat), *argv[1:], "--labels", "subfolders"]
    assert "the images are in 0 folders; leave --labels out" in fails(capsys, cluster.main, labels)
    cluster.main([*argv, "epochs=2"])


def test_an_image_is_added(command, photos, tmp_path, capsys):
    """With a features file that does not fit, nothing changes; with one that does, all is made anew."""
    argv, folder = copied(command, tmp_path)
    more = tmp_path / "my digits"
    shutil.copytree(photos, more)
    vectors = np.load(argv[argv.index("--features") + 1])
    argv[0] = str(more)
    Image.effect_noise((8, 8), 90).save(more / "zzz.png")
    message = fails(capsys, cluster.main, argv)
    assert "vectors, but there are" in message and not (folder / "earlier-1").exists()
    np.save(tmp_path / "more.npy", np.concatenate([vectors, vectors[:1] + 0.1]))
    argv[argv.index("--features") + 1] = str(tmp_path / "more.npy")
    cluster.main(argv)
    assert len(rows_of(folder)) == N + COPIES + 1
    assert len(rows_of(folder / "earlier-1")) == N + COPIES


def test_images_that_have_changed_since(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "in")
    argv = [str(tmp_path / "in"), "--clusters", "3", "--from-scratch", "--backbone", "resnet10_narrow"]
    argv += ["--size", "8", "--hours", "0.00001", "--root_dir", str(tmp_path / "out")]
    argv += ["--set", "num_workers=0", "device=cpu", "epochs=4", "batch_size=32"]
    cluster.main(argv)
    (tmp_path / "in/copy0.png").unlink()
    message = fails(capsys, cluster.main, argv)
    assert "its images have changed since" in message and "--name in-2" in message


def test_one_unreadable_image_among_few(tmp_path, capsys):
    folder = write_few(tmp_path / "few", 30)
    (folder / "bad.png").write_bytes(b"no image")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 5)))
    argv = [str(folder), "--clusters", "2", "--features", str(tmp_path / "x.npy")]
    argv += ["--root_dir", str(tmp_path / "out"), "--set", "num_workers=0", "device=cpu"]
    assert "set max_unreadable" in fails(capsys, cluster.main, argv)
    cluster.main([*argv, "max_unreadable=0.5"])
    assert len(rows_of(tmp_path / "out/few")) == 30


def test_from_scratch(photos, tmp_path, capsys, monkeypatch):
    root = tmp_path / "out"
    argv = [str(photos), "--clusters", "4", "--from-scratch", "--backbone", "resnet10_narrow", "--size", "8"]
    argv += ["--hours", "0.00001", "--root_dir", str(root), "--set", "num_workers=0", "device=cpu"]
    argv += ["epochs=10", "batch_size=32", "precision=fp32"]
    cluster.main(argv)
    out = capsys.readouterr().out
    assert "resnet10_narrow at 8 pixels: about 1 s an epoch" in out and "more --hours would do better" in out
    folder = root / "my_digits"
    assert len(rows_of(folder)) == N + COPIES
    assert "acc" not in json.loads((folder / "metrics.json").read_text())
    pretext = read_yaml(folder / "configs/pretext.yml")
    assert (
        pretext["epochs"] == fit_to_images.FEWEST_EPOCHS and pretext["scheduler_kwargs"]["warmup_epochs"] == 1
    )

    monkeypatch.setattr(simclr, "SMALL", 10)
    monkeypatch.setattr(scan, "run_step", None)  # not called
    assert "did not learn to tell these images apart" in fails(
        capsys, cluster.main, [*argv, "seed=1", "--name", "no"]
    )


def test_threshold_of_self_labeling(tmp_path, capsys):
    header = "image,cluster,confidence\n"
    for confident, expected in ((0.995, 0.99), (0.96, 0.95), (0.85, 0.8)):
        rows = "".join(f"{i},0,{confident if i < 3 else 0.4}\n" for i in range(10))
        (tmp_path / "assignment.csv").write_text(header + rows)
        assert label_free_choices.choose_threshold(tmp_path) == expected
    (tmp_path / "assignment.csv").write_text(header + "0,0,0.6\n" * 10)
    assert label_free_choices.choose_threshold(tmp_path) is None
    assert "no self-labeling" in capsys.readouterr().out


def write_few(folder, n):
    folder.mkdir()
    for i in range(n):
        Image.effect_noise((9, 9), 50).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (lambda f: f / "none", [], "no such folder"),
        (lambda f: Path(shutil.copy(__file__, f)), [], "is a file; give the folder that holds it"),
        (lambda f: f, [], "no images found"),
        (lambda f: write_few(f / "few", 5), [], "5 images, but 21 are the fewest"),
        (lambda f: write_few(f / "few", 25), ["--clusters", "30"], "25 images, but 30 are the fewest"),
        (lambda f: f, ["--from-scratch", "--pretrained", "x"], "give only one of them"),
        (lambda f: f, ["--features", "x.npy", "--size", "9"], "leave out --backbone and --size"),
        (lambda f: f, ["--hours", "0"], "must be above 0"),
        (lambda f: f, ["--name", "a/b"], "use letters, digits"),
        (lambda f: write_few(f / "few", 25), ["--backbone", "torchvision/resnet19"], "did you mean"),
        (lambda f: write_few(f / "few", 25), ["--features", "none.npy"], "no such file"),
    ],
)
def test_bad_input(make, more, message, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    argv = [str(make(folder)), "--clusters", "3", "--backbone", "torchvision/squeezenet1_1", "--size", "32"]
    if "--features" in more:
        argv = argv[:3]
    argv += ["--root_dir", str(tmp_path / "out"), *more, "--set", "num_workers=0"]
    assert message in fails(capsys, cluster.main, argv)
    assert not list((tmp_path / "out").rglob("model.pth.tar"))


def test_results_among_the_images(tmp_path, capsys):
    folder = write_few(tmp_path / "in", 25)
    argv = [str(folder), "--clusters", "3", "--from-scratch", "--root_dir", str(tmp_path)]
    assert "the results would lie among the images" in fails(capsys, cluster.main, argv)


def test_a_features_file_of_another_length(photos, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((7, 3), np.float32))
    argv = [
        str(photos),
        "--clusters",
        "3",
        "--features",
        str(tmp_path / "x.npy"),
        "--root_dir",
        str(tmp_path),
    ]
    assert f"holds 7 vectors, but there are {N + COPIES} images" in fails(capsys, cluster.main, argv)


def test_the_number_of_clusters_is_chosen(photos, vectors, tmp_path, capsys):
    argv = [str(photos), "--clusters", "3,6,9", "--features", str(vectors), "--root_dir", str(tmp_path)]
    argv += ["--set", "num_workers=0", "device=cpu", "epochs=2"]
    cluster.main(argv)
    folder = tmp_path / "my_digits"
    content = json.loads((folder / "numbers.json").read_text())
    rows = list(csv.DictReader((folder / "numbers.csv").read_text().splitlines()))
    assert [row["clusters"] for row in rows] == ["3", "6", "9"]
    best = max(rows, key=lambda row: float(row["modularity"]))
    assert int(best["clusters"]) == content["suggestion"]
    assert read_yaml(folder / "configs/scan.yml")["num_classes"] == content["suggestion"]
    assert len(json.loads((folder / "metrics.json").read_text())["cluster_sizes"]) == content["suggestion"]
    assert f"suggested: {best['clusters']} clusters" in capsys.readouterr().out
    cluster.main(argv)
    assert capsys.readouterr().out.count("done before") == 2


@pytest.mark.parametrize("text", ["0", "1", "5,1", "many", "", "3,,4"])
def test_numbers_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected numbers of 2 or more, or auto"):
        cluster.numbers_argument(text)


def test_numbers_of_clusters():
    assert cluster.numbers_argument("7") == [7]
    assert cluster.numbers_argument("10,5,10") == [5, 10]
    assert cluster.numbers_argument("auto") == []
