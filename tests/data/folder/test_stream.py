"""New files, decoded as they come."""

import pytest
import torch
from image_folders import build, gradient

import data

CONFIG = {"transformation_kwargs": {"crop_size": 28}}


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_equal_the_datasets(folder, workers):
    for i in range(40):
        gradient().rotate(i).resize((40 + i, 50)).save(folder / f"{i:02}.jpg")
    for name in ("03.jpg", "05.jpg", "39.jpg"):
        (folder / name).write_bytes(b"")
    (folder / "a").mkdir()
    gradient().save(folder / "a/x.png")
    (folder / "read me.txt").write_text("")
    files, left_out = data.list_images(folder)
    assert (files[-1], len(files), dict(left_out)) == (f"{folder}/a/x.png", 41, {".txt": 1})
    parts = list(data.stream(files, CONFIG, workers))
    names, pixels, reasons = zip(*parts, strict=True)
    assert sum(names, []) == files
    assert [file[-6:] for part in reasons for file in part] == ["03.jpg", "05.jpg", "39.jpg"]
    assert set(reasons[0].values()) == {"empty, or not an image"}
    (folder / "a/x.png").rename(folder / "x.png")
    (folder / "a").rmdir()
    dataset = build(folder)
    assert torch.equal(torch.cat(pixels), next(dataset.fetch([torch.arange(38)], "cpu")))


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (found,) = data.stream([f"{tmp_path}/a.png", f"{tmp_path}/b.png"], CONFIG)
    assert found[1].shape == (0, 3, 32, 32)
    assert found[0] == list(found[2]) == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
