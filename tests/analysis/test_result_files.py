"""The order in which results are written, and what is in the files whatever images are called."""

import pytest
import torch
from digits_steps import figures, rows_of

import data
from utils.analysis import health, plots, results


class Named(data.Dataset):
    def __init__(self, labels=None, classes=None, names=None):
        self.labels, self.classes, self._names = labels, classes, names

    def names(self):
        return self._names

    def raw(self, index):
        return torch.zeros(3, 12, 9, dtype=torch.uint8)


def clusters(n, c, used):
    return torch.nn.functional.one_hot(torch.arange(n) % used, c).float()


def test_figures_come_first_and_earlier_files_go(tmp_path, monkeypatch):
    for name in ("metrics.json", *results.PARTS, "curves.png", "mine.txt"):
        (tmp_path / name).write_text("old")
    seen = []

    def look(matrix, rows, columns, path):
        seen.extend(sorted(p.name for p in tmp_path.iterdir()))

    monkeypatch.setattr(plots, "save_confusion_matrix", look)
    dataset = Named(torch.arange(6) % 2, ["a", "b"], list("uvwxyz"))
    results.save_clustering(tmp_path, clusters(6, 3, 2), dataset, {"split": "test"})
    assert seen == ["assignment.csv", "curves.png", "metrics.json", "mine.txt"]
    assert "old" not in (tmp_path / "assignment.csv").read_text()


def test_calibration_needs_labels(tmp_path):
    """Three clusters for two classes: by majority vote two of ten images are wrong, at a confidence of 1."""
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 0])  # clusters 0 1 2 0 1 2 0 1 2 0
    probabilities, names = clusters(10, 3, 3), list("abcdefghij")
    found = results.save_clustering(
        tmp_path, probabilities, Named(labels, ["a", "b"], names), {"split": "test"}
    )
    assert (found["acc"], found["majority_vote_acc"]) == (0.6, 0.8)
    assert found["calibration"]["ece"] == pytest.approx(0.2)
    assert found["calibration"]["sure"] == {"count": 10, "accuracy": 0.8}
    assert figures(tmp_path)["calibration"] == found["calibration"]
    assert "calibration" not in results.save_clustering(
        tmp_path, probabilities, Named(names=names), {"split": "test"}
    )


def test_what_new_images_need_to_be_read_alike(tmp_path):
    dataset = Named(names=["x"] * 3)
    dataset.white_level = 4095
    found = results.save_clustering(tmp_path, clusters(3, 2, 2), dataset, {"split": "test"})
    assert (found["image_side"], found["white_level"]) == (9, 4095)


def test_files_are_utf8_whatever_the_names(tmp_path):
    names = ["\udcff", "a\nb", 'q"u,o\te', "一", "plain"]
    results.save_clustering(tmp_path, clusters(5, 5, 5), Named(names=names), {"split": "test"})
    rows = rows_of(tmp_path / "assignment.csv")
    assert [row["image"] for row in rows] == [r"\udcff", *names[1:]]
    assert [row["cluster"] for row in rows] == list("01234")


@pytest.mark.parametrize("c", [health.MAX_LISTED, 400])
def test_long_lists_are_in_the_files_only(tmp_path, caplog, c):
    caplog.set_level("INFO")
    results.save_clustering(tmp_path, clusters(30, c, 8), Named(names=["x"] * 30), {"split": "test"})
    found = figures(tmp_path)
    assert (found["image_side"], found["white_level"]) == (9, None)
    assert (len(found["cluster_sizes"]), found["empty_clusters"]) == (c, list(range(8, c)))
    for line in caplog.messages:
        assert sum(word.strip("[],").isdigit() for word in line.split()) <= health.MAX_LISTED + 3
    assert len(caplog.messages) == 3
