"""Folders of anybody's images: which files are images, and which split and class they belong to."""

import os

import pytest
import torch
from image_folders import build, config, fetch, file_names, gradient, notes, only, write_images

import data
from data import decoding
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


def test_what_is_no_image_file_is_ignored(folder):
    gradient().save(folder / "a.png")
    (folder / "._a.png").write_bytes(b"\0\5\x16\7 macOS")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / "read me.txt").write_text("")
    only(folder)
    assert notes(folder) == {}


def test_images_beside_class_folders_are_told_of(folder, caplog):
    (folder / "cat").mkdir()
    gradient().save(folder / "cat/a.png")
    gradient().save(folder / "b.png")
    assert file_names(build(folder)) == ["a.png"]
    assert "1 images beside the class folders are left out" in caplog.text


# --- which files ---------------------------------------------------------------------------------

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pcx"),
    *(".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".webp"),
)


@pytest.mark.parametrize("upper", [False, True])
def test_all_formats_that_pillow_reads(folder, upper):
    for suffix in SUFFIXES:
        name = f"a{suffix}"
        gradient().save(folder / name)
        (folder / name).rename(folder / (name.upper() if upper else name))
    assert len(build(folder)) == len(SUFFIXES)
    assert notes(folder) == {}


def test_files_without_a_suffix_are_images_if_their_content_is(folder, caplog):
    for i, name in enumerate(("0123abcd", "frame.0001", "a.jpg?width=300", "b.jpg_large", "c.JPG ", "d.")):
        gradient().save(folder / name, format=("PNG", "JPEG", "WEBP")[i % 3])
    gradient().save(folder / "e", format="TGA")  # has no mark, so that anything may look like it
    (folder / "Makefile").write_text("all:")
    (folder / "empty").write_bytes(b"")
    assert len(build(folder)) == 6
    assert (
        "6 images (no suffix 6) without class folders; left out: 3 other files (no suffix 3)" in caplog.text
    )


def test_what_is_left_out_is_told_of(folder, caplog, another_process):
    gradient().save(folder / "a.png")
    for i, suffix in enumerate(("txt", "mpg", "eps", "pdf.part", "json", "JSON", "csv", "xyz")):
        (folder / f"{i}.{suffix}").write_text("")
    build(folder)
    line = caplog.text.splitlines()[-1]
    assert (
        "train: 1 images (.png 1) without class folders; left out: 8 other files (.json 2, .csv 1, " in line
    )
    assert ".part 1, others 2); to read .eps: save them as PNG" in line
    assert line.startswith("WARNING")
    another_process()
    (folder / "2.eps").unlink()
    for i in range(12):
        (folder / f"{i}.heic").write_bytes(b"")
    build(folder)
    line = caplog.text.splitlines()[-1]
    assert "(.heic 12, .json 2" in line
    assert "; to read .heic: pip install pillow-heif" in line


def test_a_pillow_without_a_library(folder, caplog, monkeypatch):
    gradient().save(folder / "a.png")
    gradient().save(folder / "b.avif")
    monkeypatch.setattr(decoding.features, "check", lambda library: library != "avif")
    for cached in (decoding.formats, decoding.suffixes):
        cached.cache_clear()
    try:
        assert file_names(build(folder)) == ["a.png"]
    finally:
        for cached in (decoding.formats, decoding.suffixes):
            cached.cache_clear()
    assert "left out: 1 other files (.avif 1); to read .avif: pip install --upgrade pillow" in caplog.text


def test_other_programs_are_not_run(folder):
    """A picture by name that Pillow would give to Ghostscript."""
    gradient().save(folder / "a.png")
    gradient().save(folder / "b.png", format="EPS")
    assert file_names(build(folder)) == ["a.png"]
    assert notes(folder) == {"b.png": "empty, or not an image"}


def test_a_pipe_is_not_read(folder):
    gradient().save(folder / "a.png")
    os.mkfifo(folder / "b.png")
    assert file_names(build(folder)) == ["a.png"]


def test_nothing_but_other_files(folder):
    (folder / "a.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"no images found .*, only 1 other files .*; to read .heic: pip"):
        build(folder)


# --- folders in folders --------------------------------------------------------------------------


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    gradient().save(path)


def test_class_folders_are_read_with_all_that_is_within_them(folder):
    for path in ("cat/a.png", "cat/roll/a.png", "cat/roll/b/a.png", "dog/roll/a.png", "dog/x.png/y.png"):
        save(folder / path)
    for path in (
        "cat/.git/a.png",
        ".cache/a.png",
        "__MACOSX/cat/a.png",
        "dog/@eaDir/a.png",
        "dog/__MACOSX/a.png",
    ):
        save(folder / path)
    dataset = build(folder)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.names() == [
        "cat/a.png",
        "cat/roll/a.png",
        "cat/roll/b/a.png",
        "dog/roll/a.png",
        "dog/x.png/y.png",
    ]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]


def test_links_in_circles(folder):
    for name in ("cat", "dog"):
        save(folder / name / "a.png")
    (folder / "cat/up").symlink_to("..")
    (folder / "cat/itself").symlink_to(".")
    (folder / "cat/a.lnk.png").symlink_to("a.lnk.png")
    (folder / "dog/split").symlink_to(folder)
    (folder / "root").symlink_to(folder.parent)
    (folder / "cat/x").mkdir()
    (folder / "cat/y").mkdir()
    (folder / "cat/x/y").symlink_to("../y")
    (folder / "cat/y/x").symlink_to("../x")
    save(folder / "cat/y/b.png")
    dataset = build(folder)
    assert dataset.classes == ["cat", "dog"]
    assert [name.split("/")[-1] for name in dataset.names()] == ["a.png", "b.png", "a.png"]
    assert "symbolic links" in notes(folder)["cat/a.lnk.png"]


def test_folders_that_are_links(folder, tmp_path):
    save(tmp_path / "elsewhere/cats/more/a.png")
    save(folder / "dog/a.png")
    (folder / "cat").symlink_to(tmp_path / "elsewhere/cats")
    assert build(folder).names() == ["cat/more/a.png", "dog/a.png"]


def test_an_empty_folder_is_no_class_of_loose_images(folder):
    gradient().save(folder / "a.png")
    (folder / "tmp").mkdir()
    dataset = build(folder)
    assert (dataset.names(), dataset.labels) == (["train/a.png"], None)


# --- splits --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """Folder of a dataset `mine`."""
    return tmp_path / "mine"


def both(root):
    return build(root / "train"), build(root / "train", "test")


def test_one_folder_is_both_splits(root, caplog):
    for i in range(3):
        save(root / f"{i}.png")
    train, test = both(root)
    assert train.names() == test.names() == ["mine/0.png", "mine/1.png", "mine/2.png"]
    assert train.fingerprint() == test.fingerprint()
    assert train.squares is test.squares
    assert caplog.text.count("neither train/ nor test/ in it, so all its images are in both splits") == 1
    assert caplog.text.count("3 images (.png 3) without class folders") == 1
    assert "left out" not in caplog.text
    assert (root / "unreadable.txt").is_file()
    assert build(root / "train").names() == train.names()  # the list of unreadable images is no image


def test_one_folder_with_classes(root):
    for name in ("cat", "dog"):
        save(root / name / "a.png")
    for dataset in both(root):
        assert (dataset.names(), dataset.labels.tolist()) == (["cat/a.png", "dog/a.png"], [0, 1])


def test_without_test_the_training_images_are_both_splits(root, caplog):
    save(root / "train/a.png")
    train, test = both(root)
    assert train.names() == test.names() == ["train/a.png"]
    assert caplog.text.count("mine: no test/ in it, so the images of train/ are in both splits") == 1


def test_evaluation_needs_no_train(root):
    save(root / "test/a.png")
    assert build(root / "train", "test").names() == ["test/a.png"]
    with pytest.raises(UserError, match="mine/train: no such folder; training needs"):
        build(root / "train")
    save(root / "test/cat/a.png")
    save(root / "test/dog/a.png")
    dataset = build(root / "train", "test")
    assert (dataset.classes, dataset.labels.tolist()) == (["cat", "dog"], [0, 1])


@pytest.mark.parametrize("empty", ["train", "train/cat", "train/all"])
def test_classes_of_test_where_train_has_none(root, empty):
    for name in ("cat", "dog"):
        save(root / "test" / name / "a.png")
    (root / empty).mkdir(parents=True)
    for name in "ab":
        save(root / empty / f"{name}.png")
    train, test = both(root)
    assert train.labels is None
    assert (test.classes, test.labels.tolist()) == (["cat", "dog"], [0, 1])


@pytest.mark.parametrize(
    "path",
    ["Train/a.png", "training/a.png", "val/a.png", "validation/a.png", "mine/train/a.png", "Test/cat/a.png"],
)
def test_folders_that_are_meant_as_splits(root, path):
    save(root / path)
    with pytest.raises(UserError, match=r"mine: has .*/; the splits must be .*mine/train/ and .*mine/test/"):
        build(root / "train", "test")


def test_what_is_beside_the_splits_is_told_of(root, caplog):
    for path in ("train/a.png", "val/x/a.png", "b.png"):
        save(root / path)
    (root / "annotations").mkdir()
    (root / "annotations/a.txt").write_text("")
    both(root)
    assert (
        caplog.text.count("mine: val/, 1 images beside train/ or test/ left out; the test split is called")
        == 1
    )


# --- names ---------------------------------------------------------------------------------------

ODD = (
    *(
        "new\nline",
        "\r\n",
        "tab\t",
        "\x7f",
        "\x85",
        "\u2028",
        " ",
        "a,b",
        '"quoted"',
        "'",
        "=1+1",
        "-",
        "#",
        "%s",
    ),
    *("$10_to_$20", "$\\alpha$", "{}", "löwe 🦁", "é", "e\u0301", "\udce9", "\\udce9", "\\", "\udcff\udcfe"),
)


@pytest.mark.parametrize("class_folders", [False, True])
def test_names_of_any_bytes(folder, class_folders, another_process):
    for name in ODD:
        save(folder / (f"{name}/{name}.png" if class_folders else f"{name}.png"))
    dataset = build(folder)
    names = dataset.names()
    assert len(set(names)) == len(dataset) == len(ODD)
    assert all(name.encode("utf-8").decode() == name and len(name.splitlines()) == 1 for name in names)
    assert len({*(dataset.classes or ODD)}) == len(ODD)
    if class_folders:
        assert {"$10_to_$20", "löwe 🦁", "\\udce9", "\\\\udce9", "new\\nline"} <= set(dataset.classes)
        assert dataset.labels.tolist() == list(range(len(ODD)))
    another_process()
    assert build(folder).names() == names
    assert torch.equal(dataset.raw(0), build(folder).raw(0))


def test_images_in_folders_of_one_name_have_different_names(folder):
    for path in ("a/roll/0.png", "b/roll/0.png"):
        save(folder / path)
    assert build(folder).names() == ["a/roll/0.png", "b/roll/0.png"]


def test_fingerprints_stay(folder):
    """They are written in everybody's results."""
    content = b"P6 1 1 255 abc"
    for path in ("cat/a.ppm", "dog/b.ppm"):
        (folder / path).parent.mkdir()
        (folder / path).write_bytes(content)
    (folder.parent / "test/0.png").unlink()
    for name in "01":
        (folder.parent / f"test/{name}.ppm").write_bytes(content)
    assert build(folder).fingerprint() == "2 images (4fa4873a7511b16c)"
    assert build(folder, "test").fingerprint() == "2 images (013ecfd1df96dc33)"


# --- by the name of the dataset -------------------------------------------------------------------


def test_folder_of_unlabelled_images(tmp_path):
    for split, n in (("train", 3), ("test", 2)):
        write_images(tmp_path / "holiday" / split, n, suffix="png")
    found = data.build_dataset(config("holiday", tmp_path), "train")
    assert (len(found), found.labels, found.classes) == (3, None, None)


def test_folder_classes_are_those_of_train(tmp_path):
    for name, n in (("cat", 2), ("dog", 1), ("ox", 1)):
        write_images(tmp_path / "zoo/train" / name, n)
    write_images(tmp_path / "zoo/test/dog", 1)
    write_images(tmp_path / "zoo/test/ox", 2)
    (tmp_path / "zoo/test/.ipynb_checkpoints").mkdir()
    small = config("zoo", tmp_path, transformation_kwargs={"crop_size": 32})
    found = data.build_dataset(small, "test")
    assert (found.labels.tolist(), found.classes) == ([1, 2, 2], ["cat", "dog", "ox"])
    assert fetch(found, [0]).shape == (1, 3, 37, 37)
    write_images(tmp_path / "zoo/test/emu", 1)
    with pytest.raises(UserError, match="zoo/train: has no class folder emu, but .*zoo/test has"):
        data.build_dataset(small, "test")
