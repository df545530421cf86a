"""What changes accuracy from scratch: validation Dice of short runs of `scratch`, each with one change.

    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none bce no_token --seeds 0 1
    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none no_token --steps 400 --slab-steps 130
    python benchmarks/accuracy_screen.py Task04_Hippocampus --steps 10 --list            (the changes, and no run)

Each run is a call of `train` with the nano model: the recipe's data, augmentation, optimiser and losses, with as many
steps as given. Without --slab-steps every sample is one slice (D = 1), most of a run from scratch; with it, steps of
single slices and then of slabs follow each other as in the recipe. Scores are of the validation cases of the split that
`train` makes, mirrored as well. Test cases are not opened. Other seeds show how much of a difference is chance. Seconds
are those of a processor, of training with its one validation. Without arguments it says what it needs, and measures
nothing.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS_PER_EPOCH = 10
SLICES_PER_STEP = 48  # as eight slabs of six, the batch of the recipe

CHANGES: dict[str, list[str]] = {
    "none": [],
    "bce": ["loss.terms={bce: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_dice": ["loss.terms={focal: 20, dice: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_tversky": ["loss.terms={focal_tversky: 1, bce: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_tversky_alone": ["loss.terms={focal_tversky: 1, relative_position: 0.01, boundary: 0.1}"],
    "logits": ["loss.terms={bce_at_logits: 1, dice: 1, relative_position: 0.01, boundary: 0.1}"],
    "no_warmup": ["training.warmup_fraction=0"],
    "long_warmup": ["training.warmup_fraction=0.2"],
    "rate_6e-4": ["training.learning_rate=6e-4"],
    "rate_2.4e-3": ["training.learning_rate=2.4e-3"],
    "pixels_128": ["model.image_size=128"],
    "wide": ["model.channels=128"],
    "conv": ["model.encoder=conv"],
    "no_token": ["model.no_memory_token=false"],
    "average": ["training.ema_decay=0.98"],
    "no_boundary": ["model.boundary=false"],
    "no_fusion_residual": ["model.fusion_residual=false"],
    "heavy": ["augmentation.rotation_degrees=25", "augmentation.shear_degrees=20", "augmentation.noise=0.5"],
    "zoom": ["augmentation.scale=0.15"],
    "intensity": ["augmentation.intensity=0.2"],
}
"""The settings of each change, as for `train --set`. `logits` uses a loss term that this file adds."""


def add_terms() -> None:
    """Register the loss terms that only this screen uses."""
    import torch.nn.functional as F

    from sam2_3dmed.training.losses import LossInputs, term

    @term("bce_at_logits")
    def bce_at_logits(inputs: LossInputs) -> Any:
        """BCE at the resolution of the logits, against the share of each class in their pixels."""
        logits = inputs.prediction.segmentation
        shares = F.adaptive_avg_pool2d(inputs.masks.flatten(0, 2), logits.shape[-2:]).view(logits.shape)
        return F.binary_cross_entropy_with_logits(logits, shares)


def make_recipe(change: str, seed: int, arguments: argparse.Namespace) -> Any:
    from sam2_3dmed.run.systems import OURS, find_system

    steps, slab_steps = arguments.steps, arguments.slab_steps
    epochs = max(1, (steps + slab_steps) // STEPS_PER_EPOCH)
    settings = [f"training.epochs={epochs}", f"training.validate_every={epochs}", "training.patience=none"]
    if slab_steps:
        single = steps // STEPS_PER_EPOCH / epochs
        settings += [f"training.single_slice_fraction={single}", f"training.samples_per_epoch={8 * STEPS_PER_EPOCH}"]
    else:
        samples = SLICES_PER_STEP * STEPS_PER_EPOCH
        settings += ["slab_slices=1", "training.single_slice_fraction=0", "training.slab_rate=1"]
        settings += [f"training.samples_per_epoch={samples}", f"training.batch_size={SLICES_PER_STEP}"]
    settings += ["model.size=nano", f"training.seed={seed}", "training.workers=0", "inference.flips=true"]
    return find_system(OURS).recipe("scratch", [*settings, *(arguments.set or []), *CHANGES[change]], from_scratch=True)


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


def run(change: str, seed: int, folder: Path, arguments: argparse.Namespace) -> str:
    """One change with one seed."""
    from sam2_3dmed import TrainRequest, train

    started = time.process_time()
    out = folder / f"{change}-{seed}"
    recipe = make_recipe(change, seed, arguments)
    cache = arguments.cache or folder / "cache"
    train(TrainRequest(arguments.data, out, recipe=recipe, weights="none", plan=arguments.plan, cache=cache))
    seconds = time.process_time() - started
    each = score(out, arguments.data)
    values = " / ".join(f"{value:.4f}" for value in each)
    return f"{change}, seed {seed}: validation Dice {each.mean():.4f} ({values}); {seconds:.0f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--changes", nargs="+", default=["none"], choices=CHANGES, metavar="CHANGE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--slab-steps", type=int, default=0)
    parser.add_argument(
        "--plan", type=Path, help="plan of the data set; none: each run reads the cases and proposes it"
    )
    parser.add_argument("--cache", type=Path, help="folder of prepared cases that stays; none: a temporary one")
    parser.add_argument("--set", action="append", help="section.key=value, as for `train`, before the changes")
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

    add_terms()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    print(f"{arguments.steps} + {arguments.slab_steps} steps, {os.cpu_count()} cores, load {load:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for change in arguments.changes:
                print(run(change, seed, Path(folder), arguments), flush=True)


if __name__ == "__main__":
    main()
