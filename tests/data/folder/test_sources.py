"""What can be given as images, besides one folder."""

from collections import Counter

import pytest
from image_folders import build_anywhere, save

import data
from errors import UserError


@pytest.fixture
def photos(tmp_path):
    for name in ("a/photos/1.png", "a/photos/x/2.png", "b/photos/1.png", "3.png", "else/4.png"):
        save(tmp_path / name, red=len(name))
    (tmp_path / "a/photos/notes.md").touch()
    return tmp_path


def found(folder, *sources):
    """The name of each image of the sources -> its path in `folder`, and the suffixes of other files."""
    files, names, ignored = data.images_of([folder / source for source in sources])
    assert len(files) == len(names)
    return dict(zip(names, (file[len(str(folder)) + 1 :] for file in files), strict=True)), ignored


def test_several_folders_and_files(photos):
    """Each image is there once, and all names are different."""
    given = "a/photos", "3.png", "b/photos", "a/photos/x", "else/4.png"
    names, ignored = found(photos, *given)
    assert names == {
        "photos/1.png": "a/photos/1.png",
        "photos/x/2.png": "a/photos/x/2.png",
        "3.png": "3.png",
        "photos (2)/1.png": "b/photos/1.png",
        "4.png": "else/4.png",
    }
    assert ignored == {".md": 1}
    dataset = build_anywhere(photos, image_folder=[str(photos / source) for source in given])
    assert dataset.names() == list(names) and dataset.labels is None
    assert [int(dataset.raw(i)[0, 0, 0]) for i in range(5)] == [len(path) for path in names.values()]


def test_one_folder_has_the_names_it_had(photos):
    assert list(found(photos, "a/photos")[0]) == ["1.png", "x/2.png"]
    assert list(found(photos, "a/photos/x/2.png")[0]) == ["2.png"]


def test_a_list_of_paths(photos):
    """Relative to the list; those elsewhere within the folder that they share."""
    lines = ["photos/x/2.png", "", "photos/notes.md", f"{photos}/else/4.png", " ./photos/1.png ", "../3.png"]
    (photos / "a/list.txt").write_text("\r\n".join([*lines, lines[0]]), "utf-8-sig")
    names, ignored = found(photos, "a/list.txt")
    assert names == {
        "photos/x/2.png": "a/photos/x/2.png",
        "else/4.png": "else/4.png",
        "photos/1.png": "a/photos/1.png",
        "3.png": "3.png",
    }
    assert ignored == Counter({".md": 1})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none", "none: no such folder"),
        ("a/photos/notes.md", "notes.md: is a file, and no image; give a folder, an image file or a .txt"),
        ("b.heic", "b.heic: is a file, and no image; to read .heic: pip install pillow-heif"),
        ("empty.txt", "empty.txt: no images found"),
        ("list.txt", r"list.txt, line 2: .*/5.png: no such file \(2 of its 3 files are missing\)"),
    ],
)
def test_what_is_no_source(photos, source, words):
    (photos / "list.txt").write_text("3.png\n5.png\n6.png\n")
    for name in ("empty.txt", "b.heic"):
        (photos / name).touch()
    with pytest.raises(UserError, match=words):
        data.images_of([photos / "else", photos / source])
