"""Boxes around classes: the prompt that SAM2 takes best, for systems that are compared with the prompt-free one.

A box is left, top, right and bottom as shares of width, height, width and height, at the centres of its outermost
pixels; infinite where a class was looked for and is not there, NaN where nobody looked.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def boxes_around(labels: Tensor, values: Sequence[int]) -> Tensor:
    """The box around each class of each slice.

    labels: (..., H, W); values: those of class 1..K in it. Returns: (..., K, 4) float32, no NaN.
    """
    boxes = [torch.stack([*_ends(mask.any(-2)), *_ends(mask.any(-1))], dim=-1) for mask in map(labels.eq, values)]
    left, right, top, bottom = torch.stack(boxes, dim=-2).unbind(-1)
    return torch.stack([left, top, right, bottom], dim=-1)


def _ends(filled: Tensor) -> tuple[Tensor, Tensor]:
    """The centres of the first and the last pixel that is filled, as shares. filled: (..., N)."""
    size = filled.shape[-1]
    marks = filled.to(torch.uint8)
    first, last = marks.argmax(-1), size - 1 - marks.flip(-1).argmax(-1)
    absent = ~filled.any(-1)
    return tuple(((end + 0.5) / size).float().masked_fill(absent, torch.inf) for end in (first, last))  # type: ignore[return-value]


def on_slices(boxes: Tensor, positions: Tensor, every: int) -> Tensor:
    """Those of every so many slices of a volume, NaN on the others.

    boxes: (..., K, 4); positions: (...), each slice's index in its volume.
    """
    return boxes.masked_fill((positions % every != 0)[..., None, None], torch.nan)


def mirrored(boxes: Tensor) -> Tensor:
    """Those of the slices mirrored along W. boxes: (..., 4)."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([1 - right, top, 1 - left, bottom], dim=-1)


def moved(boxes: Tensor, *, down: float, right: float) -> Tensor:
    """Those of slices whose content is moved by shares of height and width. boxes: (..., 4)."""
    return boxes + boxes.new_tensor([right, down, right, down])
