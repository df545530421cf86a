"""Free memory is what machine, container and ulimit leave, and running out of it is told from other errors."""

import subprocess
import sys

import pytest
import torch

from sam2_3dmed.inference import free_memory
from sam2_3dmed.inference.free_memory import free_bytes, is_out_of_memory

CPU = torch.device("cpu")
GIB = 2**30


def test_the_least_of_the_limits_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(free_memory, "_ulimit", lambda: None)
    assert free_bytes(CPU) == 4 * GIB  # nobody says
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {3 * 2**20} kB\n")
    assert free_bytes(CPU) == 3 * GIB
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) == 3 * GIB
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert free_bytes(CPU) == GIB
    monkeypatch.setattr(free_memory, "_ulimit", lambda: 5)
    assert free_bytes(CPU) == 5
    monkeypatch.setattr(free_memory, "_ulimit", lambda: -5)
    assert free_bytes(CPU) == 0


UNDER_A_LIMIT = """
import resource, torch
from sam2_3dmed.inference.free_memory import free_bytes, is_out_of_memory
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
free = free_bytes(torch.device("cpu"))
assert 0 < free <= 2**30, free
try:
    torch.empty(2 * free, dtype=torch.uint8)
except BaseException as error:
    assert is_out_of_memory(error), repr(error)
    print("told")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit is read from /proc")
def test_a_real_limit_is_seen_and_its_error_is_told():
    answer = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT], capture_output=True, text=True, check=False)
    assert answer.stdout.strip() == "told", answer.stderr


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_which_errors_mean_too_little_memory(error, expected):
    assert is_out_of_memory(error) == expected
