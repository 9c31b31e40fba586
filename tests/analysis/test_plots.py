"""Pictures of anything that a class or a file may be called; and of what cannot be drawn."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from utils.analysis import plots

ODD = [
    *("$10_to_$20", r"\frac{1}{0}", "a\nb", "tab\t", "\x1b[31mred", "\udcff\udcfe", "x" * 5000, "", " "),
    *("一二", "🦄", "عربى", "\u202eabc", "a_b^{", "%s {0}"),
]


@pytest.fixture(autouse=True)
def strict(caplog, pictures):
    caplog.set_level("INFO")
    plots.drawable.cache_clear()
    with warnings.catch_warnings(action="error"):
        warnings.simplefilter("ignore", ResourceWarning)  # about what earlier tests left to be collected
        yield


def messages(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelname == level]


def test_odd_names(tmp_path, caplog):
    matrix = np.eye(len(ODD))
    plots.save_confusion_matrix(matrix, ODD, [str(i) for i in range(len(ODD))], tmp_path / "matrix.png")
    names = plots.drawable(tuple(enumerate(ODD)))
    cells = [(np.zeros((3, 8, 8), np.uint8), f"cluster 0 = {name}\n3 images") for name in names.values()]
    plots.save_image_sheet([*cells, (None, "")], tmp_path / "sheet.png")
    assert messages(caplog, "WARNING") == []
    about_fonts = [message for message in messages(caplog, "INFO") if "font" in message]
    assert len(about_fonts) <= 1  # though there are two pictures
    for name in ("matrix", "sheet"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert max(picture.size) < 3000  # however long a name is


def test_what_pictures_show():
    assert plots.drawable(((3, "plain"), (5, "a\nb\udcff"))) == {3: "plain", 5: r"a\nb\udcff"}
    assert plots.drawable(((8, "$x$"), (9, "é ß я"))) == {8: "$x$", 9: "é ß я"}


def test_names_that_the_fonts_lack_are_numbers(caplog, monkeypatch):
    monkeypatch.setattr(plots, "FONTS", plots.FONTS[:1])
    for _ in range(2):
        assert plots.drawable(tuple(enumerate(["one", "一", "二"]))) == {0: "one", 1: "#1", 2: "#2"}
    (line,) = messages(caplog, "INFO")
    assert line.endswith("for 2 names that the installed fonts cannot write: #1 一, #2 二")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("\nfont"), MemoryError()]
)
def test_a_picture_that_fails_is_a_warning_and_leaves_no_earlier_one(tmp_path, caplog, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    path = tmp_path / "curves.png"
    path.write_text("an earlier one")
    plots.save_curves([{"epoch": 1, "loss": 2.0}], path)
    (line,) = messages(caplog, "WARNING")
    assert line.startswith(f"{path}: no picture ({type(error).__name__}") and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_gone_costs_the_picture_only(tmp_path, caplog):
    def cells():
        yield None, "there"
        raise FileNotFoundError("x.png")

    plots.save_image_sheet(cells(), tmp_path / "sheet.png")
    assert "sheet.png: no picture (FileNotFoundError: x.png)" in messages(caplog, "WARNING")[0]


@pytest.mark.parametrize("several", [False, True])
def test_variants(tmp_path, caplog, several):
    values = [0.5, 0.9] if several else [0.7]
    found = {"mean": 0.7, "std": 0.28 if several else None, "values": values}
    methods = {name: {"1": found, "strong, strong": found} for name in ("SCAN loss", "self-labeling")}
    plots.save_variants(methods, "1", "what differs", "ACC", tmp_path / "variants.png")
    assert messages(caplog, "WARNING") == []
    assert 1000 < (tmp_path / "variants.png").stat().st_size < 30_000


def test_contact_sheet(tmp_path, caplog):
    red, blue = torch.zeros(2, 3, 30, 30, dtype=torch.uint8)
    red[0], blue[2] = 255, 255
    cells = [(red, "99 %")] * 25 + [(blue, "50 %")]
    plots.save_contact_sheet(cells, "cluster 0: 26 images", tmp_path / "0.png")
    with Image.open(tmp_path / "0.png") as sheet:
        step = plots.CONTACT_SIDE + 4
        assert sheet.size[0] == 20 * step + 4
        places = (0, 19), (1, 4), (1, 5), (1, 6)
        pixels = [sheet.getpixel((10 + column * step, 60 + row * (step + 12))) for row, column in places]
    assert pixels == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255)]
    plots.save_contact_sheet([], "nothing", tmp_path / "missing" / "0.png")
    assert "no picture" in caplog.text
