"""What a piece of work takes of a machine: seconds, the highest memory, and energy where the machine tells."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_RAPL = Path("/sys/class/powercap")
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_POWER_SECONDS = 2.0
"""Between readings of the power that GPUs draw."""


@dataclass
class Usage:
    """Filled when the work has ended. What the machine does not tell is None.

    memory_mb: the highest resident memory of this process, libraries included, not of processes that it starts;
    gpu_memory_mb: the highest that torch had allocated; energy_kj: of processors and memory (RAPL), and of GPUs.
    """

    seconds: float = 0.0
    memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    energy_kj: float | None = None


@contextmanager
def metered(rapl: Path = _RAPL) -> Iterator[Usage]:
    """Meter the body; also if it raises."""
    usage = Usage()
    forgotten = _forget_peaks()
    before, gpus, started = _rapl_joules(rapl), _GpuPower(), time.monotonic()
    try:
        yield usage
    finally:
        usage.seconds = time.monotonic() - started
        usage.memory_mb = _peak_mb() if forgotten else None
        usage.gpu_memory_mb = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
        parts = [_rapl_difference(before, _rapl_joules(rapl)), gpus.stop()]
        known = [joules for joules in parts if joules is not None]
        usage.energy_kj = sum(known) / 1e3 if known else None


def _forget_peaks() -> bool:
    """Whether the system let the process's own be forgotten."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak_mb() -> float | None:
    """The highest since `_forget_peaks`; None where the system keeps no such number."""
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024 / 1e6


def _rapl_joules(folder: Path) -> dict[Path, tuple[float, float]]:
    """Of each processor: the counter, and where it begins anew; in joules. Often only root may read them."""
    counters = {}
    for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:  # a part of a processor, which counts in the processor's
            continue
        with suppress(OSError, ValueError):
            energy, wraps = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            counters[zone] = (int(energy) / 1e6, int(wraps) / 1e6)
    return counters


def _rapl_difference(before: dict[Path, tuple[float, float]], after: dict[Path, tuple[float, float]]) -> float | None:
    """A counter that has begun anew more than once, which takes an hour or so, cannot be told from once."""
    both = before.keys() & after.keys()
    if not both:
        return None
    steps = [(after[zone][0] - before[zone][0], before[zone][1]) for zone in both]
    return sum(step if step >= 0 else step + wraps for step, wraps in steps)


class _GpuPower:
    """Adds up what GPUs draw, by `nvidia-smi`, while torch can use one."""

    def __init__(self) -> None:
        self._program = shutil.which("nvidia-smi") if torch.cuda.is_available() else None
        self._joules: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True) if self._program else None
        if self._thread:
            self._thread.start()

    def stop(self) -> float | None:
        """The joules; None if there is no GPU, or it does not tell."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
        return self._joules

    def _read(self) -> None:
        last = time.monotonic()
        while True:
            ended = self._stopped.wait(_POWER_SECONDS)
            watts = self._watts()
            now = time.monotonic()
            if watts is not None:
                self._joules = (self._joules or 0.0) + watts * (now - last)
            last = now
            if ended:
                return

    def _watts(self) -> float | None:
        assert self._program is not None
        command = [self._program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
            return sum(float(line) for line in answer.split())
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
