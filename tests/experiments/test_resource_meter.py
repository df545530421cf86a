"""The hardware, and what a block of code takes of it."""

import json
import mmap
import time

import pytest
import torch
import torch.nn.functional as F

from sam2_3dmed.experiments import resource_meter
from sam2_3dmed.experiments.resource_meter import count_flops, hardware, measure_resources


def test_seconds_also_of_work_that_fails():
    with pytest.raises(ZeroDivisionError), measure_resources() as usage:  # noqa: PT012
        time.sleep(0.02)
        _ = 1 // 0
    assert 0.02 <= usage.seconds < 5


def touch(num_bytes):
    """Fresh pages, which malloc would not always take: it may have as much that is free and resident."""
    with mmap.mmap(-1, num_bytes) as pages:
        for start in range(0, num_bytes, mmap.PAGESIZE):
            pages[start] = 1


def test_memory_is_that_of_the_work_not_of_what_came_before():
    with measure_resources() as large:
        touch(2 * 10**8)
    with measure_resources() as small:
        touch(10**6)
    if small.memory_mb is None:
        pytest.skip("this system does not tell")
    assert large.memory_mb - small.memory_mb == pytest.approx(200, abs=30)


def test_memory_is_not_told_where_earlier_peaks_cannot_be_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(resource_meter, "_CLEAR_REFS", tmp_path / "no such folder" / "clear_refs")
    with measure_resources() as usage:
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
        with measure_resources(rapl) as usage:
            (rapl / "intel-rapl:0" / "energy_uj").write_text("2000005000000")
            (rapl / "intel-rapl:0:0" / "energy_uj").write_text("9000000000000")  # a part of the first
        assert usage.energy_kj == pytest.approx(2000)

    def test_a_counter_that_has_begun_anew(self, rapl):
        with measure_resources(rapl) as usage:
            (rapl / "intel-rapl:1" / "energy_uj").write_text("100000")  # from 0.9 J over 1 J to 0.1 J
        assert usage.energy_kj == pytest.approx(0.2e-3)

    def test_is_empty_where_nothing_tells(self, tmp_path):
        with measure_resources(tmp_path) as usage:
            pass
        assert usage.energy_kj is None


def test_a_product_and_a_convolution():
    with torch.inference_mode(), count_flops() as counter:
        F.linear(torch.ones(7, 3), torch.ones(5, 3), torch.ones(5))
    assert counter.get_total_flops() == 2 * 7 * 3 * 5
    with torch.inference_mode(), count_flops() as counter:
        F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3), padding=1)
    assert counter.get_total_flops() == 2 * (3 * 9) * 4 * 64


@pytest.mark.parametrize("length", [5, 600])
def test_attention_with_any_of_the_processors_kernels(length):
    query, key = torch.rand(2, 3, 4, 16), torch.rand(2, 3, length, 16)
    with torch.inference_mode(), count_flops() as counter:
        F.scaled_dot_product_attention(query, key, key)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3) * 4 * length * 16


def test_this_machine():
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["processors"] >= 1
    assert found["threads"] >= 1
