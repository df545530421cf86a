"""Slices per second beside transformers' own `Sam2VideoModel`, on the same slices with the same weights, in one run.

    python benchmarks/video_model.py [--size tiny] [--image-size 512] [--slices 24] [--threads 1] [--gain 0.85]
    python benchmarks/video_model.py --weights facebook/sam2.1-hiera-tiny                    (or a folder, or a .pt)
    python benchmarks/video_model.py --pooled       (also ours with pooled memory, and what it changes and saves)

Both track one class through all slices, forward, without a prompt: theirs with its session and its memories, ours as
`slice_logits` in stream mode, without SRPP and BD. Weights are random or given, the same for both; the object score is
10 throughout, so that theirs gates nothing, and of theirs masks the single one is taken, as ours does.
Theirs get the slices resized and normalised; ours do that themselves. The sides take turns slice by slice; two slices
of each run before, untimed. Seconds are the process's CPU seconds with one thread (other work on the machine disturbs
them least), else of the clock. Dice is that of the masks, mean over the slices in which theirs is not empty.

Theirs keeps memories in bf16. How far that carries is a matter of the weights: `--gain` is the standard deviation of
random ones, 1 for as much signal behind a layer as before it. So the masks are compared with theirs a second time,
untimed, with its memories left in float32: what is left then is ours.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def their_model(size: str, image_size: int) -> Any:
    """Upstream's, so that it gates nothing and gives the single mask."""
    from transformers import Sam2VideoModel

    from sam2_3dmed.encoders.hiera import HIERA_SIZES, hiera_config
    from sam2_3dmed.model.build import SIZES, sam2_config

    config = sam2_config(SIZES[size], image_size, hiera_config(HIERA_SIZES[size], image_size, SIZES[size].channels))
    config.multimask_output_in_sam = False
    config.mask_decoder_config.dynamic_multimask_via_stability = False
    return Sam2VideoModel._from_config(config, attn_implementation="sdpa").eval()


@torch.no_grad()
def make_weights(model: Any, gain: float) -> None:
    """Random ones."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:
            continue
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
        torch.nn.init.normal_(parameter, std=0.4 if "embed" in name or "token" in name else gain * fan_in**-0.5)


@torch.no_grad()
def finish(model: Any) -> None:
    """What random weights and given ones have in common."""
    score = model.mask_decoder.pred_obj_score_head.proj_out
    score.weight.zero_()
    score.bias.fill_(10)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)


def make_slices(count: int, size: int) -> np.ndarray:
    """(N, 1, S, S) in [0, 1]: waves and a disc that drift from slice to slice."""
    place = np.arange(count)[:, None, None]
    y, x = np.meshgrid(*[np.linspace(-1, 1, size)] * 2, indexing="ij")
    wave = 0.25 * np.sin(9 * x + 5 * y + 0.3 * place) + 0.15 * np.cos(23 * x * y - 0.2 * place)
    disc = (x - 0.02 * place) ** 2 + y**2 < 0.2
    return np.clip(0.45 + wave + 0.2 * disc, 0, 1).astype(np.float32)[:, None]


def their_side(model: Any, prepared: torch.Tensor) -> Iterator[torch.Tensor]:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    height, width = prepared.shape[-2:]
    session = Sam2VideoInferenceSession(video=prepared, video_height=height, video_width=width, dtype=torch.float32)
    session.obj_id_to_idx(1)
    for index in range(len(prepared)):
        # The first slice is the one that conditions the others, as if there had been a prompt.
        session.obj_with_new_inputs = [1] if index == 0 else []
        with torch.inference_mode():
            yield model(session, frame_idx=index).pred_masks[0, 0]


@contextmanager
def memories_in_float32(model: Any) -> Iterator[None]:
    """Have theirs remember what its memory encoder gives, not what bf16 leaves of it."""
    found: list[torch.Tensor] = []
    encode = model._encode_new_memory

    def keep(module: Any, given: Any, output: Any) -> None:
        found[:] = [output[0].clone()]

    def exact(**inputs: Any) -> tuple[torch.Tensor, Any]:
        _, position = encode(**inputs)
        return found[0].flatten(2).permute(2, 0, 1), position

    hook = model.memory_encoder.register_forward_hook(keep)
    model._encode_new_memory = exact
    yield
    hook.remove()
    del model._encode_new_memory


def our_side(network: Any, slices: np.ndarray, **changes: Any) -> Iterator[torch.Tensor]:
    from sam2_3dmed.config import InferenceConfig
    from sam2_3dmed.inference.predictor import slice_logits
    from sam2_3dmed.inference.tta import Forward

    config = InferenceConfig(**{"mode": "stream", "direction": "forward", "precision": "32", **changes})
    for _, logits in slice_logits(Forward(network, slices, config), 6):
        yield logits[0]


def in_turns(
    sides: dict[str, Iterator[torch.Tensor]], clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Seconds and logits (N, h, w) of each side; the sides take turns slice by slice."""
    seconds = dict.fromkeys(sides, 0.0)
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in sides}
    ended = False
    while not ended:
        for name, side in sides.items():
            started = clock()
            one = next(side, None)
            seconds[name] += clock() - started
            if one is None:
                ended = True
            else:
                logits[name].append(one.float())
    return seconds, {name: torch.stack(found) for name, found in logits.items()}


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = (x.flatten(1) > 0 for x in (one, other))
    kept = other.any(dim=1)
    scores = 2 * (one & other).sum(1)[kept] / (one.sum(1) + other.sum(1))[kept]
    return float(scores.mean())


def their_model_and_weights(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Theirs, and the same weights as ours read them."""
    from sam2_3dmed.model.weights import read_sam2

    given = read_sam2(arguments.weights) if arguments.weights else None
    model = their_model(given.size if given else arguments.size, arguments.image_size)
    if given:
        model.load_state_dict(given.state, strict=False)  # the position code's twin is missing
    else:
        make_weights(model, arguments.gain)
    finish(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model, read_sam2(folder)


def our_network(image_size: int, weights: Any, memory_pooling: int = 1) -> Any:
    from sam2_3dmed.config import NetworkConfig
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.model.weights import load_sam2

    switches = {"srpp": False, "boundary": False, "memory_pooling": memory_pooling}
    network = build_network(NetworkConfig(size=weights.size, image_size=image_size, **switches), 1).eval()
    load_sam2(network, weights)
    return network


def print_pooled(logits: dict[str, torch.Tensor], sides: dict[str, Callable[[int], Iterator[torch.Tensor]]]) -> None:
    """What pooling changes and saves: masks beside our own, and operations."""
    from sam2_3dmed.experiments.resource_meter import count_flops

    print(f"pooled beside ours: {agreement(logits['ours, pooled'], logits['ours, fp32'])}")
    num_slices = len(logits["ours, fp32"])
    for name in ("ours, fp32", "ours, pooled"):
        with count_flops() as counter:
            list(sides[name](num_slices))
        print(f"{name:20} {counter.get_total_flops() / 1e9 / num_slices:.1f} GFLOP a slice")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size",
        default="tiny",
        choices=["tiny", "small", "base_plus", "large"],
        help="not nano, at whose width upstream's fails: findings/transformers_sam2_video_narrow.sh",
    )
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", help="SAM2's, instead of random ones: a hub id, a folder, or a .pt of Meta's")
    parser.add_argument("--gain", type=float, default=0.85)
    parser.add_argument("--no-bf16", action="store_true", help="leave out the bf16 row")
    parser.add_argument("--pooled", action="store_true", help="also ours with model.memory_pooling=2")
    parser.add_argument("--compile", action="store_true", help="also ours compiled, whose compilation is timed apart")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model, weights = their_model_and_weights(arguments)
    size, image_size = weights.size, arguments.image_size
    network = our_network(image_size, weights)
    slices = make_slices(arguments.slices, image_size)
    prepared = network.encoder.prepare(torch.from_numpy(slices).unsqueeze(0))[0]
    sides: dict[str, Callable[[int], Iterator[torch.Tensor]]] = {
        "transformers, fp32": lambda count: their_side(model, prepared[:count]),
        "ours, fp32": lambda count: our_side(network, slices[:count]),
    }
    if not arguments.no_bf16:
        sides["ours, bf16"] = lambda count: our_side(network, slices[:count], precision="bf16")
    if arguments.pooled:
        pooled = our_network(image_size, weights, memory_pooling=2)
        sides["ours, pooled"] = lambda count: our_side(pooled, slices[:count])
    if arguments.compile:
        compiled = copy.deepcopy(network)
        sides["ours, compiled"] = lambda count: our_side(compiled, slices[:count], compile=True)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    for name, side in sides.items():
        started = time.perf_counter()
        list(side(2))
        print(f"{name}: the first slices take {time.perf_counter() - started:.1f} s")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        passed, logits = in_turns({name: side(arguments.slices) for name, side in sides.items()}, clock)
        for name in sides:
            seconds[name].append(passed[name])
    with memories_in_float32(model):
        exact = torch.stack(list(their_side(model, prepared)))
    theirs, their_seconds = logits["transformers, fp32"], seconds["transformers, fp32"]
    amx = torch.cpu._is_amx_tile_supported()
    print(
        f"{size}, {image_size} px, {arguments.slices} slices, {arguments.threads} thread(s), load "
        f"{os.getloadavg()[0]:.1f}; AMX: {'yes' if amx else 'no'}; "
        f"{arguments.weights or f'random weights of gain {arguments.gain}'}; "
        f"foreground {(theirs > 0).float().mean():.2f}; standard deviation of a logit {theirs.std():.2f}"
    )
    for name, passed in seconds.items():
        ratios = [their / our for their, our in zip(their_seconds, passed, strict=True)]
        print(
            f"{name:20} {arguments.slices / statistics.median(passed):6.2f} slices/s   "
            f"{statistics.median(ratios):5.2f} times theirs ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{agreement(logits[name], theirs)}   with its memories in float32: {agreement(logits[name], exact)}"
        )
    if arguments.pooled:
        print_pooled(logits, sides)


def agreement(one: torch.Tensor, other: torch.Tensor) -> str:
    return f"Dice {dice(one, other):.4f}, largest difference {(one - other).abs().max():.2g}"


if __name__ == "__main__":
    main()
