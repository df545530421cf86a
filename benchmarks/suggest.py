"""What to label next: `suggest` beside a random choice, by the test Dice after training with the scans that it chose.

    python benchmarks/suggest.py Task04_Hippocampus --results rows.jsonl
    python benchmarks/suggest.py Task04_Hippocampus --labelled 4 --next 4 --steps 100 --seeds 0 --draws 1

A model is trained on a few labelled volumes. It ranks the other training volumes, of which the first ones get their
labels, and a new model is trained on both. So do volumes that are drawn, several times a seed. Each model scores the
test cases once. Without arguments it says what it needs, and measures nothing.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_screen import add_row, read_rows
from few_labels import ALL_SIDES, train_side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--labelled", type=int, default=4, help="volumes of the first model")
    parser.add_argument("--next", type=int, default=4, help="volumes that are chosen")
    parser.add_argument("--steps", type=int, default=700, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--draws", type=int, default=3, help="random choices for each seed")
    parser.add_argument("--results", type=Path, help="a file of rows, one JSON object a line")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    import torch

    torch.set_num_threads(1)
    found = read_rows(arguments.results)
    done = {(row["way"], row["seed"]) for row in found}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            ways = ["first", "suggested", *(f"drawn_{draw}" for draw in range(arguments.draws))]
            if {(way, seed) for way in ways} <= done:
                continue
            first = train(arguments, seed, first_cases(arguments, seed), Path(folder))
            for way in ways:
                if (way, seed) not in done:
                    found.append({"way": way, "seed": seed} | measure(arguments, seed, way, first, Path(folder)))
                    add_row(arguments.results, found[-1])
    report(found)


def first_cases(arguments: argparse.Namespace, seed: int) -> list[str]:
    """The volumes that are labelled at the beginning; each seed has others."""
    names = all_training_cases(arguments.data)
    return sorted(np.random.default_rng(seed).permutation(names)[: arguments.labelled].tolist())


def all_training_cases(data: Path) -> list[str]:
    from sam2_3dmed.config import SplitConfig
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.run.train import choose_split_and_plan

    return list(choose_split_and_plan(read_dataset(data), SplitConfig())[0].train)


def train(arguments: argparse.Namespace, seed: int, cases: list[str], folder: Path) -> Path:
    side = ALL_SIDES["scratch"]
    side = side._replace(settings=[*side.settings, f"split.training_cases=[{', '.join(cases)}]"])
    return train_side(side, arguments.steps, seed, arguments.data, folder)[0]


def measure(arguments: argparse.Namespace, seed: int, way: str, first: Path, folder: Path) -> dict[str, Any]:
    """Train with the volumes that a way chose, and score the test cases. `first`: the run before."""
    from sam2_3dmed.run.train import test_run

    before = first_cases(arguments, seed)
    if way == "first":
        cases, run = before, first
    else:
        chosen = (
            suggested(arguments, first, before, folder) if way == "suggested" else drawn(arguments, seed, way, before)
        )
        cases = sorted([*before, *chosen])
        run = train(arguments, seed, cases, folder)
    scored = test_run(run, arguments.data).cases
    dice = {case.name: next(row.scores["dice"] for row in case.rows if row.kind == "mean") for case in scored}
    return {"cases": cases, "dice": {name: round(value, 4) for name, value in dice.items()}}


def suggested(arguments: argparse.Namespace, run: Path, before: list[str], folder: Path) -> list[str]:
    """What `suggest` puts first among the training volumes that have no labels yet."""
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.report.suggest import suggest

    names = set(all_training_cases(arguments.data)) - {*before}
    scans = [case.images[0] for case in read_dataset(arguments.data).cases if case.name in names]
    order, _ = suggest(run, scans, Path(tempfile.mkdtemp(dir=folder)))
    return [suggestion.name for suggestion in order[: arguments.next]]


def drawn(arguments: argparse.Namespace, seed: int, way: str, before: list[str]) -> list[str]:
    names = sorted(set(all_training_cases(arguments.data)) - {*before})
    draw = int(way.removeprefix("drawn_"))
    return np.random.default_rng([seed, draw, 1]).permutation(names)[: arguments.next].tolist()


def report(found: list[dict[str, Any]]) -> None:
    """Print the mean of each way for each seed."""
    for seed in sorted({row["seed"] for row in found}):
        means = {row["way"]: float(np.mean([*row["dice"].values()])) for row in found if row["seed"] == seed}
        random = [value for way, value in means.items() if way.startswith("drawn")]
        print(f"seed {seed}: " + ", ".join(f"{way} {value:.4f}" for way, value in means.items()), end="")
        print(f"; random on average {np.mean(random):.4f}" if random else "")


if __name__ == "__main__":
    main()
