"""Losses between logits and masks, both (B, K, D, H, W): Dice and its relatives, and cross entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.training.losses.registry import SPACE, LossInputs, mean_of_annotated, segmentation_term, term


@segmentation_term("dice")
def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - soft Dice of each sample and class over D, H, W, of sigmoid probabilities."""
    return (1 - soft_dice(torch.sigmoid(logits), masks)).mean()


def soft_dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(B, K, D, H, W) -> (B, K). Smoothed by 1, so that an absent class divides by no zero."""
    overlap = (probabilities * masks).sum(dim=SPACE)
    sizes = probabilities.sum(dim=SPACE) + masks.sum(dim=SPACE)
    return (2 * overlap + 1) / (sizes + 1)


@segmentation_term("focal_tversky")
def focal_tversky(
    logits: Tensor, masks: Tensor, missed_weight: float = 0.7, spurious_weight: float = 0.3, gamma: float = 4 / 3
) -> Tensor:
    """(1 - TI) ** (1 / gamma), the mean over samples and classes; the paper's alpha, beta and gamma by default.

    TI = (TP + 1) / (TP + 0.7 FN + 0.3 FP + 1), counted softly over D, H, W. The 1 smooths, as in `dice_loss`. A Dice
    that weighs misses more: Abraham and Khan, ISBI 2019 (arXiv 1810.07842).
    """
    probabilities = torch.sigmoid(logits)
    hit = (probabilities * masks).sum(dim=SPACE)
    missed = ((1 - probabilities) * masks).sum(dim=SPACE)
    spurious = (probabilities * (1 - masks)).sum(dim=SPACE)
    index = (hit + 1) / (hit + missed_weight * missed + spurious_weight * spurious + 1)
    # The power has no finite gradient at 0.
    return (1 - index).clamp_min(1e-6).pow(1 / gamma).mean()


@term("bce")
def _bce_of_inputs(inputs: LossInputs) -> Tensor:
    return bce(inputs.segmentation, inputs.masks, inputs.annotated)


def bce(logits: Tensor, masks: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Binary cross entropy, the paper's L_seg (3.4; reading 16). annotated: see `mean_of_annotated`."""
    if annotated is None:
        return F.binary_cross_entropy_with_logits(logits, masks)
    return mean_of_annotated(F.binary_cross_entropy_with_logits(logits, masks, reduction="none"), annotated)


@term("focal")
def _focal_of_inputs(inputs: LossInputs) -> Tensor:
    return focal(inputs.segmentation, inputs.masks, annotated=inputs.annotated)


def focal(
    logits: Tensor, masks: Tensor, alpha: float = 0.25, gamma: float = 2.0, annotated: Tensor | None = None
) -> Tensor:
    """Focal loss (Lin et al. 2017). SAM2 trains with 20 parts of it to one of Dice (Ravi et al. 2024).

    annotated: see `mean_of_annotated`.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    missed = torch.where(masks > 0, 1 - torch.sigmoid(logits), torch.sigmoid(logits))
    balance = torch.where(masks > 0, alpha, 1 - alpha)
    return mean_of_annotated(balance * missed**gamma * cross_entropy, annotated)
