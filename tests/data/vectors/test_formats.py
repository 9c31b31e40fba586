"""Files of vectors: what is read, how rows are matched to images by name, and what the order tells."""

import itertools
import json

import numpy as np
import pytest
import torch
from image_folders import config
from mistakes import assert_holds, refused
from PIL import Image
from safetensors.numpy import save_file

import data
from data.vectors.rows import rows_by_name

NAMES = ["b/2.png", "a/1.png", "b/10.png"]
ROWS = np.array([[0.5, 1], [2, -3], [4, 4.25]], np.float32)


def table(header, separator=",", number=str):
    lines = [header, *([name, *map(number, row), "x"] for name, row in zip(NAMES, ROWS, strict=True))]
    return "".join(separator.join(line) + "\n" for line in lines)


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)


def with_table(path):
    np.save(path, ROWS)
    path.with_suffix(".csv").write_text("image,label\n" + "".join(f"{name},3\n" for name in NAMES))


FORMATS = {
    "a.npz": lambda path: np.savez(path, embeddings=ROWS, File_Names=NAMES, images=np.zeros((3, 2, 2))),
    "ids.npz": lambda path: np.savez(path, v=ROWS, ids=NAMES, kinds=["a", "b"], more=["x", "x", "y"]),
    "b.npz": lambda path: np.savez(path, emb=ROWS, names=np.array([name.encode() for name in NAMES])),
    "c.csv": lambda path: path.write_text(table(["file", "0", "1", "note"])),
    "d.tsv": lambda path: path.write_text(
        table(["Image Path", "x", "y", ""], ";", lambda value: str(value).replace(".", ","))
    ),
    "e.parquet": lambda path: parquet(path, paths=NAMES, id=[7, 8, 9], x=ROWS[:, 0], y=ROWS[:, 1]),
    "f.parquet": lambda path: parquet(path, image=NAMES, label=[7, 8, 9], embedding=ROWS.tolist()),
    "g.safetensors": lambda path: save_file({"x": ROWS}, path, {"names": json.dumps(NAMES), "format": "pt"}),
    "h.npy": with_table,
    "i.pt": lambda path: torch.save({"features": torch.tensor(ROWS).bfloat16(), "paths": NAMES}, path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_vectors_with_names(tmp_path, name):
    FORMATS[name](tmp_path / name)
    found = data.read_vectors(tmp_path / name)
    np.testing.assert_array_equal(found.vectors.astype(np.float32), ROWS)
    assert found.names == NAMES and found.backbone == "features/2"


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float64])
def test_vectors_without_names(tmp_path, dtype):
    for write, name in ((np.save, "a.npy"), (np.savez, "b.npz")):
        write(tmp_path / name, ROWS.astype(dtype))
        found = data.read_vectors(tmp_path / name)
        assert found.names is None and found.vectors.dtype == dtype and found.vectors.shape == (3, 2)
    torch.save(torch.tensor(ROWS), tmp_path / "c.pt")
    assert data.read_vectors(tmp_path / "c.pt").names is None


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        (
            "a.npz",
            lambda path: np.savez(path, a=ROWS, b=ROWS),
            ["found float32 (3, 2), float32 (3, 2)", "savez"],
        ),
        ("a.npz", lambda path: np.savez(path, features=ROWS, names=NAMES[1:]), ["3 vectors", "2 names"]),
        (
            "a.npz",
            lambda path: np.savez(path, v=ROWS, names=np.array(NAMES, object)),
            ["holds Python objects", "names=NAMES"],
        ),
        (
            "a.pt",
            lambda path: torch.save({"v": ROWS.dtype.type}, path),
            ["holds Python objects", "savez"],
        ),
        ("a.pt", lambda path: torch.save([1, 2], path), ["expected numbers of shape (N, D), found"]),
        ("a.csv", lambda path: path.write_text("file,x\na,1\nb,?\n"), ["line 3", "'?'"]),
        ("a.csv", lambda path: path.write_text("a.png,0.5,1.5\nb.png,1,2\n"), ["must name the columns"]),
        ("a.csv", lambda path: path.write_text("file,note\na,b\n"), ["found float32 (1, 0)"]),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1"), ["a.parquet"]),
        ("a.safetensors", lambda path: path.write_bytes(b"x"), ["cannot be read as vectors"]),
    ],
)
def test_what_is_refused(tmp_path, name, write, words):
    write(tmp_path / name)
    refused([name, *words], data.read_vectors, tmp_path / name)


def test_a_table_beside_it_must_have_names(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "a.csv").write_text("price\n1\n2\n3\n")
    refused(["a.csv: has no column file"], data.read_vectors, tmp_path / "a.npy")


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (NAMES, NAMES),
        (["/home/x/b/2.png", "/home/x/a/1.png", "c/b/10.png"], NAMES),
        (["b\\2.png", "./a/1.png", "more.png", "b\\10.png"], NAMES),
        (["2.png", "1.png", "10.png"], NAMES),
        (["2.jpg", "x/1", "10.jpg"], NAMES),
        (["a/1", "b/1", "v/b/1.x"], ["a/1.png", "b/1.png", "b/1.x.png"]),
        (["1.png", "a/1.png"], ["1.png", "a/1.png"]),
        (["u\u0308.png"], ["\u00fc.png"]),
    ],
)
def test_rows_by_name(tmp_path, names, images):
    for order in itertools.permutations(range(len(images))):
        rows = rows_by_name(tmp_path, names, [images[i] for i in order])
        kept = [row for row, name in enumerate(names) if name != "more.png"]
        assert rows.tolist() == [kept[i] for i in order]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["b/2.png", "c.png", "d.png"],
            ["no vector for 2 of 3 images, first a/1.png", "2 of its 3", "first c.png"],
        ),
        ([*NAMES, "b/2.png"], ["rows 0 and 3 are both of b/2.png"]),
        (["x/2.png", "y/2.png", "x/1.png", "x/10.png"], ["rows 0 and 1 are both of b/2.png"]),
        (["b", "a", "b"], ["no vector for 3 of 3 images"]),
    ],
)
def test_names_that_do_not_fit(tmp_path, names, words):
    refused([tmp_path.name, *words], rows_by_name, tmp_path, names, NAMES)


# --- the order -----------------------------------------------------------------------------------

COLORS = np.random.default_rng(0).integers(0, 256, (30, 3))


@pytest.fixture
def build(tmp_path):
    """The dataset of photos 0.png to 29.png of one color each, and of vectors in this order."""

    def write(vectors, colors=COLORS, name="{}.png"):
        for i, color in enumerate(colors):
            (tmp_path / "photos/a").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), tuple(color.tolist())).save(tmp_path / "photos/a" / name.format(i))
        np.save(tmp_path / "v.npy", vectors)
        settings = {"features_file": str(tmp_path / "v.npy"), "transformation_kwargs": {"crop_size": 28}}
        return data.build_dataset(config("photos", tmp_path, **settings), "train")

    return write


def told(dataset, caplog):
    """The vectors by the photos' numbers, and what was logged last."""
    vectors = next(dataset.fetch([torch.arange(30)], "cpu")).numpy()
    numbers = [int(name.split("/")[-1][:-4]) for name in dataset.names()]
    assert numbers[:3] in ([0, 1, 10], [0, 1, 2])
    return vectors[np.argsort(numbers)], [message for message in caplog.messages if "v.npy" in message]


SORTED = sorted(range(30), key=str)
NOISE = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)


def test_rows_in_the_order_of_numbers_are_noticed_by_neighbors(build, caplog):
    vectors = (COLORS @ np.random.default_rng(2).normal(size=(3, 8))).astype(np.float32)
    found, (message,) = told(build(vectors), caplog)
    np.testing.assert_array_equal(found, vectors)
    assert_holds(message, ["in the order numbers (1, 2, 10), not sorted", "a/10.png <- row 10", "v.csv"])


def test_rows_in_the_order_of_numbers_are_noticed_by_copies(build, caplog):
    colors, vectors = COLORS.copy(), NOISE.copy()
    colors[17], vectors[17] = colors[2], vectors[2]
    found, (message,) = told(build(vectors, colors), caplog)
    np.testing.assert_array_equal(found, vectors)
    assert "order numbers" in message


def test_sorted_rows(build, caplog):
    vectors = (COLORS @ np.random.default_rng(2).normal(size=(3, 8))).astype(np.float32)
    found, messages = told(build(vectors[SORTED]), caplog)
    np.testing.assert_array_equal(found, vectors)
    assert not messages


def test_an_order_that_nothing_shows_is_told(build, caplog):
    found, (message,) = told(build(NOISE[SORTED]), caplog)
    np.testing.assert_array_equal(found, NOISE)
    assert_holds(message, ["sorted (1, 10, 2)", "nothing shows", "a/10.png <- row 2, ", "give names"])


def test_copies_with_unlike_vectors(build, caplog):
    colors = COLORS.copy()
    colors[17] = colors[2]
    _, (message,) = told(build(NOISE, colors, "{:02}.png"), caplog)
    assert_holds(message, ["copies of a file have unlike vectors", "in another order, give names"])
