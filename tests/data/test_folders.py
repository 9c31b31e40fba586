"""Folders of anybody's images: which files are images, and which split and class they belong to."""

import os
import sys
import types

import pytest
import torch
from image_folders import build, config, fetch, file_names, gradient, notes, only, write_images
from PIL import Image

import data
from data.folder import decode
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


@pytest.fixture
def other_formats():
    """Pillow is asked for its formats again, before the test and after it."""

    def forget():
        Image.EXTENSION.pop(".heic", None)
        for cached in (decode.formats, decode.suffixes):
            cached.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("other_formats")
def test_a_plugin(folder, monkeypatch):
    """One that registers its formats when it is asked to, as the one for HEIC."""
    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_extension("PNG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    gradient().save(folder / "a.png")
    (folder / "a.png").rename(folder / "b.HEIC")
    assert file_names(build(folder)) == ["b.HEIC"]


@pytest.mark.usefixtures("other_formats")
def test_a_pillow_without_a_library(folder, caplog, monkeypatch):
    gradient().save(folder / "a.png")
    gradient().save(folder / "b.avif")
    monkeypatch.setattr(decode.features, "check", lambda library: library != "avif")
    assert file_names(build(folder)) == ["a.png"]
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


# --- anywhere ------------------------------------------------------------------------------------


def of_folder(path, split="train", **more):
    small = {"transformation_kwargs": {"crop_size": 28}, "max_unreadable": 1, "image_folder": str(path)}
    return data.build_dataset({**config("digits", "nowhere"), **small, **more}, split)


def test_a_folder_anywhere(tmp_path, root, another_process):
    """It wins over the datasets of that name, and its place and name are no part of what identifies it."""
    for name in ("b.png", "more/a.png"):
        save(root / name)
    found = of_folder(root, folder_labels="none")
    assert (found.names(), found.labels) == (["b.png", "more/a.png"], None)
    assert of_folder(root, "test", folder_labels="none").names() == found.names()
    root.rename(tmp_path / "elsewhere")
    another_process()
    assert of_folder(tmp_path / "elsewhere", folder_labels="none").fingerprint() == found.fingerprint()
    os.chdir(tmp_path / "elsewhere")  # `at_root` returns
    assert of_folder(".", folder_labels="none").names() == found.names()


@pytest.mark.parametrize("root_dir", ["results", "."])
def test_pictures_of_earlier_results_are_no_images(root, root_dir):
    for name in ("b.png", "more/a.png"):
        save(root / name)
    place = (root / root_dir).resolve()
    settings = {"folder_labels": "none", "root_dir": str(place)}
    found = of_folder(root, **settings)
    save(place / "digits/scan/curves.png")
    assert of_folder(root, **settings).names() == found.names() == ["b.png", "more/a.png"]
    listed = [f"{root}/b.png", f"{root}/more/a.png"]
    for but in (place / "digits", str(place / "digits"), [place, None, place / "digits"]):
        assert data.list_images(root, but=but)[0] == listed
    assert len(data.list_images(root, but=None)[0]) == 3


def test_folders_mean_classes_or_nothing(root):
    for name in ("cat/a.png", "dog/deep/a.png", "c.png"):
        save(root / name)
    found = of_folder(root)
    assert (found.names(), found.classes) == (["cat/a.png", "dog/deep/a.png"], ["cat", "dog"])
    found = of_folder(root, folder_labels="none")
    assert (found.names(), found.classes) == (["c.png", "cat/a.png", "dog/deep/a.png"], None)


def test_splits_of_a_folder_anywhere(root):
    for name in ("train/a.png", "test/b.png"):
        save(root / name)
    assert [of_folder(root, split).names() for split in ("train", "test")] == [
        ["train/a.png"],
        ["test/b.png"],
    ]
    for split in ("train", "test"):
        assert of_folder(root, split, folder_labels="none").names() == ["test/b.png", "train/a.png"]


def test_another_dataset_is_evaluated(tmp_path, root):
    save(root / "a.png")
    save(tmp_path / "new/b.png")
    found = of_folder(root, "test", val_db_name="new", data_dir=str(tmp_path))
    assert found.names() == ["new/b.png"]


def test_results_within_the_folder_are_no_images(root):
    save(root / "a.png")
    for _ in range(2):
        found = of_folder(root, folder_labels="none", root_dir=str(root / "results"))
        assert found.names() == ["a.png"]
        save(root / "results/digits/prototypes.png")


def test_what_is_no_folder(root):
    root.mkdir()
    for folder_labels in ("auto", "none"):
        with pytest.raises(UserError, match=r"mine: no images found \(.jpg, .png, ...\)$"):
            of_folder(root, folder_labels=folder_labels)
        with pytest.raises(UserError, match="mine/none: no such folder$"):
            of_folder(root / "none", folder_labels=folder_labels)
        (root / "a.png").touch()
        with pytest.raises(UserError, match="a.png: is a file; give the folder that the images are in$"):
            of_folder(root / "a.png", folder_labels=folder_labels)
        with pytest.raises(
            UserError, match="mine: none of the 1 images can be read, such as a.png .empty, or not"
        ):
            of_folder(root, folder_labels=folder_labels, max_unreadable=0.5)
        (root / "a.png").unlink()


def test_folders_that_may_not_be_opened(root, monkeypatch, caplog):
    for name in ("a.png", "private/b.png"):
        save(root / name)
    scandir = os.scandir

    def opened(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", opened)
    assert of_folder(root, folder_labels="none").names() == ["a.png"]
    assert "mine/private: left out, because it cannot be opened (Permission denied)" in caplog.text
    with pytest.raises(UserError, match="mine/private: cannot be opened .Permission denied"):
        of_folder(root / "private")


def test_what_systems_leave_is_no_image(root, caplog):
    for name in ("a.png", "@eaDir/a.png", "#recycle/b.png", "$RECYCLE.BIN/c.png", "lost+found/d.png"):
        save(root / name)
    for name in (".ipynb_checkpoints/e.png", "System Volume Information/f.png", "roll/__MACOSX/g.png"):
        save(root / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "roll/THUMBS.DB"):
        (root / name).touch()
    for folder_labels in ("auto", "none"):
        assert of_folder(root, folder_labels=folder_labels).names() == ["a.png"]
    assert "other files" not in caplog.text


def test_one_line_says_what_was_read(root, caplog):
    for name in ("a.png", "roll/b.JPG", "roll/c.jpg"):
        save(root / name)
    (root / "roll/c.jpg").write_bytes(b"")
    (root / "list.csv").touch()
    of_folder(root, folder_labels="none")
    line = "mine: 2 images (.jpg 1, .png 1) without class folders; left out: 1 that cannot be read, 1 other"
    assert caplog.text.count(f"{line} files (.csv 1)") == 1


# --- TinyImageNet --------------------------------------------------------------------------------


@pytest.fixture
def tiny(root):
    for wnid in ("n01", "n02", "n03"):
        for i in range(2):
            save(root / f"train/{wnid}/images/{wnid}_{i}.JPEG")
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    for i in range(4):
        save(root / f"val/images/val_{i}.JPEG")
        save(root / f"test/images/test_{i}.JPEG")
    lines = [f"val_{i}.JPEG\tn0{3 - i % 3}\t0\t32\t44\t62\n" for i in range(4)]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn01\nn03\n")
    (root / "words.txt").write_text("n01\ttench\n")
    return root


def test_tiny_imagenet(tiny, caplog):
    train, test = both(tiny)
    assert (len(train), train.labels.tolist(), train.classes) == (
        6,
        [0, 0, 1, 1, 2, 2],
        ["n01", "n02", "n03"],
    )
    assert train.names()[0] == "n01/images/n01_0.JPEG"
    assert (test.names()[3], test.labels.tolist(), test.classes) == (
        "images/val_3.JPEG",
        [2, 1, 0, 2],
        train.classes,
    )
    assert caplog.text.count("mine: test/ beside train/ or val/ left out") == 1
    assert [data_set.names() for data_set in both(tiny)] == [train.names(), test.names()]


def test_tiny_imagenet_without_train(tiny):
    (tiny / "train").rename(tiny / ".train")
    assert build(tiny / "train", "test").labels.tolist() == [2, 1, 0, 2]


def test_tiny_imagenet_that_does_not_fit(tiny, caplog):
    annotations = tiny / "val/val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("val_3.JPEG", "val_9.JPEG") + "\nno tab\n")
    assert build(tiny / "train", "test").labels.tolist() == [2, 1, 0]
    assert "val: 1 images that are not in val_annotations.txt are left out" in caplog.text
    annotations.write_text("val_0.JPEG\tn77\n")
    with pytest.raises(UserError, match="mine/train: has no class folder n77, but .*mine/val has"):
        build(tiny / "train", "test")


def test_tiny_imagenet_sorted_into_folders(tiny):
    """As a script that many use does it; the list stays."""
    for i in range(4):
        target = tiny / f"val/n0{3 - i % 3}"
        target.mkdir(exist_ok=True)
        (tiny / f"val/images/val_{i}.JPEG").rename(target / f"val_{i}.JPEG")
    (tiny / "val/images").rmdir()
    (tiny / "test").rename(tiny / ".test")
    (tiny / "val").rename(tiny / "test")
    assert build(tiny / "train", "test").labels.tolist() == [0, 1, 2, 2]
