"""What the three losses are measured against (paper 3.2 and 3.3; readings 2, 5 and 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_masks(labels: Tensor, num_classes: int) -> Tensor:
    """GT_seg: labels (B, D, H, W) of class indices, 0 background -> (B, K, D, H, W) float32 of 0 and 1."""
    classes = torch.arange(1, num_classes + 1, device=labels.device).view(1, -1, 1, 1, 1)
    return (labels.unsqueeze(1) == classes).float()


def boundary_masks(masks: Tensor) -> Tensor:
    """GT_bd: the in-plane morphological gradient, 3 x 3, per class (reading 7).

    masks: (B, K, D, H, W) of 0 and 1. Returns: the same shape, 1 where a pixel's neighbourhood holds both values.
    """
    planes = masks.flatten(0, 2).unsqueeze(1)
    dilated = F.max_pool2d(planes, 3, stride=1, padding=1)
    eroded = -F.max_pool2d(-planes, 3, stride=1, padding=1)
    return (dilated - eroded).view_as(masks)


def relative_positions(positions: Tensor) -> Tensor:
    """GT_pos[i, j] = position j - position i, in slices along the body, whatever order the window is fed in (reading
    2).

    positions: (B, D), each slice's index in its volume. Returns: (B, D, D) float32. Paper: 3.2.
    """
    return (positions.unsqueeze(1) - positions.unsqueeze(2)).float()
