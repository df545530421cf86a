"""Peak memory of a training step against the slices of a slab, with and without checkpointing.

    python benchmarks/training_memory.py [--slices 6 12 24] [--size tiny] [--image-size 512] [--classes 2] [--threads 1]
    python benchmarks/training_memory.py --size nano --image-size 96 --tables nano      (a trial: minutes)

A step is a pass of one slab with SRPP and BD, the encoder frozen and given 4 slices at once, in 32 bit: loss at full
resolution, gradients, AdamW. Measured: by how much the process's peak (ru_maxrss) exceeds what it was when the network
stood, each case in a process of its own, in which malloc gives freed memory back; one that would not fit into what is
free is left out. Counted: bytes of tensors alive at the peak (training/memory_budget.py) without the weights, which
stood before, and Adam's averages, which come when the rest is gone.

Then, for each size of `--tables` (none: nothing), how many slabs of a pass fit GPUs of 8, 12, 16 and 24 GB by the
count. No GPU was there: what a process takes beside its tensors is assumed (training/memory_budget.py).
"""

import argparse
import json
import os
import time

from synthetic_ct import peak_mb, run_alone

GPUS = (8, 12, 16, 24)
# Otherwise glibc keeps what was freed: half as much again as is in use, or more. A GPU's allocator uses it anew.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}


def make_step(size: str, image_size: int, num_classes: int, checkpointing: bool):
    import torch

    from sam2_3dmed.config import LossConfig, NetworkConfig
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.training.losses import TotalLoss
    from sam2_3dmed.training.memory_budget import Step

    torch.manual_seed(0)
    network = build_network(NetworkConfig(size=size, image_size=image_size), num_classes).train()
    network.encoder.freeze()
    network.save_memory(activation_checkpointing=checkpointing, slices_at_once=4)
    return Step(network, TotalLoss(LossConfig()), num_classes)


def make_slabs(slices: int, image_size: int):
    import torch

    from sam2_3dmed.data.slabs import Slabs

    planes = torch.rand(1, slices, 1, image_size, image_size)
    return Slabs(planes, (planes[:, :, 0] > 0.5).int(), torch.arange(slices).unsqueeze(0))


def count(case: str) -> None:
    """In a process of its own; one line of JSON: bytes at the peak, and those of them that are there for any slab."""
    from sam2_3dmed.training.memory_budget import counted_bytes

    size, image_size, num_classes, slices, checkpointing = json.loads(case)
    step = make_step(size, image_size, num_classes, checkpointing)
    weights = sum(tensor.nbytes for tensor in (*step.parameters(), *step.buffers()))
    trained = sum(parameter.nbytes for parameter in step.parameters() if parameter.requires_grad)
    counted = counted_bytes(step, make_slabs(slices, image_size))
    print(json.dumps({"peak": counted + 2 * trained, "fixed": weights + 3 * trained, "grown": counted - weights}))


def measure(case: str) -> None:
    """In a process of its own; one line of JSON."""
    import torch

    size, image_size, num_classes, slices, checkpointing = json.loads(case)
    step = make_step(size, image_size, num_classes, checkpointing)
    slabs = make_slabs(slices, image_size)
    trained = [parameter for parameter in step.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    before, started = peak_mb(), time.perf_counter()
    step(slabs)
    optimizer.step()
    print(json.dumps({"grown_mb": peak_mb() - before, "seconds": time.perf_counter() - started}))


def compare(arguments: argparse.Namespace) -> None:
    """Measured beside counted, with and without checkpointing."""
    import torch

    from sam2_3dmed.inference.free_memory import free_bytes

    for slices in arguments.slices:
        for checkpointing in (False, True):
            case = json.dumps([arguments.size, arguments.image_size, arguments.classes, slices, checkpointing])
            by_count = run_alone(__file__, "--count", case, threads=arguments.threads)
            line = f"{arguments.size} at {arguments.image_size}, D = {slices:2}, checkpointing {checkpointing!s:5}: "
            line += f"counted {by_count['grown'] / 1e6:6.0f} MB"
            if 1.4 * by_count["peak"] + 2e9 > free_bytes(torch.device("cpu")):  # rather none than one that swaps
                print(f"{line}; not run: too little memory is free", flush=True)
                continue
            found = run_alone(__file__, "--measure", case, threads=arguments.threads)
            print(f"{line}; measured {found['grown_mb']:6.0f} MB, {found['seconds']:5.1f} s", flush=True)


def table(size: str, arguments: argparse.Namespace) -> None:
    """How many slabs in a pass fit each GPU."""
    from sam2_3dmed.training.memory_budget import GB, MARGIN, OVERHEAD

    print(f"\nslabs in a pass, {size} at {arguments.image_size} pixels, K = {arguments.classes}, 32 bit, by the count")
    print("| D | checkpointing | one slab | a further one |" + "".join(f" {gpu} GB |" for gpu in GPUS))
    print("|---|---|---|---|" + "---|" * len(GPUS))
    for slices in arguments.slices:
        for checkpointing in (False, True):
            case = json.dumps([size, arguments.image_size, arguments.classes, slices, checkpointing])
            found = run_alone(__file__, "--count", case, threads=arguments.threads)
            further = found["peak"] - found["fixed"]
            fits = [int(((gpu * GB - OVERHEAD) * (1 - MARGIN) - found["fixed"]) // further) for gpu in GPUS]
            line = f"| {slices} | {'yes' if checkpointing else 'no'} |"
            line += f" {found['peak'] / GB:.1f} GB | {further / GB:.2f} GB |"
            print(line + "".join(f" {max(0, fit) or '-'} |" for fit in fits), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[6, 12, 24])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--tables", nargs="*", default=["tiny", "large"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--count", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    elif arguments.count:
        count(arguments.count)
    else:
        os.environ |= MALLOC
        print(f"{os.cpu_count()} CPU cores, {arguments.threads or 'all'} threads, load {os.getloadavg()[0]:.1f}")
        compare(arguments)
        for size in arguments.tables:
            table(size, arguments)


if __name__ == "__main__":
    main()
