"""What the benchmarks of inference share: a synthetic CT, a network with random weights, a process measured alone.

The CT has a body, a spine, organs, and noise that makes it compress like a CT (about 2 to 1).
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPACING_MM = (0.8, 0.8, 2.5)
SLAB_SLICES = 6
LABELS = {1: "organ", 2: "tumour"}


def make_ct(path: Path, size: int, num_slices: int) -> None:
    """Write (size, size, num_slices) int16 in Hounsfield units, axes L, P, S; slice by slice, the same every time."""
    import numpy as np

    from sam2_3dmed.volume.volume import Volume

    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    array = np.empty((num_slices, size, size), np.int16)
    for index in range(num_slices):
        level = index / max(num_slices - 1, 1)
        plane = np.where((x / 0.85) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
        plane[(x + 0.3) ** 2 + (y / (0.3 + 0.2 * np.sin(6 * level))) ** 2 < 0.06] = 110
        plane[(x - 0.35) ** 2 + y**2 < 0.02 + 0.03 * level] = -60
        plane[x**2 + (y - 0.42) ** 2 < 0.01] = 400
        array[index] = plane + rng.normal(0, 20, plane.shape)
    Volume(array.T, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])).write(path)


def make_in_process(path: Path, size: int, num_slices: int) -> None:
    """`make_ct` in a process of its own: one starts with the peak of the one that started it."""
    run_alone(__file__, "--make", str(path), str(size), str(num_slices))


def random_predictor(
    model: str,
    image_size: int | None = None,
    *,
    network: Mapping[str, Any] | None = None,
    slab_slices: int = SLAB_SLICES,
    **settings: Any,
) -> Any:
    """A predictor with random weights.

    image_size: none: 512, or 96 for nano; network, settings: of `NetworkConfig` and of `InferenceConfig`.
    """
    import torch

    from sam2_3dmed.config import InferenceConfig, NetworkConfig
    from sam2_3dmed.inference.predictor import Predictor
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing

    torch.manual_seed(0)
    pixels = image_size or (96 if model == "nano" else 512)
    made = {**(network or {}), "size": model, "image_size": pixels}
    built = build_network(NetworkConfig.model_validate(made), len(LABELS)).eval()
    config = InferenceConfig(**{**settings, "precision": "32"})
    preprocessing = Preprocessing("axial", (Normalisation("fixed", -160, 240),))
    return Predictor(built, preprocessing=preprocessing, labels=LABELS, slab_slices=slab_slices, config=config)


def run_alone(script: str, *arguments: str, threads: int | None = None) -> dict[str, Any]:
    """What a script prints as its last line, as JSON, from a fresh process."""
    environment = dict(os.environ)
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, script, *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    lines = answer.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def peak_mb() -> float:
    """The largest size this process has had, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    make_ct(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
