"""What changes accuracy from scratch: validation Dice of short runs of `scratch`, each with one change.

    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none srpp boundary memory --seeds 0 1 2
    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none bce --steps 400 --results rows.jsonl
    python benchmarks/accuracy_screen.py Task04_Hippocampus --list                      (the changes, and no run)

Each run is a call of `train` with the nano model: the recipe's data, augmentation, optimiser and losses, with as many
steps as given. Scores are of the validation cases of the split that `train` makes, mirrored as well. Test cases are not
opened. Other seeds show how much of a difference is chance. Seconds are those of a processor, of training with its one
validation. Rows of the file of results are not measured again. Without arguments it says what it needs, and measures
nothing.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS_PER_EPOCH = 10

MEMORY = "model.memory=recent"

CHANGES: dict[str, list[str]] = {
    "none": [],
    "srpp": ["model.srpp=true"],
    "boundary": ["model.boundary=true"],
    "boundary_alone": ["model.boundary=true", "model.boundary_fusion=false"],
    "memory": [MEMORY],
    "pooled_memory": [MEMORY, "model.memory_pooling=2"],
    "whole_method": [MEMORY, "model.srpp=true", "model.boundary=true"],
    "bce": ["loss.terms={bce: 1}"],
    "focal_dice": ["loss.terms={focal: 20, dice: 1}"],
    "focal_tversky": ["loss.terms={focal_tversky: 1, bce: 1}"],
    "no_warmup": ["training.warmup_fraction=0"],
    "rate_3.6e-3": ["training.learning_rate=3.6e-3"],
    "pixels_128": ["model.image_size=128"],
    "wide": ["model.channels=128"],
    "conv": ["model.encoder=conv"],
    "average": ["training.ema_decay=0.98"],
    "heavy": ["augmentation.rotation_degrees=25", "augmentation.shear_degrees=20", "augmentation.noise=0.5"],
    "zoom": ["augmentation.scale=0.15"],
    "intensity": ["augmentation.intensity=0.2"],
}
"""The settings of each change, as for `train --set`."""


def make_recipe(change: str, seed: int, arguments: argparse.Namespace) -> Any:
    from sam2_3dmed.config import read_recipe, with_settings

    recipe = read_recipe("scratch")
    epochs = max(1, arguments.steps // STEPS_PER_EPOCH)
    settings = [
        *(f"training.epochs={epochs}", f"training.validate_every={epochs}", "training.patience=none"),
        *(f"training.samples_per_epoch={recipe.training.batch_size * STEPS_PER_EPOCH}", "training.workers=0"),
        *("model.size=nano", f"training.seed={seed}", "inference.flips=true", "inference.shifts=false"),
    ]
    return with_settings(recipe, [*settings, *(arguments.set or []), *CHANGES[change]])


def score(run: Path, data: Path) -> np.ndarray:
    """Mean Dice of each class over the run's validation cases."""
    from sam2_3dmed import load_model
    from sam2_3dmed.data.dataset import read_case, read_dataset
    from sam2_3dmed.data.splits import Split
    from sam2_3dmed.evaluation.metrics import dice

    segmenter, names = load_model(run), Split.read(run / "split.json").validation
    scores = []
    for case in read_dataset(data).cases:
        if case.name in names:
            volume, label = read_case(case)
            mask = segmenter(volume).array
            scores.append([dice(mask == value, label.array == value) for value in segmenter.labels])
    return np.mean(scores, axis=0)


def run(change: str, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One change with one seed."""
    from sam2_3dmed import TrainRequest, train

    out = folder / f"{change}-{seed}"
    recipe = make_recipe(change, seed, arguments)
    started = time.process_time()
    train(TrainRequest(arguments.data, out, recipe=recipe, weights="none", cache=arguments.cache or folder / "cache"))
    seconds = time.process_time() - started
    classes = [round(float(value), 4) for value in score(out, arguments.data)]
    dice = round(float(np.mean(classes)), 4)
    row = {"change": change, "seed": seed, "steps": arguments.steps, "dice": dice, "classes": classes}
    return row | {"seconds": round(seconds)}


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a file of results; none without a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []


def add_row(path: Path | None, row: dict[str, Any]) -> None:
    """Print a row, and append it to the file of results."""
    print(json.dumps(row), flush=True)
    if path:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--changes", nargs="+", default=["none"], choices=CHANGES, metavar="CHANGE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--cache", type=Path, help="folder of prepared cases that stays; none: a temporary one")
    parser.add_argument("--set", action="append", help="section.key=value, as for `train`, before the changes")
    parser.add_argument("--results", type=Path, help="a file of rows, one JSON object a line")
    parser.add_argument("--list", action="store_true", help="show each change, and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for name, settings in CHANGES.items():
            print(f"{name}: {' '.join(f'--set {setting!r}' for setting in settings) or 'the recipe as it is'}")
        return
    if arguments.data is None:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    import torch

    torch.set_num_threads(1)
    print(f"{arguments.steps} steps, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    done = {(row["change"], row["seed"], row["steps"]) for row in read_rows(arguments.results)}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for change in arguments.changes:
                if (change, seed, arguments.steps) not in done:
                    add_row(arguments.results, run(change, seed, Path(folder), arguments))


if __name__ == "__main__":
    main()
