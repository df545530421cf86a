"""Seconds a slice with 1, 2 and 117 classes, as ratios, in one run.

    python benchmarks/classes.py [--sizes nano tiny] [--slices 12] [--threads 1] [--repeats 3]

`slice_logits` with random weights at each size's own image size: the whole network (SRPP, BD) in stream mode, forward;
the counts take turns, after a warm-up. What stands beside them is the time of `argmax_mask` on 512 x 512 pixels: for
what these networks say, by which every class is above 0 somewhere in every slice, which is the worst; and for classes
that lie beside each other, as organs do, each in a cell of a chessboard.
"""

import argparse
import math
import os
import statistics
import time

import numpy as np
import torch

COUNTS = (1, 2, 117)


def beside_each_other(count: int, height: int, width: int) -> torch.Tensor:
    """Logits (K, h, w), each class 5 in a cell of its own and -5 elsewhere."""
    side = math.ceil(count**0.5)
    rows, columns = torch.arange(height) * side // height, torch.arange(width) * side // width
    cells = rows[:, None] * side + columns[None]
    return torch.where(cells == torch.arange(count)[:, None, None], 5.0, -5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["nano", "tiny"])
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    from sam2_3dmed.config import InferenceConfig, NetworkConfig
    from sam2_3dmed.inference.logits_to_mask import argmax_mask
    from sam2_3dmed.inference.predictor import slice_logits
    from sam2_3dmed.inference.tta import Forward
    from sam2_3dmed.model.build import SIZES, build_network

    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    slices = np.random.default_rng(0).random((arguments.slices, 1, 512, 512), dtype=np.float32)
    config = InferenceConfig(mode="stream", direction="forward", precision="32")
    for size in arguments.sizes:
        torch.manual_seed(0)
        image_size = SIZES[size].image_size
        networks = {k: build_network(NetworkConfig(size=size, image_size=image_size), k).eval() for k in COUNTS}
        passing: dict[int, list[float]] = {k: [] for k in COUNTS}
        deciding: dict[int, list[float]] = {k: [] for k in COUNTS}
        apart: dict[int, list[float]] = {k: [] for k in COUNTS}
        for network in networks.values():
            list(slice_logits(Forward(network, slices[:2], config), 6))
        for _ in range(arguments.repeats):
            for k, network in networks.items():
                started = clock()
                logits = [one for _, one in slice_logits(Forward(network, slices, config), 6)]
                passed = clock()
                for one in logits:
                    argmax_mask(one, 512, 512)
                passing[k].append((passed - started) / len(slices))
                decided = clock()
                deciding[k].append((decided - passed) / len(slices))
                organs = beside_each_other(k, *logits[0].shape[1:])
                started = clock()
                for _ in logits:
                    argmax_mask(organs, 512, 512)
                apart[k].append((clock() - started) / len(slices))
        print(f"{size}, {image_size} px, {arguments.threads} thread(s), load {os.getloadavg()[0]:.1f}")
        for k in COUNTS:
            ratio = statistics.median(a / b for a, b in zip(passing[k], passing[1], strict=True))
            print(
                f"  K = {k:3}: {statistics.median(passing[k]) * 1e3:7.1f} ms a slice, {ratio:.2f} times K = 1; "
                f"decide {statistics.median(deciding[k]) * 1e3:.1f} ms, "
                f"of classes beside each other {statistics.median(apart[k]) * 1e3:.1f} ms"
            )


if __name__ == "__main__":
    main()
