"""How a stack of slices passes through the network, and the one way to its logits (readings 5 and 6)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sam2_3dmed.inference.slabs import Direction, Slab, slab_logits
from sam2_3dmed.inference.stream import stream_logits
from sam2_3dmed.inference.tta import Forward, SliceStack, compile_network
from sam2_3dmed.model.network import SAM2For3dMed

Mode = Literal["slabs", "stream"]


@dataclass(frozen=True)
class PassOptions:
    """How a stack passes through the network.

    slab_slices: D; mode: overlapping slabs, or one stream; direction: `both` averages the logits of the two;
    overlap: the share of a slab that the next one repeats; batch_size: slabs at once, none: from free memory;
    flips: each slice also passes mirrored along W, and the logits are averaged; shifts: each slice passes moved by half
    a logit towards each corner, with flips two of these mirrored, and the logits are averaged; bf16: autocast; compile:
    through torch.compile. Streams have no use for overlap and batch_size.
    """

    slab_slices: int
    mode: Mode = "slabs"
    direction: Direction = "both"
    overlap: float = 0.5
    batch_size: int | None = None
    flips: bool = False
    shifts: bool = False
    bf16: bool = False
    compile: bool = False


@torch.inference_mode()
def slice_logits(
    network: SAM2For3dMed,
    slices: SliceStack,
    options: PassOptions,
    *,
    boundary: bool = False,
    boxes: Tensor | None = None,
    on_positions: Callable[[Slab, Tensor], None] = lambda slab, positions: None,
) -> Iterator[tuple[int, Tensor]]:
    """The index of each slice, once, and its logits (K, H/4, W/4) float32, (K, H/2, W/2) with shifts; from the first
    slice to the last, or back.

    slices: (N, C, H0, W0) in [0, 1]; boundary: the K maps of P_bd follow those of P_seg, for a network that has BD;
    boxes: (N, K, 4), see `boxes_around`, for a network that takes them; on_positions: gets P_pos, (D, D), of each
    slab or chunk, from a network that has SRPP.

    Raises:
        ConfigError: compiling is asked for and there is no compiler. DataError: no room for a temporary file.
    """
    if options.compile:
        compile_network(network)
    views = {"flips": options.flips, "shifts": options.shifts}
    forward = Forward(network, slices, bf16=options.bf16, **views, boundary=boundary, boxes=boxes)
    if options.mode == "stream":
        yield from stream_logits(
            forward, slab_slices=options.slab_slices, direction=options.direction, on_positions=on_positions
        )
    else:
        yield from slab_logits(
            forward,
            slab_slices=options.slab_slices,
            overlap=options.overlap,
            direction=options.direction,
            batch_size=options.batch_size,
            on_positions=on_positions,
        )
