"""Prompts: boxes around classes, for systems that are compared with the prompt-free method."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import NDArray
from torch import Tensor


class Prompts(NamedTuple):
    """The prompts of slices. Every tensor begins with the dimensions of the slices, such as (B, D) or (N,)."""

    boxes: Tensor
    """(..., K, 4): left, top, right and bottom of a class, at the centres of its outermost pixels, as shares of width
    and height. Infinite for a class that is absent from the slice, NaN for a class (or a slice) without a box."""

    @classmethod
    def from_labels(cls, labels: Tensor, values: Sequence[int], positions: Tensor, every: int) -> Self:
        """Boxes around the classes on every so many slices of a volume, and NaN on the others.

        Args:
            labels: (..., H, W).
            values: the values of class 1..K in `labels`.
            positions: (...), each slice's index in its volume.
            every: 1 for all slices.
        """
        boxes = boxes_around(labels, values)
        return cls(boxes.masked_fill((positions % every != 0)[..., None, None], torch.nan))

    @classmethod
    def from_stack(cls, labels: NDArray[Any], values: Sequence[int], every: int) -> Self:
        """As `from_labels` for a whole volume (N, H, W), which is read slice by slice."""
        boxes = torch.full((len(labels), len(values), 4), torch.nan)
        for index in range(0, len(labels), every):
            boxes[index] = boxes_around(torch.from_numpy(labels[index].astype("int32")), values)
        return cls(boxes)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to every tensor, such as an index or a copy to a device."""
        return type(self)(*map(change, self))

    def at(self, index: int) -> Self:
        """Slice `index` of slabs: (B, D, ...) -> (B, ...)."""
        return self.each(lambda tensor: tensor[:, index])

    def mirrored(self) -> Self:
        """The prompts of the slices mirrored along W."""
        left, top, right, bottom = self.boxes.unbind(-1)
        return self._replace(boxes=torch.stack([1 - right, top, 1 - left, bottom], dim=-1))

    def moved(self, *, down: float, right: float) -> Self:
        """The prompts of slices whose content is moved by shares of height and width."""
        return self._replace(boxes=self.boxes + self.boxes.new_tensor([right, down, right, down]))


def boxes_around(labels: Tensor, values: Sequence[int]) -> Tensor:
    """The box around each class of each slice: (..., H, W) -> (..., K, 4) float32, without NaN."""
    boxes = [torch.stack([*_ends(mask.any(-2)), *_ends(mask.any(-1))], dim=-1) for mask in map(labels.eq, values)]
    left, right, top, bottom = torch.stack(boxes, dim=-2).unbind(-1)
    return torch.stack([left, top, right, bottom], dim=-1)


def _ends(filled: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of the first and the last filled pixel, as shares of N; filled: (..., N)."""
    size = filled.shape[-1]
    marks = filled.to(torch.uint8)
    first, last = marks.argmax(-1), size - 1 - marks.flip(-1).argmax(-1)
    absent = ~filled.any(-1)
    start, end = (((pixel + 0.5) / size).float().masked_fill(absent, torch.inf) for pixel in (first, last))
    return start, end
