"""What few labels are worth: test Dice over the number of labelled volumes, at equal processor seconds of training.

    python benchmarks/few_labels.py Task04_Hippocampus --results rows.jsonl --picture curve.png
    python benchmarks/few_labels.py Task04_Hippocampus --sides scratch unet --cases 8 --seeds 0 --seconds 100
    python benchmarks/few_labels.py Task04_Hippocampus --sides pretrained frozen --pretrained runs/pretrained

Sides: `scratch` is the preset `few_labels` without weights, `unlabelled` takes the other training volumes without their
labels, `pretrained` starts from `nano` or from a run of `pretrain`, `frozen` also keeps its encoder as it is, `sparse`
has labels on every fifth slice, and `unet` is the 3D U-Net of against_unet.py. Volumes of a smaller number are among
those of a larger one. Each run has as many steps as fit into the seconds. Test cases are scored once, by the best
weights on validation cases. With `--results`, rows of a file are not measured again; few_labels.jsonl beside this file
has what was measured so far. The table has the mean over cases and seeds, and the difference to the U-Net case by case
with its bootstrap interval. Without arguments it says what it needs, and measures nothing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_screen import add_row, read_rows
from against_unet import OURS, SIDES, Side, plan_steps, save_curves, train_side

UNLABELLED = ["training.unlabelled_fraction=0.5", "loss.terms={dice: 1, bce: 1, consistency: 1}"]


def ours(title: str, colour: str, *settings: str) -> Side:
    return Side(title, colour, "sam2_3dmed", "few_labels", [*OURS, *settings], samples=2)


ALL_SIDES = {
    "scratch": ours("from scratch", "tab:blue"),
    "unlabelled": ours("and unlabelled volumes", "tab:green", *UNLABELLED),
    "pretrained": ours("pre-trained", "tab:purple"),
    "frozen": ours("pre-trained, frozen", "tab:pink", "training.encoder=frozen"),
    "sparse": ours("every fifth slice labelled", "tab:brown"),
    "unet": SIDES["unet"],
}


def measure(side: Side, cases: int, seed: int, steps: int, source: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Train on so many volumes of `source`, and score the test cases by the labels in `data`."""
    from sam2_3dmed.run.train import test_run

    run, seconds = train_side(with_cases(side, cases, data), steps, seed, source, folder)
    scored = test_run(run, data).cases
    dice = {case.name: next(row.scores["dice"] for row in case.rows if row.kind == "mean") for case in scored}
    return {"steps": steps, "seconds": round(seconds), "dice": {name: round(value, 4) for name, value in dice.items()}}


def sparse(data: Path, folder: Path) -> Path:
    """A copy of the data set with labels on every fifth slice."""
    from sam2_3dmed.data.sparse import LabelledSlices, make_sparse

    make_sparse(data, folder / "sparse", LabelledSlices(every=5))
    return folder / "sparse"


def with_cases(side: Side, cases: int, data: Path) -> Side:
    """A side with at most so many training volumes. With all of them, none is left to be unlabelled."""
    from sam2_3dmed.config import SplitConfig
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.splits import split_cases

    settings = [*side.settings, f"split.training_cases={cases}"]
    if cases >= len(split_cases(read_dataset(data).names, SplitConfig()).train) and side.system == "sam2_3dmed":
        settings.append("training.unlabelled_fraction=0")
    return side._replace(settings=settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--cases", type=int, nargs="+", default=[4, 8, 16, 32, 144])
    parser.add_argument("--sides", nargs="+", default=["scratch", "unet"], choices=ALL_SIDES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pretrained", default="nano", help="a run of `pretrain`, or nano")
    parser.add_argument("--picture", type=Path, help="a PNG of Dice over the number of volumes")
    parser.add_argument("--results", type=Path, help="a file of rows, one JSON object a line")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    import torch

    torch.set_num_threads(1)
    found = read_rows(arguments.results)
    done = {(row["side"], row["cases"], row["seed"]) for row in found}
    wanted = [(n, c, s) for n in arguments.sides for c in arguments.cases for s in arguments.seeds]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sides:
            mine = [(cases, seed) for side, cases, seed in wanted if side == name and (name, cases, seed) not in done]
            weights = arguments.pretrained if name in ("pretrained", "frozen") else "none"
            side = ALL_SIDES[name]._replace(weights=weights)
            fewest = with_cases(side, min(arguments.cases), arguments.data)
            source = sparse(arguments.data, Path(folder)) if mine and name == "sparse" else arguments.data
            steps_of = plan_steps(fewest, source, Path(folder)) if mine else None
            for cases, seed in mine:
                assert steps_of is not None
                steps = steps_of(arguments.seconds)
                row = measure(side, cases, seed, steps, source, arguments.data, Path(folder))
                found.append({"side": name, "cases": cases, "seed": seed} | row)
                add_row(arguments.results, found[-1])
    report(found)
    if arguments.picture:
        draw(found, arguments.picture)


def of_cases(found: list[dict[str, Any]], side: str, cases: int) -> dict[str, float]:
    """The Dice of each test case, the mean over the seeds."""
    rows = [row["dice"] for row in found if (row["side"], row["cases"]) == (side, cases)]
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}


def report(found: list[dict[str, Any]]) -> None:
    """Print a line for each side and number of volumes."""
    from sam2_3dmed.evaluation.statistics import bootstrap_interval_of_mean

    for cases in sorted({row["cases"] for row in found}):
        peer = of_cases(found, "unet", cases)
        for side in ALL_SIDES:
            if not (dice := of_cases(found, side, cases)):
                continue
            text = f"{cases} labelled, {ALL_SIDES[side].title}: {np.mean([*dice.values()]):.4f} over {len(dice)} cases"
            if peer and side != "unet":
                differences = [dice[name] - peer[name] for name in dice]
                low, high = bootstrap_interval_of_mean(differences) or (np.nan, np.nan)
                text += f"; {np.mean(differences):+.4f} [{low:+.4f}, {high:+.4f}] to the U-Net"
            print(text)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Dice over the number of labelled volumes: a dot for each seed, and a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, side in ALL_SIDES.items():
        rows = [row for row in found if row["side"] == name]
        numbers = sorted({row["cases"] for row in rows})
        if rows:
            means = [np.mean([*of_cases(found, name, cases).values()]) for cases in numbers]
            axes.plot(numbers, means, color=side.colour, label=side.title)
        dots = [np.mean([*row["dice"].values()]) for row in rows]
        axes.scatter([row["cases"] for row in rows], dots, color=side.colour, s=12)
    axes.set(xscale="log", xlabel="labelled volumes", ylabel="mean Dice, test cases")
    save_curves(figure, axes, sorted({row["cases"] for row in found}), path)


if __name__ == "__main__":
    main()
