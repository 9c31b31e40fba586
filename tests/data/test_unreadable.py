"""The pass over all images: what cannot be read is found and listed, the rest is decoded once."""

import os

import numpy as np
import pytest
import torch
from image_folders import SIZE, build, file_names, gradient, notes
from PIL import Image

import data
from data.folder import decode, decode_pass
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


# --- what cannot be read -------------------------------------------------------------------------


def truncated(path, suffix, share=0.6):
    gradient().resize((200, 200)).save(path.with_suffix(suffix))
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).rename(path)
    path.write_bytes(content[: int(share * len(content))])


DAMAGED = {
    "empty": (lambda path: path.write_bytes(b""), "empty, or not an image"),
    "text": (lambda path: path.write_text("no image"), "empty, or not an image"),
    "web page": (lambda path: path.write_text("<html>404</html>"), "empty, or not an image"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "empty, or not an image"),
    "truncated jpeg": (lambda path: truncated(path, ".jpeg"), "truncated"),
    "truncated png": (lambda path: truncated(path, ".png"), "truncated"),
    "truncated bmp": (lambda path: truncated(path, ".bmp"), "truncated"),
    "truncated tif": (lambda path: truncated(path, ".tif"), ""),
    "truncated webp": (lambda path: truncated(path, ".webp"), ""),
    "head only": (lambda path: truncated(path, ".png", 0.02), ""),
    "link to nowhere": (lambda path: path.symlink_to(path.parent / "none"), "No such file"),
    "floating point": (
        lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path, format="TIFF"),
        "floating-point pixels",
    ),
    "32 bits": (
        lambda path: Image.fromarray(np.full((4, 4), 70000, np.int32)).save(path, format="TIFF"),
        "values beyond 16 bits",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_left_out_and_listed(folder, damage, caplog):
    write, reason = DAMAGED[damage]
    for name in "ac":
        gradient().save(folder / f"{name}.png")
    write(folder / "b.png")
    assert file_names(build(folder)) == ["a.png", "c.png"]
    assert list(notes(folder)) == ["b.png"]
    assert reason in notes(folder)["b.png"]
    listed = folder.parent / "unreadable-train.txt"
    assert f"{folder}: 1 of 3 images (33 %) cannot be read and are left out: {listed}" in caplog.text


def test_decompression_bomb(folder, monkeypatch):
    gradient().save(folder / "a.png")
    gradient().resize((200, 200)).save(folder / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 100)
    assert file_names(build(folder)) == ["a.png"]
    assert "decompression bomb" in notes(folder)["b.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_labels_are_kept(folder, workers):
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir()
        for i in range(15):
            Image.new("RGB", (SIZE, SIZE), (label, i, 0)).save(folder / name / f"{i:02}.png")
    for name in ("ant/03.png", "bee/00.png", "bee/14.png"):
        (folder / name).write_bytes(b"")
    dataset = build(folder, num_workers=workers)
    assert dataset.classes == ["ant", "bee", "cat"]
    assert dataset.labels.bincount().tolist() == [14, 13, 15]
    images = next(dataset.fetch([torch.arange(42)], "cpu", workers))
    assert torch.equal(images[:, 0, 0, 0].long(), dataset.labels)
    assert list(notes(folder)) == ["ant/03.png", "bee/00.png", "bee/14.png"]


def test_too_many(folder):
    for i in range(99):
        gradient().save(folder / f"{i}.png")
    (folder / "x.png").write_bytes(b"")
    assert len(build(folder, max_unreadable=0.01)) == 99
    (folder / "y.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"train: 2 of 101 images \(2 %\) cannot be read, such as x.png \(empty"
    ) as error:
        build(folder, max_unreadable=0.01)
    assert "max_unreadable (0.01)" in str(error.value)
    assert "unreadable-train.txt" in str(error.value)
    assert len(build(folder, max_unreadable=0.02)) == 99
    with pytest.raises(UserError, match="2 of 101"):  # the default
        data.build_dataset({"train_db_name": "mine", "data_dir": str(folder.parent.parent)}, "train")


def test_nothing_but_damaged_files(folder):
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"train: none of the 1 images can be read, such as a.png .empty, or"):
        build(folder, max_unreadable=1)


# --- the list is remembered ----------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """How often all files were decoded."""
    calls, decode = [], decode_pass._decode
    monkeypatch.setattr(decode_pass, "_decode", lambda *args: calls.append(1) or decode(*args))
    return calls


@pytest.mark.parametrize(("room", "passes"), [(True, 3), (False, 1)])
def test_the_next_step_knows(folder, decoded, another_process, caplog, monkeypatch, room, passes):
    """Where the squares are kept, each process decodes once; where not, the first one does."""
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: room)
    gradient().save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    for _ in range(3):
        another_process()
        caplog.clear()
        assert file_names(build(folder)) == file_names(build(folder)) == ["a.png"]
        assert caplog.text.count("1 of 2 images (50 %) cannot be read and are left out") == 1
        assert caplog.text.count("train: 1 images (.png 1) without class folders") == 1
    assert len(decoded) == passes


@pytest.mark.parametrize(
    "change", ["new file", "other size", "other time", "removed", "list damaged", "list removed"]
)
def test_changed_files_are_looked_at_again(folder, decoded, another_process, no_room, change):
    gradient().save(folder / "a.png")
    gradient().save(folder / "c.png")
    (folder / "b.png").write_bytes(b"")
    build(folder)
    listed = folder.parent / "unreadable-train.txt"
    another_process()
    if change == "new file":
        gradient().save(folder / "d.png")
    elif change == "other size":
        gradient().save(folder / "b.png")
    elif change == "other time":
        os.utime(folder / "a.png", ns=(1, 1))
    elif change == "removed":
        (folder / "c.png").unlink()
    elif change == "list damaged":
        listed.write_bytes(b"\xff\xfe")
    else:
        listed.unlink()
    build(folder)
    assert len(decoded) == 2
    assert list(notes(folder)) == ([] if change == "other size" else ["b.png"])


def test_folder_that_cannot_be_written(folder, another_process, caplog, monkeypatch):
    gradient().save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")

    def read_only(path, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", read_only)
    for _ in range(2):
        assert file_names(build(folder)) == ["a.png"]
    assert caplog.text.count("cannot be written (Read-only file system)") == 1
    assert [path.name for path in folder.parent.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("name", ["new\nline.png", "tab\t.png", "löwe 🦁.png", "\udce9.png", "\u2028.png"])
def test_names_of_any_bytes(folder, another_process, name):
    gradient().save(folder / "a.png")
    try:
        (folder / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system does not take the name")
    for _ in range(2):
        assert file_names(build(folder)) == ["a.png"]
        another_process()
    assert len((folder.parent / "unreadable-train.txt").read_text().split("\n")) == 3


def test_splits_have_their_own_lists(folder):
    gradient().save(folder / "a.png")
    (folder.parent / "test/1.png").write_bytes(b"")
    assert (len(build(folder)), len(build(folder, "test"))) == (1, 1)
    assert (notes(folder), list(notes(folder, "test"))) == ({}, ["1.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_during_the_training(folder, workers, no_room):
    gradient().save(folder / "a.png")
    gradient().save(folder / "b.png")
    dataset = build(folder)
    (folder / "b.png").unlink()
    with pytest.raises(UserError, match=f"^{folder}/b.png: cannot be read as an image .No such file[^\n]*$"):
        list(dataset.fetch([torch.tensor([0, 1])], "cpu", workers))


def test_an_image_that_could_be_read_before(folder, another_process):
    """The list is not changed behind the back of the steps that go by it."""
    for name in "ab":
        gradient().save(folder / f"{name}.png")
    build(folder)
    before = os.stat(folder / "b.png")
    (folder / "b.png").write_bytes(b"?" * before.st_size)
    os.utime(folder / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    another_process()
    with pytest.raises(UserError, match=f"^{folder}/b.png: cannot be read as an image .empty, or not"):
        build(folder)
    assert notes(folder) == {}


# --- the squares are kept ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_once_per_process(folder, workers, monkeypatch):
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir()
        for i in range(20):
            Image.new("RGB", (SIZE, SIZE), (label, i, 0)).save(folder / name / f"{i:02}.png")
    (folder / "ant/03.png").write_bytes(b"")
    dataset = build(folder, num_workers=workers)
    monkeypatch.setattr(decode.FolderImages, "decode", None)  # from here on nothing may be decoded
    again = build(folder)
    assert dataset.squares is again.squares
    for _ in range(2):
        batches = [torch.tensor([[38, 0], [3, 20]]), torch.tensor([1])]
        first, second = dataset.fetch(batches, "cpu", workers)
        assert first.shape == (2, 2, 3, SIZE, SIZE)
        assert first[..., :2, 0, 0].tolist() == [[[1, 19], [0, 0]], [[0, 4], [1, 1]]]
        assert second[0, :2, 0, 0].tolist() == [0, 1]
    assert torch.equal(again.raw(3), first[1, 0])


def test_squares_equal_those_decoded_by_every_epoch(folder, monkeypatch, another_process):
    for i in range(5):
        gradient().rotate(10 * i).resize((40 + i, 50)).save(folder / f"{i}.jpg")
    kept = build(folder)
    another_process()
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: False)
    decoded = build(folder)
    assert (kept.squares is None, decoded.squares) == (False, None)
    index = [torch.arange(5)]
    assert torch.equal(next(kept.fetch(index, "cpu")), next(decoded.fetch(index, "cpu")))
    assert (kept.names(), kept.fingerprint()) == (decoded.names(), decoded.fingerprint())


def test_sides_have_squares_of_their_own(folder):
    gradient().save(folder / "a.png")
    for crop in (28, 56, 28):
        image = build(folder, transformation_kwargs={"crop_size": crop}).raw(0)
        assert image.shape == (3, crop * 8 // 7, crop * 8 // 7)
