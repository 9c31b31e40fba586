"""Decoded images are kept in a file: later steps find them there, whatever happened in between."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from image_folders import SIZE, build, fetch, gradient, save, unreadable, values
from PIL import Image

from data.folder import cache, decode_pass
from errors import UserError

pytestmark = pytest.mark.usefixtures("another_process")


def reds(dataset):
    return values(fetch(dataset, range(len(dataset))))


@pytest.fixture
def results(folder):
    return folder.parent.parent / "results"


@pytest.fixture
def read(folder, results, another_process, monkeypatch):
    """What the next step sees, the red values of the images, and the names of the files it decoded."""
    names, decode_image = [], decode_pass.decode_image

    def noted(path, *more):
        names.append(os.path.basename(path))
        return decode_image(path, *more)

    monkeypatch.setattr(decode_pass, "decode_image", noted)

    def step(split="train", **settings):
        another_process()
        names.clear()
        dataset = build(folder, split, root_dir=str(results), **settings)
        return reds(dataset), [*names]

    return step


@pytest.fixture
def five(folder):
    for red in range(1, 6):
        save(folder / f"{red}.png", red)
    (folder / "x.png").write_bytes(b"no image")
    return folder


def files(results, split="train"):
    return sorted(path.name for path in (results / "mine/images").glob(f"*{split}*"))


@pytest.fixture(params=[True, False], ids=["memory", "mapped"])
def room(request, monkeypatch):
    monkeypatch.setattr(decode_pass, "fits_in_memory", lambda size: request.param)
    return request.param


def test_later_steps_decode_nothing(five, read, results, room, caplog):
    left = results / "mine/images/.train-32-crop.123.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"many gigabytes of a step that was killed")
    found, decoded = read()
    assert not left.exists()
    assert (found, len(decoded)) == ([1, 2, 3, 4, 5], 6)
    assert "results/mine/images/train-32-crop-" in caplog.text
    assert "(0.0154 MB)" in caplog.text
    before = {path: path.stat().st_mtime_ns for path in (results / "mine/images").iterdir()}
    for _ in range(2):
        (five.parent / "unreadable-train.txt").write_text(
            "# it is for people, and never read\n1.png\tnothing"
        )
        assert read() == ([1, 2, 3, 4, 5], [])
        assert "train: 5 decoded images are in" in caplog.text
        assert unreadable(five) == {"x.png": "empty, or not an image"}
    assert {path: path.stat().st_mtime_ns for path in (results / "mine/images").iterdir()} == before
    first, *_ = (five.parent / "unreadable-train.txt").read_text().splitlines()
    assert first.endswith(f"cannot be read; to look at all files again, delete {results}/mine/images")
    shutil.rmtree(results / "mine/images")
    assert len(read()[1]) == 6


def test_files_of_earlier_versions_are_read(five, read, results):
    """Those had more in the first line."""
    read()
    path = results / "mine/images/train-32-crop.tsv"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({"files": "0123", "noted": True, **json.loads(first)}) + "\n" + rest)
    assert read() == ([1, 2, 3, 4, 5], [])
    assert rest.split("\t")[4:6] == ["32", "32"]


def test_files_may_go_while_it_runs(five, results, room):
    """Once the images are kept, and be it before the first epoch."""
    dataset = build(five, root_dir=str(results))
    fingerprint = dataset.fingerprint()
    for path in five.iterdir():
        path.unlink()
    assert reds(dataset) == [1, 2, 3, 4, 5]
    assert dataset.raw(1)[0, 0, 0] == 2
    assert dataset.fingerprint() == fingerprint


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
def test_images_larger_than_the_memory_can_be_mapped(five, results, another_process, no_room, recwarn):
    """A private map that may be written to is refused by Linux if it exceeds the memory."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        for _ in range(2):  # when they are written, and when they are found
            another_process()
            dataset = build(five, root_dir=str(results))
            with open("/proc/self/maps", encoding="utf-8") as file:
                maps = [line.split()[1] for line in file if str(results) in line]
            assert maps and set(maps) == {"r--s"}
            dataset.raw(0).zero_()
            assert dataset.raw(0)[0, 0, 0] == 1
    finally:
        torch.set_warn_always(before)
    assert not recwarn.list


CHANGES = {
    "new file": (lambda f: save(f / "0.png", 9), [9, 1, 2, 3, 4, 5], ["0.png", "x.png"]),
    "removed": (lambda f: (f / "2.png").unlink(), [1, 3, 4, 5], ["x.png"]),
    "other content": (lambda f: save(f / "2.png", 222), [1, 222, 3, 4, 5], ["2.png", "x.png"]),
    "other time": (lambda f: os.utime(f / "2.png", ns=(1, 1)), [1, 2, 3, 4, 5], ["2.png", "x.png"]),
    "repaired": (lambda f: save(f / "x.png", 6), [1, 2, 3, 4, 5, 6], ["x.png"]),
    "renamed": (lambda f: (f / "2.png").rename(f / "7.png"), [1, 3, 4, 5, 2], ["7.png", "x.png"]),
    "damaged": (lambda f: (f / "2.png").write_bytes(b""), [1, 3, 4, 5], ["2.png", "x.png"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_decoded_again(five, read, results, room, change):
    read()
    before = files(results)
    what, expected, again = CHANGES[change]
    what(five)
    assert read() == (expected, again)
    assert read() == (expected, [])
    assert len(files(results)) == 2
    assert files(results) != before
    names = {"damaged": ["2.png", "x.png"], "repaired": []}.get(change, ["x.png"])
    assert list(unreadable(five)) == names


def test_a_file_that_could_not_be_opened(five, read, monkeypatch):
    """The same file is looked at again as soon as it can be opened, and only then."""
    readable, decode_image = [], decode_pass.decode_image

    def decode(path, *more):
        if path.endswith("2.png") and not readable:
            raise PermissionError(errno.EACCES, "Permission denied")
        return decode_image(path, *more)

    monkeypatch.setattr(decode_pass, "decode_image", decode)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(readable))
    assert read()[0] == [1, 3, 4, 5]
    assert unreadable(five) == {"2.png": "Permission denied", "x.png": "empty, or not an image"}
    assert read() == ([1, 3, 4, 5], [])
    readable.append(True)
    assert read() == ([1, 2, 3, 4, 5], ["2.png", "x.png"])
    assert read() == ([1, 2, 3, 4, 5], [])


@pytest.mark.parametrize(
    "damage", ["list", "pixels", "no pixels", "shortened list", "shortened pixels", "other"]
)
def test_damaged_files_are_made_again(five, read, results, room, damage):
    read()
    (path,) = (results / "mine/images").glob("*.tsv" if "list" in damage else "*.npy")
    if damage.startswith("shortened"):
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "no pixels":
        path.unlink()
    elif damage == "other":
        np.save(path, np.zeros((5, 3, 4, 4), np.float32))
    else:
        path.write_bytes(b"\xff\xfe")
    found, decoded = read()
    assert found == [1, 2, 3, 4, 5]
    assert decoded[:5] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    assert read() == (found, [])
    assert len(files(results)) == 2


def test_an_image_that_could_be_read_before(five, read, results):
    """The manifest is not changed behind the back of the steps that go by it."""
    read()
    for path in (results / "mine/images").glob("*.npy"):
        path.unlink()
    before = os.stat(five / "2.png")
    (five / "2.png").write_bytes(b"?" * before.st_size)
    os.utime(five / "2.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=f"^{five}/2.png: cannot be read as an image .empty, or not"):
        read()
    assert list(unreadable(five)) == ["x.png"]


def test_sizes_splits_and_datasets_have_files_of_their_own(five, read, results):
    for settings in ({}, {"resize": "pad"}, {"transformation_kwargs": {"crop_size": 56}}, {"split": "test"}):
        assert read(**settings)[1] and not read(**settings)[1]
    assert (len(files(results)), len(files(results, "test"))) == (6, 2)
    save(five.parent.parent / "new/a.png", 77)
    for decoded in (["a.png"], []):
        assert read("test", val_db_name="new") == ([77], decoded)
    assert [path.name for path in (results / "new/images").glob("*.tsv")] == ["all-32-crop.tsv"]


def test_lists_that_cannot_be_written_beside_the_images(five, read, monkeypatch, caplog):
    """Images on a read-only disk: the results know which cannot be read."""

    def read_only(path, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_text", read_only)
    assert len(read()[1]) == 6
    assert caplog.text.count("cannot be written (Read-only file system)") == 1
    assert read() == ([1, 2, 3, 4, 5], [])


# --- no room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["no folder", "too little", "in the middle", "at the end"])
def test_no_room_on_disk(five, read, results, room, when, monkeypatch, caplog):
    def full(*args):
        raise OSError(28, "No space left on device")

    if when == "no folder":
        results.write_text("a file")
        why = "Not a directory"
    elif when == "too little":
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 15000))
        why = "0.0184 MB are needed, 0.015 MB are free"
    else:
        monkeypatch.setattr(cache.PixelFile, "append" if when == "in the middle" else "close", full)
        why = "No space left on device"
    instead = "kept in memory only" if room else "decoded again in every epoch"
    for _ in range(2):
        assert read()[0] == [1, 2, 3, 4, 5]
        assert caplog.text.count(f"cannot be stored there ({why}); they are {instead}") == 1
    if when != "no folder":
        assert files(results) == ["train-32-crop.tsv"]  # which can be read is known
        assert len(read()[1]) == (5 if room or when != "too little" else 0)


def test_what_was_kept_stays_if_there_is_no_room_for_more(five, read, results, no_room, monkeypatch):
    read()
    before = files(results)
    save(five / "6.png", 6)
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 15000))
        for _ in range(2):
            assert read() == ([1, 2, 3, 4, 5, 6], ["6.png", "x.png"])
            assert files(results) == before
    assert read() == ([1, 2, 3, 4, 5, 6], ["6.png", "x.png"])
    assert read() == ([1, 2, 3, 4, 5, 6], [])


# --- interruptions ---------------------------------------------------------------------------------


@pytest.fixture
def interrupted(read, monkeypatch):
    """Function: a step that is interrupted after it has found `count` images that can be read."""
    append = cache.PixelFile.append

    def step(count):
        done = []

        def counted(file, pixels):
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(pixels)
            append(file, pixels)

        with monkeypatch.context() as patch:
            patch.setattr(cache.PixelFile, "append", counted)
            with pytest.raises(KeyboardInterrupt):
                read()

    return step


def test_what_an_interrupted_step_decoded_is_kept(folder, read, results, interrupted):
    for red in range(40):
        save(folder / f"{red:02}.png", red)
    (folder / "03.png").write_bytes(b"")
    interrupted(23)
    assert len(files(results)) == 2
    found, decoded = read()
    assert found == [red for red in range(40) if red != 3]
    assert decoded == ["03.png", *(f"{red}.png" for red in range(24, 40))]
    assert read() == (found, [])
    # nor is anything lost of what was known before
    save(folder / "00a.png", 100)
    interrupted(20)
    found, decoded = read()
    assert (len(found), decoded) == (40, ["00a.png", "03.png"])


def test_white_is_known_before_anything_is_decoded(folder, read, interrupted):
    """Images of 12 bits in files of 16, of which the last is the brightest."""
    for i in range(30):
        save(folder / f"{i:02}.png", i)
        if i % 2:
            Image.fromarray(np.full((SIZE, SIZE), 100 * i + 1000, np.uint16)).save(folder / f"{i:02}.png")
    expected = [(100 * i + 1000) * 255 / 4095 if i % 2 else i for i in range(30)]
    interrupted(14)
    found, decoded = read()
    assert found == pytest.approx(expected, abs=1)
    assert decoded == [f"{i:02}.png" for i in range(14, 30)]
    Image.fromarray(np.full((SIZE, SIZE), 50000, np.uint16)).save(folder / "30.png")
    found, decoded = read()  # of 16 bits, so those of 12 are dark
    assert decoded == [f"{i:02}.png" for i in range(30) if i % 2] + ["30.png"]
    dark = [(100 * i + 1000) * 255 / 65535 if i % 2 else i for i in range(30)]
    assert found == pytest.approx([*dark, 50000 * 255 / 65535], abs=1)
    assert read() == (found, [])


def _step(folder, results, queue):
    torch.set_num_threads(1)
    dataset = build(folder, root_dir=str(results))
    queue.put(reds(dataset))


def test_several_processes_at_once(five, results):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_step, args=(five, results, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [[1, 2, 3, 4, 5]] * 3
    for process in processes:
        process.join()
    assert len(files(results)) == 2


# --- what identifies the images --------------------------------------------------------------------


def test_hashes_of_the_content(five, results, another_process):
    shutil.copy(five / "1.png", five / "9.png")
    for settings in ({"root_dir": str(results)}, {"root_dir": str(results)}, {}):
        another_process()
        dataset = build(five, **settings)
        hashes = dataset.content_hashes()
        assert hashes[0] == hashlib.sha256((five / "1.png").read_bytes()).hexdigest()
        assert [hashes.index(value) for value in hashes] == [0, 1, 2, 3, 4, 0]


def test_the_digest_is_of_all_content_and_of_decoding(folder, results, another_process):
    """The fingerprint looks at about a hundred files only."""
    for i in range(203):
        save(folder / f"{i:03}.png", i)

    def step(**settings):
        another_process()
        return build(folder, root_dir=str(results), **settings)

    first = step()
    assert first.content_digest() == step().content_digest()
    save(folder / "001.png", 99)  # not among those
    changed = step()
    assert changed.fingerprint() == first.fingerprint()
    others = [step(resize="pad"), step(white_level=9), step(transformation_kwargs={"crop_size": 56})]
    assert len({dataset.content_digest() for dataset in (first, changed, *others)}) == 5


def test_fingerprints_do_not_depend_on_what_is_kept(five, results, another_process, no_room):
    """Nor on where: results from before anything was kept are still of the same images."""
    without = build(five)
    assert without.pixels is None
    another_process()
    assert without.fingerprint() == build(five, root_dir=str(results)).fingerprint()
    gradient().save(five / "1.png")
    another_process()
    assert without.fingerprint() != build(five, root_dir=str(results)).fingerprint()
