"""The pass over all images: what cannot be read is left out and listed, the rest is decoded once."""

from functools import partial

import numpy as np
import pytest
import torch
from image_folders import SIZE, build, file_names, gradient, save, unreadable
from PIL import Image

import data
from data.folder import decode_pass, own_images
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


# --- what cannot be read -------------------------------------------------------------------------


def truncated(path, suffix, share=0.6):
    gradient().resize((200, 200)).save(path.with_suffix(suffix))
    content = path.with_suffix(suffix).read_bytes()
    path.with_suffix(suffix).rename(path)
    path.write_bytes(content[: int(share * len(content))])


def tiff(path, value, dtype):
    Image.fromarray(np.full((4, 4), value, dtype)).save(path, format="TIFF")


DAMAGED = {
    "empty": (lambda path: path.write_bytes(b""), "empty, or not an image"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "empty, or not an image"),
    "a picture for Ghostscript": (lambda path: save(path, format="EPS"), "empty, or not an image"),
    **{f"truncated {s}": (partial(truncated, suffix=s), "truncated") for s in (".jpeg", ".png", ".bmp")},
    **{f"truncated {s}": (partial(truncated, suffix=s), "") for s in (".tif", ".webp")},
    "head only": (lambda path: truncated(path, ".png", 0.02), ""),
    "bomb": (lambda path: gradient().resize((200, 200)).save(path), "decompression bomb"),
    "link to nowhere": (lambda path: path.symlink_to(path.parent / "none"), "No such file"),
    "link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
    "floating point": (lambda path: tiff(path, 1, np.float32), "floating-point pixels"),
    "32 bits": (lambda path: tiff(path, 70000, np.int32), "values beyond 16 bits"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_left_out_and_listed(folder, damage, caplog, monkeypatch):
    write, reason = DAMAGED[damage]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 * 100 if damage == "bomb" else None)
    for name in "ac":
        save(folder / f"{name}.png")
    write(folder / "b.png")
    assert file_names(build(folder)) == ["a.png", "c.png"]
    assert list(unreadable(folder)) == ["b.png"]
    assert reason in unreadable(folder)["b.png"]
    listed = folder.parent / "unreadable-train.txt"
    assert f"{folder}: 1 of 3 images (33 %) cannot be read and are left out: {listed}" in caplog.text


def test_too_many(folder):
    for i in range(99):
        save(folder / f"{i}.png")
    (folder / "x.png").write_bytes(b"")
    assert len(build(folder, max_unreadable=0.01)) == 99
    (folder / "y.png").write_bytes(b"")
    words = r"train: 2 of 101 images \(2 %\) cannot be read, such as x.png \(empty.*max_unreadable \(0.01\)"
    with pytest.raises(UserError, match=f"{words}.*unreadable-train.txt"):
        build(folder, max_unreadable=0.01)
    assert len(build(folder, max_unreadable=0.02)) == 99
    with pytest.raises(UserError, match="2 of 101"):  # the default
        data.build_dataset({"train_db_name": "mine", "data_dir": str(folder.parent.parent)}, "train")
    for i in range(99):
        (folder / f"{i}.png").unlink()
    with pytest.raises(UserError, match=r"train: none of the 2 images can be read, such as x.png .empty, or"):
        build(folder, max_unreadable=1)


def test_splits_have_their_own_lists(folder):
    save(folder / "a.png")
    (folder.parent / "test/1.png").write_bytes(b"")
    assert (len(build(folder)), len(build(folder, "test"))) == (1, 1)
    assert (unreadable(folder), list(unreadable(folder, "test"))) == ({}, ["1.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_during_the_training(folder, workers, no_room):
    save(folder / "a.png")
    save(folder / "b.png")
    dataset = build(folder)
    (folder / "b.png").unlink()
    with pytest.raises(UserError, match=f"^{folder}/b.png: cannot be read as an image .No such file[^\n]*$"):
        list(dataset.fetch([torch.tensor([0, 1])], "cpu", workers))


# --- once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_decoded_once_per_process_in_order(folder, workers, monkeypatch):
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir()
        for i in range(15):
            Image.new("RGB", (SIZE, SIZE), (label, i, 0)).save(folder / name / f"{i:02}.png")
    for name in ("ant/03.png", "bee/00.png", "bee/14.png"):
        (folder / name).write_bytes(b"")
    dataset = build(folder, num_workers=workers)
    assert (dataset.classes, dataset.labels.bincount().tolist()) == (["ant", "bee", "cat"], [14, 13, 15])
    assert list(unreadable(folder)) == ["ant/03.png", "bee/00.png", "bee/14.png"]
    for module in (decode_pass, own_images):
        monkeypatch.setattr(module, "decode_image", None)  # from here on nothing may be decoded
    again = build(folder)
    assert dataset.pixels is again.pixels
    for _ in range(2):
        images, batch = dataset.fetch([torch.arange(42), torch.tensor([[38, 0], [3, 20]])], "cpu", workers)
        assert torch.equal(images[:, 0, 0, 0].long(), dataset.labels)
        assert batch.shape == (2, 2, 3, SIZE, SIZE)
        assert batch[..., :2, 0, 0].tolist() == [[[2, 11], [0, 0]], [[0, 4], [1, 7]]]
    assert torch.equal(again.raw(3), batch[1, 0])


@pytest.mark.parametrize("changed", ["c.png", "b.png"])
def test_the_pass_is_made_once_per_process_unless_files_change(folder, caplog, another_process, changed):
    save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    for _ in range(2):  # without `root_dir`, each process makes it
        another_process()
        assert file_names(build(folder)) == file_names(build(folder)) == ["a.png"]
        assert caplog.text.count("decoding 2 images once, to keep them") == 1
        assert caplog.text.count("1 of 2 images (50 %) cannot be read and are left out") == 1
        assert caplog.text.count("train: 1 images (.png 1) without class folders") == 1
    save(folder / changed)
    assert file_names(build(folder)) == ["a.png", changed]
    assert list(unreadable(folder)) == [name for name in ["b.png"] if name != changed]


def test_images_equal_those_decoded_by_every_epoch(folder, monkeypatch, another_process):
    for i in range(5):
        gradient().rotate(10 * i).resize((40 + i, 50)).save(folder / f"{i}.jpg")
    kept = build(folder)
    another_process()
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: False)
    decoded = build(folder)
    assert (kept.pixels is None, decoded.pixels) == (False, None)
    index = [torch.arange(5)]
    assert torch.equal(next(kept.fetch(index, "cpu")), next(decoded.fetch(index, "cpu")))
    assert (kept.names(), kept.fingerprint()) == (decoded.names(), decoded.fingerprint())


def test_each_size_is_decoded(folder):
    save(folder / "a.png")
    for crop in (28, 56, 28):
        image = build(folder, transformation_kwargs={"crop_size": crop}).raw(0)
        assert image.shape == (3, crop * 8 // 7, crop * 8 // 7)
