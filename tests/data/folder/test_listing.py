"""Which files of a folder are images."""

import os
import sys
import types

import pytest
from image_folders import save
from PIL import Image

import data
from data.folder import decode
from errors import UserError

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pcx"),
    *(".png", ".pnm", ".ppm", ".qoi", ".sgi", ".tga", ".tif", ".webp"),
)


def names(folder, without=()):
    """The images' paths within the folder, and the suffixes of the other files."""
    files, ignored = data.list_images(folder, without)
    return [os.path.relpath(path, folder) for path in files], dict(ignored)


def test_all_formats_that_pillow_reads(tmp_path):
    for suffix in SUFFIXES:
        save(tmp_path / f"a{suffix}")
        (tmp_path / f"a{suffix}").rename(tmp_path / f"A{suffix.upper()}")
        save(tmp_path / f"a{suffix}")
    assert len(names(tmp_path)[0]) == 2 * len(SUFFIXES)


def test_files_without_a_suffix_are_images_if_their_content_is(tmp_path):
    for i, name in enumerate(("0123abcd", "frame.0001", "a.jpg?width=300", "b.jpg_large", "c.JPG ", "d.")):
        save(tmp_path / name, format=("PNG", "JPEG", "WEBP")[i % 3])
    save(tmp_path / "e", format="TGA")  # has no mark, so that anything may look like it
    (tmp_path / "Makefile").write_text("all:")
    (tmp_path / "empty").write_bytes(b"")
    found, ignored = names(tmp_path)
    assert (len(found), ignored) == (6, {"no suffix": 3})


def test_what_systems_leave_is_no_image(tmp_path):
    folders = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information", "a/__MACOSX")
    hidden = (".hidden.png", "._a.png", ".cache/a.png", "roll/.git/a.png")
    for name in ("a.png", "roll/b.png", *hidden, *(f"{folder}/c.png" for folder in folders)):
        save(tmp_path / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "roll/THUMBS.DB", "unreadable.txt"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    assert names(tmp_path) == (["a.png", "roll/b.png"], {})


def test_links_in_circles(tmp_path):
    for name in ("photos/a.png", "photos/y/b.png", "elsewhere/c.png"):
        save(tmp_path / name)
    (tmp_path / "photos/x").mkdir()
    links = {"up": "..", "itself": ".", "d.lnk.png": "d.lnk.png", "x/y": "../y", "y/x": "../x"}
    for name, target in {**links, "all": tmp_path, "more": "../elsewhere"}.items():
        (tmp_path / "photos" / name).symlink_to(target)
    found, _ = names(tmp_path / "photos")
    assert sorted(os.path.basename(name) for name in found) == ["a.png", "b.png", "c.png", "d.lnk.png"]


def test_folders_to_leave_out(tmp_path):
    for name in ("a.png", "results/b.png", "results/mine/c.png", "d/e.png"):
        save(tmp_path / name)
    assert names(tmp_path, [None, tmp_path / "results", "nowhere"])[0] == ["a.png", "d/e.png"]
    assert names(tmp_path, [str(tmp_path / "d")])[0] == ["a.png", "results/b.png", "results/mine/c.png"]
    assert names(tmp_path / "results", [tmp_path, tmp_path / "results"])[0] == ["b.png", "mine/c.png"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a.txt", "a.txt: is a file; give the folder that the images are in$"),
        ("none", "none: no such folder$"),
        ("empty", r"empty: no images found \(.jpg, .png, ...\)$"),
        (".", r"no images found .*, only 2 other files \(.heic 1, .txt 1\); to read .heic: pip install"),
    ],
)
def test_what_is_no_folder_of_images(tmp_path, path, words):
    for name in ("a.txt", "b.heic"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        names(tmp_path / path)


def test_folders_that_may_not_be_opened(tmp_path, monkeypatch, caplog):
    for name in ("a.png", "private/b.png"):
        save(tmp_path / name)
    scandir = os.scandir

    def opened(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", opened)
    assert names(tmp_path)[0] == ["a.png"]
    assert "private: left out, because it cannot be opened (Permission denied)" in caplog.text
    with pytest.raises(UserError, match="private: cannot be opened .Permission denied"):
        names(tmp_path / "private")


# --- formats -------------------------------------------------------------------------------------


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
def test_a_plugin(tmp_path, monkeypatch):
    """One that registers its formats when it is asked to, as the one for HEIC."""
    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: Image.register_extension("PNG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "b.HEIC")
    assert names(tmp_path) == (["b.HEIC"], {})


@pytest.mark.usefixtures("other_formats")
def test_a_pillow_without_a_library(tmp_path, monkeypatch):
    save(tmp_path / "b.avif")
    monkeypatch.setattr(decode.features, "check", lambda library: library != "avif")
    with pytest.raises(UserError, match=r"only 1 other files \(.avif 1\); to read .avif: pip install --upg"):
        names(tmp_path)
