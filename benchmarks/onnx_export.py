"""A run by PyTorch and its export by onnxruntime, on the same slices in one process.

    python benchmarks/onnx_export.py [--size tiny] [--image-size 512] [--slab 6] [--slices 18] [--repeats 3]

Random weights, SRPP and BD on, fp32, one direction, slabs that overlap by half. Both sides take turns and get the
same threads (OMP_NUM_THREADS). Timed are the passes alone, from slices of the network's size to blended logits; the
export, the sizes of the files and the time to open them stand beside.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from sam2_3dmed.config import ChannelPlan, InferenceConfig, Plan, paper, with_settings
from sam2_3dmed.export.run import export_run
from sam2_3dmed.inference.predictor import slice_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.run.build_model import make_model
from sam2_3dmed.run.run_folder import load_model, save_model


def make_run(folder: Path, args: argparse.Namespace) -> None:
    channel = ChannelPlan(name="CT", normalisation="fixed", low=-100, high=200)
    labels = {value: f"organ {value}" for value in range(1, args.classes + 1)}
    settings = [f"model.size={args.size}", f"model.image_size={args.image_size}", f"slab_slices={args.slab}"]
    torch.manual_seed(0)
    plan = Plan(dataset="Random", channels=(channel,), labels=labels)
    save_model(*make_model(with_settings(paper(), settings), plan, "none"), folder)


def timed_pass(network, slices, slab: int) -> tuple[float, torch.Tensor]:
    config = InferenceConfig(direction="forward", precision="32")
    started = time.perf_counter()
    logits = dict(slice_logits(Forward(network, slices, config), slab))
    return time.perf_counter() - started, torch.stack([logits[index] for index in range(len(slices))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--slab", type=int, default=6)
    parser.add_argument("--slices", type=int, default=18)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)

    with tempfile.TemporaryDirectory() as folder:
        run, exported = Path(folder) / "run", Path(folder) / "exported"
        make_run(run, args)
        started = time.perf_counter()
        for file, difference in export_run(run, exported).items():
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB, {difference:.1e} from PyTorch")
        print(f"model.safetensors: {(run / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
        print(f"export: {time.perf_counter() - started:.0f} s, the check included")
        networks, opened = {}, {}
        for backend, source in (("pytorch", run), ("onnxruntime", exported)):
            started = time.perf_counter()
            networks[backend] = load_model(source, device="cpu", backend=backend).network
            opened[backend] = time.perf_counter() - started
    slices = torch.rand(args.slices, 1, args.image_size, args.image_size).numpy()
    seconds: dict[str, list[float]] = {backend: [] for backend in networks}
    logits = {}
    for turn in range(args.repeats + 1):
        for backend, network in networks.items():
            taken, logits[backend] = timed_pass(network, slices, args.slab)
            if turn:  # the first turn warms up
                seconds[backend].append(taken)
    medians = {backend: statistics.median(taken) for backend, taken in seconds.items()}
    for backend, median in medians.items():
        print(f"{backend}: {median:.2f} s for {args.slices} slices (median of {args.repeats})")
        print(f"{backend}: {opened[backend]:.1f} s to open")
    same = ((logits["pytorch"] > 0) == (logits["onnxruntime"] > 0)).float().mean()
    ratio = medians["pytorch"] / medians["onnxruntime"]
    print(f"onnxruntime is {ratio:.2f} times as fast; threads: {torch.get_num_threads()}")
    print(f"logits of the same sign: {same:.6f}")


if __name__ == "__main__":
    main()
