"""Odd names of classes and files through the real steps; pictures that cannot be drawn."""

import csv
import logging
import os

from digits_files import DIGITS
from digits_steps import evaluate, run
from PIL import Image

import data

ODD = [b"$10_to_$20", b"a\nb", b"\xff\xfe", "一二".encode(), b"x" * 255, b'q"u,o\te']


def test_odd_names_through_the_steps(request, tmp_path, capsys):
    """Names that are no UTF-8, mathematics, several lines, too long, in no font."""
    for split, n in (("train", 8), ("test", 3)):
        images = data.build_dataset(DIGITS, split).images.permute(0, 2, 3, 1).numpy()
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
    request.getfixturevalue("pictures")  # from here on they are drawn
    evaluate("scan", folder / "model.pth.tar", *names, "num_heads=1", flags=["--visualize_prototypes"])
    assert (folder / "eval/model/prototypes.png").is_file()
    evaluate("pretext", tmp_path / "odd/pretext/model.pth.tar", *names, flags=["--kmeans"])
    assert (tmp_path / "odd/pretext/eval/model/neighbors.png").is_file()
    with open(folder / "assignment.csv", newline="", encoding="utf-8") as file:
        assert sum(row["image"].startswith("$10_to_$20/") for row in csv.DictReader(file)) == 3
    assert "no picture" not in capsys.readouterr().err


def test_pictures_that_fail_do_not_fail_the_steps(pictures, after, monkeypatch, capsys):
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
    found = evaluate("selflabel", folder / "model.pth.tar", flags=["--visualize_prototypes"])
    assert len(found["prototypes"]) == 10
    assert "Traceback" not in capsys.readouterr().err


def test_a_log_line_of_any_bytes_is_in_the_log(after):
    root = after("pretext")
    run("scan", root, "epochs=1")
    logging.getLogger("utils.test").warning("%s: looked at", "\udcff 一.png")
    text = (root / "digits/scan/log.txt").read_bytes().decode("utf-8")
    assert r"\udcff 一.png: looked at" in text
