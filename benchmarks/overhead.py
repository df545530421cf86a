"""Everything that is not the model, beside the bare time of reading the file and writing a mask, in one run.

    python benchmarks/overhead.py [--slices 120] [--repeats 5] [--threads 1] [--model-slices 12]
    python benchmarks/overhead.py --size 128 --slices 24 --model-slices 0          (a trial: seconds)

A synthetic CT of 512 x 512 x 120 as .nii.gz. Ours is the whole prediction, from file to file, with a `tiny` network
whose costly parts are taken out: its encoder gives back features, and its decoder logits, that were there before. So
reading, normalising, resizing to the network's pixels (none is needed at 512, see --image-size), slabs, blending,
resizing logits, deciding and writing are all in it. Bare is igzip reading the file and writing the bytes of the same
mask, level 1. 2.5 times bare is the goal. The sides take turns; medians. The features of "ours" are of one pixel; "with
features" has them as large as those of `tiny`, so that moving them from the encoder into batches of slabs counts,
too.

The parts are then timed one by one. Last, `tiny` itself on a few slices (slabs of 6, overlap 0.5, forward): the share
of a prediction's time that is not the model; 15% at most is the goal.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synthetic_ct import LABELS, make_in_process, random_predictor


def each(levels: Any, change: Callable[[Any], Any]) -> Any:
    """The same change to all levels of features that are there."""
    return type(levels)(*(None if level is None else change(level) for level in levels))


def hollow(predictor: Any, move_features: bool) -> None:
    """Take from a predictor's network what it computes. move_features: or from its features all but a pixel."""
    import torch

    from sam2_3dmed.model.network import Prediction

    network = predictor.network
    pixels = network.encoder.image_size
    with torch.inference_mode():
        features = network.encoder(torch.zeros(1, 1, 1, pixels, pixels))
        projected = network.project(features)
    if not move_features:
        features, projected = (each(levels, lambda x: x[..., :1, :1]) for levels in (features, projected))
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, pixels // 4)] * 2, indexing="ij")
    logits = torch.stack([5 * (0.3 - (x - 0.3).hypot(y)), 5 * (0.2 - (x + 0.4).hypot(y))])

    def repeat(levels: Any, batch: int, depth: int) -> Any:
        return each(levels, lambda x: x.expand(batch, depth, -1, -1, -1))

    def decode(given: Any) -> Prediction:
        batch, depth = given.z.shape[:2]
        return Prediction(logits[None, :, None].expand(batch, -1, depth, -1, -1), None, None)

    network.encoder.encode = lambda prepared: repeat(features, *prepared.shape[:2])
    network.project = lambda given: repeat(projected, *given.z.shape[:2])
    network.decode = network.decode_slabs = decode


def bare(file: Path, mask_bytes: bytes, folder: Path) -> None:
    """The least anyone can do: decompress the file into memory, compress a mask of the same size."""
    from isal import igzip

    with igzip.open(file, "rb") as stream:
        stream.read()
    with igzip.open(folder / "bare.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(mask_bytes)


def whole(predictor: Any, file: Path, folder: Path) -> Any:
    from sam2_3dmed.volume.volume import Volume

    mask = predictor(Volume.read(file))
    mask.write(folder / "mask.nii.gz")
    return mask


def parts(predictor: Any, file: Path, mask: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    import torch

    from sam2_3dmed.inference.logits_to_mask import argmax_mask
    from sam2_3dmed.volume.volume import Volume

    volume = Volume.read(file)
    stack = predictor.preprocessing.stack(volume)
    slices = torch.rand(1, 8, 1, *volume.shape[:2])
    logits = torch.randn(len(LABELS), 128, 128)

    def normalise() -> None:
        for start in range(0, len(stack), 8):
            stack[start : start + 8]

    def resize() -> None:
        for _ in range(0, len(stack), 8):
            predictor.network.encoder.prepare(slices)

    def decide_all() -> None:
        for _ in range(len(stack)):
            argmax_mask(logits, *volume.shape[:2])

    return {
        "read": lambda: Volume.read(file),
        "normalise": normalise,
        "to the network's pixels and colours": resize,
        "decide, where both classes are everywhere": decide_all,
        "write": lambda: mask.write(folder / "mask.nii.gz"),
    }


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model-slices", type=int, default=12, help="0 leaves the model out")
    arguments = parser.parse_args()

    import torch

    torch.set_num_threads(arguments.threads)
    print(f"{os.cpu_count()} CPU cores, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        file = folder / "ct.nii.gz"
        make_in_process(file, arguments.size, arguments.slices)
        predictor, moving = (
            random_predictor("tiny", arguments.image_size, direction="forward", batch_size=4) for _ in range(2)
        )
        model = time_model(predictor, folder, arguments) if arguments.model_slices else None
        hollow(predictor, move_features=False)
        hollow(moving, move_features=True)
        mask = whole(predictor, file, folder)
        mask_bytes = mask.array.tobytes(order="A")
        sides: dict[str, Callable[[], Any]] = {
            "bare": lambda: bare(file, mask_bytes, folder),
            "ours": lambda: whole(predictor, file, folder),
            "with features": lambda: whole(moving, file, folder),
        }
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.repeats):
            for side, work in sides.items():
                times[side].append(seconds_of(work))
        medians = {side: statistics.median(found) for side, found in times.items()}
        for side, median in medians.items():
            print(f"{side}: {median:.3f} s, {median / medians['bare']:.2f} times bare")
        for part, work in parts(predictor, file, mask, folder).items():
            found = statistics.median(seconds_of(work) for _ in range(arguments.repeats))
            print(f"  {part}: {found:.3f} s, {1000 * found / arguments.slices:.2f} ms a slice")
        if model is not None:
            for side in ("ours", "with features"):
                print(f"tiny: {model:.2f} s a slice; {side}: {medians[side] / (model * arguments.slices):.1%} of it")


def time_model(predictor: Any, folder: Path, arguments: argparse.Namespace) -> float:
    """Seconds a slice of a whole prediction."""
    make_in_process(folder / "short.nii.gz", arguments.size, arguments.model_slices)
    return seconds_of(lambda: whole(predictor, folder / "short.nii.gz", folder)) / arguments.model_slices


if __name__ == "__main__":
    main()
