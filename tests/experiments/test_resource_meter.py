"""Seconds, memory and energy of a piece of work."""

import mmap
import time

import pytest

from sam2_3dmed.experiments import resource_meter as usage_module
from sam2_3dmed.experiments.resource_meter import metered


def test_seconds_also_of_work_that_fails():
    with pytest.raises(ZeroDivisionError), metered() as usage:  # noqa: PT012
        time.sleep(0.02)
        _ = 1 // 0
    assert 0.02 <= usage.seconds < 5


def touch(num_bytes):
    """Fresh pages, which malloc would not always take: it may have as much that is free and resident."""
    with mmap.mmap(-1, num_bytes) as pages:
        for start in range(0, num_bytes, mmap.PAGESIZE):
            pages[start] = 1


def test_memory_is_that_of_the_work_not_of_what_came_before():
    with metered() as large:
        touch(2 * 10**8)
    with metered() as small:
        touch(10**6)
    if small.memory_mb is None:
        pytest.skip("this system does not tell")
    assert large.memory_mb - small.memory_mb == pytest.approx(200, abs=30)


def test_memory_is_not_told_where_earlier_peaks_cannot_be_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(usage_module, "_CLEAR", tmp_path / "no such folder" / "clear_refs")
    with metered() as usage:
        pass
    assert usage.memory_mb is None


class TestEnergy:
    @pytest.fixture
    def rapl(self, tmp_path):
        for zone, counter in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:0", 1_000_000), ("intel-rapl:1", 900_000)):
            (tmp_path / zone).mkdir()
            (tmp_path / zone / "energy_uj").write_text(str(counter))
            (tmp_path / zone / "max_energy_range_uj").write_text("1000000")
        return tmp_path

    def test_is_that_of_all_processors(self, rapl):
        with metered(rapl) as usage:
            (rapl / "intel-rapl:0" / "energy_uj").write_text("2000005000000")
            (rapl / "intel-rapl:0:0" / "energy_uj").write_text("9000000000000")  # a part of the first
        assert usage.energy_kj == pytest.approx(2000)

    def test_a_counter_that_has_begun_anew(self, rapl):
        with metered(rapl) as usage:
            (rapl / "intel-rapl:1" / "energy_uj").write_text("100000")  # from 0.9 J over 1 J to 0.1 J
        assert usage.energy_kj == pytest.approx(0.2e-3)

    def test_is_empty_where_nothing_tells(self, tmp_path):
        with metered(tmp_path) as usage:
            pass
        assert usage.energy_kj is None
