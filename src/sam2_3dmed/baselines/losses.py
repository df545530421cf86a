"""Dice and cross entropy, at all sizes of which a network gives logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.training.losses import class_masks
from sam2_3dmed.training.losses.segmentation import bce, dice_loss, soft_dice


def deep_supervision_loss(outputs: Sequence[Tensor], labels: Tensor, *, background: bool) -> dict[str, Tensor]:
    """`total`: the mean over sizes, each with half the weight of the next finer one; `segmentation`: of the finest.

    Args:
        outputs: logits (B, K or K + 1, d, h, w), the finest first, of any sizes.
        labels: (B, D, H, W) class indices.
        background: whether channel 0 is the background's, for a softmax; else each class has a sigmoid.
    """
    loss = dice_cross_entropy if background else dice_sigmoid
    losses = [loss(logits.float(), _labels_like(labels, logits)) for logits in outputs]
    weights = torch.tensor([2.0**-level for level in range(len(losses))], device=labels.device)
    total = (torch.stack(losses) * weights / weights.sum()).sum()
    return {"total": total, "segmentation": losses[0]}


def dice_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """nnU-Net's: 1 - soft Dice of the classes without the background, plus cross entropy over all.

    logits: (B, K + 1, D, H, W); labels: (B, D, H, W).
    """
    probabilities = logits.softmax(dim=1)[:, 1:]
    dice = soft_dice(probabilities, class_masks(labels, logits.shape[1] - 1))
    return 1 - dice.mean() + F.cross_entropy(logits, labels.long())


def dice_sigmoid(logits: Tensor, labels: Tensor) -> Tensor:
    """The Universal model's: soft Dice plus binary cross entropy of each class on its own."""
    masks = class_masks(labels, logits.shape[1])
    return dice_loss(logits, masks) + bce(logits, masks)


def _labels_like(labels: Tensor, logits: Tensor) -> Tensor:
    if labels.shape[1:] == logits.shape[2:]:
        return labels
    resized = F.interpolate(labels.unsqueeze(1).float(), logits.shape[2:], mode="nearest-exact")
    return resized.squeeze(1).to(labels.dtype)
