"""Overlapping slabs through a stack of slices, in one or both directions, blended as they come (readings 5 and 6).

What is held is a few slabs: features and logits of a slice are let go as soon as no later slab needs them.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sam2_3dmed.inference.free_memory import free_bytes, is_out_of_memory
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures

Direction = Literal["forward", "backward", "both"]

BYTES_A_BYTE = 4
"""What decoding takes for each byte of a slab's features and maps: 2.4 to 3.0 were measured, for nano and tiny."""
PLACES_AT_ONCE = (1024, 65536)
"""Of slabs decoded together: on a CPU, elsewhere."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slab:
    """One pass of the network: D slices from `start`, fed from the last to the first if `reverse`."""

    start: int
    length: int
    reverse: bool

    @property
    def order(self) -> list[int]:
        """The slices in the order in which the network sees them."""
        indices = list(range(self.start, self.start + self.length))
        return indices[::-1] if self.reverse else indices


def plan_slabs(num_slices: int, slab_slices: int, overlap: float, direction: Direction) -> list[Slab]:
    """Slabs that cover every slice, by ascending start; the last one is moved back to end with the last slice.

    overlap: the share of a slab that the next one repeats, 0 to below 1. A stack shorter than a slab is one
    shorter slab.
    """
    length = min(slab_slices, num_slices)
    stride = max(1, round(length * (1 - overlap)))
    starts = sorted({*range(0, num_slices - length + 1, stride), num_slices - length})
    reverses = {"forward": [False], "backward": [True], "both": [False, True]}[direction]
    return [Slab(start, length, reverse) for start in starts for reverse in reverses]


def blend_weights(length: int) -> list[float]:
    """The weight of each slice of a slab: falls linearly toward both ends and is never zero."""
    return [min(i + 1, length - i) / ((length + 1) / 2) for i in range(length)]


class SliceBlender:
    """Sums weighted logits slice by slice and gives a slice away once it is complete."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._weights: dict[int, float] = {}

    def add(self, index: int, logits: Tensor, weight: float) -> None:
        """logits: (K, h, w) of slice `index`."""
        weighted = logits.float() * weight
        self._sums[index] = self._sums[index] + weighted if index in self._sums else weighted
        self._weights[index] = self._weights.get(index, 0.0) + weight

    def take(self, index: int) -> Tensor:
        """The weighted mean (K, h, w) of a slice, which is forgotten."""
        return self._sums.pop(index) / self._weights.pop(index)


class FeatureSlab:
    """The features of the slices that slabs still need; each slice is encoded once.

    chunk: slices encoded at once.
    """

    def __init__(self, forward: Forward, chunk: int) -> None:
        self._forward = forward
        self._chunk = chunk
        self._features: dict[int, DecoderFeatures] = {}
        self._next = 0

    def gather(self, slabs: list[Slab]) -> list[list[DecoderFeatures]]:
        """The features of some slabs, each slab's in its order."""
        self._encode_until(max(w.start + w.length for w in slabs))
        return [[self._features[i] for i in slab.order] for slab in slabs]

    def forget_before(self, index: int) -> None:
        """Let go of slices that no later slab needs."""
        for i in [i for i in self._features if i < index]:
            del self._features[i]

    def _encode_until(self, end: int) -> None:
        while self._next < end:
            stop = min(end, self._next + self._chunk)
            encoded = self._forward.encode(self._next, stop)
            self._features.update(zip(range(self._next, stop), encoded, strict=True))
            self._next = stop


def slab_logits(
    forward: Forward,
    *,
    slab_slices: int,
    overlap: float,
    direction: Direction,
    batch_size: int | None,
    on_positions: Callable[[Slab, Tensor], None] = lambda slab, positions: None,
) -> Iterator[tuple[int, Tensor]]:
    """Each slice and its blended logits, as `slice_logits` has them, in the order of the slices.

    batch_size: slabs at once; none: see `slabs_that_fit`. A batch that does not fit after all is decoded slab by
    slab, and so are the following ones. on_positions: gets each slab's P_pos, (D, D), from a network that has
    SRPP. The others: see `PassOptions`.
    """
    num_slices = len(forward.slices)
    slabs = plan_slabs(num_slices, slab_slices, overlap, direction)
    features, blender = FeatureSlab(forward, forward.chunk), SliceBlender()
    emitted = done = 0
    while done < len(slabs):
        batch = slabs[done : done + (batch_size or 1)]  # the first one alone: its size says how many fit
        try:
            gathered = features.gather(batch)
            maps, positions = forward.decode(gathered)
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            logger.warning("a batch of %d slabs does not fit in memory: going on one by one", len(batch))
            batch_size = 1
            continue
        batch_size = batch_size or slabs_that_fit(forward, gathered[0], maps)
        _blend(blender, batch, maps)
        if positions is not None:
            for slab, found in zip(batch, positions, strict=True):
                on_positions(slab, found)
        done += len(batch)
        complete = slabs[done].start if done < len(slabs) else num_slices
        for index in range(emitted, complete):
            yield index, blender.take(index)
        emitted = max(emitted, complete)
        features.forget_before(complete)


def slabs_that_fit(forward: Forward, slab: list[DecoderFeatures], maps: Tensor) -> int:
    """How many slabs like this one, which gave these maps, to decode at once: as many as half of the free memory
    holds, and as pay.

    More slabs pay while each is small (28 of nano's, on a CPU, are decoded in a third of the time): the limit is
    counted in places of the feature grid.
    """
    features = sum(level.nbytes for slice_features in slab for level in slice_features if level is not None)
    fitting = free_bytes(forward.device) // 2 // (BYTES_A_BYTE * (features + maps.nbytes))
    places = len(slab[0].z) * slab[0].z.shape[-2:].numel()
    return max(1, min(fitting, PLACES_AT_ONCE[forward.device.type != "cpu"] // places))


def _blend(blender: SliceBlender, batch: list[Slab], maps: Tensor) -> None:
    for row, slab in enumerate(batch):
        for place, (index, weight) in enumerate(zip(slab.order, blend_weights(slab.length), strict=True)):
            blender.add(index, maps[row, :, place], weight)
