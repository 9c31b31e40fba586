"""Other systems than Linux, as far as Linux can pretend them: names, files in use, what only POSIX has."""

import logging
import ntpath
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import other_systems
import pytest
import torch
from digits_steps import ROOT, arguments
from image_folders import save

import data
import reproduce
from data import messages
from data.augment import strong
from data.csv_tables import rows_of_images
from data.folder import containers, image_files, listing, sources
from utils.run import checks, folder
from workflows import sort_files


@pytest.fixture
def backslashes(monkeypatch):
    """Paths are those of Windows in the modules that take them apart."""
    path = SimpleNamespace(**{name: getattr(ntpath, name) for name in dir(ntpath) if name[0] != "_"})
    path.isfile = path.lexists = lambda path: path.endswith((".png", ".tif", ".zip"))
    path.abspath = path.normpath
    for module in (messages, containers, image_files, listing, sources):
        fake = SimpleNamespace(path=path, sep="\\", fsdecode=os.fsdecode, fsencode=os.fsencode)
        monkeypatch.setattr(module, "os", fake)


def test_names_have_slashes_whatever_the_paths_have(backslashes):
    files = [r"C:\Photos\cats\a.png", r"C:\Photos\b.png"]
    assert listing.names_within(PureWindowsPath(r"C:\Photos"), files) == ["cats/a.png", "b.png"]
    dataset = image_files.FolderImages(files, None, None, 32)
    assert dataset.names() == ["cats/a.png", "Photos/b.png"]
    assert messages.shown(files[1]) == "C:/Photos/b.png"
    for member in (r"C:\new.zip\cats/a.jpg", r"C:\scan.tif/1"):
        assert containers._is_member(member)
    assert not containers._is_member(files[0])
    assert containers._split(r"C:\new.zip\cats/a.jpg") == (r"C:\new.zip", "cats/a.jpg")


@pytest.mark.parametrize(
    "lines, names",
    [
        (["C:\\a\\cat\\1.png", "c:\\A\\2.png"], ["cat/1.png", "2.png"]),
        (["C:\\a\\1.png", "D:\\a\\1.png"], ["C:/a/1.png", "D:/a/1.png"]),
        (["cat\\1.png", "dog/2.png"], ["cat/1.png", "dog/2.png"]),
    ],
)
def test_lists_of_paths_with_drives(backslashes, tmp_path, lines, names):
    file = SimpleNamespace(parent="C:\\lists", read_bytes="\r\n".join(lines).encode)
    assert sources.listed_images(file).names == names
    rows = rows_of_images([line.replace("/", "\\") for line in lines], names)  # a table made on Windows
    assert rows == [[0], [1]]


def test_names_of_datasets_stay_within_their_folder(monkeypatch):
    assert checks.DATASET.convert("mine/part/") == "mine/part"
    monkeypatch.setattr(checks, "Path", PureWindowsPath)
    assert checks.DATASET.convert("mine\\part") == "mine/part"
    for name in ("C:mine", "C:\\mine", "\\mine", "..\\mine", "\\\\server\\share\\mine"):
        with pytest.raises(ValueError):
            checks.DATASET.convert(name)


def test_names_as_folders_and_files_of_any_system(monkeypatch, tmp_path):
    draw = random.Random(0)
    parts = [
        "con",
        "AUX",
        "nul",
        "COM1",
        "lpt9",
        "cat",
        "Cat",
        "CAT",
        "ß",
        "e\u0301",
        "\u00e9",
        "CONIN$",
        "\U0001f408",
    ]
    parts += list(' .<>:"/\\|?*_(2)\n\x00') + ["com\u00b9", ".png", "x" * 300, "\u732b" * 100, ".."]
    names = ["".join(draw.choices(parts, k=draw.randint(0, 4))) for _ in range(500)]
    folders = sort_files.sorting_folders(tmp_path, names, tmp_path / "none")
    assert len({unicodedata.normalize("NFC", path.name).casefold() for path in folders}) == len(names)
    monkeypatch.setattr(sort_files, "ON_WINDOWS", True)
    files = [sort_files.place_in(tmp_path, f"{name}/{name}x.png") for name in names]
    for path in [*folders, *files]:
        for part in path.relative_to(tmp_path).parts:
            assert not other_systems.RESERVED.fullmatch(part) and part[0] not in " ." and part != ""
            assert len(part.encode()) <= 220
    assert all(path.suffix == ".png" and path.is_relative_to(tmp_path) for path in files)
    assert sort_files.place_in(tmp_path, "C:/x/aux.tar.png") == tmp_path / "C_/x/_aux.tar.png"
    for name, expected in (
        ("cats", "cats"),
        ("com\u00b2.txt", "_com\u00b2.txt"),
        ("nul ", "_nul"),
        ("a b.", "a b"),
    ):
        assert sort_files.folder_name(name) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_step_where_windows_rules(tmp_path):
    """The pretext step, which maps the features that it mines; and a loader with a spawned worker."""
    for i in range(3):
        save(tmp_path / f"images/{i}.png", red=10 * i)
    argv = arguments("pretext", tmp_path, "epochs=1")
    command = [sys.executable, "tests/scripts/other_systems.py", str(tmp_path), "simclr", *argv]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    refused = [line for line in done.stdout.splitlines() if line.startswith(("in use:", "no name"))]
    scratch = tmp_path / "digits/pretext/scratch"
    assert {line.split()[-1] for line in refused} == {
        str(scratch),
        *(f"{scratch}/{s}.npy" for s in ("train", "val")),
    }
    assert not scratch.exists()  # it was removed at the end
    assert done.stdout.splitlines()[-1] == "[[0, 10], [20]]"


def test_a_folder_is_renamed_while_its_log_is_open(tmp_path, monkeypatch):
    source, target = tmp_path / "one", tmp_path / "two"
    source.mkdir()
    handler = logging.FileHandler(source / "log.txt", encoding="utf-8")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    logging.warning("before")
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *a: handler.stream is None and rename(*a))
    folder.rename(source, target)
    logging.warning("after")
    handler.close()
    assert (target / "log.txt").read_text(encoding="utf-8").split() == ["before", "after"]


def test_stop_after_reaches_the_handler_on_windows(monkeypatch):
    came = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", None)  # there it would end the process
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        reproduce.stop_after(1e-6)
        for _ in range(1000):
            time.sleep(0.0 if came else 0.01)
        assert came
    finally:
        signal.signal(signal.SIGTERM, before)


class OnDevice(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes what becomes float64 on the pretended device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.is_cuda and output.dtype == torch.float64:
            self.found.append(str(function))
        return output


@pytest.mark.parametrize("without", [True, False])
def test_no_float64_where_there_is_none(monkeypatch, without):
    from torch._subclasses.fake_tensor import FakeTensorMode  # tensors without content, on any device

    torch._C._ensureCUDADeviceGuardSet()
    monkeypatch.setattr(data.device, "WITHOUT_FLOAT64", ("cuda",) if without else ())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    operation, magnitude = strong.draw_operations(4)
    with FakeTensorMode(allow_non_fake_inputs=True), OnDevice() as device:
        images = torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="cuda")
        for function in strong.FUNCTIONS:
            assert function(images, operation, magnitude).is_cuda
    assert bool(device.found) != without
