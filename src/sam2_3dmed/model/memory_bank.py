"""Memory banks: the slices of a pass that later slices attend to (paper 3.1; MedSAM-2's after arXiv 2408.00874)."""

import copy
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from sam2_3dmed.model.memory_attention import KeyValues

MEMORY_CHANNELS = 64
NUM_MEMORIES = 7  # spatial memories that a slice attends to: those of the first slice and of the last 6
NUM_POINTERS = 15  # object pointers of the last slices that a slice attends to, beside the first slice's
CAPACITY = 16  # entries of a self-sorting bank
MARGIN = 0.1  # how far the predicted IoU of a new entry may lie below that of the entry it replaces


class Memory(NamedTuple):
    """The memory of one slice."""

    spatial: Tensor  # (B, h w, 64)
    key_values: tuple[KeyValues, ...]  # of `spatial` for each layer of memory attention, without the temporal bias
    pointer: Tensor  # (B, C), SAM2's object pointer
    confidence: Tensor | None = None  # (B,), the predicted IoU; for a self-sorting bank only, as is the next
    embedding: Tensor | None = None  # (B, C h w), see `embedding_of`


class _Bank:
    """The memories of a pass of `num_slices`."""

    def __init__(self, num_slices: int) -> None:
        self.num_slices = num_slices
        self.count = 0

    @property
    def will_be_read(self) -> bool:
        """Whether a slice follows the next one. The memory of the last slice is not needed."""
        return self.count + 1 < self.num_slices

    def snapshot(self) -> Self:
        """A copy that later `append`s leave unchanged, since they replace what holds the memories."""
        return copy.copy(self)


class MemoryBank(_Bank):
    """SAM2's bank: the first slice and the latest ones, so that its size is bounded.

    The distances of pointers are coded as a share of `num_slices`.
    """

    def __init__(self, num_slices: int) -> None:
        super().__init__(num_slices)
        self.first: Memory | None = None
        self.temporal_bias: tuple[tuple[Tensor, ...], ...] | None = None
        """Made by the slice decoder, once for all slices that read the bank."""
        self._spatial: tuple[Memory, ...] = ()  # the latest first
        self._pointers: tuple[Tensor, ...] = ()

    def append(self, memory: Memory) -> None:
        """Add the memory of the next slice."""
        if self.first is None:
            self.first = memory
        else:
            self._spatial = (memory, *self._spatial)[: NUM_MEMORIES - 1]
            self._pointers = (memory.pointer, *self._pointers)[:NUM_POINTERS]
        self.count += 1

    def spatial(self) -> tuple[list[Memory], list[int]]:
        """The memories to attend to, and the row of SAM2's temporal encoding for each.

        The row is the distance in slices - 1, and 6 for the first slice.
        """
        if self.first is None:
            return [], []
        return [self.first, *self._spatial], [NUM_MEMORIES - 1, *range(len(self._spatial))]

    def pointers(self) -> tuple[list[Tensor], list[int]]:
        """The object pointers, and the distance of each in slices."""
        if self.first is None:
            return [], []
        return [self.first.pointer, *self._pointers], [self.count, *range(1, len(self._pointers) + 1)]


class SelfSortingBank(_Bank):
    """MedSAM-2's bank: confident slices that are unlike each other. Every row of a batch is sorted by itself.

    Every slice is kept until the bank is full. From then on, take the entry that is least like the new slice, and the
    entry that is most like that one. The new slice replaces the second of the two if they are more alike than the first
    and the new slice, and if the new slice's confidence is not lower by MARGIN or more. Likeness is the cosine of
    memories. `draw` is the seed of the random numbers of resampling, the same on any device and in any batch.
    """

    def __init__(self, num_slices: int, draw: int = 0, capacity: int = CAPACITY) -> None:
        super().__init__(num_slices)
        self.draw = draw
        self.capacity = capacity
        self.entries: list[Memory] = []

    def append(self, memory: Memory) -> None:
        """Add the memory of the next slice, with confidence and embedding, where it earns a place."""
        self.count += 1
        if len(self.entries) < self.capacity:
            self.entries = [*self.entries, memory]
            return
        replaced = self._replaced_by(memory)
        self.entries = [_merged(replaced == index, memory, entry) for index, entry in enumerate(self.entries)]

    @torch.no_grad()
    def _replaced_by(self, memory: Memory) -> Tensor:
        """(B,): the index of the entry that gives way in each row; -1 for none."""
        with torch.autocast(memory.spatial.device.type, enabled=False):
            kept = torch.stack([_direction(entry.spatial) for entry in self.entries], dim=1)  # (B, N, h w 64)
            alike = kept @ kept.transpose(1, 2)
            to_new = (kept @ _direction(memory.spatial).unsqueeze(-1)).squeeze(-1)
        alike.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        furthest = to_new.argmin(dim=1, keepdim=True)
        nearest, index = alike.gather(1, furthest.unsqueeze(-1).expand(-1, -1, len(self.entries))).squeeze(1).max(dim=1)
        confidence = torch.stack([_given(entry.confidence) for entry in self.entries], dim=1)
        diverse = to_new.gather(1, furthest).squeeze(1) < nearest
        confident = _given(memory.confidence) > confidence.gather(1, index.unsqueeze(1)).squeeze(1) - MARGIN
        return torch.where(diverse & confident, index, torch.full_like(index, -1))

    def read(self, features: Tensor) -> tuple[KeyValues, ...]:
        """Keys and values for each layer of memory attention: as many entries as there are, drawn with replacement.

        The more the direction of the reading slice's features (B, C, h, w) agrees with an entry's embedding, the more
        often the entry is drawn.
        """
        picks = self._picks(features)
        rows = torch.arange(len(picks), device=picks.device).unsqueeze(1)
        layers = []
        for parts in zip(*(entry.key_values for entry in self.entries), strict=True):
            keys, values = (
                torch.stack(tokens, dim=1)[rows, picks].flatten(1, 2) for tokens in zip(*parts, strict=True)
            )
            layers.append(KeyValues(keys, values))
        return tuple(layers)

    @torch.no_grad()
    def _picks(self, features: Tensor) -> Tensor:
        """(B, N) indices of entries, by inverse transform sampling from a softmax of cosines."""
        query = _direction(features)
        cosines = torch.stack([(query * _given(entry.embedding)).sum(dim=1) for entry in self.entries], dim=1)
        until = torch.softmax(cosines, dim=1).cumsum(dim=1)
        generator = torch.Generator().manual_seed((self.draw << 16) + self.count)
        numbers = torch.rand(len(self.entries), generator=generator).to(until.device).expand_as(until)
        return torch.searchsorted(until, numbers.contiguous(), right=True).clamp(max=len(self.entries) - 1)


Bank = MemoryBank | SelfSortingBank


def embedding_of(features: Tensor) -> Tensor:
    """The direction of a slice's features (B, C, h, w), without gradients: a self-sorting bank finds slices by it."""
    return _direction(features.detach())


def _direction(tensor: Tensor) -> Tensor:
    """(B, ...) -> (B, F), each row of length 1."""
    return F.normalize(tensor.flatten(1).float(), dim=1)


def _given(part: Tensor | None) -> Tensor:
    """A part of a memory that every memory of a self-sorting bank has."""
    assert part is not None
    return part


def _merged(rows: Tensor, new: Memory, old: Memory) -> Memory:
    """The new memory in some rows of a batch, and the old one in the others."""
    if rows.all() or not rows.any():
        return new if rows.all() else old
    merged: Memory = tree_map(lambda a, b: torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b), new, old)
    return merged
