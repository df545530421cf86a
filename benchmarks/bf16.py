"""Whether bf16 changes masks: Dice of a run's masks with bf16 against those without, on the volumes of a data set.

python benchmarks/bf16.py runs/Task04_Hippocampus Task04_Hippocampus --cases 10

The volumes are the run's test cases. On a processor without AMX the numbers are the same, only slower.
Without arguments it says what it needs, and measures nothing.
"""

import argparse
from pathlib import Path

import numpy as np

from sam2_3dmed import load_model
from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.evaluation.metrics import dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--cases", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.run is None:
        print("nothing measured: it needs RUN, the folder of a trained run, and DATA, that of its data set; see --help")
        return
    if arguments.data is None:
        parser.error("DATA is missing, the folder of the run's data set")
    names = Split.read(arguments.run / "split.json").test[: arguments.cases]
    cases = {case.name: case for case in read_dataset(arguments.data).cases}
    with_bf16, without = (load_model(arguments.run, precision=precision) for precision in ("bf16", "32"))
    rows = []
    for name in names:
        volume, _ = read_case(cases[name])
        masks = [predictor(volume).array for predictor in (with_bf16, without)]
        rows.append([dice(masks[0] == value, masks[1] == value) for value in without.labels])
        print(f"{name}: " + ", ".join(f"{score:.4f}" for score in rows[-1]), flush=True)
    scores = np.array(rows)
    print(f"Dice of bf16 against fp32 over {len(rows)} cases: mean {scores.mean():.5f}, lowest {scores.min():.5f}")


if __name__ == "__main__":
    main()
