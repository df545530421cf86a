"""Soft Dice."""

import torch
from torch import Tensor

from sam2_3dmed.training.losses.registry import SPACE, segmentation_term


@segmentation_term("dice")
def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - soft Dice of each sample and class over D, H, W, of sigmoid probabilities."""
    return (1 - soft_dice(torch.sigmoid(logits), masks)).mean()


def soft_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(B, K, D, H, W) -> (B, K). Smoothed by 1, so that an absent class divides by no zero."""
    overlap = (probabilities * masks).sum(dim=SPACE)
    sizes = probabilities.sum(dim=SPACE) + masks.sum(dim=SPACE)
    return (2 * overlap + 1) / (sizes + 1)
