"""Images in memory: what fits there, and on a device."""

import pytest
import torch

from data import arrays


def test_a_quarter_of_the_memory(monkeypatch):
    assert arrays.fits_in_memory(1_000_000)
    assert not arrays.fits_in_memory(10**15)
    monkeypatch.setattr(arrays, "_memory_limits", lambda: [10**18, 4000])
    assert [arrays.fits_in_memory(size) for size in (1000, 1001)] == [True, False]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [arrays.fits_in_memory(size) for size in (500, 501)] == [True, False]


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(tmp_path, monkeypatch, version):
    """A job's limit, and that of the groups around it."""
    top = tmp_path / ("memory" if version == 1 else "")
    (top / "jobs/1").mkdir(parents=True)
    file = "memory.limit_in_bytes" if version == 1 else "memory.max"
    (top / "jobs/1" / file).write_text("9223372036854771712\n" if version == 1 else "max\n")
    (top / "jobs" / file).write_text("5000\n")
    lines = ["3:cpuset:/", "4:memory:/jobs/1"] if version == 1 else ["0::/jobs/1"]
    (tmp_path / "cgroup").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(arrays, "CONTROL_GROUPS", (tmp_path / "cgroup", tmp_path))
    assert min(arrays._memory_limits()) == 5000


class OtherDevice:
    """A device with room for so many bytes; pretended, as tensors without content."""

    def __init__(self, monkeypatch, room):
        self.room, self.empty = room, torch.empty
        monkeypatch.setattr(torch, "empty", self.allocate)

    def allocate(self, *shape, **how):
        found = self.empty(*shape, **how)
        if torch.device(how.get("device", "cpu")).type == "meta" and found.nbytes > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found


@pytest.mark.parametrize("fits", [True, False])
def test_images_move_to_a_device_that_has_room_for_twice_as_many(monkeypatch, fits):
    images = torch.arange(5 * 3 * 4).view(5, 3, 2, 2).to(torch.uint8)
    OtherDevice(monkeypatch, 2 * images.nbytes - (not fits))
    dataset = arrays.ArrayImages(images)
    for _ in range(2):
        (batch,) = dataset.fetch([torch.tensor([[1, 2]])], "meta")
        assert (batch.device.type, batch.shape) == ("meta", (1, 2, 3, 2, 2))
        assert dataset.images.device.type == ("meta" if fits else "cpu")
