"""One pass through a whole stack, with SAM2's memory of the first slice and the latest ones (reading 6) or without.

Memory holds a chunk of D slices, the memory bank, and the neighbours that slice mixing waits for, however long the
stack is. For both directions, the logits of the first pass wait in 16 bits, and the features wait so that no slice is
encoded twice. Both stay in memory while they are small, and go to a temporary file otherwise.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.slabs import OnPositions, Slab
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures
from sam2_3dmed.model.slice_mixing import Chunk

IN_MEMORY_BYTES = 64 * 2**20
"""Logits or features that take no more than this wait in memory."""
IN_MEMORY_SHARE = 1 / 8
"""Logits also wait in memory if they take no more than this share of the input in 16 bits."""

Encode = Callable[[int, int], DecoderFeatures]
"""Gives the features of the slices from start to stop."""

logger = logging.getLogger(__name__)


def stream_logits(
    forward: Forward, slab_slices: int, on_positions: OnPositions = lambda *_: None
) -> Iterator[tuple[int, Tensor]]:
    """The index and the logits of each slice, in the order of the (last) pass.

    `slab_slices` are a chunk, whose slices give each other context.
    """
    if forward.network.promptable and forward.network.has_memory:
        yield from enumerate(_from_prompt(forward, slab_slices, on_positions))
    elif forward.config.direction == "both":
        yield from _both(forward, slab_slices, on_positions)
    else:
        yield from _one_pass(forward, forward.encode, slab_slices, forward.config.direction == "backward", on_positions)


def _one_pass(
    forward: Forward, encode: Encode, slab_slices: int, reverse: bool, on_positions: OnPositions
) -> Iterator[tuple[int, Tensor]]:
    order = range(len(forward.slices))[:: -1 if reverse else 1]
    mixed = forward.mix(_features(min(forward.chunk, slab_slices), encode, order), slab_slices)
    yield from zip(order, forward.logits(_outputs(forward, mixed, order, on_positions)), strict=True)


def _features(chunk_slices: int, encode: Encode, order: range) -> Iterator[DecoderFeatures]:
    """The features of all slices in their order."""
    for first in range(0, len(order), chunk_slices):
        chunk = order[first : first + chunk_slices]
        features = encode(min(chunk), max(chunk) + 1)
        yield features if order.step > 0 else features.each(lambda tensor: tensor.flip(1))


def _slabs_in_context(
    forward: Forward, slabs: Iterator[list[DecoderFeatures]], order: range, on_positions: OnPositions
) -> Iterator[tuple[DecoderFeatures, Tensor]]:
    """Parts of slabs, whose slices give each other SRPP's context, with that context. Nothing here keeps them."""
    done = 0
    for parts in slabs:
        context, positions = forward.slice_context(torch.cat([part.z for part in parts], dim=1))
        slab = order[done : done + context.shape[1]]
        done += len(slab)
        if positions is not None:
            on_positions(Slab(min(slab), len(slab), order.step < 0), positions)
        while parts:
            count = parts[0].z.shape[1]
            own, context = context[:, :count], context[:, count:]
            yield parts.pop(0), own


def _each(
    forward: Forward, slabs: Iterator[list[DecoderFeatures]], order: range, on_positions: OnPositions
) -> Iterator[tuple[DecoderFeatures, Tensor]]:
    """The features of each slice, and its context."""
    for part, context in _slabs_in_context(forward, slabs, order, on_positions):
        yield from ((part.at(i), context[:, i]) for i in range(context.shape[1]))


def _outputs(
    forward: Forward, slabs: Iterator[list[DecoderFeatures]], order: range, on_positions: OnPositions
) -> Iterator[Chunk]:
    """The decoders' outputs for all slices of a pass."""
    if forward.network.has_memory:
        state = forward.start()
        return (forward.step(state, *of_slice) for of_slice in _each(forward, slabs, order, on_positions))
    return (forward.decode_at_once(*part) for part in _slabs_in_context(forward, slabs, order, on_positions))


def _from_prompt(forward: Forward, slab_slices: int, on_positions: OnPositions) -> Iterator[Tensor]:
    """The logits of all slices, decoded from the first prompted slice to the first of the stack, then to the last.

    The features of the slices before it wait, and then their outputs.
    """
    order = range(len(forward.slices))
    mixed = forward.mix(_features(min(forward.chunk, slab_slices), forward.encode, order), slab_slices)
    first = forward.first_prompted
    with TensorSpill(len(order), IN_MEMORY_BYTES) as features, TensorSpill(len(order), IN_MEMORY_BYTES) as decoded:

        def outputs() -> Iterator[Chunk]:
            state = forward.start()
            for index, (at, context) in enumerate(_each(forward, mixed, order, on_positions)):
                if index < first:
                    features.put(index, [context, *at.tensors()])
                    continue
                if index == first:
                    before = forward.start()
                    forward.step(before, at, context)
                    for earlier in reversed(range(first)):
                        of_slice, *rest = (tensor.to(forward.device) for tensor in features.take(earlier))
                        decoded.put(earlier, forward.step(before, at.with_tensors(rest), of_slice))
                    for earlier in range(first):
                        yield [tensor.to(forward.device) for tensor in decoded.take(earlier)]
                yield forward.step(state, at, context)

        yield from forward.logits(outputs())


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


@dataclass
class _EncodeOnce:
    """As `Forward.encode`, whose features then wait to be asked for again. Without room, slices are encoded again."""

    forward: Forward
    spill: TensorSpill
    has_room: bool = True
    like: DecoderFeatures | None = None

    def __call__(self, start: int, stop: int) -> DecoderFeatures:
        if self.has_room and self.like is not None and start in self.spill:
            columns = zip(*(self.spill.take(index) for index in range(start, stop)), strict=True)
            return self.like.with_tensors(torch.stack(column, dim=1).to(self.forward.device) for column in columns)
        self.like = features = self.forward.encode(start, stop)
        try:
            for index in range(start, stop if self.has_room else start):
                self.spill.put(index, features.at(index - start).tensors())
        except DataError as error:
            logger.warning("%s; slices are encoded once for each direction", error)
            self.has_room = False
            self.spill.close()
        return features


class TensorSpill:
    """Up to `count` records of tensors by number, all of the same shapes and types, in a temporary file.

    They stay in memory if all of them together take no more than `in_memory_bytes`. The file has no name where the
    system allows that, so it cannot outlive the process. It is read and written, not mapped: with a `numpy.memmap`,
    1,050 MiB of records took 1,100 MiB of memory instead of 60, in the same time.
    """

    def __init__(self, count: int, in_memory_bytes: int) -> None:
        self._count = count
        self._in_memory_bytes = in_memory_bytes
        self._file: IO[bytes] | None = None
        self._offsets: dict[int, int] = {}
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file."""
        if self._file is not None:
            self._file.close()

    def __contains__(self, number: int) -> bool:
        return number in self._offsets

    def put(self, number: int, record: Sequence[Tensor]) -> None:
        """Keep a record. Raises DataError if there is no room for all of them, or it cannot be written."""
        record = [tensor.detach().cpu().contiguous() for tensor in record]
        with _in_one_line():
            if self._file is None:
                self._file = self._open(self._count * sum(tensor.nbytes for tensor in record))
                self._kinds = [(tensor.shape, tensor.dtype) for tensor in record]
            offset = self._file.seek(0, os.SEEK_END)
            for tensor in record:
                self._file.write(_bytes(tensor))
            self._offsets[number] = offset

    def take(self, number: int) -> list[Tensor]:
        """Remove a record. Returns: its tensors, on the CPU. Raises DataError if it cannot be read."""
        file: Any = self._file
        record = [torch.empty(shape, dtype=dtype) for shape, dtype in self._kinds]
        with _in_one_line():
            file.seek(self._offsets.pop(number))
            for tensor in record:
                file.readinto(_bytes(tensor))
        return record

    def _open(self, total_bytes: int) -> IO[bytes]:
        if total_bytes <= self._in_memory_bytes:
            return BytesIO()
        free = shutil.disk_usage(temporary_folder()).free
        if free < total_bytes:
            raise OSError(f"{total_bytes / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free")
        return tempfile.TemporaryFile(dir=temporary_folder())


def temporary_folder() -> str:
    """TMPDIR, else /var/tmp, which is on disk where /tmp may be in memory."""
    if "TMPDIR" not in os.environ and Path("/var/tmp").is_dir():
        return "/var/tmp"
    return tempfile.gettempdir()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"{temporary_folder()}: no temporary file: {reason}; TMPDIR names another folder"
        raise DataError(message) from None
