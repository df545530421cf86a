"""MedSAM-2's self-sorting memory bank: what is worth remembering stays, not what came last.

After Zhu et al., "Medical SAM 2: Segment medical images as video via Segment Anything Model 2" (arXiv 2408.00874), and
its public code. docs/how_to/paper_tables.md says where ours differs.
"""

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.model.memory_attention import KeyValues

if TYPE_CHECKING:
    from sam2_3dmed.model.slice_decoder import Memory

CAPACITY = 16
"""Entries of a bank."""
MARGIN = 0.1
"""By how much a new entry's predicted IoU may be below that of the one it replaces."""


class SelfSortingBank:
    """The slices a branch has seen, as far as they are confident and unlike each other; each row of a batch by itself.

    Until it is full every slice is kept. Then the entry least like the new one is looked for, and the entry most like
    that: if these two are more alike than the first and the new one, the new one takes the second's place, unless it is
    less confident by MARGIN or more. Alike is the cosine of memories.

    num_slices: how many slices will pass. draw: which random numbers resampling takes; the same ones give the same
    result, on any device and in any batch.
    """

    def __init__(self, num_slices: int, draw: int = 0, capacity: int = CAPACITY) -> None:
        self.num_slices = num_slices
        self.draw = draw
        self.capacity = capacity
        self.count = 0
        self.entries: list[Memory] = []

    @property
    def will_be_read(self) -> bool:
        """Whether a slice comes after the next one to be added."""
        return self.count + 1 < self.num_slices

    def as_it_is(self) -> "SelfSortingBank":
        """A copy, which stays as it is when more is added here; the memories are shared."""
        now = copy.copy(self)
        now.entries = list(self.entries)
        return now

    def append(self, memory: "Memory") -> None:
        """Add the next slice's memory, which has a confidence and an embedding, if it is worth a place."""
        self.count += 1
        if len(self.entries) < self.capacity:
            self.entries.append(memory)
            return
        taken = self._place_for(memory)
        for place, entry in enumerate(self.entries):
            rows = taken == place
            if rows.any():
                self.entries[place] = memory if rows.all() else _chosen(rows, memory, entry)

    @torch.no_grad()
    def _place_for(self, memory: "Memory") -> Tensor:
        """(B,): which entry gives way in each row; -1 for none."""
        assert memory.confidence is not None
        with torch.autocast(memory.spatial.device.type, enabled=False):
            kept = torch.stack([_direction(entry.spatial) for entry in self.entries], dim=1)  # (B, N, h w 64)
            alike = kept @ kept.transpose(1, 2)
            to_new = (kept @ _direction(memory.spatial).unsqueeze(-1)).squeeze(-1)
        alike.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        furthest = to_new.argmin(dim=1, keepdim=True)
        nearest, place = alike.gather(1, furthest.unsqueeze(-1).expand(-1, -1, len(self.entries))).squeeze(1).max(dim=1)
        confidence = torch.stack([_confidence(entry) for entry in self.entries], dim=1)
        diverse = to_new.gather(1, furthest).squeeze(1) < nearest
        confident = memory.confidence > confidence.gather(1, place.unsqueeze(1)).squeeze(1) - MARGIN
        return torch.where(diverse & confident, place, torch.full_like(place, -1))

    def read(self, features: Tensor) -> tuple[KeyValues, ...]:
        """What each layer of memory attention reads: as many entries as there are, drawn with replacement.

        features: (B, C, h, w), of the slice that reads; the more its direction is that of an entry's embedding, the
        more often that is drawn.
        """
        picks = self._picks(features)
        rows = torch.arange(len(picks), device=picks.device).unsqueeze(1)
        layers = []
        for parts in zip(*(entry.read for entry in self.entries), strict=True):
            keys, values = (
                torch.stack(tokens, dim=1)[rows, picks].flatten(1, 2) for tokens in zip(*parts, strict=True)
            )
            layers.append(KeyValues(keys, values))
        return tuple(layers)

    @torch.no_grad()
    def _picks(self, features: Tensor) -> Tensor:
        """(B, N) places of entries: a softmax of cosines, its cumulative sum, and where random numbers fall in it."""
        query = _direction(features)
        cosines = torch.stack([(query * _embedding(entry)).sum(dim=1) for entry in self.entries], dim=1)
        until = torch.softmax(cosines, dim=1).cumsum(dim=1)
        generator = torch.Generator().manual_seed((self.draw << 16) + self.count)
        numbers = torch.rand(len(self.entries), generator=generator).to(until.device).expand_as(until)
        return torch.searchsorted(until, numbers.contiguous(), right=True).clamp(max=len(self.entries) - 1)


def embedding_of(features: Tensor) -> Tensor:
    """What is kept of a slice's features, (B, C, h, w), to be found by: their direction, without gradients."""
    return _direction(features.detach())


def _direction(tensor: Tensor) -> Tensor:
    """(B, ...) -> (B, F), each row of length 1."""
    return F.normalize(tensor.flatten(1).float(), dim=1)


def _confidence(entry: "Memory") -> Tensor:
    assert entry.confidence is not None
    return entry.confidence


def _embedding(entry: "Memory") -> Tensor:
    assert entry.embedding is not None
    return entry.embedding


def _chosen(rows: Tensor, new: "Memory", old: "Memory") -> "Memory":
    """The new memory in some rows of a batch, the old one in the others."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (a.ndim - 1)), a, b)

    return type(new)(
        spatial=mixed(new.spatial, old.spatial),
        read=tuple(
            KeyValues(mixed(a.keys, b.keys), mixed(a.values, b.values)) for a, b in zip(new.read, old.read, strict=True)
        ),
        pointer=mixed(new.pointer, old.pointer),
        confidence=mixed(_confidence(new), _confidence(old)),
        embedding=mixed(_embedding(new), _embedding(old)),
    )
