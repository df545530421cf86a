"""What the three losses are measured against (paper 3.2 and 3.3; readings 2, 5 and 7)."""

from collections.abc import Callable

import torch
from torch import Tensor


def class_masks(labels: Tensor, num_classes: int) -> Tensor:
    """GT_seg: labels (B, D, H, W) of class indices, 0 background -> (B, K, D, H, W) float32 of 0 and 1."""
    classes = torch.arange(1, num_classes + 1, device=labels.device).view(1, -1, 1, 1, 1)
    return (labels.unsqueeze(1) == classes).float()


def boundary_masks(masks: Tensor) -> Tensor:
    """GT_bd: the in-plane morphological gradient, 3 x 3, per class (reading 7).

    masks: (B, K, D, H, W) of 0 and 1. Returns: the same shape, 1 where a pixel's neighbourhood holds both values.
    """
    some = every = masks > 0  # of a pixel's neighbourhood; for bool, much faster than two max_pool2d
    for axis in (-2, -1):
        some, every = (
            _with_neighbours(some, Tensor.logical_or_, axis),
            _with_neighbours(every, Tensor.logical_and_, axis),
        )
    return (some & ~every).float()


def _with_neighbours(mask: Tensor, join: Callable[[Tensor, Tensor], Tensor], axis: int) -> Tensor:
    """Every pixel joined with those before and after it along an axis, where there are any."""
    joined, rest = mask.clone(), mask.shape[axis] - 1
    join(joined.narrow(axis, 1, rest), mask.narrow(axis, 0, rest))
    join(joined.narrow(axis, 0, rest), mask.narrow(axis, 1, rest))
    return joined


def relative_positions(positions: Tensor) -> Tensor:
    """GT_pos[i, j] = position j - position i, in slices along the body, whatever the order of the slab.

    positions: (B, D), each slice's index in its volume. Returns: (B, D, D) float32. Paper: 3.2; reading 2.
    """
    return (positions.unsqueeze(1) - positions.unsqueeze(2)).float()
