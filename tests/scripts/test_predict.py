"""predict.py on the results of a real training: the table, names, sorting, and how each is got wrong."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from digits_files import DIGITS
from digits_steps import fails, images_and_probabilities, rows_of
from image_folders import gradient
from mistakes import assert_holds, npy, refused
from PIL import Image

import data
import predict
from data import messages
from models import build_model
from utils.run.config import read_resolved, to_dict
from workflows.cluster_names import read_names
from workflows.sort_files import sorting_folders
from workflows.trained_model import load_trained_model, save_levels


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


@pytest.fixture
def run(results, pngs, tmp_path):
    """Function that predicts, and returns the rows by file name; by default of `pngs` by `results`."""

    def run_predict(*flags, images=pngs, results=results, output=tmp_path / "x.csv"):
        argv = [results, images, "--output", output, "--device", "cpu", *flags]
        predict.main([str(argument) for argument in argv])
        return {row["file"]: row for row in rows_of(output)}

    return run_predict


@pytest.fixture
def refuses(run, capsys):
    """Function that checks the line that predict.py ends with, and that no table was written."""

    def check(words, *flags, **arguments):
        assert_holds(fails(capsys, lambda _: run(*flags, **arguments), None), words)

    return check


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def write_names(path, names):
    path.write_text("cluster,name\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(names)), "utf-8")
    return path


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [".", "scan"])
def test_the_table_is_the_assignment_of_the_same_images(results, run, tmp_path, step):
    names = write_pngs(tmp_path / "new", range(360))
    found = run("--batch_size", 100, results=results / step, images=tmp_path / "new")
    assert sorted(found) == sorted(names)
    alone = run(results=results / step, images=tmp_path / "new" / names[4])
    assert alone["004.png"]["cluster"] == found[names[4]]["cluster"] and len(alone) == 1
    folder = results / ("selflabel" if step == "." else step)
    best = images_and_probabilities(folder, 360)[1].topk(2)
    for i, row in enumerate(rows_of(folder / "assignment.csv")):
        given = found[names[i]]
        assert (given["cluster"], int(given["runner_up"])) == (row["cluster"], best.indices[i, 1])
        assert float(given["confidence"]) == pytest.approx(float(row["confidence"]), abs=2e-4)
        assert float(given["runner_up_confidence"]) == pytest.approx(best.values[i, 1].item(), abs=1e-4)


def test_its_place_and_its_summary(copied, new, capsys):
    """Folders of one name have tables of their own, as has one of which it is not known whose table it is."""
    digits, tables = copied / "digits", copied / "digits/predictions"
    (new / "notes.txt").write_text("")
    other = shutil.copytree(new / "a", copied / "x/new")
    for count in (30, 29):
        for images in (other, new):
            predict.main([str(digits), str(images), "--device", "cpu"])
        out = capsys.readouterr().out.splitlines()
        assert f"{count} images: {tables / 'new-2.csv'}" in out
        found = rows_of(tables / "new-2.csv")
        sizes = np.bincount([int(row["cluster"]) for row in found], minlength=10)
        assert [int(line.split()[1]) for line in out[-11:-1]] == sizes.tolist()
        assert (len(rows_of(tables / "new.csv")), len(found)) == (15, count)
        assert files_in(tables) == {"new.csv", "new-2.csv", "folders.json"}
        (new / "a/000.png").unlink(missing_ok=True)
    (tables / "folders.json").write_text("{}")
    predict.main([str(digits), str(other), "--device", "cpu"])
    assert len(rows_of(tables / "new-3.csv")) == 15 and len(rows_of(tables / "new.csv")) == 15
    shutil.rmtree(tables)
    tables.write_text("")
    words = ["folders.json: cannot be written", "give an --output"]
    refused(words, predict.main, [str(digits), str(new), "--device", "cpu"])


def test_pictures_of_the_results_are_no_new_images(copied, run, tmp_path):
    for folder in (copied / "digits/clusters", copied / "digits/scan/clusters"):
        folder.mkdir()
        gradient().save(folder / "0.png")
    names = write_pngs(tmp_path, range(4))
    assert sorted(run(results=copied / "digits", images=tmp_path)) == sorted(names)


def test_unreadable_images_are_noted(run, new, tmp_path, capsys):
    gradient().save(tmp_path / "whole.jpg")
    (new / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:400])
    (new / "empty.png").write_bytes(b"")
    found = run("--sort-into", tmp_path / "sorted", "--num_workers", 1, images=new)
    assert len(found) == 32
    for name, why in (("cut.jpg", "runcated"), ("empty.png", "empty, or not an image")):
        row = found[name]
        assert why in row.pop("note") and row.pop("file") == name and set(row.values()) == {""}
    assert "32 images, 2 of them unreadable" in capsys.readouterr().out
    assert len(files_in(tmp_path / "sorted")) == 30


def test_images_of_arrays_without_the_record_of_their_size(copied):
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
    step = copied / "digits/selflabel"
    figures = json.loads((step / "metrics.json").read_text())
    figures["white_level"] = white if where == "metrics.json" else None
    (step / "metrics.json").write_text(json.dumps(figures))
    if where == "config.yml":
        with open(step / "config.yml", "a", encoding="utf-8") as file:
            file.write(f"\nwhite_level: {white}\n")
    messages.say_once.cache_clear()
    trained = load_trained_model(copied / "digits")
    ((_, images, _),) = predict.find_images(tmp_path / "new", trained).decode(0)
    expected = torch.from_numpy(values * 255.0 / white)
    torch.testing.assert_close(images[0, 0].double(), expected, atol=0.51, rtol=0)
    assert caplog.text.count("65535 is assumed to be white") == (where == "nowhere")


@pytest.fixture
def of_features(results, tmp_path):
    """Results of a clustering step on vectors of 16 numbers, and such vectors with their clusters."""
    folder = shutil.copytree(results / "scan", tmp_path / "features/scan")
    config = read_resolved(folder / "config.yml")
    config |= {"backbone": "features/16", "features_file": "gone.npy"}
    (folder / "config.yml").write_text(yaml.safe_dump(to_dict(config)))
    model = build_model(config)
    torch.save({"model": model.state_dict(), "head": 1}, folder / "model.pth.tar")
    vectors = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return folder.parent, vectors.numpy(), model(vectors)[1].argmax(1).tolist()


def test_vectors(of_features, run, tmp_path):
    results, vectors, clusters = of_features
    np.save(tmp_path / "new.npy", vectors.astype(np.float64))
    found = run(results=results, images=tmp_path / "new.npy")
    assert [int(row["cluster"]) for row in found.values()] == clusters
    assert list(found) == [str(row) for row in range(2000)]


def test_vectors_with_names_and_those_that_say_nothing(of_features, run, tmp_path):
    results, vectors, clusters = of_features
    vectors[1500, 3], vectors[7] = np.nan, 0
    names = [f"n{i}.png" for i in range(2000)]
    np.savez(tmp_path / "new.npz", features=vectors, paths=names)
    found = run(results=results, images=tmp_path / "new.npz")
    assert list(found) == names
    assert (found["n7.png"]["note"], found["n1500.png"]["note"]) == ("all zeros", "NaN or infinity")
    rows = [(row["cluster"], cluster) for row, cluster in zip(found.values(), clusters, strict=True)]
    assert all(found == str(cluster) for found, cluster in rows if found) and len(rows) == 2000
    assert sum(not found for found, _ in rows) == 2


def test_vectors_that_cannot_be_used(of_features, refuses, pngs, tmp_path):
    results, vectors, _ = of_features
    for content, *words in (
        (npy(vectors[:, :15]), "(N, 16)", "found float32 (2000, 15)"),
        (npy(vectors[:0]), "expected numbers of shape (N, D), found float32 (0, 16)"),
        (npy(vectors)[:-9], "cannot be read as vectors"),
        (npy(0 * vectors), "1999: cannot be used (all zeros); there is none that can"),
    ):
        (tmp_path / "new.npy").write_bytes(content)
        refuses(words, results=results, images=tmp_path / "new.npy")
    refuses(["was trained on features", "(N, 16)"], results=results, images=pngs)
    (tmp_path / "new.npy").write_bytes(npy(vectors))
    sorting = ["--sort-into", tmp_path / "s"]
    refuses(["--sort-into sorts images"], *sorting, results=results, images=tmp_path / "new.npy")
    assert not (tmp_path / "x.csv").exists() and not (tmp_path / "s").exists()


def test_levels(of_features, run, tmp_path):
    """Of the model they were made for, before the note; there are none of another model."""
    results, vectors, clusters = of_features
    np.save(tmp_path / "new.npy", vectors[:50])
    levels = [[0, 0, 1, 0, 1, 0, 2, 0, 0, 0], list(range(10))]
    made = [{"clusters": len(set(of)), "of_cluster": of} for of in levels]
    save_levels(made, results / "scan", load_trained_model(results).clustering)
    rows = list(run(results=results, images=tmp_path / "new.npy").values())
    assert [*rows[0]][-4:] == ["level_1", "level_2", "unlike", "note"]
    for row, cluster in zip(rows, clusters, strict=False):
        assert [int(row["level_1"]), int(row["level_2"])] == [of[cluster] for of in levels]
    model = torch.load(results / "scan/model.pth.tar")
    torch.save(model | {"head": 0}, results / "scan/model.pth.tar")
    rows = run(results=results, images=tmp_path / "new.npy")
    assert all("level_1" not in row for row in rows.values())


# --- names ---------------------------------------------------------------------------------------


def test_clusters_of_one_name_are_merged(results, run, tmp_path):
    names = ["even" if cluster % 2 == 0 else "odd, or not" for cluster in range(9)] + ["ninth"]
    file = write_names(tmp_path / "names.csv", names)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))  # as Excel writes it
    found = run("--names", file, "--unsure", 0.5)
    _, p = images_and_probabilities(results, 30)
    kinds = ("even", "odd, or not", "ninth")
    best = torch.stack([p[:, 0:9:2].sum(1), p[:, 1:9:2].sum(1), p[:, 9]], 1).topk(2)
    for i, row in enumerate(sorted(found.values(), key=lambda row: row["file"][-7:])):
        for j, prefix in enumerate(("", "runner_up_")):
            cluster, name = int(row[prefix.strip("_") or "cluster"]), row[f"{prefix}name"]
            assert name == kinds[best.indices[i, j]] == names[cluster]
            assert float(row[f"{prefix}confidence"]) == pytest.approx(best.values[i, j].item(), abs=1e-4)
            assert cluster == max((c for c in range(10) if names[c] == name), key=lambda c: p[i, c])
        assert row["note"] == ("unsure" if best.values[i, 0] < 0.5 else "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster,name\n0,a\n", ["no name for cluster 1, 2;"]),
        ("cluster,name\n0,a\n1,b\n2,c\n3,d\n", ["line 5", "'3' is no cluster", "0 to 2"]),
        ("cluster,name\n0,a\n-1,b\n", ["line 3", "'-1' is no cluster"]),
        ("cluster,name\n0,a\n1,b\n1,b\n", ["line 4", "cluster 1 has a name already"]),
        ("cluster,name\n0,a\n1,\n", ["line 3", "cluster 1 has no name"]),
        ("number;name\n0;a\n", ["must be cluster,name, found number,name"]),
    ],
)
def test_names_with_errors(tmp_path, text, words):
    path = tmp_path / "names.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["names.csv", *words], read_names, path, 3)


def test_one_name_for_all(refuses, tmp_path):
    refuses(["all clusters have one name"], "--names", write_names(tmp_path / "same.csv", ["x"] * 10))
    assert not (tmp_path / "x.csv").exists()


# --- sorting -------------------------------------------------------------------------------------


def test_sorting_copies_once_and_overwrites_nothing(run, new, tmp_path, capsys):
    before = {name: (new / name).read_bytes() for name in files_in(new)}
    into = tmp_path / "sorted"
    sorting = ["--sort-into", into, "--unsure", 0.25]
    found = run(*sorting, images=new)
    expected = {f"{'unsure' if row['note'] else row['cluster']}/{name}" for name, row in found.items()}
    assert files_in(into) == expected and any(name.startswith("unsure/") for name in expected)
    assert all((into / name).read_bytes() == before[name.partition("/")[2]] for name in expected)
    assert {name: (new / name).read_bytes() for name in files_in(new)} == before

    capsys.readouterr()
    times = {name: (into / name).stat().st_mtime_ns for name in expected}
    run(*sorting, images=new)
    assert "0 copies made" in capsys.readouterr().out
    assert {name: (into / name).stat().st_mtime_ns for name in files_in(into)} == times

    mine = into / min(expected)
    mine.write_text("mine")
    for _ in range(2):
        run(*sorting, "--link", images=new)
        numbered = mine.with_name(f"{mine.stem} (2).png")
        assert files_in(into) == {*expected, numbered.relative_to(into).as_posix()}
        assert mine.read_text() == "mine" and numbered.is_symlink()
        assert numbered.read_bytes() == before[min(expected).partition("/")[2]]


def test_names_never_lead_out_of_the_folder(run, pngs, tmp_path):
    into = tmp_path / "deep/sorted"
    names = ["../x", "/etc", "..", "a/b", "a:b", "A?b", "con", "unsure", ".hidden", "ä" * 300]
    run("--names", write_names(tmp_path / "names.csv", names), "--sort-into", into)
    assert len(files_in(into)) == 30 == len(files_in(tmp_path / "deep"))
    folders = sorting_folders(into, ["unsure", *names], pngs)
    assert [folder.name for folder in folders] == (
        ["unsure", "_x", "_etc", "_", "a_b", "a_b (2)", "A_b (3)", "_con", "unsure (2)", "hidden", "ä" * 100]
    )
    assert all(folder.parent == into for folder in folders)


def test_images_of_an_archive_are_sorted_as_those_of_a_folder(run, refuses, pngs, tmp_path):
    archive = shutil.make_archive(tmp_path / "new", "zip", pngs)
    into = tmp_path / "sorted"
    refuses(["cannot be linked", "leave --link out"], "--sort-into", into, "--link", images=archive)
    for _ in range(2):  # nothing is copied again
        found = run("--sort-into", into, images=archive)
        assert found == run()
        assert files_in(into) == {f"{row['cluster']}/{name}" for name, row in found.items()}
    assert all(
        (into / row["cluster"] / name).read_bytes() == (pngs / name).read_bytes()
        for name, row in found.items()
    )


def test_sorting_into_the_images_themselves_is_refused(new, tmp_path):
    (tmp_path / "link").symlink_to(new)
    for name in ("new", "new/a", "new/a/deep", "link"):
        refused(["overlap"], sorting_folders, tmp_path / name, ["unsure", "3"], new)
    images = new.rename(tmp_path / "3")  # which would be cluster 3's folder
    refused(["overlap"], sorting_folders, tmp_path, ["unsure", "3"], images)


def test_room_is_looked_at_before_anything_is_done(run, refuses, pngs, tmp_path, monkeypatch):
    size = sum((pngs / name).stat().st_size for name in files_in(pngs))
    usage, sorting = shutil.disk_usage(tmp_path), ["--sort-into", tmp_path / "sorted"]
    free = mock.Mock()
    monkeypatch.setattr(shutil, "disk_usage", free)
    free.return_value = usage._replace(free=size - 1)
    refuses(["are free there", "--link"], *sorting)
    assert not (tmp_path / "sorted").exists() and not (tmp_path / "x.csv").exists()
    for enough in (size, 0):  # a second run needs none
        free.return_value = usage._replace(free=enough)
        run(*sorting)
    assert len(files_in(tmp_path / "sorted")) == 30


def test_a_disk_that_fills_up_while_sorting(run, refuses, tmp_path, monkeypatch):
    copy, left = shutil.copy2, [12]

    def fill(source, target):
        left[0] -= 1
        if left[0] < 0:
            target.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copy2", fill)
    refuses(["No space left", "what was sorted stays"], "--sort-into", tmp_path / "s")
    assert len(files_in(tmp_path / "s")) == 12 and len(rows_of(tmp_path / "x.csv")) == 30
    left[0] = 100
    run("--sort-into", tmp_path / "s")
    assert len(files_in(tmp_path / "s")) == 30 and left[0] == 82


# --- what may not be overwritten or lost ---------------------------------------------------------


def test_what_is_not_our_table_is_not_overwritten(refuses, new, tmp_path):
    (tmp_path / "mine.csv").write_text("file,price\n")
    (tmp_path / "folder.csv").mkdir()
    (new / "photo.csv").write_bytes((new / "a/000.png").read_bytes())
    for path in (tmp_path / "mine.csv", tmp_path / "folder.csv", new / "photo.csv"):
        refuses(["is no table of predict.py"], output=path)
    refuses(["expected a file FILE.csv"], output=new / "a/000.png")
    refuses(["cannot be written", "File exists"], output=tmp_path / "mine.csv/x.csv")
    assert (tmp_path / "mine.csv").read_text() == "file,price\n"


# --- folders that hold something else ------------------------------------------------------------


def test_folders_without_a_finished_model(copied, pngs):
    digits = copied / "digits"

    def fails_at(path, *words):
        refused(words, load_trained_model, path)

    fails_at(digits / "none", "no such folder", "scan.py or selflabel.py")
    fails_at(digits / "scan/model.pth.tar", "is a file", "give the folder")
    fails_at(digits / "pretext", "simclr, which has no clusters")
    fails_at(copied, "holds no results", f"did you mean {digits}")
    fails_at(pngs, "holds no results of scan.py or selflabel.py")
    (digits / "scan/fingerprint.json").unlink()
    fails_at(digits / "scan", "no complete fingerprint.json", "has not finished; give the same command again")
    config = digits / "selflabel/config.yml"
    config.write_text(config.read_text().replace("num_classes: 10", "num_classes: 12"))
    fails_at(digits, "config.yml and model.pth.tar must be those of one run", "num_classes 10")
    config.write_text("setup: selflabel\n")
    fails_at(digits, "config.yml: missing")
    (digits / "selflabel/model.pth.tar").unlink()
    config.write_text((digits / "scan/config.yml").read_text())
    fails_at(digits, "selflabel/model.pth.tar: no such file")


def test_an_unfinished_self_labeling_is_passed_over(copied, caplog):
    (copied / "digits/selflabel/fingerprint.json").unlink()
    assert load_trained_model(copied / "digits").folder == copied / "digits/scan"
    assert_holds(caplog.messages[0], ["selflabel: not finished, so the model in", "scan is used"])


def test_what_is_no_image(refuses, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"")
    (tmp_path / "bad/b.jpg").write_bytes(b"\xff\xd8\xff")
    np.save(tmp_path / "vectors.npy", np.zeros((3, 128)))
    for name, *words in (
        ("empty", "no images found"),
        ("bad", "cannot be read as an image", "none that can"),
        ("vectors.npy", "was trained on images"),
    ):
        refuses(words, "--sort-into", tmp_path / "s", images=tmp_path / name)
    assert not (tmp_path / "x.csv").exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--unsure", "1.5"], "--unsure 1.5: must be from 0 to 1"),
        (["--unsure", "nan"], "--unsure nan: must be from 0 to 1"),
        (["--unlike", "101"], "--unlike 101: must be from 0 to 100"),
        (["--unlike", "nan"], "--unlike nan: must be from 0 to 100"),
        (["--link"], "--link needs --sort-into"),
        (["--batch_size", "0"], "--batch_size must be at least 1"),
        (["--device", "gpu"], "--device must be auto, cpu"),
        (["--sort-into", "README.md"], "README.md: is a file"),
    ],
)
def test_mistakes_on_the_command_line(refuses, flags, words):
    refuses([words], *flags)
