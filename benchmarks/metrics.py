"""The metrics of one large case beside surface-distance and MONAI: seconds and peak memory, in one run.

    python benchmarks/metrics.py [--repeats 3]

A pair of 512 x 512 x 120 at 0.8 x 0.8 x 2.5 mm, liver-sized (radius about 60 voxels), with a surface that waves; and
the same with a false positive far away, which makes the box around both large. Each side runs in a process of its own,
in turn, on the same masks. All compute Dice, HD95, the average surface distance and NSD at 2 and 1 mm; ours also HD100,
volume errors, sensitivity, precision and lesions. `surfel` is surface-distance's definition of a surface, `voxel` is
MONAI's. Seconds are without imports and without reading the masks. Memory is by how much scoring raises the
process's peak (ru_maxrss) above what it was when the masks were there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

SPACING_MM = (0.8, 0.8, 2.5)
TOLERANCES_MM = (2.0, 1.0)
Side = Callable[[Any, Any], dict[str, float]]


def make_pair(has_outlier: bool) -> tuple[Any, Any]:
    """(512, 512, 120) bool: prediction and truth."""
    x, y, z = np.ogrid[:512, :512, :120]
    waves = 1 + 0.15 * np.sin(x / 7) * np.sin(y / 9) * np.cos(z / 5)

    def ellipsoid(centre: tuple[int, int, int], radii: tuple[int, int, int]) -> Any:
        parts = [((axis - at) / r) ** 2 for axis, at, r in zip((x, y, z), centre, radii, strict=True)]
        return parts[0] + parts[1] + parts[2] <= waves

    prediction, truth = ellipsoid((200, 250, 60), (62, 58, 52)), ellipsoid((203, 248, 61), (60, 60, 50))
    if has_outlier:
        prediction |= ellipsoid((400, 420, 100), (6, 6, 5))
    return prediction, truth


def ours(surface: str) -> Side:
    import scipy.ndimage
    import scipy.spatial  # noqa: F401 - both would be imported by the first case

    from sam2_3dmed.evaluation.metrics import Scoring, case_metrics

    scoring = Scoring(TOLERANCES_MM, surface)

    def score(prediction: Any, truth: Any) -> dict[str, float]:
        return case_metrics(prediction, truth, {1: "liver"}, SPACING_MM, scoring)[0].scores

    return score


def surface_distance_side() -> Side:
    import surface_distance

    def score(prediction: Any, truth: Any) -> dict[str, float]:
        distances = surface_distance.compute_surface_distances(truth, prediction, SPACING_MM)
        average = surface_distance.compute_average_surface_distance(distances)
        scores = {
            "dice": surface_distance.compute_dice_coefficient(truth, prediction),
            "hd95_mm": surface_distance.compute_robust_hausdorff(distances, 95),
            "mean of both directed averages": float(np.mean(average)),
        }
        for tolerance in TOLERANCES_MM:
            nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
            scores[f"nsd_{tolerance:g}mm"] = nsd
        return scores

    return score


def monai_side() -> Side:
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    def score(prediction: Any, truth: Any) -> dict[str, float]:
        pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        options = {"include_background": True, "spacing": SPACING_MM}
        scores = {
            "dice": compute_dice(*pair, include_background=True),
            "hd95_mm": compute_hausdorff_distance(*pair, percentile=95, **options),
            "assd_mm": compute_average_surface_distance(*pair, symmetric=True, **options),
        }
        for tolerance in TOLERANCES_MM:
            scores[f"nsd_{tolerance:g}mm"] = compute_surface_dice(*pair, [tolerance], **options)
        return {name: float(value) for name, value in scores.items()}

    return score


SIDES: dict[str, Callable[[], Side]] = {
    "ours, surfel": lambda: ours("surfel"),
    "surface-distance": surface_distance_side,
    "ours, voxel": lambda: ours("voxel"),
    "MONAI": monai_side,
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, file: str) -> None:
    """In a process of its own; one line of JSON. The masks come from a file, as making them takes more than scoring."""
    warnings.simplefilter("ignore")
    side, pair = SIDES[name](), tuple(np.load(file))
    before, started = peak_mib(), time.perf_counter()
    scores = side(*pair)
    taken = time.perf_counter() - started
    print(json.dumps({"seconds": taken, "mib": peak_mib() - before, "scores": scores}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        np.save(arguments.make[0], make_pair(arguments.make[1] == "1"))
        return
    if arguments.side:
        measure(*arguments.side)
        return
    print(f"{os.cpu_count()} CPU cores, one thread each, median of {arguments.repeats}, load {os.getloadavg()[0]:.1f}")
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        for title, has_outlier in (("overlapping masks", False), ("with a false positive far away", True)):
            print(title)
            file = f"{folder}/pair.npy"
            # Not here: a process starts with the peak of the one that started it, and making masks takes a gigabyte.
            command = [sys.executable, __file__, "--make", file, str(int(has_outlier))]
            subprocess.run(command, check=True, env=environment)
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
            for _ in range(arguments.repeats):
                for name, runs in found.items():
                    command = [sys.executable, __file__, "--side", name, file]
                    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                    runs.append(json.loads(answer.stdout))
            show(found)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """Medians of each side, then the ratios."""
    median = {
        key: {name: statistics.median(run[key] for run in runs) for name, runs in found.items()}
        for key in ("seconds", "mib")
    }
    for name, runs in found.items():
        scores = ", ".join(f"{key} {value:.4f}" for key, value in runs[0]["scores"].items())
        print(f"  {name:17} {median['seconds'][name]:7.3f} s  {median['mib'][name]:6.0f} MiB more   {scores}")
    for theirs, own in (("surface-distance", "ours, surfel"), ("MONAI", "ours, voxel"), ("MONAI", "ours, surfel")):
        ratios = {key: values[theirs] / values[own] for key, values in median.items()}
        print(f"  {theirs} takes {ratios['seconds']:.1f} times the time of {own}, {ratios['mib']:.1f} times the memory")


if __name__ == "__main__":
    main()
