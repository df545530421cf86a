"""What a change is worth on a data set of few cases: each case is predicted by a model that has not seen it.

    python benchmarks/cross_validation.py Task91_SarcomaCT --change model.slice_mixing=false
    python benchmarks/cross_validation.py Task91_SarcomaCT --weights nano --recipe few_labels
    python benchmarks/cross_validation.py Task91_SarcomaCT --change model.slice_mixing=false --folds 2 --steps 20

For each fold, the recipe is trained as it is and with the change, or from other weights, as many steps each. Both
predict the fold's test cases. The mean Dice of each side over all cases comes with its bootstrap interval, and so does
their difference case by case. Without arguments it says what it needs, and measures nothing.
"""

import argparse
import tempfile
import time
from pathlib import Path

STEPS_PER_EPOCH = 10


def dice_of_fold(
    out: Path, fold: int, changes: list[str], weights: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """Train without one fold, and give the mean Dice over the classes of each case in it."""
    from sam2_3dmed import TrainRequest, train
    from sam2_3dmed.config import read_recipe, with_settings
    from sam2_3dmed.run.train import test_run

    recipe = read_recipe(arguments.recipe)
    epochs = max(1, arguments.steps // STEPS_PER_EPOCH)
    samples = STEPS_PER_EPOCH * recipe.training.batch_size
    settings = [
        f"training.epochs={epochs}",
        f"training.validate_every={epochs}",
        f"training.samples_per_epoch={samples}",
    ]
    recipe = with_settings(recipe, ["model.size=nano", *settings, *(arguments.set or []), *changes])
    cache = arguments.folder / f"cache-{fold}"
    fold_of = (fold, arguments.folds)
    train(TrainRequest(arguments.data, out, recipe=recipe, weights=weights, fold=fold_of, cache=cache))
    cases = test_run(out, arguments.data).cases
    return {case.name: next(row.scores["dice"] for row in case.rows if row.kind == "mean") for case in cases}


def report(title: str, values: list[float]) -> str:
    from sam2_3dmed.evaluation.statistics import bootstrap_interval_of_mean

    low, high = bootstrap_interval_of_mean(values) or (float("nan"), float("nan"))
    return f"{title}: {sum(values) / len(values):.4f} [{low:.4f}, {high:.4f}] over {len(values)} cases"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--change", action="append", help="section.key=value of the other side")
    parser.add_argument("--recipe", default="scratch", help="of both sides")
    parser.add_argument("--weights", default="none", help="of the other side, which otherwise starts from scratch, too")
    parser.add_argument("--set", action="append", help="the same for both sides")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    changes = arguments.change or []
    if arguments.data is None or not (changes or arguments.weights != "none"):
        print("nothing measured: it needs DATA, the folder of a data set, and --change or --weights; see --help")
        return

    import torch

    torch.set_num_threads(1)
    other = " ".join([*changes, *([] if arguments.weights == "none" else [f"from {arguments.weights}"])])
    sides: dict[str, tuple[list[str], str]] = {"as it is": ([], "none"), other: (changes, arguments.weights)}
    found: dict[str, dict[str, float]] = {name: {} for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        for fold in range(1, arguments.folds + 1):
            for number, (name, side) in enumerate(sides.items()):
                started = time.process_time()
                dice = dice_of_fold(arguments.folder / f"run-{fold}-{number}", fold, *side, arguments)
                found[name] |= dice
                values = ", ".join(f"{case} {value:.3f}" for case, value in dice.items())
                print(f"fold {fold}, {name}: {values}; {time.process_time() - started:.0f} seconds", flush=True)
    before, after = found.values()
    for name, values in found.items():
        print(report(name, list(values.values())))
    print(report(f"{other} against as it is", [after[case] - before[case] for case in before]))


if __name__ == "__main__":
    main()
