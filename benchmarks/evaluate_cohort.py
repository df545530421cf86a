"""`sam2-3dmed evaluate` on 200 pairs of hippocampus masks beside a plain loop over MONAI's metrics, in one run.

    python benchmarks/evaluate_cohort.py [--data FOLDER] [--repeats 3]

FOLDER is MSD Task04_Hippocampus (default: that in $SAM2_3DMED_DATA). The predictions are the labels, moved by a voxel
or two along each axis. Both sides run in processes of their own, in turn, and are timed from start to end: starting,
reading the files, scoring, and for ours also writing the tables; of MONAI's side the loop alone is timed too. MONAI
computes Dice, HD95, average surface distance and surface Dice at 2 and 1 mm of both classes; ours computes these and
all other metrics, of both classes and their union.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

MONAI_LOOP = "monai-loop"
LOOP = "MONAI, loop alone"
COLUMNS = ("dice", "hd95_mm", "assd_mm", "nsd_2mm", "nsd_1mm")


def make_predictions(labels: Path, folder: Path) -> None:
    import numpy as np

    from sam2_3dmed.volume.label import read_label

    for number, path in enumerate(sorted(labels.glob("[!.]*.nii.gz"))):
        label = read_label(path)
        moved = np.roll(label.array, (1 + number % 2, -1, number % 3), axis=(0, 1, 2))
        label.with_array(moved).write(folder / path.name)


def monai_loop(predictions: Path, labels: Path) -> None:
    """What one would write with MONAI and nibabel."""
    import nibabel
    import numpy as np
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    warnings.simplefilter("ignore")
    started, rows = time.perf_counter(), []
    for path in sorted(predictions.glob("*.nii.gz")):
        images = [nibabel.load(folder / path.name) for folder in (predictions, labels)]
        spacing_mm = [float(size) for size in images[1].header.get_zooms()[:3]]
        prediction, truth = (
            torch.nn.functional.one_hot(torch.from_numpy(np.asarray(image.dataobj).astype(np.int64)), 3)
            .permute(3, 0, 1, 2)[None]
            .float()
            for image in images
        )
        scores = [
            compute_dice(prediction, truth, include_background=False),
            compute_hausdorff_distance(prediction, truth, percentile=95, spacing=spacing_mm),
            compute_average_surface_distance(prediction, truth, symmetric=True, spacing=spacing_mm),
            compute_surface_dice(prediction, truth, [2.0, 2.0], spacing=spacing_mm),
            compute_surface_dice(prediction, truth, [1.0, 1.0], spacing=spacing_mm),
        ]
        rows.append(torch.cat(scores).numpy())
    means = np.nanmean(rows, axis=(0, 2)).tolist()
    print(json.dumps({"loop": time.perf_counter() - started, "means": means}))


def run(command: list[str]) -> tuple[float, str]:
    """Seconds, and what it printed."""
    started = time.perf_counter()
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, answer.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--" + MONAI_LOOP, nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.monai_loop:
        monai_loop(*arguments.monai_loop)
        return
    root = Path(os.environ.get("SAM2_3DMED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    labels = (arguments.data or root / "Task04_Hippocampus") / "labelsTr"
    with tempfile.TemporaryDirectory() as folder:
        predictions = Path(folder, "predictions")
        predictions.mkdir()
        make_predictions(labels, predictions)
        ours = [sys.executable, "-m", "sam2_3dmed", "evaluate", str(predictions), str(labels), "-o", folder + "/scores"]
        sides = {
            "MONAI": [sys.executable, __file__, "--" + MONAI_LOOP, str(predictions), str(labels)],
            "ours": ours,
            "ours, voxel": [*ours, "--surface", "voxel"],
            "ours, one process": [*ours, "--workers", "0"],
        }
        times: dict[str, list[float]] = {name: [] for name in [*sides, LOOP]}
        for _ in range(arguments.repeats):
            for name, command in sides.items():
                seconds, output = run(command)
                times[name].append(seconds)
                if name == "MONAI":
                    monai = json.loads(output)
                    times[LOOP].append(monai["loop"])
                elif name == "ours, voxel":
                    summary = json.loads(Path(folder, "scores", "summary.json").read_text())
        num_cases = len(list(predictions.iterdir()))
    print(
        f"{num_cases} pairs, {os.cpu_count()} CPU cores, median of {arguments.repeats}, load {os.getloadavg()[0]:.1f}"
    )
    mean = next(result for result in summary["results"] if result["kind"] == "mean")
    print("MONAI's mean Dice, HD95, ASSD, NSD at 2 and 1 mm:", [round(value, 4) for value in monai["means"]])
    print("ours, voxel:", [round(mean[column]["mean"], 4) for column in COLUMNS])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        ratios = (
            f"MONAI takes {medians['MONAI'] / median:.1f} times it, its loop alone {medians[LOOP] / median:.1f} times"
        )
        print(f"{name:20} {median:7.2f} s   {ratios}")


if __name__ == "__main__":
    main()
