"""cluster.py when the images of earlier results have changed: what is trained stays."""

import hashlib
import json
import shutil
from unittest import mock

import numpy as np
import pytest
from digits_steps import ROOT, fails, rows_of
from PIL import Image

import cluster
from workflows import own_clusters

CENTERS = np.eye(5, 6, dtype=np.float32) * 9
KINDS = 3  # at first; a fourth one comes later, and the fifth is of lone images


class Photos:
    """A folder of images of noise, each with a vector near the center of its kind, and the command."""

    def __init__(self, folder, results):
        self.folder, self.vectors, self.kinds, self.made = folder, {}, {}, 0
        folder.mkdir(parents=True)
        self.argv = [str(folder), "--clusters", str(KINDS), "--features", str(folder.with_suffix(".npy"))]
        self.argv += ["--root_dir", str(results), "--set", "num_workers=0", "device=cpu"]
        self.results = results / folder.name

    def add(self, name, kind):
        self.made += 1
        rng = np.random.default_rng(self.made)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(self.folder / name)
        self.vectors[name] = CENTERS[kind] + rng.normal(size=6).astype(np.float32)
        self.kinds[name] = kind

    def rename(self, name, new):
        (self.folder / name).rename(self.folder / new)
        self.vectors[new], self.kinds[new] = self.vectors.pop(name), self.kinds.pop(name)

    def remove(self, name):
        (self.folder / name).unlink()
        del self.vectors[name], self.kinds[name]

    def move(self):
        """Move all to another folder; the command names that."""
        place = self.folder.parent / "elsewhere"
        place.mkdir()
        self.argv = [arg.replace(str(self.folder), str(place / self.folder.name)) for arg in self.argv]
        self.folder = self.folder.rename(place / self.folder.name)

    def cluster(self, capsys, *more):
        """Run the command; returns what it printed, and the rows of clusters.csv by file."""
        names = sorted(self.vectors, key=lambda name: ("/" in name, name))
        np.save(self.folder.with_suffix(".npy"), [self.vectors[name] for name in names])
        cluster.main([*self.argv, *more])
        return capsys.readouterr().out, {row["file"]: row for row in rows_of(self.results / "clusters.csv")}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = Photos(tmp_path / "photos", tmp_path / "out")
    for i in range(60):
        made.add(f"{i:02}.png", i % KINDS)
    return made


def test_images_come_and_go(photos, capsys):
    _, first = photos.cluster(capsys)
    for name in ("00.png", "01.png", "59.png"):
        photos.remove(name)
    photos.rename("02.png", "trip 02.png")
    for i in range(12):
        photos.add(f"more {i:02}.png", i % 2)
    for i in range(6):
        photos.add(f"other {i}.png", 3)
    photos.add("lone.png", 4)
    model = (photos.results / "scan/model.pth.tar").stat()
    photos.move()
    out, rows = photos.cluster(capsys)
    assert model == (photos.results / "scan/model.pth.tar").stat()
    assert sorted(rows) == sorted(photos.vectors)
    number = {photos.kinds[name]: row["cluster"] for name, row in first.items() if name in photos.kinds}
    assert all(rows[name]["cluster"] == number[kind] for name, kind in photos.kinds.items() if kind < KINDS)
    new = {name: row["new"] for name, row in rows.items() if row["new"]}
    kind_of = {"m": "new", "o": "new 1", "l": "unlike"}
    assert new == {name: kind_of[name[0]] for name in photos.vectors if name[0] in kind_of}
    assert "19 new images: " in out and "; 3 removed; 1 renamed" in out and "new 1: 6, unlike: 1" in out
    moves = [(row["action"], row["what"], row["to"]) for row in rows_of(photos.results / "new_kinds.csv")]
    assert moves == [("move", f"other {i}.png", "new 1") for i in range(6)]
    assert (photos.results / "new_kinds.png").exists()

    out, again = photos.cluster(capsys)
    assert again == rows and "new images" not in out
    photos.remove("lone.png")
    for i in range(5):
        photos.add(f"strange {i}.png", 4)
    photos.add("other 9.png", 3)
    (photos.results / "new_kinds.csv").rename(photos.results / "corrections.csv")
    out, rows = photos.cluster(capsys)
    assert "6 new images: " in out and "; 1 removed" in out and "(new 2: 5)" in out
    others = [row for name, row in rows.items() if name[0] == "o"]
    assert {(row["cluster"], row["name"], row["new"]) for row in others} == {("3", "new 1", "new")}


def test_corrections_follow_renamed_images(photos, capsys):
    """Also twice, where another image took the name, and where a corrected image is gone."""
    _, first = photos.cluster(capsys)
    moves = "".join(
        f"move,{name},{(int(first[name]['cluster']) + 1) % KINDS}\n" for name in ("00.png", "01.png")
    )
    (photos.results / "corrections.csv").write_text("action,what,to\n" + moves)
    _, rows = photos.cluster(capsys)
    number = rows["00.png"]["cluster"]
    photos.rename("00.png", "once.png")
    photos.add("00.png", 0)
    photos.remove("01.png")
    for name in ("once.png", "twice.png", "twice.png"):
        out, rows = photos.cluster(capsys)
        assert (
            (rows[name]["cluster"], rows[name]["corrected"])
            == (number, "yes")
            != (first["00.png"]["cluster"], "")
        )
        assert (rows["00.png"]["cluster"], rows["00.png"]["corrected"]) == (first["03.png"]["cluster"], "")
        if "once.png" in photos.vectors:
            photos.rename("once.png", "twice.png")
    assert (photos.results / "corrections.csv").read_text() == "action,what,to\n" + moves


def test_corrected_images_come_and_go(photos, capsys):
    """Also where one takes the name of another, parts of a split, and in another training."""
    photos.cluster(capsys)
    moves = "move,00.png,dogs\nmove,01.png,2\nmove,03.png,none\nsplit,0,\n"
    (photos.results / "corrections.csv").write_text("action,what,to\n" + moves)
    first = {name: (row["cluster"], row["corrected"]) for name, row in photos.cluster(capsys)[1].items()}
    away = (photos.folder / "01.png").read_bytes(), photos.vectors["01.png"], photos.kinds["01.png"]
    photos.remove("01.png")
    names = {"later.png": "00.png", "00.png": "03.png", "p.png": "06.png"}
    for new, old in names.items():
        photos.rename(old, new)
    for last in ("59.png", "58.png"):
        photos.remove(last)
        rows = photos.cluster(capsys)[1]
        found = {names.get(name, name): (row["cluster"], row["corrected"]) for name, row in rows.items()}
        assert found.items() <= first.items()
    (photos.folder / "01.png").write_bytes(away[0])
    photos.vectors["01.png"], photos.kinds["01.png"] = away[1:]
    photos.rename("later.png", "latest.png")
    rows = photos.cluster(capsys, "--retrain")[1]
    assert [rows[name]["corrected"] for name in ("01.png", "latest.png", "00.png")] == ["yes", "yes", "none"]


def test_added_folders_are_remembered(photos, capsys, monkeypatch):
    """Known images keep their names. With --retrain or other vectors, there is another training."""
    _, first = photos.cluster(capsys)
    new = photos.folder.parent / "new"
    new.mkdir()
    Image.new("RGB", (8, 8)).save(new / "00.png")
    photos.vectors["new/00.png"] = CENTERS[1]
    out, rows = photos.cluster(capsys, "--add", str(new))
    assert [*rows] == [*first, "new/00.png"] and "1 new image: 1 in cluster" in out
    assert rows["new/00.png"]["cluster"] == first["01.png"]["cluster"]
    out, again = photos.cluster(capsys)
    assert again == rows and "new images" not in out
    (new / "00.png").unlink()
    new.rmdir()
    del photos.vectors["new/00.png"]
    out, rows = photos.cluster(capsys)
    assert [*rows] == [*first] and "was added before and is gone" in out

    monkeypatch.setattr("workflows.run_steps.run_steps", mock.Mock(side_effect=KeyboardInterrupt))
    photos.add("99.png", 0)
    shutil.copytree(photos.results, photos.results.with_name("copy"))
    with pytest.raises(KeyboardInterrupt):
        photos.cluster(capsys, "--retrain")
    assert len(rows_of(photos.results / "earlier-1/clusters.csv")) == 60
    shutil.rmtree(photos.results)
    photos.results.with_name("copy").rename(photos.results)
    photos.vectors = {name: -vector for name, vector in photos.vectors.items()}
    with pytest.raises(KeyboardInterrupt):
        photos.cluster(capsys)
    assert (photos.results / "earlier-1/scan/model.pth.tar").exists()


def test_whose_results_a_folder_holds(tmp_path, monkeypatch, capsys):
    """They are asked for before anything is read."""
    monkeypatch.setattr(
        own_clusters, "run_experiment", lambda experiment: folders.append(experiment.folder.name)
    )
    folders, out, first, second = [], tmp_path / "out", tmp_path / "a/in", tmp_path / "b/in"

    def run(place, *more, **said):
        cluster.main([str(place), "--clusters", "3", "--root_dir", str(out), *more])
        if said:
            (out / folders[-1] / "scan").mkdir(exist_ok=True)
            (out / folders[-1] / "scan/fingerprint.json").touch()
            record = {"contents": {"pretext": {"image_folder": str(place)}}, "named": bool(more), **said}
            (out / folders[-1] / "cluster.json").write_text(json.dumps(record))
        return folders[-1]

    for place, color in ((first, 9), (second, 99)):
        place.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (3, 3), (color, i, 0)).save(place / f"{i}.png")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in first.iterdir()]
    assert run(first, trained=hashes) == "in" == run(first)
    assert run(second, "--name", "in-2", trained=[]) == "in-2" and run(second) == "in-3"
    assert run(second, trained=["0"]) == "in-3" == run(second)
    assert "in: holds clusters of other images; these have their results in" in capsys.readouterr().out
    message = fails(
        capsys, cluster.main, [str(second), "--clusters", "3", "--root_dir", str(out), "--name", "in"]
    )
    assert "in: holds clusters of other images; give a name that is free: --name in-4" in message
    shutil.copytree(first, tmp_path / "c/in")
    assert run(tmp_path / "c/in") == "in-4"
    shutil.rmtree(first)
    assert run(tmp_path / "c/in") == "in" and run(second) == "in-3"
    (tmp_path / "c/in").rename(tmp_path / "c/renamed")
    assert run(tmp_path / "c/renamed") == "in" and run(tmp_path / "c/renamed", "--name", "new") == "new"
