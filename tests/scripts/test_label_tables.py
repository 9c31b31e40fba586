"""Labels to compare the clusters with, from a table."""

import logging

import pytest
from mistakes import refused

from data import messages
from workflows.subfolder_classes import labels_of, require_classes

NAMES = ["a/1.png", "a/2.png", "b/1.png", "b/3.jpg", "ä 4.png", "5.png"]


def classes(path):
    labels, names = labels_of(NAMES, str(path))
    return [names[label] if label >= 0 else None for label in labels]


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na/1.png,x\n2.png,y\nb/1.png,y\n3,x\nä 4.png,x\n5.jpg,\n",
        "Class;Note;PATH\nx;-;a\\1.png\ny;;./a/2.png\ny;;b/1.png\nx;;c/b/3.jpg\nx;;ä 4\n",
        "id\tname\ttarget\n0\ta/1.png\tx\n1\ta/2.png\ty\n2\tb/1.png\ty\n3\tb/3.jpg\tx\n4\tä 4.png\tx\n",
    ],
)
def test_files_match_by_name_base_name_or_stem(tmp_path, caplog, table):
    caplog.set_level(logging.INFO)
    messages.say_once.cache_clear()
    (tmp_path / "l.csv").write_text(table, "utf-8")
    assert classes(tmp_path / "l.csv") == ["x", "y", "y", "x", "x", None]
    assert "labels of 5 of 6 images; of none of 5.png" in caplog.text and "name no image" not in caplog.text


def test_what_may_mean_several_images_matches_none(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    messages.say_once.cache_clear()
    (tmp_path / "l.csv").write_text(
        "image,class\n1.png,x\nc/2.png,x\nd/2.png,y\n3.png,z\n5.png,y\n6.png,y\n7.png,y\n"
    )
    assert classes(tmp_path / "l.csv") == [None, None, None, "z", None, "y"]
    assert "labels of 2 of 6 images; of none of a/1.png, a/2.png, b/1.png, ...;" in caplog.text
    assert "3 rows name no image, or several, such as 1.png" in caplog.text


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("picture,label\n1.png,x\n", ["its first line must be file,label", "found picture,label"]),
        ("file,label\nx1.png,x\nx2.png,y\n", ["the images are in 0 classes", "named such as a/1.png"]),
        ("file,label\n1.png,x\n1,2,3\n", ["line 3"]),
    ],
)
def test_tables_that_are_no_labels(tmp_path, table, words):
    (tmp_path / "l.csv").write_text(table)
    refused(["l.csv", *words], require_classes, NAMES, str(tmp_path / "l.csv"))
