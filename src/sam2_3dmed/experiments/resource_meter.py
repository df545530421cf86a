"""The hardware of this machine, and the seconds, peak memory, energy and operations of a block of code."""

import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sam2_3dmed.processes.map_cases import num_processors

_RAPL = Path("/sys/class/powercap")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_POWER_COMMAND = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
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
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    has_peak = _reset_peak()
    joules: list[float] = []
    before, started = _rapl_joules(rapl), time.monotonic()
    try:
        with _adding_gpu_joules(joules):
            yield usage
    finally:
        usage.seconds = time.monotonic() - started
        usage.memory_mb = _peak_mb() if has_peak else None
        usage.gpu_memory_mb = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
        joules += _rapl_differences(before, _rapl_joules(rapl))
        usage.energy_kj = sum(joules) / 1e3 if joules else None


def count_flops() -> FlopCounterMode:
    """The context counts matrix products, convolutions and attention. A multiplication and an addition are two."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter lacks it
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def hardware() -> dict[str, Any]:
    """Describe this machine, in values for JSON."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else None
    return {
        "processor": _value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "processors": num_processors(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory and round(memory, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
    }


def _value(file: str, key: str) -> str | None:
    """The first value of a key in a file of Linux with `key: value` lines; None on other systems."""
    with suppress(OSError):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def _reset_peak() -> bool:
    """Returns: whether the system allowed the process's own peak to be reset."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float | None:
    """Peak since `_reset_peak`; None where the system does not count it."""
    peak = _value("/proc/self/status", "VmHWM")
    return int(peak.split()[0]) * 1024 / 1e6 if peak else None


def _rapl_joules(folder: Path) -> dict[Path, tuple[float, float]]:
    """For each processor its energy counter and the value at which the counter wraps, in joules. Often only root may
    read them."""
    counters = {}
    for zone in folder.glob("intel-rapl:[0-9]*"):
        if zone.name.count(":") > 1:  # part of a processor, included in the processor's counter
            continue
        with suppress(OSError, ValueError):
            energy, wraps = (int((zone / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
            counters[zone] = (energy, wraps)
    return counters


def _rapl_differences(
    before: Mapping[Path, tuple[float, float]], after: Mapping[Path, tuple[float, float]]
) -> list[float]:
    """A counter wraps after about an hour. More than one wrap cannot be detected."""
    steps = [(after[zone][0] - before[zone][0], before[zone][1]) for zone in before.keys() & after.keys()]
    return [step if step >= 0 else step + wraps for step, wraps in steps]


@contextmanager
def _adding_gpu_joules(joules: list[float]) -> Iterator[None]:
    """Add the energy of each interval of the body, from the power that `nvidia-smi` reports, if torch can use a GPU."""
    if not torch.cuda.is_available() or shutil.which(_POWER_COMMAND[0]) is None:
        yield
        return
    ended = threading.Event()

    def integrate() -> None:
        last = time.monotonic()
        while not ended.is_set():
            ended.wait(_POWER_INTERVAL_SECONDS)
            with suppress(OSError, ValueError, subprocess.SubprocessError):
                answer = subprocess.run(_POWER_COMMAND, capture_output=True, text=True, timeout=30, check=True)
                watts = sum(float(line) for line in answer.stdout.split())
                joules.append(watts * (time.monotonic() - last))
            last = time.monotonic()

    thread = threading.Thread(target=integrate, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
