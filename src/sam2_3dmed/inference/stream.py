"""One pass through a whole stack with SAM2's memory: the first slice and the latest ones (reading 6).

What is held is a chunk of D slices and the memory bank, however long the stack. For both directions the first pass's
logits wait, in 16 bits, and so do the features, so that no slice is encoded twice: in memory while that is
little, else in a temporary file.
"""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.slabs import Direction, Slab
from sam2_3dmed.inference.tensor_spill import TensorSpill
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures

IN_MEMORY_BYTES = 64 * 2**20
"""What waits stays in memory if it takes no more."""
IN_MEMORY_SHARE = 1 / 8
"""Logits also if they take no more of the input, in 16 bits."""

logger = logging.getLogger(__name__)


def stream_logits(
    forward: Forward,
    *,
    slab_slices: int,
    direction: Direction,
    on_positions: Callable[[Slab, Tensor], None] = lambda slab, positions: None,
) -> Iterator[tuple[int, Tensor]]:
    """Each slice and its logits, as `slice_logits` has them, in the order of the (last) pass.

    on_positions: gets P_pos, (D, D), of each chunk in each pass, from a network that has SRPP. The others: see
    `PassOptions`.
    """
    one_pass = _Pass(forward, slab_slices, on_positions)
    if direction == "both":
        yield from _both(forward, one_pass)
    else:
        yield from one_pass(direction == "backward", forward.encode)


class _Pass:
    """Slices one after the other, in chunks that give each other context."""

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
        """encode: the features of slices start to stop; keep: what else becomes of a slice's features."""
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
    """Forward, then backward, which gives slices away from the last to the first."""
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
    """Features that wait for the second pass; where there is no room for them, slices are encoded again."""

    def __init__(self, forward: Forward, shelf: TensorSpill) -> None:
        self._forward = forward
        self._shelf = shelf
        self._kept = True
        self._there: tuple[bool, ...] = ()

    def __enter__(self) -> "_Features":
        return self

    def __exit__(self, *error: object) -> None:
        self._shelf.close()

    def keep(self, index: int, features: DecoderFeatures) -> None:
        if not self._kept:
            return
        self._there = tuple(level is not None for level in features)
        try:
            self._shelf.put(index, [level for level in features if level is not None])
        except DataError as error:
            logger.warning("%s; slices are encoded once for each direction", error)
            self._kept = False
            self._shelf.close()

    def encode(self, start: int, stop: int) -> list[DecoderFeatures]:
        if not self._kept:
            return self._forward.encode(start, stop)
        return [self._take(index) for index in range(start, stop)]

    def _take(self, index: int) -> DecoderFeatures:
        levels = (level.to(self._forward.device) for level in self._shelf.take(index))
        return DecoderFeatures(*(next(levels) if there else None for there in self._there))  # type: ignore[arg-type]
