"""A cohort in one call of `sam2-3dmed predict`, beside a call a volume, and beside two workers, in one run.

    python benchmarks/cohort.py [--data FOLDER] [--cases 40] [--single 8] [--repeats 1]

FOLDER is MSD Task04_Hippocampus (default: that in $SAM2_3DMED_DATA). The model is nano with random weights, built as
`train` builds it for these volumes; a trained one takes as long. Every side is timed from the start of its processes to
their end: starting, loading the model, reading, predicting, writing, and the manifest. The call a volume is timed on
the first `--single` volumes. The sides take turns, and each starts with nothing finished; at last the cohort is called
again, with everything finished.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CALL, COHORT, TWO, AGAIN = "a call a volume", "one call", "one call, --workers 2", "one call, all finished"


def make_run(folder: Path) -> None:
    """A run folder as `train` leaves it, with fresh weights."""
    import torch

    from sam2_3dmed.config import ChannelPlan, Plan, scratch, with_settings
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import save_model

    torch.manual_seed(0)
    plan = Plan(
        dataset="Hippocampus",
        channels=(ChannelPlan(name="MR", normalisation="percentiles", low=0.5, high=99.5),),
        labels={1: "Anterior", 2: "Posterior"},
    )
    folder.mkdir()
    save_model(*make_model(with_settings(scratch(), ["model.size=nano"]), plan, "none"), folder)


def seconds(inputs: list[Path], run: Path, out: Path, *options: str) -> float:
    """Of one command, with the same number of threads for all sides."""
    command = [
        sys.executable,
        "-m",
        "sam2_3dmed",
        "predict",
        *map(str, inputs),
        "-m",
        str(run),
        "-o",
        str(out),
        *options,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--single", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    root = Path(os.environ.get("SAM2_3DMED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    files = sorted(((arguments.data or root / "Task04_Hippocampus") / "imagesTr").glob("[!.]*.nii.gz"))
    cases = files[: arguments.cases]
    times: dict[str, list[float]] = {name: [] for name in (CALL, COHORT, TWO, AGAIN)}
    with tempfile.TemporaryDirectory() as name:
        run, out = Path(name, "run"), Path(name, "out")
        make_run(run)
        for _ in range(arguments.repeats):
            singles = cases[: arguments.single]
            times[CALL].append(sum(seconds([case], run, out) for case in singles) / len(singles))
            for side, options in ((COHORT, ()), (TWO, ("--workers", "2"))):
                shutil.rmtree(out)
                times[side].append(seconds(cases, run, out, *options) / len(cases))
            times[AGAIN].append(seconds(cases, run, out) / len(cases))
    print(f"{len(cases)} volumes, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; seconds a case")
    call = statistics.median(times[CALL])
    for side, values in times.items():
        median = statistics.median(values)
        print(f"{side:24} {median:6.2f}   {call / median:5.1f} times as fast as a call a volume")


if __name__ == "__main__":
    main()
