"""Consistency with a teacher on slabs that need no labels."""

import torch
from torch import Tensor

from sam2_3dmed.training.losses.registry import CERTAIN_BACKGROUND, LossInputs, term
from sam2_3dmed.training.losses.segmentation import bce, dice_loss

CONFIDENT = 0.95
"""The probability from which the teacher's answer counts, as in FixMatch (Sohn et al., NeurIPS 2020)."""


@term("consistency")
def _of_inputs(inputs: LossInputs) -> Tensor:
    if inputs.teacher is None:
        return inputs.prediction.segmentation.sum() * 0
    return consistency(inputs.prediction.segmentation.float(), inputs.teacher.float())


def consistency(logits: Tensor, teacher: Tensor) -> Tensor:
    """Dice and cross entropy between logits and the masks of a teacher, both (B, K, D, h, w), where it is confident.

    The teacher is a moving average of the network (Tarvainen and Valpola, NeurIPS 2017). It sees the slab as the
    scanner made it, and the network sees it with other intensities, as in FixMatch.
    """
    probability = torch.sigmoid(teacher)
    masks = (probability > 0.5).float()
    confident = (torch.maximum(probability, 1 - probability) >= CONFIDENT).all(dim=1, keepdim=True)
    known = logits.masked_fill(~confident, CERTAIN_BACKGROUND)
    return dice_loss(known, masks * confident) + bce(known, masks * confident, confident)
