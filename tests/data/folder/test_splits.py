"""A folder of anybody's images as a dataset: splits, classes and names."""

import os

import pytest
import torch
from image_folders import build, build_anywhere, config, save, unreadable
from mistakes import refused

import data
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


@pytest.fixture
def root(tmp_path):
    """Folder of a dataset `mine`."""
    return tmp_path / "mine"


def save_all(root, *names):
    for name in names:
        save(root / name)


def both(root):
    return build(root / "train"), build(root / "train", "test")


# --- the line on what is read ----------------------------------------------------------------------


def test_one_line_says_what_is_read(root, caplog, another_process):
    save_all(root, "a.png", "roll/b.JPG", "roll/c.jpg")
    (root / "roll/c.jpg").write_bytes(b"")
    for i, suffix in enumerate(("txt", "mpg", "eps", "pdf.part", "json", "JSON", "csv", "xyz")):
        (root / f"{i}.{suffix}").touch()
    build_anywhere(root, folder_labels="none")
    line = caplog.text.splitlines()[-1]
    assert line.startswith("WARNING")  # because of the advice
    assert "mine: 2 images (.jpg 1, .png 1) without class folders; left out: 1 that cannot be read, 8" in line
    assert "8 other files (.json 2, .csv 1, .eps 1, .mpg 1, .part 1, others 2); to read .eps: save" in line
    another_process()
    (root / "2.eps").unlink()
    build_anywhere(root)
    assert caplog.text.splitlines()[-1].startswith("INFO")


# --- classes ---------------------------------------------------------------------------------------


def test_class_folders_are_read_with_all_that_is_within_them(folder, tmp_path):
    paths = ["cat/a.png", "cat/roll/a.png", "cat/roll/b/a.png", "dog/roll/a.png", "dog/x.png/y.png"]
    save_all(folder, *paths, "cat/.git/a.png", ".cache/a.png", "__MACOSX/cat/a.png", "dog/@eaDir/a.png")
    (folder / "dog/itself").symlink_to(folder)
    (folder / "root").symlink_to(folder.parent)  # is no class
    save(tmp_path / "elsewhere/more/a.png")
    (folder / "ox").symlink_to(tmp_path / "elsewhere")
    dataset = build(folder)
    assert dataset.classes == ["cat", "dog", "ox"]
    assert dataset.names() == [*paths, "ox/more/a.png"]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_an_empty_folder_is_no_class_of_loose_images(folder):
    save(folder / "a.png")
    (folder / "tmp").mkdir()
    dataset = build(folder)
    assert (dataset.names(), dataset.labels) == (["train/a.png"], None)


def test_the_classes_are_those_of_train(root):
    save_all(root, "train/cat/a.png", "train/dog/a.png", "train/ox/a.png", "test/dog/a.png", "test/ox/a.png")
    save(root / "test/.ipynb_checkpoints/a.png")
    found = build(root / "train", "test")
    assert (found.labels.tolist(), found.classes) == ([1, 2], ["cat", "dog", "ox"])
    save(root / "test/emu/a.png")
    with pytest.raises(UserError, match="mine/train: has no class folder emu, but .*mine/test has"):
        build(root / "train", "test")


@pytest.mark.parametrize("empty", ["train", "train/cat", "train/all"])
def test_classes_of_test_where_train_has_none(root, empty):
    save_all(root, "test/cat/a.png", "test/dog/a.png", f"{empty}/a.png", f"{empty}/b.png")
    train, test = both(root)
    assert train.labels is None
    assert (test.classes, test.labels.tolist()) == (["cat", "dog"], [0, 1])


# --- splits ----------------------------------------------------------------------------------------


def test_one_folder_is_both_splits(root, caplog):
    save_all(root, "0.png", "1.png", "2.png")
    train, test = both(root)
    assert train.names() == test.names() == ["mine/0.png", "mine/1.png", "mine/2.png"]
    assert train.fingerprint() == test.fingerprint()
    assert train.pixels is test.pixels
    assert caplog.text.count("neither train/ nor test/ in it, so all its images are in both splits") == 1
    assert caplog.text.count("3 images (.png 3) without class folders") == 1
    assert "left out" not in caplog.text
    assert (root / "unreadable.txt").is_file()
    assert build(root / "train").names() == train.names()  # the list of unreadable images is no image
    save_all(root, "cat/a.png", "dog/a.png")
    for dataset in both(root):
        assert (dataset.names(), dataset.labels.tolist()) == (["cat/a.png", "dog/a.png"], [0, 1])


def test_without_test_the_training_images_are_both_splits(root, caplog):
    save(root / "train/a.png")
    train, test = both(root)
    assert train.names() == test.names() == ["train/a.png"]
    assert caplog.text.count("mine: no test/ in it, so the images of train/ are in both splits") == 1


def test_evaluation_needs_no_train(root):
    save_all(root, "test/cat/a.png", "test/dog/a.png")
    dataset = build(root / "train", "test")
    assert (dataset.classes, dataset.labels.tolist()) == (["cat", "dog"], [0, 1])
    with pytest.raises(UserError, match="mine/train: no such folder; training needs"):
        build(root / "train")


def test_what_is_beside_the_splits_is_told_of(root, caplog):
    save_all(root, "train/a.png", "val/x/a.png", "b.png")
    (root / "annotations").mkdir()
    both(root)
    line = "mine: val/, 1 images beside train/ or test/ left out; the test split is called"
    assert caplog.text.count(line) == 1


MEANT = (
    "Train/a.png",
    "training/a.png",
    "val/a.png",
    "validation/a.png",
    "mine/train/a.png",
    "Test/cat/a.png",
)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        *[([path], r"has .*/; the splits must be .*mine/train/ and .*mine/test/") for path in MEANT],
        (["train/", "test/"], r"train: no images found \(.jpg, .png, ...\)$"),
        (["train/a.png", "test/"], "test: no images found"),
        (["test/a.png", "train/cat/", "train/dog/"], "train: no images found"),
    ],
)
def test_folders_that_cannot_be_used(root, paths, words):
    for path in paths:
        (root / path).mkdir(parents=True) if path.endswith("/") else save(root / path)
    with pytest.raises(UserError, match=f"^{root}.*{words}"):
        both(root)


def test_data_dir_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    refused(["dataset 'x'"], data.build_dataset, config("x", tmp_path / "file"), "train")


# --- names ---------------------------------------------------------------------------------------

ODD = (
    *("new\nline", "\r\n", "tab\t", "\x7f", "\x85", "\u2028", " ", "a,b", '"quoted"', "'", "=1+1", "-", "#"),
    *("%s", "$10_to_$20", "$\\alpha$", "{}", "löwe 🦁", "é", "e\u0301", "\udce9", "\\udce9", "\\"),
    "\udcff\udcfe",
)


@pytest.mark.parametrize("class_folders", [False, True])
def test_names_of_any_bytes(folder, class_folders, another_process):
    for name in ODD:
        path = folder / name / name if class_folders else folder / name
        save(path.with_name(f"{name}.png"))
        path.with_name(f"{name}.jpg").touch()
    dataset = build(folder)
    names = dataset.names()
    assert len(set(names)) == len(dataset) == len(unreadable(folder)) == len(ODD)
    assert all(name.encode("utf-8").decode() == name and len(name.splitlines()) == 1 for name in names)
    assert len({*(dataset.classes or ODD)}) == len(ODD)
    if class_folders:
        assert {"$10_to_$20", "löwe 🦁", "\\udce9", "\\\\udce9", "new\\nline"} <= set(dataset.classes)
        assert dataset.labels.tolist() == list(range(len(ODD)))
    another_process()
    assert build(folder).names() == names
    assert torch.equal(dataset.raw(0), build(folder).raw(0))


def test_fingerprints_stay(folder):
    """They are written in everybody's results."""
    (folder.parent / "test/0.png").unlink()
    for path in ("train/cat/a.ppm", "train/dog/b.ppm", "test/0.ppm", "test/1.ppm"):
        (folder.parent / path).parent.mkdir(exist_ok=True)
        (folder.parent / path).write_bytes(b"P6 1 1 255 abc")
    assert build(folder).fingerprint() == "2 images (4fa4873a7511b16c)"
    assert build(folder, "test").fingerprint() == "2 images (013ecfd1df96dc33)"


# --- anywhere ------------------------------------------------------------------------------------


def test_a_folder_anywhere(tmp_path, root, another_process):
    """It wins over the datasets of that name, and its place and name are no part of what identifies it."""
    save_all(root, "b.png", "more/a.png")
    found = build_anywhere(root, folder_labels="none")
    assert (found.names(), found.labels) == (["b.png", "more/a.png"], None)
    assert build_anywhere(root, "test", folder_labels="none").names() == found.names()
    root.rename(tmp_path / "elsewhere")
    another_process()
    os.chdir(tmp_path / "elsewhere")  # `at_root` returns
    again = build_anywhere(".", folder_labels="none")
    assert (again.fingerprint(), again.names()) == (found.fingerprint(), found.names())


@pytest.mark.parametrize("root_dir", ["results", "."])
def test_pictures_of_earlier_results_are_no_images(root, root_dir):
    save_all(root, "b.png", "more/a.png")
    place = (root / root_dir).resolve()
    settings = {"folder_labels": "none", "root_dir": str(place)}
    found = build_anywhere(root, **settings)
    assert unreadable(place / "digits/images", "") == {}
    save(place / "digits/scan/curves.png")
    assert build_anywhere(root, **settings).names() == found.names() == ["b.png", "more/a.png"]


def test_folders_mean_classes_or_nothing(root, caplog):
    save_all(root, "cat/a.png", "dog/deep/a.png", "c.png")
    found = build_anywhere(root)
    assert (found.names(), found.classes) == (["cat/a.png", "dog/deep/a.png"], ["cat", "dog"])
    assert "1 images beside the class folders are left out" in caplog.text
    found = build_anywhere(root, folder_labels="none")
    assert (found.names(), found.classes) == (["c.png", "cat/a.png", "dog/deep/a.png"], None)


def test_splits_of_a_folder_anywhere(root):
    save_all(root, "train/a.png", "test/b.png")
    for split, name in (("train", "train/a.png"), ("test", "test/b.png")):
        assert build_anywhere(root, split).names() == [name]
        assert build_anywhere(root, split, folder_labels="none").names() == ["test/b.png", "train/a.png"]


def test_another_dataset_is_evaluated(tmp_path, root):
    save_all(tmp_path, "mine/a.png", "new/b.png")
    found = build_anywhere(root, "test", val_db_name="new", data_dir=str(tmp_path))
    assert found.names() == ["new/b.png"]


# --- TinyImageNet --------------------------------------------------------------------------------


@pytest.fixture
def tiny(root):
    for wnid in ("n01", "n02", "n03"):
        save_all(root, f"train/{wnid}/images/{wnid}_0.JPEG", f"train/{wnid}/images/{wnid}_1.JPEG")
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    save_all(root, *[f"{name}_{i}.JPEG" for name in ("val/images/val", "test/images/test") for i in range(4)])
    lines = [f"val_{i}.JPEG\tn0{3 - i % 3}\t0\t32\t44\t62\n" for i in range(4)]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tiny, caplog):
    train, test = both(tiny)
    assert (train.labels.tolist(), train.classes) == ([0, 0, 1, 1, 2, 2], ["n01", "n02", "n03"])
    assert (test.labels.tolist(), test.classes) == ([2, 1, 0, 2], train.classes)
    assert (train.names()[0], test.names()[3]) == ("n01/images/n01_0.JPEG", "images/val_3.JPEG")
    assert caplog.text.count("mine: test/ beside train/ or val/ left out") == 1
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
        (tiny / f"val/n0{3 - i % 3}").mkdir(exist_ok=True)
        (tiny / f"val/images/val_{i}.JPEG").rename(tiny / f"val/n0{3 - i % 3}/val_{i}.JPEG")
    (tiny / "val/images").rmdir()
    (tiny / "test").rename(tiny / ".test")
    (tiny / "val").rename(tiny / "test")
    assert build(tiny / "train", "test").labels.tolist() == [0, 1, 2, 2]
