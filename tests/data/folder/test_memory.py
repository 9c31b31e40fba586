"""What fits in memory."""

import pytest

from data.folder import memory


def test_a_quarter_of_the_memory(monkeypatch):
    assert memory.fits_in_memory(1_000_000)
    assert not memory.fits_in_memory(10**15)
    monkeypatch.setattr(memory, "_limits", lambda: [10**18, 4000])
    assert [memory.fits_in_memory(size) for size in (1000, 1001)] == [True, False]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [memory.fits_in_memory(size) for size in (500, 501)] == [True, False]


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
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (tmp_path / "cgroup", tmp_path))
    assert min(memory._limits()) == 5000
