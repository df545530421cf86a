"""The focal Tversky loss of Abraham and Khan, ISBI 2019 (arXiv 1810.07842): a Dice that weighs misses more."""

import torch
from torch import Tensor

from sam2_3dmed.training.losses.registry import SPACE, segmentation_term


@segmentation_term("focal_tversky")
def focal_tversky(
    logits: Tensor, masks: Tensor, missed_weight: float = 0.7, spurious_weight: float = 0.3, gamma: float = 4 / 3
) -> Tensor:
    """(1 - TI) ** (1 / gamma), the mean over samples and classes; the paper's alpha, beta and gamma by default.

    TI = (TP + 1) / (TP + 0.7 FN + 0.3 FP + 1), counted softly over D, H, W. The 1 smooths, as in `dice_loss`.
    """
    probabilities = torch.sigmoid(logits)
    hit = (probabilities * masks).sum(dim=SPACE)
    missed = ((1 - probabilities) * masks).sum(dim=SPACE)
    spurious = (probabilities * (1 - masks)).sum(dim=SPACE)
    index = (hit + 1) / (hit + missed_weight * missed + spurious_weight * spurious + 1)
    # The power has no finite gradient at 0.
    return (1 - index).clamp_min(1e-6).pow(1 / gamma).mean()
