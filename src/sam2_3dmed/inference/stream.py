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
from sam2_3dmed.inference.slabs import Slab
from sam2_3dmed.inference.tensor_spill import TensorSpill
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures

IN_MEMORY_BYTES = 64 * 2**20
"""Logits or features that take no more than this wait in memory."""
IN_MEMORY_SHARE = 1 / 8
"""Logits also wait in memory if they take no more than this share of the input in 16 bits."""

logger = logging.getLogger(__name__)


def stream_logits(
    forward: Forward,
    slab_slices: int,
    on_positions: Callable[[Slab, Tensor], None] = lambda slab, positions: None,
) -> Iterator[tuple[int, Tensor]]:
    """The index and the logits of each slice, in the order of the (last) pass.

    Args:
        slab_slices: slices of a chunk, which give each other context.
        on_positions: called with each chunk of each pass and its P_pos (D, D), for a network that has SRPP.
    """
    one_pass = _Pass(forward, slab_slices, on_positions)
    if forward.config.direction == "both":
        yield from _both(forward, one_pass)
    else:
        yield from one_pass(forward.config.direction == "backward", forward.encode)


class _Pass:
    """Slices one after the other, in chunks whose slices give each other context."""

    def __init__(self, forward: Forward, slab_slices: int, on_positions: Callable[[Slab, Tensor], None]) -> None:
        self.forward = forward
        self.slab_slices = slab_slices
        self.on_positions = on_positions

    def __call__(
        self,
        reverse: bool,
        encode: Callable[[int, int], list[DecoderFeatures]],
        keep: Callable[[int, DecoderFeatures], None] = lambda index, features: None,
    ) -> Iterator[tuple[int, Tensor]]:
        """encode: gives the features of slices start to stop; keep: called with the features of each slice."""
        forward, state = self.forward, self.forward.start()
        order = range(len(forward.slices))[:: -1 if reverse else 1]
        for start in range(0, len(order), self.slab_slices):
            chunk = order[start : start + self.slab_slices]
            features = self._features(min(chunk), max(chunk) + 1, encode)[:: -1 if reverse else 1]
            context, positions = forward.slice_context(features)
            if positions is not None:
                self.on_positions(Slab(min(chunk), len(chunk), reverse), positions)
            for index, slice_features, slice_context in zip(chunk, features, context, strict=True):
                keep(index, slice_features)
                yield index, forward.step(state, slice_features, slice_context)

    def _features(
        self, start: int, stop: int, encode: Callable[[int, int], list[DecoderFeatures]]
    ) -> list[DecoderFeatures]:
        parts = [encode(at, min(at + self.forward.chunk, stop)) for at in range(start, stop, self.forward.chunk)]
        return [features for part in parts for features in part]


def _both(forward: Forward, one_pass: _Pass) -> Iterator[tuple[int, Tensor]]:
    """Forward, then backward: yields the slices from the last to the first."""
    num_slices = len(forward.slices)
    input_bytes = 2 * math.prod(forward.slices.shape)
    limit = max(IN_MEMORY_BYTES, int(IN_MEMORY_SHARE * input_bytes))
    with (
        TensorSpill(num_slices, limit) as waiting,
        _Features(forward, TensorSpill(num_slices, IN_MEMORY_BYTES)) as features,
    ):
        for index, logits in one_pass(False, forward.encode, features.keep):
            waiting.put(index, [logits.clamp(-_HIGHEST, _HIGHEST).half()])
        for index, logits in one_pass(True, features.encode):
            (first,) = waiting.take(index)
            yield index, (logits + first.to(logits.device)) / 2


_HIGHEST = float(torch.finfo(torch.float16).max)


class _Features:
    """Features that wait for the second pass. Without room for them, slices are encoded again."""

    def __init__(self, forward: Forward, spill: TensorSpill) -> None:
        self._forward = forward
        self._spill = spill
        self._kept = True
        self._like: DecoderFeatures | None = None

    def __enter__(self) -> "_Features":
        return self

    def __exit__(self, *error: object) -> None:
        self._spill.close()

    def keep(self, index: int, features: DecoderFeatures) -> None:
        if not self._kept:
            return
        self._like = features
        try:
            self._spill.put(index, features.tensors())
        except DataError as error:
            logger.warning("%s; slices are encoded once for each direction", error)
            self._kept = False
            self._spill.close()

    def encode(self, start: int, stop: int) -> list[DecoderFeatures]:
        if not self._kept:
            return self._forward.encode(start, stop)
        return [self._take(index) for index in range(start, stop)]

    def _take(self, index: int) -> DecoderFeatures:
        assert self._like is not None
        return self._like.with_tensors(tensor.to(self._forward.device) for tensor in self._spill.take(index))
