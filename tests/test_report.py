"""The order in which results are written, and what is in the files whatever images are called."""

import csv
import json
import os

import pytest
import torch
from PIL import Image
from steps import STEPS, run

import eval as evaluation
from data.digits import build_digits
from utils.analysis import health, plots, report

ODD = [b"$10_to_$20", b"a\nb", b"\xff\xfe", "一二".encode(), b"x" * 255, b'q"u,o\te']


class Dataset:
    def __init__(self, labels=None, classes=None, names=None):
        self.labels, self.classes, self._names = labels, classes, names

    def names(self):
        return self._names


def clusters(n, c, used):
    return torch.nn.functional.one_hot(torch.arange(n) % used, c).float()


def test_figures_come_first_and_earlier_files_go(tmp_path, monkeypatch):
    for name in ("metrics.json", *report.PARTS, "curves.png", "mine.txt"):
        (tmp_path / name).write_text("old")
    seen = []

    def look(matrix, rows, columns, path):
        seen.extend(sorted(p.name for p in tmp_path.iterdir()))

    monkeypatch.setattr(plots, "save_confusion_matrix", look)
    dataset = Dataset(torch.arange(6) % 2, ["a", "b"], list("uvwxyz"))
    report.report_clusters(tmp_path, clusters(6, 3, 2), dataset, {"split": "test"})
    assert seen == ["assignment.csv", "curves.png", "metrics.json", "mine.txt"]
    assert "old" not in (tmp_path / "assignment.csv").read_text()


def test_files_are_utf8_whatever_the_names(tmp_path):
    names = ["\udcff", "a\nb", 'q"u,o\te', "一", "plain"]
    report.report_clusters(tmp_path, clusters(5, 5, 5), Dataset(names=names), {"split": "test"})
    with open(tmp_path / "assignment.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [r"\udcff", *names[1:]]
    assert [row["cluster"] for row in rows] == list("01234")


@pytest.mark.parametrize("c", [health.LISTED, 400])
def test_long_lists_are_in_the_files_only(tmp_path, caplog, c):
    caplog.set_level("INFO")
    report.report_clusters(tmp_path, clusters(30, c, 8), Dataset(names=["x"] * 30), {"split": "test"})
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert (len(figures["cluster_sizes"]), figures["empty_clusters"]) == (c, list(range(8, c)))
    for line in caplog.messages:
        assert sum(word.strip("[],").isdigit() for word in line.split()) <= health.LISTED + 3
    assert len(caplog.messages) == 3


# --- the real scripts ----------------------------------------------------------------------------


def test_odd_names_through_the_steps(tmp_path, capsys):
    """Names that are no UTF-8, mathematics, several lines, too long, in no font."""
    for split, n in (("train", 8), ("test", 3)):
        images = build_digits("", split, 8).images.permute(0, 2, 3, 1).numpy()
        for label, name in enumerate(ODD):
            folder = os.path.join(os.fsencode(tmp_path), b"odd", split.encode(), name)
            os.makedirs(folder)
            for i in range(n):
                with open(os.path.join(folder, b"%d_$\xfe\n$.png" % i), "wb") as file:
                    Image.fromarray(images[label * n + i]).save(file, format="png")
    names = ["train_db_name=odd", "val_db_name=odd", f"data_dir={tmp_path}", "batch_size=24", "num_classes=6"]
    for step in ("pretext", "scan"):
        run(step, tmp_path, *names, "epochs=1", "num_heads=1")
    folder = tmp_path / "odd/scan"
    assert {"confusion_matrix.png", "curves.png", "fingerprint.json"} <= {p.name for p in folder.iterdir()}
    settings = ["--set", *names, f"root_dir={tmp_path}", "num_heads=1"]
    argv = ["--config_exp", STEPS["scan"][1], "--model", str(folder / "model.pth.tar")]
    evaluation.main([*argv, "--visualize_prototypes", *settings])
    assert (folder / "eval/model/prototypes.png").is_file()
    argv = ["--config_exp", STEPS["pretext"][1], "--model", str(tmp_path / "odd/pretext/model.pth.tar")]
    evaluation.main([*argv, "--kmeans", *settings])
    assert (tmp_path / "odd/pretext/eval/model/neighbors.png").is_file()
    with open(folder / "assignment.csv", newline="", encoding="utf-8") as file:
        assert sum(row["image"].startswith("$10_to_$20/") for row in csv.DictReader(file)) == 3
    assert "no picture" not in capsys.readouterr().err


def test_pictures_that_fail_do_not_fail_the_steps(after, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    root = after("pretext")
    for step in ("scan", "selflabel"):
        run(step, root, "epochs=1")
        folder = root / "digits" / step
        assert {"model.pth.tar", "metrics.json", "assignment.csv", "fingerprint.json"} <= {
            p.name for p in folder.iterdir()
        }
        assert not list(folder.glob("*.png"))
        for name in ("confusion_matrix", "curves"):
            assert f"{name}.png: no picture (OSError: [Errno 28] No space" in (folder / "log.txt").read_text()
    argv = ["--config_exp", STEPS["selflabel"][1], "--model", str(folder / "model.pth.tar")]
    evaluation.main([*argv, "--visualize_prototypes"])
    figures = json.loads((folder / "eval/model/metrics.json").read_text())
    assert len(figures["prototypes"]) == 10
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_line_of_any_bytes_is_in_the_log(after):
    import logging

    root = after("pretext")
    run("scan", root, "epochs=1")
    logging.getLogger("utils.test").warning("%s: looked at", "\udcff 一.png")
    text = (root / "digits/scan/log.txt").read_bytes().decode("utf-8")
    assert r"\udcff 一.png: looked at" in text
