"""SAM2-3dMed beside a 3D U-Net: validation Dice after equal processor seconds of training, on the same cases.

    python benchmarks/against_unet.py Task04_Hippocampus --budgets 200 500 1000 3000 --seeds 0 1 --picture curve.png
    python benchmarks/against_unet.py Task04_Hippocampus --budgets 60 --seeds 0            (a trial: minutes)
    python benchmarks/against_unet.py Task04_Hippocampus --seeds 1 --results rows.jsonl    (goes on where it ended)
    python benchmarks/against_unet.py Task04_Hippocampus --sides paper_scratch ours --budgets 400 800

Both sides are calls of `train` from scratch, with the split, the preprocessing and the cases that it makes. The U-Net
is the system `unet`, MONAI's DynUNet with 16, 32, 64 and 128 channels on patches of 32 x 48 x 32: Dice and cross
entropy with deep supervision, its augmentation, AdamW with decay. Ours is `nano` with slice mixing and without memory,
SRPP and BD: two slabs of 24 slices a step. `--unet-set` and `--ours-set` change either. A third side, the paper's
network from scratch, has no budget: it trains as long as its preset says.

A first short and a second longer run of each side give the seconds of a step and of everything else (reading, one
validation). A budget then decides the number of steps, over which the rate falls to its end. The table has the seconds
that each run took. Validation cases are predicted mirrored as well. Test cases are not opened. With `--results`, the
rows of a file are not measured again and new ones are added to it, also by several processes at a time; the picture has
all of them. Without arguments it says what it needs, and measures nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accuracy_screen import add_row, read_rows, score

STEPS_PER_EPOCH = 10
FIRST_STEPS, SECOND_STEPS = 10, 40


class Side(NamedTuple):
    """What is trained. Without the samples of a step, it has as many steps as its recipe says."""

    title: str
    colour: str
    system: str
    recipe: str
    settings: list[str]
    samples: int | None = None
    weights: str = "none"


OURS = ["model.size=nano", "inference.shifts=false"]
UNET = [
    *("model.width=16", "model.patch=[32, 48, 32]", "training.optimizer=adamw", "training.learning_rate=2e-3"),
    *("training.weight_decay=0.01", "training.warmup_fraction=0.05"),
]
SIDES = {
    "ours": Side("SAM2-3dMed", "tab:blue", "sam2_3dmed", "scratch", OURS, samples=2),
    "unet": Side("3D U-Net (DynUNet)", "tab:orange", "unet", "auto", UNET, samples=4),
    "paper_scratch": Side("the paper's network", "tab:grey", "sam2_3dmed", "paper_scratch", OURS),
}


def make_recipe(side: Side, steps: int | None, seed: int) -> Any:
    from sam2_3dmed.run.systems import find_system

    settings = [f"training.seed={seed}", "training.workers=0", "inference.flips=true"]
    if steps and side.samples:
        epochs = max(1, steps // STEPS_PER_EPOCH)
        settings += [
            *(f"training.epochs={epochs}", f"training.validate_every={epochs}", "training.patience=none"),
            *(f"training.samples_per_epoch={side.samples * STEPS_PER_EPOCH}", f"training.batch_size={side.samples}"),
        ]
    return find_system(side.system).recipe(side.recipe, [*settings, *side.settings], from_scratch=True)


def train_side(side: Side, steps: int | None, seed: int, data: Path, folder: Path) -> tuple[Path, float]:
    """The run folder, somewhere below `folder`, and the processor's seconds of its training."""
    from sam2_3dmed import TrainRequest, train

    recipe = make_recipe(side, steps, seed)
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    started = time.process_time()
    train(TrainRequest(data, out, recipe=recipe, weights=side.weights, system=side.system, cache=folder / "cache"))
    return out, time.process_time() - started


def plan_steps(side: Side, data: Path, folder: Path) -> Callable[[float], int]:
    """Prepare the cases, train for a moment and for longer, and give the steps that fit into a budget of seconds."""
    train_side(side, 1, 0, data, folder)
    first, second = (train_side(side, steps, 0, data, folder)[1] for steps in (FIRST_STEPS, SECOND_STEPS))
    of_step = (second - first) / (SECOND_STEPS - FIRST_STEPS)
    others = max(0.0, first - FIRST_STEPS * of_step)
    print(f"{side.title}: {of_step:.3f} seconds a step, {others:.0f} for everything else", flush=True)
    return lambda budget: max(STEPS_PER_EPOCH, int((budget - others) / of_step))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--budgets", type=float, nargs="+", default=[200, 500, 1000, 3000], help="processor seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sides", nargs="+", default=["ours", "unet"], choices=SIDES)
    parser.add_argument("--ours-set", action="append", help="section.key=value, as for `train`")
    parser.add_argument("--unet-set", action="append", help="the same for the U-Net")
    parser.add_argument("--picture", type=Path, help="a PNG of Dice over seconds")
    parser.add_argument("--results", type=Path, help="a file of rows, one JSON object a line")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    import torch

    torch.set_num_threads(1)
    found = read_rows(arguments.results)
    done = {(row["side"], row["seed"], row["budget"]) for row in found}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.sides:
            changes = {"ours": arguments.ours_set, "unet": arguments.unet_set}.get(name)
            side = SIDES[name]._replace(settings=[*SIDES[name].settings, *(changes or [])])
            budgets = arguments.budgets if side.samples else [None]
            wanted = [(seed, budget) for seed in arguments.seeds for budget in budgets]
            wanted = [(seed, budget) for seed, budget in wanted if (name, seed, budget) not in done]
            steps_of = plan_steps(side, arguments.data, Path(folder)) if wanted and side.samples else None
            for seed, budget in wanted:
                steps = steps_of(budget) if steps_of else None
                run, seconds = train_side(side, steps, seed, arguments.data, Path(folder))
                row = {"side": name, "seed": seed, "budget": budget, "steps": steps, "seconds": round(seconds)}
                found.append(row | {"dice": round(float(score(run, arguments.data).mean()), 4)})
                add_row(arguments.results, found[-1])
    if arguments.picture:
        draw(found, arguments.picture)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Dice over seconds: a dot for each run, and a line through the means of each budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, side in SIDES.items():
        rows = [row for row in found if row["side"] == name]
        budgets = sorted({row["budget"] for row in rows})
        means = [[np.mean([r[key] for r in rows if r["budget"] == b]) for b in budgets] for key in ("seconds", "dice")]
        if rows:
            axes.plot(*means, color=side.colour, label=side.title)
        axes.scatter([row["seconds"] for row in rows], [row["dice"] for row in rows], color=side.colour)
    axes.set(xscale="log", xlabel="processor seconds of training", ylabel="mean Dice, validation cases")
    save_curves(figure, axes, sorted({row["budget"] for row in found if row["budget"]}), path)


def save_curves(figure: Any, axes: Any, ticks: list[float], path: Path) -> None:
    """Write a picture of curves over a logarithmic axis with these ticks."""
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
