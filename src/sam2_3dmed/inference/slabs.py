"""Overlapping slabs through a stack of slices, in one or both directions, blended as they come (readings 5 and 6).

Memory holds a few slabs: the features and logits of a slice are freed as soon as no later slab needs them.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from sam2_3dmed.config.schema import Direction
from sam2_3dmed.inference.free_memory import free_bytes, is_out_of_memory
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures

BYTES_A_BYTE = 4
"""Bytes that decoding takes for each byte of a slab's features and maps. 2.4 to 3.0 were measured for nano and tiny."""
PLACES_AT_ONCE = (1024, 65536)
"""Places of the feature grid in the slabs that are decoded together: on a CPU, elsewhere."""

logger = logging.getLogger(__name__)


class Slab(NamedTuple):
    """One pass of the network: D slices from `start`, fed from the last to the first if `reverse`."""

    start: int
    length: int
    reverse: bool

    @property
    def order(self) -> list[int]:
        """The slices in the order in which the network sees them."""
        indices = range(self.start, self.start + self.length)
        return list(reversed(indices) if self.reverse else indices)


OnPositions = Callable[[Slab, Tensor], None]
"""Called with each slab and its P_pos (D, D), for a network that has SRPP."""


def plan_slabs(num_slices: int, slab_slices: int, overlap: float, direction: Direction) -> list[Slab]:
    """Slabs that cover every slice, by ascending start. The last slab ends with the last slice.

    overlap: the share of a slab that the next one repeats, in [0, 1). A stack shorter than a slab is one shorter slab.
    """
    length = min(slab_slices, num_slices)
    stride = max(1, round(length * (1 - overlap)))
    starts = sorted({*range(0, num_slices - length + 1, stride), num_slices - length})
    reverses = {"forward": [False], "backward": [True], "both": [False, True]}[direction]
    return [Slab(start, length, reverse) for start in starts for reverse in reverses]


def blend_weights(length: int) -> list[float]:
    """The weight of each slice of a slab. It falls linearly toward both ends and is never zero."""
    return [min(i + 1, length - i) / ((length + 1) / 2) for i in range(length)]


class SliceBlender:
    """Sums weighted logits slice by slice."""

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}
        self._weights: dict[int, float] = {}

    def add(self, slab: Slab, logits: Tensor) -> None:
        """logits: (K, D, h, w)."""
        for place, (index, weight) in enumerate(zip(slab.order, blend_weights(slab.length), strict=True)):
            weighted = logits[:, place].float() * weight
            self._sums[index] = self._sums[index] + weighted if index in self._sums else weighted
            self._weights[index] = self._weights.get(index, 0.0) + weight

    def take(self, index: int) -> Tensor:
        """Remove a slice. Returns: its weighted mean (K, h, w)."""
        return self._sums.pop(index) / self._weights.pop(index)


class FeatureBuffer:
    """The features of the slices that slabs still need. Each slice is encoded once."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._features: dict[int, DecoderFeatures] = {}
        self._next = 0

    def gather(self, slabs: list[Slab]) -> list[list[DecoderFeatures]]:
        """The features of some slabs, each in the order of its slab."""
        end = max(slab.start + slab.length for slab in slabs)
        while self._next < end:
            stop = min(end, self._next + self._forward.chunk)
            encoded = self._forward.encode(self._next, stop)
            # These are views, which keep the whole chunk alive. Copies would cost more than they free.
            self._features.update((index, encoded.at(index - self._next)) for index in range(self._next, stop))
            self._next = stop
        return [[self._features[i] for i in slab.order] for slab in slabs]

    def forget_before(self, index: int) -> None:
        """Free the slices that no later slab needs."""
        for i in [i for i in self._features if i < index]:
            del self._features[i]


def slab_logits(
    forward: Forward, slab_slices: int, on_positions: OnPositions = lambda *_: None
) -> Iterator[tuple[int, Tensor]]:
    """The index and the blended logits of each slice, in the order of the slices.

    Without a batch size in the config, `slabs_that_fit` chooses it. A batch that does not fit after all is decoded slab
    by slab, and so are the following ones.
    """
    num_slices, batch_size = len(forward.slices), forward.config.batch_size
    slabs = plan_slabs(num_slices, slab_slices, forward.config.overlap, forward.config.direction)
    features, blender = FeatureBuffer(forward), SliceBlender()
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
        for row, slab in enumerate(batch):
            blender.add(slab, maps[row])
            if positions is not None:
                on_positions(slab, positions[row])
        done += len(batch)
        complete = slabs[done].start if done < len(slabs) else num_slices
        for index in range(emitted, complete):
            yield index, blender.take(index)
        emitted = max(emitted, complete)
        features.forget_before(complete)


def slabs_that_fit(forward: Forward, slab: list[DecoderFeatures], maps: Tensor) -> int:
    """The number of slabs like this one, which gave these maps, to decode at once.

    Half of the free memory holds them. More slabs pay only while each is small, so `PLACES_AT_ONCE` is a limit, too: 28
    slabs of nano on a CPU are decoded together in a third of the time.
    """
    features = sum(tensor.nbytes for slice_features in slab for tensor in slice_features.tensors())
    fitting = free_bytes(forward.device) // 2 // (BYTES_A_BYTE * (features + maps.nbytes))
    places = len(slab[0].z) * slab[0].z.shape[-2:].numel()
    return max(1, min(fitting, PLACES_AT_ONCE[forward.device.type != "cpu"] // places))
