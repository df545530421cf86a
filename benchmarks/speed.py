"""Processor seconds a slice and peak memory of predictions and training steps, each in a process of its own.

    python benchmarks/speed.py [--size tiny] [--slices 60] [--depth 12] [--repeats 3]
    python benchmarks/speed.py --size nano --image-size 64 --plane 64 --slices 6 --repeats 1       (a trial: a minute)

Random weights, float32, a synthetic CT of 512 x 512, one thread. Sides take turns; medians. A prediction goes from a
volume in memory to its mask; a shorter one comes before, untimed. A training step is that of `feature_cache.py`: one
slab of D slices, K = 1, with a frozen encoder whose features are there. "transformers" is its `Sam2VideoModel` with the
slices already resized and normalised, in one direction; it has no step here, and no side where its width fails (nano).
Memory is the process's peak (ru_maxrss): Python, PyTorch and the network are in it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from synthetic_ct import make_ct, peak_mb, random_predictor, run_alone

THEIRS = "transformers"
SIDES = {
    "paper": "paper",
    "paper, slice mixing": "paper+slice_mixing",
    "the same, pooled memory": "paper+slice_mixing+pooled_memory",
    "slice mixing alone": "paper+slice_mixing+without_memory+without_srpp+without_boundary",
}
"""Recipes."""


def recipe_of(side: str) -> Any:
    from sam2_3dmed.config.presets import read_recipe

    return read_recipe(SIDES[side])


def predict(side: str, arguments: Any, folder: Path) -> float:
    """Processor seconds a slice."""
    from sam2_3dmed.volume.volume import Volume

    recipe = recipe_of(side)
    network, settings = recipe.model.model_dump(), recipe.inference.model_dump()
    settings |= {"network": network, "slab_slices": arguments.depth}
    predictor = random_predictor(arguments.size, arguments.image_size, **settings)
    volumes = []
    for count in (2, arguments.slices):
        make_ct(folder / f"{count}.nii.gz", arguments.plane, count)
        volumes.append(Volume.read(folder / f"{count}.nii.gz"))
    predictor(volumes[0])
    started = time.process_time()
    predictor(volumes[1])
    return (time.process_time() - started) / arguments.slices


def predict_theirs(arguments: Any) -> float:
    """Processor seconds a slice."""
    import torch
    from video_model import finish, make_slices, make_weights, their_model, their_side

    model = their_model(arguments.size, arguments.image_size)
    make_weights(model, 0.85)
    finish(model)
    slices = torch.from_numpy(make_slices(arguments.slices, arguments.image_size))
    prepared = (slices.expand(-1, 3, -1, -1) - 0.45) / 0.225
    list(their_side(model, prepared[:2]))
    started = time.process_time()
    list(their_side(model, prepared))
    return (time.process_time() - started) / arguments.slices


def train(side: str, arguments: Any, folder: Path) -> float:
    """Processor seconds a slice."""
    from feature_cache import make_step, make_views, seconds_of

    from sam2_3dmed.config import FeatureCacheConfig, NetworkConfig
    from sam2_3dmed.data.slabs import SampleKey, collate
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.training.feature_cache import FeatureCache

    changes = {"size": arguments.size, "image_size": arguments.image_size}
    network = build_network(NetworkConfig.model_validate(recipe_of(side).model.model_dump() | changes), 1).train()
    network.encoder.freeze()
    views = make_views(folder, arguments.image_size, arguments.depth)
    (batch,) = collate([views[SampleKey(0, 0)]])
    cache = FeatureCache(network.encoder, views, FeatureCacheConfig(views=1, budget_gb=4), folder / "features")
    step = make_step(network, lambda: network.decode(cache(batch), pre_fpn=True), batch, bf16=False)
    step()
    return float(seconds_of(step)[1]) / arguments.depth


def measure(work: str, side: str, arguments: Any) -> None:
    """In a process of its own; one line of JSON."""
    with tempfile.TemporaryDirectory() as name:
        if side == THEIRS:
            seconds = predict_theirs(arguments)
        else:
            seconds = (predict if work == "prediction" else train)(side, arguments, Path(name))
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def compare(work: str, sides: list[str], arguments: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(arguments.repeats):
        for side in sides:
            options = ("--measure", work, side, json.dumps(vars(arguments)))
            found[side].append(run_alone(__file__, *options, threads=1))
    for side, runs in found.items():
        ratios = [first["seconds"] / one["seconds"] for first, one in zip(found[sides[0]], runs, strict=True)]
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "peak_mb"))
        print(
            f"{work}, {side:24} {seconds:.3f} s a slice, {statistics.median(ratios):.2f} times as fast as {sides[0]} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); peak {peak:.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--plane", type=int, default=512, help="rows and columns of the CT")
    parser.add_argument("--slices", type=int, default=60)
    parser.add_argument("--depth", type=int, default=12, help="D")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        work, side, told = arguments.measure
        measure(work, side, SimpleNamespace(**json.loads(told)))
        return
    del arguments.measure
    print(f"{os.cpu_count()} CPU cores, one thread, load {os.getloadavg()[0]:.1f}; {vars(arguments)}")
    theirs = [] if arguments.size == "nano" else [THEIRS]
    compare("prediction", [*SIDES, *theirs], arguments)
    compare("training", list(SIDES), arguments)


if __name__ == "__main__":
    main()
