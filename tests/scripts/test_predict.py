"""predict.py on the results of a real training: the table, names, sorting, and how each is got wrong."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from digits_files import DIGITS
from digits_steps import fails
from image_folders import gradient
from mistakes import assert_holds, npy, refused
from PIL import Image

import data
import predict
from data import messages
from models import build_model
from utils.run import interrupt
from utils.run.config import read_resolved, to_dict
from utils.run.script import run_script
from workflows.cluster_names import read_names
from workflows.sort_files import sorting_folders
from workflows.trained_model import load_trained_model


def write_pngs(folder, indices):
    """Digits of the test split as files, every other one in a folder of its own; returns their names."""
    images = data.build_dataset(DIGITS, "test").images.permute(0, 2, 3, 1).numpy()
    names = [f"{'b/ä' if i % 2 else 'a'}/{i:03}.png" for i in indices]
    for i, name in zip(indices, names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i]).save(folder / name)
    return names


@pytest.fixture(scope="module")
def pngs(tmp_path_factory):
    """A folder of 30 digits, which no test changes."""
    folder = tmp_path_factory.mktemp("new")
    write_pngs(folder, range(30))
    return folder


@pytest.fixture
def new(pngs, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(pngs, tmp_path / "new")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(results, images, output, *flags):
    """Predict; returns the rows by file name."""
    predict.main([str(results), str(images), "--output", str(output), "--device", "cpu", *map(str, flags)])
    return {row["file"]: row for row in rows_of(output)}


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def write_names(path, names):
    path.write_text("cluster,name\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(names)), "utf-8")
    return path


def probabilities(results, indices):
    trained = load_trained_model(results)
    images = data.build_dataset(DIGITS, "test").images[indices]
    with torch.no_grad():
        logits = trained.model(data.build_eval_transform(trained.config)(images))
    return logits[trained.head].softmax(1)


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [".", "scan"])
def test_the_table_is_the_assignment_of_the_same_images(results, tmp_path, step):
    names = write_pngs(tmp_path / "new", range(360))
    found = run(results / step, tmp_path / "new", tmp_path / "x.csv", "--batch_size", 100)
    assert sorted(found) == sorted(names)
    folder = results / ("selflabel" if step == "." else step)
    for i, row in enumerate(rows_of(folder / "assignment.csv")):
        assert found[names[i]]["cluster"] == row["cluster"]
        assert float(found[names[i]]["confidence"]) == pytest.approx(float(row["confidence"]), abs=2e-4)
    expected = probabilities(folder, range(360)).topk(2)
    for i, name in enumerate(names):
        assert int(found[name]["runner_up"]) == expected.indices[i, 1]
        assert float(found[name]["runner_up_confidence"]) == pytest.approx(
            expected.values[i, 1].item(), abs=1e-4
        )


def test_its_place_its_summary_and_an_earlier_one(copied, new, capsys):
    (new / "notes.txt").write_text("")
    argv = [str(copied / "digits"), str(new), "--device", "cpu"]
    table = copied / "digits/predictions/new.csv"
    predict.main(argv)
    out, first = capsys.readouterr().out, table.read_text()
    sizes = [int(line.split()[1]) for line in out.splitlines()[1:11]]
    assert sizes == np.bincount([int(row["cluster"]) for row in rows_of(table)], minlength=10).tolist()
    assert f"30 images: {table}" in out
    (new / "a/000.png").unlink()
    predict.main(argv)
    assert len(table.read_text().splitlines()) == 30 and first.splitlines()[0] in table.read_text()
    assert files_in(table.parent) == {"new.csv", "folders.json"}


def test_folders_of_one_name_have_tables_of_their_own(copied, new, tmp_path):
    """And so has one whose table is there, but not known to be of this folder."""
    tables = copied / "digits/predictions"
    shutil.copytree(new / "a", tmp_path / "x/new")
    for _ in range(2):
        for images in (new, tmp_path / "x/new"):
            predict.main([str(copied / "digits"), str(images), "--device", "cpu"])
        assert [len(rows_of(tables / name)) for name in ("new.csv", "new-2.csv")] == [30, 15]
        assert files_in(tables) == {"new.csv", "new-2.csv", "folders.json"}
    (tables / "folders.json").write_text("{}")
    predict.main([str(copied / "digits"), str(tmp_path / "x/new"), "--device", "cpu"])
    assert len(rows_of(tables / "new-3.csv")) == 15 and len(rows_of(tables / "new.csv")) == 30
    shutil.rmtree(tables)
    tables.write_text("")
    argv = [str(copied / "digits"), str(new), "--device", "cpu"]
    refused(["folders.json: cannot be written", "give an --output"], predict.main, argv)


@pytest.mark.parametrize("step", [".", "scan"])
def test_pictures_of_the_results_are_no_new_images(copied, tmp_path, step):
    (copied / "digits" / step / "clusters").mkdir()
    names = write_pngs(tmp_path, range(4))
    gradient().save(copied / "digits" / step / "clusters/0.png")
    for folder in {"pretext", "scan", "selflabel"} - {step}:
        if step != ".":
            shutil.rmtree(copied / "digits" / folder)
    assert sorted(run(copied / "digits" / step, tmp_path, tmp_path / "x.csv")) == sorted(names)


def test_one_image(results, pngs, tmp_path):
    alone = run(results, pngs / "a/004.png", tmp_path / "x.csv")
    assert list(alone) == ["004.png"]
    assert int(alone["004.png"]["cluster"]) == probabilities(results, [4]).argmax()


def test_unreadable_images_are_noted(results, new, tmp_path, capsys):
    gradient().save(tmp_path / "whole.jpg")
    (new / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (new / "empty.png").write_bytes(b"")
    found = run(results, new, tmp_path / "x.csv", "--sort-into", tmp_path / "sorted", "--num_workers", 1)
    assert len(found) == 32
    for name, why in (("cut.jpg", "runcated"), ("empty.png", "empty, or not an image")):
        row = found[name]
        assert why in row.pop("note") and row.pop("file") == name and set(row.values()) == {""}
    assert "32 images, 2 of them unreadable" in capsys.readouterr().out
    assert len(files_in(tmp_path / "sorted")) == 30


def test_images_of_arrays_without_the_record_of_their_size(copied, pngs, tmp_path):
    """As in results from before metrics.json said it: then a margin is assumed, as files have it."""
    shutil.rmtree(copied / "digits/selflabel")
    trained = load_trained_model(copied / "digits")
    (copied / "digits/scan/metrics.json").write_text("{}")
    assert (trained.side, load_trained_model(copied / "digits").side) == (8, 9)


@pytest.mark.parametrize(
    ("where", "white"), [("metrics.json", 4095), ("config.yml", 4095), ("nowhere", 65535)]
)
def test_images_of_16_bits_have_the_white_of_the_training(copied, tmp_path, caplog, where, white):
    """It is in metrics.json, so that the folder alone is enough; without it, 65535 is assumed, and said."""
    (tmp_path / "new").mkdir()
    values = np.random.default_rng(0).integers(0, 1000, (8, 8)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "new/a.png")
    figures = json.loads((copied / "digits/selflabel/metrics.json").read_text())
    figures["white_level"] = white if where == "metrics.json" else None
    if where == "config.yml":
        with open(copied / "digits/selflabel/config.yml", "a") as file:
            file.write(f"\nwhite_level: {white}\n")
    (copied / "digits/selflabel/metrics.json").write_text(json.dumps(figures))
    messages.say_once.cache_clear()
    trained = load_trained_model(copied / "digits")
    ((_, squares, _),) = predict.find_images(tmp_path / "new", trained).decode(0)
    expected = torch.from_numpy(values * 255.0 / white)
    torch.testing.assert_close(squares[0, 0].double(), expected, atol=0.51, rtol=0)
    assert caplog.text.count("65535 is assumed to be white") == (where == "nowhere")


@pytest.fixture
def of_features(results, tmp_path):
    """Results of a clustering step on vectors of 16 numbers, and such vectors."""
    folder = shutil.copytree(results / "scan", tmp_path / "features/scan")
    config = read_resolved(folder / "config.yml")
    config |= {"backbone": "features/16", "features_file": "gone.npy"}
    (folder / "config.yml").write_text(yaml.safe_dump(to_dict(config)))
    model = build_model(config)
    torch.save({"model": model.state_dict(), "head": 1}, folder / "model.pth.tar")
    vectors = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return folder.parent, vectors, model(vectors)[1].argmax(1).tolist()


def test_vectors(of_features, tmp_path):
    results, vectors, clusters = of_features
    np.save(tmp_path / "new.npy", vectors.numpy().astype(np.float64))
    found = run(results, tmp_path / "new.npy", tmp_path / "x.csv")
    assert [int(row["cluster"]) for row in found.values()] == clusters
    assert list(found) == [str(row) for row in range(2000)]


def test_vectors_that_cannot_be_used(of_features, pngs, tmp_path, capsys):
    results, vectors, _ = of_features
    vectors[1500, 3] = np.nan

    def fails_at(content, *words, flags=()):
        path = content
        if not isinstance(content, Path):
            path = tmp_path / "new.npy"
            path.write_bytes(content if isinstance(content, bytes) else npy(content))
        argv = [str(results), str(path), "--output", str(tmp_path / "x.csv"), *flags]
        assert_holds(fails(capsys, predict.main, argv), words)

    fails_at(vectors.numpy(), "new.npy: row 1500 holds NaN")
    fails_at(vectors[:, :15].numpy(), "(N, 16)", "found float32 (2000, 15)")
    fails_at(vectors[:0].numpy(), "holds no rows")
    fails_at(np.array(["a"]), "expected numbers")
    fails_at(b"text", "not a readable .npy file")
    fails_at(npy(vectors.numpy())[:-9], "not a readable .npy file")
    fails_at(pngs, "was trained on features", "(N, 16)")
    fails_at(vectors.numpy(), "--sort-into sorts images", flags=["--sort-into", str(tmp_path / "s")])
    assert not (tmp_path / "x.csv").exists() and not (tmp_path / "s").exists()


# --- names ---------------------------------------------------------------------------------------


def test_clusters_of_one_name_are_merged(results, pngs, tmp_path):
    names = ["even" if cluster % 2 == 0 else "odd, or not" for cluster in range(9)] + ["ninth"]
    file = write_names(tmp_path / "names.csv", names)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as Excel writes it
    found = run(results, pngs, tmp_path / "x.csv", "--names", file, "--unsure", 0.5)
    p = probabilities(results, range(30))
    sums = torch.stack([p[:, 0:9:2].sum(1), p[:, 1:9:2].sum(1), p[:, 9]], 1)
    best = sums.topk(2)
    for i, row in enumerate(sorted(found.values(), key=lambda row: row["file"][-7:])):
        kinds = ("even", "odd, or not", "ninth")
        assert row["name"] == kinds[best.indices[i, 0]] == names[int(row["cluster"])]
        assert row["runner_up_name"] == kinds[best.indices[i, 1]] == names[int(row["runner_up"])]
        assert float(row["confidence"]) == pytest.approx(best.values[i, 0].item(), abs=1e-4)
        assert float(row["runner_up_confidence"]) == pytest.approx(best.values[i, 1].item(), abs=1e-4)
        of_same_name = [c for c in range(10) if names[c] == row["name"]]
        assert int(row["cluster"]) == max(of_same_name, key=lambda c: p[i, c])
        assert row["note"] == ("unsure" if best.values[i, 0] < 0.5 else "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster,name\n0,a\n2,c\n", ["no name for cluster 1;"]),
        ("cluster,name\n0,a\n", ["no name for cluster 1, 2;"]),
        ("cluster,name\n0,a\n1,b\n2,c\n3,d\n", ["line 5", "'3' is no cluster", "0 to 2"]),
        ("cluster,name\n0,a\n-1,b\n", ["line 3", "'-1' is no cluster"]),
        ("cluster,name\n0,a\n1,b\n1,b\n", ["line 4", "cluster 1 has a name already"]),
        ("cluster,name\n0,a\n1,\n", ["line 3", "cluster 1 has no name"]),
        ("cluster,name\n0,a\n1\n", ["line 3", "cluster 1 has no name"]),
        ("cluster,name\n0,a,b\n", ["line 2", "more than two columns", "quotes"]),
        ("cluster;name\n0;a\n", ["must be cluster,name, found cluster;name"]),
        ("name,cluster\na,0\n", ["must be cluster,name, found name,cluster"]),
        ("0,a\n1,b\n2,c\n", ["must be cluster,name, found 0,a"]),
        ("", ["found nothing"]),
        ('cluster,name\n0,"a\n', ["cannot be read as a CSV file"]),
        (b"cluster,name\n0,\xff\xfe\n", ["cannot be read as a CSV file in UTF-8"]),
    ],
)
def test_names_with_errors(tmp_path, text, words):
    path = tmp_path / "names.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["names.csv", *words], read_names, path, 3)


def test_no_names_or_one_for_all(results, pngs, tmp_path, capsys):
    argv = [str(results), str(pngs), "--output", str(tmp_path / "x.csv"), "--names"]
    assert "none.csv: no such file" in fails(capsys, predict.main, [*argv, str(tmp_path / "none.csv")])
    same = write_names(tmp_path / "same.csv", ["x"] * 10)
    assert "all clusters have one name" in fails(capsys, predict.main, [*argv, str(same)])
    assert not (tmp_path / "x.csv").exists()


# --- sorting -------------------------------------------------------------------------------------


def test_sorting_copies_once_and_overwrites_nothing(results, new, tmp_path, capsys):
    before = {name: (new / name).read_bytes() for name in files_in(new)}
    into = tmp_path / "sorted"
    found = run(results, new, tmp_path / "x.csv", "--sort-into", into, "--unsure", 0.25)
    expected = {f"{'unsure' if row['note'] else row['cluster']}/{name}" for name, row in found.items()}
    assert files_in(into) == expected and any(name.startswith("unsure/") for name in expected)
    assert all((into / name).read_bytes() == before[name.partition("/")[2]] for name in expected)
    assert {name: (new / name).read_bytes() for name in files_in(new)} == before

    capsys.readouterr()
    times = {name: (into / name).stat().st_mtime_ns for name in expected}
    run(results, new, tmp_path / "x.csv", "--sort-into", into, "--unsure", 0.25)
    assert "0 copies made" in capsys.readouterr().out
    assert {name: (into / name).stat().st_mtime_ns for name in files_in(into)} == times

    mine = into / min(expected)
    mine.write_text("mine")
    for _ in range(2):
        run(results, new, tmp_path / "x.csv", "--sort-into", into, "--unsure", 0.25, "--link")
        numbered = mine.with_name(f"{mine.stem} (2).png")
        assert files_in(into) == {*expected, numbered.relative_to(into).as_posix()}
        assert mine.read_text() == "mine" and numbered.is_symlink()
        assert numbered.read_bytes() == before[min(expected).partition("/")[2]]


def test_names_never_lead_out_of_the_folder(results, pngs, tmp_path):
    into = tmp_path / "deep/sorted"
    names = ["../x", "/etc", "..", "a/b", "a:b", "A?b", "con", "unsure", ".hidden", "ä" * 300]
    file = write_names(tmp_path / "names.csv", names)
    run(results, pngs, tmp_path / "x.csv", "--names", file, "--sort-into", into)
    assert len(files_in(into)) == 30 == len(files_in(tmp_path / "deep"))
    folders = sorting_folders(into, ["unsure", *names], pngs)
    assert [folder.name for folder in folders] == (
        ["unsure", "_x", "_etc", "_", "a_b", "a_b (2)", "A_b (3)", "_con", "unsure (2)", "hidden", "ä" * 100]
    )
    assert all(folder.parent == into for folder in folders)


@pytest.mark.parametrize("name", ["new", "new/a", "new/a/deep", "link", "above"])
def test_sorting_into_the_images_themselves_is_refused(results, new, tmp_path, capsys, name):
    (tmp_path / "link").symlink_to(new)
    images = new
    if name == "above":  # cluster 3's folder would be that of the images
        images = new.rename(tmp_path / "3")
        name = "."
    argv = [str(results), str(images), "--output", str(tmp_path / "x.csv"), "--sort-into"]
    before = files_in(tmp_path)
    assert_holds(fails(capsys, predict.main, [*argv, str(tmp_path / name)]), ["overlap"])
    assert files_in(tmp_path) == before


def test_room_is_looked_at_before_anything_is_done(results, pngs, tmp_path, monkeypatch, capsys):
    size = sum((pngs / name).stat().st_size for name in files_in(pngs))
    free = [size]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[0]))
    run(results, pngs, tmp_path / "x.csv", "--sort-into", tmp_path / "sorted")
    free[0] = 0  # a second run needs none
    run(results, pngs, tmp_path / "x.csv", "--sort-into", tmp_path / "sorted")
    free[0] = size - 1
    argv = [str(results), str(pngs), "--output", str(tmp_path / "y.csv")]
    argv += ["--sort-into", str(tmp_path / "other")]
    assert_holds(fails(capsys, predict.main, argv), ["--sort-into", "are free there", "--link"])
    assert not (tmp_path / "other").exists() and not (tmp_path / "y.csv").exists()
    predict.main([*argv, "--link"])
    assert len(files_in(tmp_path / "other")) == 30


def test_a_disk_that_fills_up_while_sorting(results, pngs, tmp_path, monkeypatch, capsys):
    copy, left = shutil.copy2, [12]

    def fill(source, target):
        left[0] -= 1
        if left[0] < 0:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        copy(source, target)

    argv = [str(results), str(pngs), "--output", str(tmp_path / "x.csv"), "--sort-into", str(tmp_path / "s")]
    monkeypatch.setattr(shutil, "copy2", fill)
    assert_holds(fails(capsys, predict.main, argv), ["No space left", "what was sorted stays"])
    assert len(files_in(tmp_path / "s")) == 12 and len(rows_of(tmp_path / "x.csv")) == 30
    left[0] = 100
    predict.main(argv)
    assert len(files_in(tmp_path / "s")) == 30 and left[0] == 82


# --- what may not be overwritten or lost ---------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_table(results, pngs, tmp_path, monkeypatch, capsys):
    run(results, pngs, tmp_path / "x.csv")
    before = (tmp_path / "x.csv").read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    argv = [str(results), str(pngs), "--output", str(tmp_path / "x.csv")]
    assert_holds(fails(capsys, predict.main, argv), ["x.csv: cannot be written", "No space", "--output"])
    assert (tmp_path / "x.csv").read_bytes() == before and files_in(tmp_path) == {"x.csv"}


def test_what_is_not_our_table_is_not_overwritten(results, new, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("file,price\n")
    (tmp_path / "folder.csv").mkdir()
    (new / "photo.csv").write_bytes((new / "a/000.png").read_bytes())
    argv = [str(results), str(new), "--output"]
    for path in (tmp_path / "mine.csv", tmp_path / "folder.csv", new / "photo.csv"):
        assert "is no table of predict.py" in fails(capsys, predict.main, [*argv, str(path)])
    assert "expected a file FILE.csv" in fails(capsys, predict.main, [*argv, str(new / "a/000.png")])
    line = fails(capsys, predict.main, [*argv, str(tmp_path / "mine.csv/x.csv")])
    assert_holds(line, ["cannot be written", "File exists"])
    assert (tmp_path / "mine.csv").read_text() == "file,price\n"


def test_ctrl_c_leaves_nothing_half_done(results, pngs, tmp_path, monkeypatch, capsys):
    stream = data.stream

    def stopped(*args, **kwargs):
        yield next(stream(*args, **kwargs))
        raise interrupt.Interrupted(2)

    monkeypatch.setattr(data, "stream", stopped)
    argv = [str(results), str(pngs), "--output", str(tmp_path / "x.csv"), "--batch_size", "8"]
    with pytest.raises(SystemExit) as exit_:
        run_script(lambda: predict.main(argv), "what was sorted stays")
    assert exit_.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped by SIGINT; what was sorted stays"
    assert not files_in(tmp_path)


# --- folders that hold something else ------------------------------------------------------------


def test_folders_without_a_finished_model(copied, pngs, tmp_path, capsys):
    digits = copied / "digits"

    def fails_at(path, *words):
        argv = [str(path), str(pngs), "--output", str(tmp_path / "x.csv")]
        assert_holds(fails(capsys, predict.main, argv), words)

    fails_at(digits / "none", "no such folder", "scan.py or selflabel.py")
    fails_at(digits / "scan/model.pth.tar", "is a file", "give the folder")
    fails_at(digits / "pretext", "simclr, which has no clusters")
    fails_at(copied, "holds no results", f"did you mean {digits}")
    fails_at(pngs, "holds no results of scan.py or selflabel.py")
    (digits / "scan/fingerprint.json").unlink()
    fails_at(digits / "scan", "has not finished; give the same command again")
    config = digits / "selflabel/config.yml"
    config.write_text(config.read_text().replace("num_classes: 10", "num_classes: 12"))
    fails_at(digits, "config.yml and model.pth.tar must be those of one run", "num_classes 10")
    config.write_text("setup: selflabel\n")
    fails_at(digits, "config.yml: missing")
    (digits / "selflabel/model.pth.tar").unlink()
    config.write_text((digits / "scan/config.yml").read_text())
    fails_at(digits, "selflabel/model.pth.tar: no such file")
    assert not (tmp_path / "x.csv").exists()


def test_an_unfinished_self_labeling_is_passed_over(copied, pngs, tmp_path, caplog):
    (copied / "digits/selflabel/fingerprint.json").unlink()
    assert load_trained_model(copied / "digits").folder == copied / "digits/scan"
    assert_holds(caplog.messages[0], ["selflabel: not finished, so the model in", "scan is used"])


def test_what_is_no_image(results, tmp_path, capsys):
    def fails_at(path, *words):
        argv = [
            str(results),
            str(path),
            "--output",
            str(tmp_path / "x.csv"),
            "--sort-into",
            str(tmp_path / "s"),
        ]
        assert_holds(fails(capsys, predict.main, argv), words)

    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "bad/a.png").write_bytes(b"")
    (tmp_path / "bad/b.jpg").write_bytes(b"\xff\xd8\xff")
    np.save(tmp_path / "vectors.npy", np.zeros((3, 128)))
    fails_at(tmp_path / "none", "none: no such")
    fails_at(tmp_path / "empty", "no images found")
    fails_at(tmp_path / "text.txt", "text.txt: cannot be read as an image")
    fails_at(tmp_path / "bad", "cannot be read as an image", "none that can")
    fails_at(tmp_path / "vectors.npy", "was trained on images")
    assert not (tmp_path / "x.csv").exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unsure", "1.5"], "--unsure 1.5: must be from 0 to 1"),
        (["--unsure", "nan"], "--unsure nan: must be from 0 to 1"),
        (["--link"], "--link needs --sort-into"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--device", "gpu"], "--device must be auto, cpu"),
        (["--sort-into", "README.md"], "README.md: is a file"),
    ],
)
def test_mistakes_on_the_command_line(results, pngs, tmp_path, capsys, flags, words):
    argv = [str(results), str(pngs), "--output", str(tmp_path / "x.csv"), *flags]
    assert words in fails(capsys, predict.main, argv)
