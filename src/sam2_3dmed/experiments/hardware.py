"""The machine that a run is on, for the record."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from sam2_3dmed.processes.map_cases import num_processors


def hardware() -> dict[str, Any]:
    """Of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "processors": num_processors(),
        "threads": torch.get_num_threads(),
        "memory_gb": memory and round(memory, 1),
        "gpus": gpus,
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
