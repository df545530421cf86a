"""Seconds a training step takes with and without the feature cache, in one run.

    python benchmarks/feature_cache.py                                              (tiny and large at 512 pixels)
    python benchmarks/feature_cache.py --sizes nano --image-size 96 --repeats 5     (a trial: seconds)
    python benchmarks/feature_cache.py --device cuda --bf16 --slices 12 --share     (a GPU, and how much of it is used)

A step is forward, loss, backward, clipping and AdamW for one slab of D slices, K = 1, with the encoder frozen and
random weights; of the whole method, and with BD off. Sides, which take turns:

    encoder   no cache: the encoder computes the features, without gradients, as in any run with a frozen encoder
    memory    the cache finds them in memory (bf16)
    disk      the cache finds them in files, which the system holds in its own memory unless it is short of it

Pixels are there before the clock starts, as if the loader's processes were never late; the cache's lookup is within
the time. Ratios are of medians, of seconds on the clock and of seconds of a processor: the latter is what to read where
other work goes on beside. "To make" is what a slice costs when it is seen first: augmentation, encoder, keeping.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def make_views(folder: Path, pixels: int, depth: int) -> Any:
    """One case of D slices with the paper's augmentation: every slab is the whole case."""
    from sam2_3dmed.config import AugmentationConfig
    from sam2_3dmed.data.augment import SlabAugmentation
    from sam2_3dmed.data.cache import CachedCase
    from sam2_3dmed.data.slabs import SlabDataset, ViewDataset

    rng = np.random.default_rng(0)
    coarse = rng.random((depth, 1, pixels // 16, pixels // 16)).repeat(16, -1).repeat(16, -2).astype(np.float16)
    np.save(folder / "case.image.npy", coarse)
    np.save(folder / "case.label.npy", (coarse[:, 0] > 0.7).astype(np.uint8))
    (folder / "case.json").write_text('{"key": ""}')
    case = CachedCase("case", folder, depth, {1: np.arange(depth)})
    slabs = SlabDataset(
        [case],
        slab_slices=depth,
        augmentation=SlabAugmentation(AugmentationConfig(), pixels),
        foreground_fraction=0,
        seed=0,
    )
    return ViewDataset(slabs, num_views=1, refresh=None)


def make_step(network: Any, predict: Callable[[], Any], batch: Any, bf16: bool) -> Callable[[], None]:
    """A step of training, done when it returns."""
    import torch

    from sam2_3dmed.config import LossConfig
    from sam2_3dmed.training.losses import TotalLoss, class_masks

    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.1, fused=True)
    loss = TotalLoss(LossConfig())

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(network.device.type, torch.bfloat16, enabled=bf16):
            total = loss(predict(), class_masks(batch.labels, 1), batch.positions)["total"]
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        finish(network.device)

    return step


def finish(device: Any) -> None:
    """Wait for a GPU, which is told what to do long before it has done it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: Any, bf16: bool) -> float:
    """Operations a second in a product of two large matrices; the best of a few."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)

    def multiply() -> None:
        matrix @ matrix
        finish(device)

    multiply()
    return 2 * side**3 / min(seconds_of(multiply)[0] for _ in range(5))


def seconds_of(work: Callable[[], Any]) -> np.ndarray:
    """(wall, processor) seconds."""
    started = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - started[0], time.process_time() - started[1]])


def measure(size: str, boundary: bool, arguments: argparse.Namespace, folder: Path) -> None:
    import torch

    from sam2_3dmed.config import FeatureCacheConfig, NetworkConfig
    from sam2_3dmed.data.slabs import SampleKey, View, ViewSlabs, collate
    from sam2_3dmed.experiments.resource_meter import count_flops
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.training.feature_cache import FeatureCache

    torch.manual_seed(0)
    network = build_network(NetworkConfig(size=size, image_size=arguments.image_size, boundary=boundary), 1)
    network.encoder.freeze()
    device, bf16 = torch.device(arguments.device), arguments.bf16
    network.to(device)
    views = make_views(folder, arguments.image_size, arguments.slices)
    (on_cpu,) = collate([views[SampleKey(0, 0)]])
    batch = ViewSlabs(*(part.to(device) for part in on_cpu))
    view = View(*batch.views[0].tolist())
    slices = torch.stack([views.slice(view, index) for index in batch.positions[0].tolist()]).unsqueeze(0).to(device)
    memory, disk = (
        FeatureCache(network.encoder, views, FeatureCacheConfig(views=1, budget_gb=gigabytes), folder / "features")
        for gigabytes in (4, 0)
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # as in training: the cache's keys know of it
        to_make = seconds_of(lambda: memory(batch)) / arguments.slices
        disk(batch)
    predictions = {
        "encoder": lambda: network(slices),
        "memory": lambda: network.decode(memory(batch), pre_fpn=True),
        "disk": lambda: network.decode(disk(batch), pre_fpn=True),
    }
    sides = {side: make_step(network, predict, batch, bf16) for side, predict in predictions.items()}
    times: dict[str, list[np.ndarray]] = {side: [] for side in sides}
    sides["memory"]()  # the first step of all makes AdamW's moments and warms up
    for _ in range(arguments.repeats):
        for side, step in sides.items():
            times[side].append(seconds_of(step))
    print(
        f"{size}, {'whole method' if boundary else 'BD off'}: {memory.bytes_per_slice / 1e6:.2f} MB a slice, "
        f"{to_make[1]:.2f} s of a processor to make; load {os.getloadavg()[0]:.1f}"
    )
    medians = {side: np.median(found, axis=0) for side, found in times.items()}
    rate = matrix_rate(device, bf16) if arguments.share else 0.0
    for side, (wall, processor) in medians.items():
        faster, less = medians["encoder"] / medians[side]
        said = f"{wall:.3g} s, {arguments.slices / wall:.3g} slices a second, {faster:.2f} times as fast; "
        said += f"{processor:.3g} s of a processor, {less:.2f} times"
        if arguments.share:
            with count_flops() as counter:
                sides[side]()
            done = counter.get_total_flops()
            said += f"; {done / 1e9:.0f} GFLOP, {100 * done / wall / rate:.1f}% of the rate of a matrix product"
        print(f"  {side}: {said}")
    if arguments.share:
        print(f"  a matrix product alone: {rate / 1e12:.3g} TFLOP a second")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "large"])
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=6, help="D")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--bf16", action="store_true", help="with bf16 autocast, as training on a GPU has it")
    parser.add_argument("--share", action="store_true", help="also the share of the device's own rate")
    arguments = parser.parse_args()

    import torch

    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: there is no GPU that torch can use")
    torch.set_num_threads(arguments.threads)
    what = torch.cuda.get_device_name(arguments.device) if arguments.device != "cpu" else f"{os.cpu_count()} cores"
    precision = "bf16" if arguments.bf16 else "fp32"
    print(f"{what}, {arguments.threads} threads, D = {arguments.slices}, {arguments.image_size} pixels, {precision}")
    for size in arguments.sizes:
        for boundary in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                measure(size, boundary, arguments, Path(folder))


if __name__ == "__main__":
    main()
