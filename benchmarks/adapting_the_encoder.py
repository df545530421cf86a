"""What a training step of each way to adapt the encoder costs, beside one with the encoder frozen.

    python benchmarks/adapting_the_encoder.py [--size tiny] [--image-size 512] [--slices 6] [--rank 8] [--repeats 3]

Random weights, SRPP and BD on, fp32, one slab, loss and backward pass without the optimiser. The sides take turns in
one process. Kept are the bytes that autograd holds from the forward pass for the backward one, weights not counted.
"""

import argparse
import statistics
import time

import torch

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.encoders.peft_adapters import add_lora, train_last_stage
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed

WAYS = ("frozen", "lora", "last stage", "all of it")


def network(way: str, args: argparse.Namespace) -> SAM2For3dMed:
    torch.manual_seed(0)
    made = build_network(NetworkConfig(size=args.size, image_size=args.image_size), 1)
    if way == "frozen":
        made.encoder.freeze()
    elif way == "lora":
        add_lora(made.encoder, args.rank)
    elif way == "last stage":
        train_last_stage(made.encoder)
    return made.train()


def step(made: SAM2For3dMed, slices: torch.Tensor) -> tuple[float, int]:
    """Seconds, and bytes kept."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    made.zero_grad()
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        prediction = made(slices)
        loss = prediction.segmentation.square().mean() + prediction.boundary.square().mean()
        loss = loss + prediction.relative_position.square().mean()
        size = sum(kept.values())
    loss.backward()
    return time.perf_counter() - started, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    slices = torch.rand(1, args.slices, 1, args.image_size, args.image_size)
    sides = {way: network(way, args) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    kept = {}
    for turn in range(args.repeats + 1):
        for way, made in sides.items():
            taken, kept[way] = step(made, slices)
            if turn:  # the first turn warms up
                seconds[way].append(taken)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    print(f"{args.size}, {args.image_size} pixels, D = {args.slices}, {torch.get_num_threads()} threads")
    print("| encoder | it trains | seconds a step | times the frozen one's | kept, GB |\n|---|---|---|---|---|")
    for way, made in sides.items():
        trained = sum(p.numel() for p in made.encoder.parameters() if p.requires_grad)
        ratio = medians[way] / medians["frozen"]
        print(f"| {way} | {trained:,} | {medians[way]:.2f} | {ratio:.2f} | {kept[way] / 1e9:.2f} |")


if __name__ == "__main__":
    main()
