"""Prompts: boxes around classes, for systems that are compared with the prompt-free method.

The boxes of slices are (..., K, 4): left, top, right and bottom of each class, at the centres of its outermost pixels,
as shares of width and height. They are infinite for a class that is absent from the slice, and NaN for a class (or a
slice) without a box. The tensors begin with the dimensions of the slices, such as (B, D) or (N,).
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def boxes_from_labels(labels: Tensor, values: Sequence[int], positions: Tensor, every: int) -> Tensor:
    """Boxes around the classes on every so many slices of a volume, and NaN on the others.

    Args:
        labels: (..., H, W), with the `values` of class 1..K.
        positions: (...), each slice's index in its volume.
    """
    return boxes_around(labels, values).masked_fill((positions % every != 0)[..., None, None], torch.nan)


def boxes_from_stack(labels: NDArray[Any], values: Sequence[int], every: int) -> Tensor:
    """As `boxes_from_labels` for a whole volume (N, H, W), which is read slice by slice."""
    boxes = torch.full((len(labels), len(values), 4), torch.nan)
    for index in range(0, len(labels), every):
        boxes[index] = boxes_around(torch.from_numpy(labels[index].astype("int32")), values)
    return boxes


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


def mirrored(boxes: Tensor) -> Tensor:
    """The boxes of the slices mirrored along W."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([1 - right, top, 1 - left, bottom], dim=-1)


def moved(boxes: Tensor, *, down: float, right: float) -> Tensor:
    """The boxes of slices whose content is moved by shares of height and width."""
    return boxes + boxes.new_tensor([right, down, right, down])
