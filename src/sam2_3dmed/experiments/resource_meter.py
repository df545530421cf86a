"""The hardware of this machine, and the seconds, peak memory, energy and operations of a block of code."""

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sam2_3dmed.processes.map_cases import num_processors

_RAPL = Path("/sys/class/powercap")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_POWER_INTERVAL_SECONDS = 2.0


@dataclass
class ResourceUsage:
    """Filled in when the block has ended. A value that the machine does not offer is None.

    Attributes:
        memory_mb: Peak resident memory of this process, libraries included, without its child processes.
        gpu_memory_mb: Peak memory that torch had allocated.
        energy_kj: Energy of processors and memory (RAPL) and of GPUs.
    """

    seconds: float = 0.0
    memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    energy_kj: float | None = None


@contextmanager
def measure_resources(rapl: Path = _RAPL) -> Iterator[ResourceUsage]:
    """Measure the block, also if it raises. rapl: folder of the energy counters."""
    usage = ResourceUsage()
    was_reset = _reset_peaks()
    before, gpus, started = _rapl_joules(rapl), _GpuEnergy(), time.monotonic()
    try:
        yield usage
    finally:
        usage.seconds = time.monotonic() - started
        usage.memory_mb = _peak_mb() if was_reset else None
        usage.gpu_memory_mb = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
        joules = [part for part in (_rapl_difference(before, _rapl_joules(rapl)), gpus.stop()) if part is not None]
        usage.energy_kj = sum(joules) / 1e3 if joules else None


@contextmanager
def count_flops() -> Iterator[FlopCounterMode]:
    """Count the operations of matrix products, convolutions and attention. A multiplication and an addition are two."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter lacks it
    with FlopCounterMode(display=False, custom_mapping={fused: _attention_flops}) as counter:
        yield counter


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Shapes (B, heads, N, C): queries times keys, and weights times values."""
    batch, heads, length, channels = query
    return int(2 * batch * heads * length * key[2] * (channels + value[3]))


def hardware() -> dict[str, Any]:
    """Describe this machine, in values for JSON."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "processors": num_processors(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory and round(memory, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _reset_peaks() -> bool:
    """Returns: whether the system allowed the process's own peak to be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float | None:
    """Peak since `_reset_peaks`; None where the system does not count it."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / 1e6


def _rapl_joules(folder: Path) -> dict[Path, tuple[float, float]]:
    """For each processor its energy counter and the value at which the counter wraps, in joules. Often only root may
    read them."""
    counters = {}
    for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:  # part of a processor, included in the processor's counter
            continue
        with suppress(OSError, ValueError):
            energy, wraps = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            counters[zone] = (int(energy) / 1e6, int(wraps) / 1e6)
    return counters


def _rapl_difference(before: dict[Path, tuple[float, float]], after: dict[Path, tuple[float, float]]) -> float | None:
    """A counter wraps after about an hour. More than one wrap cannot be detected."""
    both = before.keys() & after.keys()
    if not both:
        return None
    steps = [(after[zone][0] - before[zone][0], before[zone][1]) for zone in both]
    return sum(step if step >= 0 else step + wraps for step, wraps in steps)


class _GpuEnergy:
    """Integrates the power that `nvidia-smi` reports, if torch can use a GPU."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi") if torch.cuda.is_available() else None
        self._joules: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._integrate, args=(self._program,), daemon=True)
        if self._program:
            self._thread.start()

    def stop(self) -> float | None:
        """Returns: joules, or None without a GPU that reports its power."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        return self._joules

    def _integrate(self, program: str) -> None:
        last, stopped = time.monotonic(), False
        while not stopped:
            stopped = self._stopped.wait(_POWER_INTERVAL_SECONDS)
            watts = _gpu_watts(program)
            now = time.monotonic()
            if watts is not None:
                self._joules = (self._joules or 0.0) + watts * (now - last)
            last = now


def _gpu_watts(program: str) -> float | None:
    command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return sum(float(line) for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
