"""Prompts, as SAM2 takes them: points, the corners of a box, and a mask, for each class of a slice.

A point is x and y, as shares of width and height, and its kind. A slice without a prompt has points of the kind
NOTHING, and NaN for a mask. Tensors begin with the dimensions of the slices, such as (B, D) or (N,).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

NOTHING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT, ABSENT = range(-1, 5)
"""Kinds of points. SAM2's: padding, outside of the object, inside, two corners of a box. Ours: no such class here."""


class Prompts(NamedTuple):
    """The prompts of slices. The first two points of a class are the corners of its box, if it has one."""

    points: Tensor  # (..., K, P, 3) float32: x, y, kind
    masks: Tensor | None = None  # (..., K, H, W) as the network sees the slices, or at stride 4; 1 inside, 0 outside

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply the same change to both tensors."""
        return type(self)(change(self.points), None if self.masks is None else change(self.masks))


def first_prompted(prompts: Prompts) -> int:
    """The first slice that has a prompt in every slab (B, D, ...); 0 if there is none."""
    given = (prompts.points[..., 2] != NOTHING).flatten(2).any(-1)
    if prompts.masks is not None:
        given = given | prompts.masks.flatten(2).isfinite().all(-1)
    return int(given.all(0).int().argmax())


def mirrored(points: Tensor) -> Tensor:
    """The points (..., K, P, 3) of the slices mirrored along W."""
    x, y, kind = points.unbind(-1)
    x = torch.where(_is_place(kind), 1 - x, x)
    swapped = torch.cat([x[..., :2].flip(-1), x[..., 2:]], dim=-1)  # the left corner of a box becomes the right one
    return torch.stack([torch.where(kind[..., :1] == TOP_LEFT, swapped, x), y, kind], dim=-1)


def moved(points: Tensor, *, down: float, right: float) -> Tensor:
    """The points (..., K, P, 3) of slices whose content is moved by shares of height and width."""
    return points + points.new_tensor([right, down, 0]) * _is_place(points[..., 2:])


def _is_place(kind: Tensor) -> Tensor:
    """Whether a point has a place: corners and points, but not NOTHING and ABSENT."""
    return (kind >= NEGATIVE) & (kind <= BOTTOM_RIGHT)


def boxes_from_labels(labels: Tensor, values: Sequence[int], positions: Tensor, every: int) -> Prompts:
    """Boxes around the classes on every so many slices of a volume, and nothing on the others.

    Args:
        labels: (..., H, W), with the `values` of class 1..K.
        positions: (...), each slice's index in its volume.
    """
    points = boxes_around(labels, values)
    points[positions % every != 0] = points.new_tensor([0, 0, NOTHING])
    return Prompts(points)


def boxes_from_stack(labels: NDArray[Any], values: Sequence[int], every: int) -> Prompts:
    """As `boxes_from_labels` for a whole volume (N, H, W), which is read slice by slice."""
    points = nothing(len(labels), len(values))
    for index in range(0, len(labels), every):
        points[index] = boxes_around(torch.from_numpy(labels[index].astype("int32")), values)
    return Prompts(points)


def boxes_where_drawn(labels: NDArray[Any], values: Sequence[int]) -> Prompts:
    """A box around each class on each slice of a volume (N, H, W) that holds it, and nothing on the others."""
    points = boxes_from_stack(labels, values, 1).points
    return Prompts(torch.where(points[..., 2:] == ABSENT, nothing(len(labels), len(values)), points))


def box_on_largest(labels: NDArray[Any], values: Sequence[int]) -> Prompts:
    """A box around each class on the slice of a volume (N, H, W) that has most of it, and nothing on the others."""
    points = nothing(len(labels), len(values))
    for k, value in enumerate(values):
        sizes = [int((plane == value).sum()) for plane in labels]
        index = sizes.index(max(sizes))
        if sizes[index]:
            points[index, k] = boxes_around(torch.from_numpy(labels[index].astype("int32")), [value])[0]
    return Prompts(points)


def nothing(*shape: int) -> Tensor:
    """Points (*shape, 2, 3) without a prompt; shape: of the slices, then K."""
    return torch.tensor([0.0, 0.0, NOTHING]).repeat(*shape, 2, 1)


def boxes_around(labels: Tensor, values: Sequence[int]) -> Tensor:
    """The box around each class of each slice, as points: (..., H, W) -> (..., K, 2, 3) float32.

    Corners lie at the centres of the outermost pixels. Where the class is absent, both points are of that kind.
    """
    return torch.stack([_box(mask) for mask in map(labels.eq, values)], dim=-3)


def _box(mask: Tensor) -> Tensor:
    """(..., H, W) bool -> (..., 2, 3)."""
    (left, right), (top, bottom) = _ends(mask.any(-2)), _ends(mask.any(-1))
    corners = torch.stack([torch.stack([left, top], dim=-1), torch.stack([right, bottom], dim=-1)], dim=-2)
    kinds = corners.new_tensor([[TOP_LEFT], [BOTTOM_RIGHT]]).expand(*corners.shape[:-1], 1)
    there = mask.any(-1).any(-1)[..., None, None]
    return torch.where(there, torch.cat([corners, kinds], dim=-1), corners.new_tensor([0, 0, ABSENT]))


def _ends(filled: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of the first and the last filled pixel, as shares of N; filled: (..., N)."""
    size = filled.shape[-1]
    marks = filled.to(torch.uint8)
    first, last = marks.argmax(-1), size - 1 - marks.flip(-1).argmax(-1)
    return (first + 0.5) / size, (last + 0.5) / size
