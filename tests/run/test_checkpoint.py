"""Files: every format that users bring, every file that is none, and writes that a crash cannot spoil."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mistakes import zipped

from errors import UserError
from utils.run import checkpoint


def content():
    return {"model": {"weight": torch.arange(2000.0).view(40, 50)}, "head": 1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth.tar"


@pytest.mark.parametrize("zip_format", [True, False])  # torch before 1.6 wrote no zip files
@pytest.mark.parametrize("scalar", [np.int64(200), np.float64(-1.25), 3, None])
def test_formats(path, zip_format, scalar, monkeypatch):
    """Tensors of a GPU that is not there, and the scalars that the original wrote: a head, the best loss."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
    torch.save({**content(), "scalar": scalar}, path, _use_new_zipfile_serialization=zip_format)
    assert b"cuda:1" in path.read_bytes()
    found = checkpoint.load(path)
    weight = found["model"]["weight"]
    assert weight.device.type == "cpu" and torch.equal(weight, content()["model"]["weight"])
    assert found["scalar"] == scalar


def test_numpy_scalar_of_old_numpy(path):
    """Published files name the module numpy.core, which NumPy 2 renamed."""
    torch.save({**content(), "head": np.int64(1)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    path.write_bytes(data)
    assert b"numpy.core.multiarray" in data
    assert checkpoint.load(path)["head"] == 1


class Evil:
    def __reduce__(self):
        return (print, ("code from a file",))


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("evil", [Evil(), {"model": Evil()}])
def test_no_code_from_a_file(path, evil, zip_format, capsys):
    torch.save(evil, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match="more than weights .*print.*could run code"):
        checkpoint.load(path)
    assert "code from a file" not in capsys.readouterr().out


@pytest.mark.parametrize("array", [np.zeros(3), np.array([{}], dtype=object), np.float32(1)])
def test_other_things_of_numpy_are_not_on_the_list(path, array):
    torch.save({"model": array}, path)
    with pytest.raises(UserError, match="more than weights .*numpy"):
        checkpoint.load(path)


def a_tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00gzip", "an archive; unpack it"),
        (a_tar(), "an archive; unpack it"),
        (zipped("drive-download/model.pth.tar", "weights"), "a zip archive of something else"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"\x80\x02}", "cut short"),
        (pickle.dumps({"a": 1}), "damaged"),
    ],
)
def test_files_that_are_no_checkpoint(path, data, message):
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"not a readable checkpoint: .*{message}") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999, "a byte"])
def test_truncated_and_damaged_files(path, zip_format, share):
    torch.save(content(), path, _use_new_zipfile_serialization=zip_format)
    data = bytearray(path.read_bytes())
    if share == "a byte":
        # the zip format has checksums, which torch itself does not look at; in the other, this one is noticed
        data[len(data) // 2 if zip_format else 0] ^= 255
    else:
        data = data[: int(share * len(data))]
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged|cut short"):
        checkpoint.load(path)


def test_no_file_and_folders(tmp_path, path):
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:  # what a file manager makes of a ".tar" that is a zip file
        archive.extractall(tmp_path / "unpacked")
    (inside,) = (tmp_path / "unpacked").iterdir()
    for place, message in (
        (tmp_path / "x", "no such file; run scan.py"),
        (tmp_path, "a folder, not a checkpoint file$"),
        (inside.parent, "do not untar"),
        (inside, "do not untar"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.load(place, "run scan.py")


def test_failed_write_keeps_the_previous_file(path, monkeypatch):
    checkpoint.save({"a": torch.ones(3)}, path)

    def full_disk(content, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left.*the previous one, if any, is intact"):
        checkpoint.save({"a": torch.zeros(3)}, path)
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert list(path.parent.iterdir()) == [path]
