"""What moves accuracy from scratch: validation Dice of short runs of `scratch`, each with one thing changed.

    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none bce deep --seeds 0 1
    python benchmarks/accuracy_screen.py Task04_Hippocampus --changes none no_token --steps 400 --slab-steps 130

A run is nano on single slices, which most of a run from scratch is: the recipe's data, augmentation, optimiser and
losses, its rate rising and falling within the run. Then each slice of the validation cases (of the split that `train`
makes) is predicted on its own, mirrored as well. With --slab-steps, steps of slabs follow as in the recipe, and
slices are predicted in slabs, too. Test cases are not opened. Runs with other seeds tell how much of a difference is
chance. Seconds are those of a processor, of training alone. `--list` says what each change is. Without arguments it
says what it needs, and measures nothing.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SETTINGS: dict[str, list[str]] = {
    "none": [],
    "bce": ["loss.terms={bce: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_dice": ["loss.terms={focal: 20, dice: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_tversky": ["loss.terms={focal_tversky: 1, relative_position: 0.01, boundary: 0.1}"],
    "focal_tversky_bce": ["loss.terms={focal_tversky: 1, bce: 1, relative_position: 0.01, boundary: 0.1}"],
    "no_warmup": ["training.warmup_fraction=0"],
    "long_warmup": ["training.warmup_fraction=0.2"],
    "rate_6e-4": ["training.learning_rate=6e-4"],
    "rate_2.4e-3": ["training.learning_rate=2.4e-3"],
    "pixels_128": ["model.image_size=128"],
    "wide": ["model.channels=128"],
    "average": ["training.ema_decay=0.98"],
    "no_boundary": ["model.boundary=false"],
    "no_fusion_residual": ["model.fusion_residual=false"],
    "heavy": ["augmentation.rotation_degrees=25", "augmentation.shear_degrees=20", "augmentation.noise=0.5"],
    "zoom": ["augmentation.scale=0.15"],
    "intensity": ["augmentation.intensity=0.2"],
}
"""Changes that `train --set` makes, too."""
OTHERS = {
    "no_token": "a slice without memories passes memory attention by, as SAM2's weights want it",
    "logits": "L_seg and L_bd at the resolution of the logits, against the share of each class in their pixels",
    "deep": "deep supervision: L_seg of a 1 x 1 convolution of each level of the feature pyramid, too, half as much",
    "views": "training on slices along all three axes of the volumes; predicted along the plan's, and along all three",
}
"""Changes that there is no option for."""


class ViewedCase:
    """A prepared case cut along another of its axes; as `CachedCase` for what draws slabs."""

    def __init__(self, case: Any, axis: int) -> None:
        self.case, self.axis, self.name = case, axis, f"{case.name}_{axis}"
        label = self.label
        self.num_slices = len(label)
        self.class_slices = {k: np.flatnonzero((label == k).any(axis=(1, 2))) for k in case.class_slices}

    @property
    def image(self) -> Any:
        return along(self.case.image, self.axis)

    @property
    def label(self) -> Any:
        return along(self.case.label[:, None], self.axis)[:, 0]


def along(slices: Any, axis: int) -> Any:
    """(D, C, H, W) cut along D, H or W, the number of which is `axis`: that axis comes first; also undoes itself."""
    return slices if axis == 0 else np.swapaxes(slices, 0, axis + 1)


def make_supervised(network: Any, num_classes: int) -> Any:
    """The network with a head on each level of the feature pyramid, whose logits are kept beside its prediction."""
    import torch
    from torch import nn

    class DeeplySupervised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            channels = network.segmentation.channels
            self.heads = nn.ModuleList(nn.Conv2d(channels, num_classes, kernel_size=1) for _ in range(3))
            self.logits: list[torch.Tensor] = []

        def forward(self, slices: torch.Tensor) -> Any:
            features = self.network.encoder(slices)
            self.logits = [
                head(level.flatten(0, 1)).unflatten(0, level.shape[:2]).transpose(1, 2)
                for head, level in zip(self.heads, features, strict=True)
            ]
            return self.network.decode(features)

    return DeeplySupervised()


def make_loss(change: str, config: Any, model: Any) -> Callable[[Any, Any, Any], Any]:
    """(prediction, masks, positions) -> the loss."""
    import torch.nn.functional as F

    from sam2_3dmed.model.upsample import upsample
    from sam2_3dmed.training.losses import TERMS, LossInputs, TotalLoss
    from sam2_3dmed.training.losses.boundary import boundary_loss, boundary_masks

    total = TotalLoss(config.loss)
    weights = dict(config.loss.terms)

    def of_segmentation(logits: Any, masks: Any) -> Any:
        inputs = LossInputs(SimpleNamespace(segmentation=logits), masks, None, config.loss)
        names = [name for name in weights if name not in ("relative_position", "boundary")]
        return sum(weights[name] * TERMS[name](inputs) for name in names)

    def deep(prediction: Any, masks: Any, positions: Any) -> Any:
        size = tuple(masks.shape[-2:])
        levels = [of_segmentation(upsample(logits, size), masks) for logits in model.logits]
        return total(prediction, masks, positions).total + 0.5 * sum(levels) / len(levels)

    def at_logits(prediction: Any, masks: Any, positions: Any) -> Any:
        size = tuple(prediction.segmentation.shape[-2:])
        shares = F.adaptive_avg_pool2d(masks.flatten(0, 2), size).view(*masks.shape[:3], *size)
        edges = F.adaptive_max_pool2d(boundary_masks(masks).flatten(0, 2), size).view(*masks.shape[:3], *size)
        boundary = boundary_loss(prediction.boundary, edges, config.loss.boundary_normalise)
        places = TERMS["relative_position"](LossInputs(prediction, masks, positions, config.loss))
        terms = weights["boundary"] * boundary + weights["relative_position"] * places
        return of_segmentation(prediction.segmentation, shares) + terms

    special = {"deep": deep, "logits": at_logits}
    return special.get(change, lambda *arguments: total(*arguments).total)


def batches(cases: Any, config: Any, depth: int, pixels: int, single: int, in_slabs: int) -> Iterator[Any]:
    """As many batches of single slices, and then of slabs, as there are steps."""
    from sam2_3dmed.data.augment import SlabAugmentation
    from sam2_3dmed.data.slabs import SampleKey, SlabDataset, collate

    slabs = SlabDataset(
        cases,
        slab_slices=depth,
        augmentation=SlabAugmentation(config.augmentation, pixels),
        foreground_fraction=config.training.foreground_fraction,
        seed=config.training.seed,
        single_slice_epochs=1,
    )
    size = config.training.batch_size
    for step in range(single + in_slabs):
        epoch = int(step >= single)
        for batch in collate([slabs[SampleKey(epoch, step * size + number)] for number in range(size)]):
            yield batch if epoch else batch.single_slices()


def train(change: str, seed: int, cases: Any, plan: Any, arguments: argparse.Namespace) -> tuple[Any, float]:
    """The network, and the processor's seconds of its training."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from sam2_3dmed.config import scratch, with_settings
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.training.losses import class_masks
    from sam2_3dmed.training.optimizer import make_optimizer, make_schedule
    from sam2_3dmed.training.trainer import seed_everything

    settings = ["model.size=nano", f"training.seed={seed}", *(arguments.set or []), *SETTINGS.get(change, [])]
    config = with_settings(scratch(), settings)
    seed_everything(seed)
    network, record = make_model(config, plan, "none")
    if change == "no_token":
        network = build_network(record.recipe.model.model_copy(update={"no_memory_token": False}), plan.num_classes)
    model = make_supervised(network, plan.num_classes) if change == "deep" else network
    loss = make_loss(change, config, model)
    recipe = config.training
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe, arguments.steps, arguments.slab_steps)
    decay = recipe.ema_decay
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None
    model.train()
    started = time.process_time()
    if change == "views":
        cases = [ViewedCase(case, axis) for case in cases for axis in range(3)]
    steps = arguments.steps, arguments.slab_steps
    for batch in batches(cases, config, plan.slab_slices, network.encoder.image_size, *steps):
        masks = class_masks(batch.labels, plan.num_classes)
        loss(model(batch.slices), masks, batch.positions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_gradient_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(network)
    seconds = time.process_time() - started
    return (network if average is None else average.module), seconds


def score(network: Any, cases: Any, num_classes: int, depth: int, axes: range) -> np.ndarray:
    """Mean Dice of each class over the cases, in slabs of so many slices, of the mean of the probabilities along some
    axes."""
    import torch

    from sam2_3dmed.config import InferenceConfig
    from sam2_3dmed.evaluation.metrics import dice
    from sam2_3dmed.inference.logits_to_mask import argmax_mask, resize
    from sam2_3dmed.inference.predictor import slice_logits

    network.eval()
    config = InferenceConfig(direction="both" if depth > 1 else "forward", flips=True, precision="32")
    scores = []
    for case in cases:
        probabilities = np.zeros((len(case.image), num_classes, *case.image.shape[-2:]), dtype=np.float32)
        for axis in axes:
            slices = np.ascontiguousarray(along(case.image, axis))
            height, width = slices.shape[-2:]
            found = np.empty((len(slices), num_classes, height, width), dtype=np.float32)
            for index, logits in slice_logits(network, slices, depth, config):
                found[index] = torch.stack([resize(plane, height, width) for plane in logits]).sigmoid().numpy()
            probabilities += along(found, axis) / len(axes)
        height, width = probabilities.shape[-2:]
        classes = np.stack([argmax_mask(torch.from_numpy(p - 0.5), height, width).numpy() for p in probabilities])
        scores.append([dice(classes == k, case.label == k) for k in range(1, num_classes + 1)])
    return np.mean(scores, axis=0)


def run(change: str, seed: int, cache: Path, arguments: argparse.Namespace) -> str:
    """One change with one seed."""
    from sam2_3dmed.config import scratch
    from sam2_3dmed.data.cache import build_cache
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.fingerprint import fingerprint
    from sam2_3dmed.data.plan import propose_plan
    from sam2_3dmed.data.splits import split_cases

    catalog = read_dataset(arguments.data)
    split = split_cases(catalog.names, scratch().split)
    opened = catalog.subset({*split.train, *split.validation})
    plan = propose_plan(fingerprint(opened), split.train)
    cases = build_cache(opened, plan, cache)
    network, seconds = train(change, seed, cases.subset(split.train), plan, arguments)
    sides = [("each slice alone", 1, range(1))]
    if arguments.slab_steps:
        sides.append(("in slabs", plan.slab_slices, range(1)))
    if change == "views":
        sides.append(("each slice alone, along all three axes", 1, range(3)))
    said = []
    for side, depth, axes in sides:
        each = score(network, cases.subset(split.validation), plan.num_classes, depth, axes)
        said.append(f"{each.mean():.4f} ({' / '.join(f'{value:.4f}' for value in each)}) {side}")
    return f"{change}, seed {seed}: validation Dice {', '.join(said)}; {seconds:.0f} seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--changes", nargs="+", default=["none"], choices=[*SETTINGS, *OTHERS], metavar="CHANGE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--slab-steps", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder of prepared cases that stays; none: a temporary one")
    parser.add_argument("--set", action="append", help="section.key=value, as for `train`, before the changes")
    parser.add_argument("--list", action="store_true", help="say what each change is, and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for name, settings in SETTINGS.items():
            print(f"{name}: {' '.join(f'--set {setting}' for setting in settings) or 'the recipe as it is'}")
        for name, what in OTHERS.items():
            print(f"{name}: {what}")
        return
    if arguments.data is None:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    import torch

    torch.set_num_threads(1)
    print(
        f"{arguments.steps} + {arguments.slab_steps} steps, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for change in arguments.changes:
                print(run(change, seed, arguments.cache or Path(folder), arguments), flush=True)


if __name__ == "__main__":
    main()
