"""One pass through a whole stack with SAM2's memory: the first slice and the latest ones (reading 6).

Memory holds a chunk of D slices and the memory bank, however long the stack is. For both directions, the logits of the
first pass wait in 16 bits, and the features wait so that no slice is encoded twice. Both stay in memory while they are
small, and go to a temporary file otherwise.
"""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.slabs import OnPositions, Slab
from sam2_3dmed.inference.tensor_spill import TensorSpill
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures

IN_MEMORY_BYTES = 64 * 2**20
"""Logits or features that take no more than this wait in memory."""
IN_MEMORY_SHARE = 1 / 8
"""Logits also wait in memory if they take no more than this share of the input in 16 bits."""

Encode = Callable[[int, int], list[DecoderFeatures]]
"""Gives the features of the slices from start to stop."""

logger = logging.getLogger(__name__)


def stream_logits(
    forward: Forward, slab_slices: int, on_positions: OnPositions = lambda slab, positions: None
) -> Iterator[tuple[int, Tensor]]:
    """The index and the logits of each slice, in the order of the (last) pass.

    Args:
        slab_slices: slices of a chunk, which give each other context. `on_positions` gets each chunk of each pass.
    """
    if forward.config.direction == "both":
        yield from _both(forward, slab_slices, on_positions)
    else:
        yield from _one_pass(forward, forward.encode, slab_slices, forward.config.direction == "backward", on_positions)


def _one_pass(
    forward: Forward, encode: Encode, slab_slices: int, reverse: bool, on_positions: OnPositions
) -> Iterator[tuple[int, Tensor]]:
    state, step = forward.start(), -1 if reverse else 1
    order = range(len(forward.slices))[::step]
    for first in range(0, len(order), slab_slices):
        chunk = order[first : first + slab_slices]
        start, stop = min(chunk), max(chunk) + 1
        parts = [encode(at, min(at + forward.chunk, stop)) for at in range(start, stop, forward.chunk)]
        features = [of_slice for part in parts for of_slice in part][::step]
        context, positions = forward.slice_context(features)
        if positions is not None:
            on_positions(Slab(start, len(chunk), reverse), positions)
        for index, slice_features, slice_context in zip(chunk, features, context, strict=True):
            yield index, forward.step(state, slice_features, slice_context)


def _both(forward: Forward, slab_slices: int, on_positions: OnPositions) -> Iterator[tuple[int, Tensor]]:
    """Forward, then backward: yields the slices from the last to the first."""
    num_slices = len(forward.slices)
    input_bytes = 2 * math.prod(forward.slices.shape)
    limit = max(IN_MEMORY_BYTES, int(IN_MEMORY_SHARE * input_bytes))
    highest = torch.finfo(torch.float16).max
    with TensorSpill(num_slices, limit) as waiting, TensorSpill(num_slices, IN_MEMORY_BYTES) as spill:
        encode = _EncodeOnce(forward, spill)
        for index, logits in _one_pass(forward, encode, slab_slices, False, on_positions):
            waiting.put(index, [logits.clamp(-highest, highest).half()])
        for index, logits in _one_pass(forward, encode, slab_slices, True, on_positions):
            (first,) = waiting.take(index)
            yield index, (logits + first.to(logits.device)) / 2


class _EncodeOnce:
    """As `Forward.encode`, whose features then wait to be asked for again. Without room, slices are encoded again."""

    def __init__(self, forward: Forward, spill: TensorSpill) -> None:
        self._forward = forward
        self._spill: TensorSpill | None = spill
        self._like: DecoderFeatures | None = None

    def __call__(self, start: int, stop: int) -> list[DecoderFeatures]:
        if self._spill is not None and self._like is not None and start in self._spill:
            records = (self._spill.take(index) for index in range(start, stop))
            return [self._like.with_tensors(x.to(self._forward.device) for x in record) for record in records]
        features = self._forward.encode(start, stop)
        if self._spill is not None:
            self._keep(start, features)
        return features

    def _keep(self, start: int, features: list[DecoderFeatures]) -> None:
        assert self._spill is not None
        try:
            for index, of_slice in enumerate(features, start):
                self._spill.put(index, of_slice.tensors())
            self._like = features[0]
        except DataError as error:
            logger.warning("%s; slices are encoded once for each direction", error)
            self._spill.close()
            self._spill = None
