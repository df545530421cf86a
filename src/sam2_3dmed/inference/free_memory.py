"""The free memory of a device, and errors that mean that there was too little."""

from contextlib import suppress
from pathlib import Path

import torch

_UNKNOWN = 4 * 2**30  # the assumption where the system has no figures
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    # oneDNN gives no reason. With another reason, a second try with less memory fails, too.
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
)


def free_bytes(device: torch.device) -> int:
    """The bytes that a process may still take; on a CPU the least of what machine, container and ulimit leave."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    left: list[int | None] = []
    for measure in (_machine, _container, _ulimit):
        with suppress(ImportError, OSError, ValueError, KeyError):  # this system has no such figure
            left.append(measure())
    return max(0, min((size for size in left if size is not None), default=_UNKNOWN))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch raises its own error for GPUs, but a plain RuntimeError for CPUs."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in _OUT_OF_MEMORY)


def _machine() -> int:
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _container() -> int:
    limit, used = (int((_CGROUP / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
    return limit - used


def _ulimit() -> int | None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return None if limit == resource.RLIM_INFINITY else limit - used
