"""The paper's losses: Eqs. 2, 5 and 6, and the choices for L_seg (3.1, 3.4; readings 8 and 16)."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.model.network import Prediction
from sam2_3dmed.model.upsample import upsample
from sam2_3dmed.training.targets import boundary_masks, relative_positions

_SPACE = (-3, -2, -1)
"""D, H, W."""


def relative_position_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """L_srpp: squared error over the pairs i != j, divided by D (D - 1). Paper: Eq. 2.

    predicted, target: (B, D, D). Returns: the mean over the batch; 0 for a single slice, which has no pair.
    """
    depth = predicted.shape[-1]
    if depth < 2:
        return predicted.sum() * 0.0
    different = ~torch.eye(depth, dtype=torch.bool, device=predicted.device)
    squared = (predicted - target).square() * different
    return squared.sum(dim=(-2, -1)).mean() / (depth * (depth - 1))


def position_error(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean absolute error over the pairs i != j, in slices, which says more to a person than Eq. 2.

    predicted, target: (B, D, D), D > 1.
    """
    errors = (predicted - target).abs()
    pairs = errors.sum() - errors.diagonal(dim1=-2, dim2=-1).sum()
    return pairs / (errors.numel() - errors.shape[:-1].numel())


def boundary_loss(
    logits: Tensor, target: Tensor, normalise: Literal["weight_sum", "mean", "sum"] = "weight_sum"
) -> Tensor:
    """L_bd: cross entropy in which boundary pixels weigh N_non / N and the others N_bd / N. Paper: Eq. 5; reading 8.

    logits, target: (B, K, D, H, W); N, N_bd, N_non count per sample and class. The weighted sum is divided by the sum
    of the weights, by N, or by nothing. A class without boundary in a slab contributes 0. Returns: the mean over B
    and K.
    """
    boundary_share = target.mean(dim=_SPACE, keepdim=True)
    weights = torch.where(target > 0, 1 - boundary_share, boundary_share)
    weighted = weights * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    total = weighted.sum(dim=_SPACE)
    if normalise == "weight_sum":
        total = total / weights.sum(dim=_SPACE).clamp_min(torch.finfo(weights.dtype).tiny)
    elif normalise == "mean":
        total = total / target[0, 0].numel()
    return torch.where(boundary_share.flatten(1) > 0, total.flatten(1), 0.0).mean()


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, the paper's L_seg (3.4). logits, target: (B, K, D, H, W)."""
    return F.binary_cross_entropy_with_logits(logits, target)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of each sample and class over D, H, W (smoothed by 1, so an absent class divides by no zero)."""
    probabilities = torch.sigmoid(logits)
    overlap = (probabilities * target).sum(dim=_SPACE)
    sizes = probabilities.sum(dim=_SPACE) + target.sum(dim=_SPACE)
    return (1 - (2 * overlap + 1) / (sizes + 1)).mean()


def dice_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice plus binary cross entropy, the field's usual sum."""
    return dice_loss(logits, target) + bce(logits, target)


def focal_dice(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """SAM2's own: focal loss and soft Dice, 20 to 1 (Ravi et al. 2024, appendix D)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = torch.where(target > 0, 1 - torch.sigmoid(logits), torch.sigmoid(logits))
    balance = torch.where(target > 0, alpha, 1 - alpha)
    return 20 * (balance * missed**gamma * cross_entropy).mean() + dice_loss(logits, target)


SEGMENTATION_LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "dice_bce": dice_bce,
    "focal_dice": focal_dice,
}


class LossTerms(NamedTuple):
    """Eq. 6's total and its terms, unweighted; a term of a part that is switched off is 0."""

    total: Tensor
    segmentation: Tensor
    relative_position: Tensor
    boundary: Tensor


class TotalLoss:
    """L = L_seg + lambda_srpp * L_srpp + lambda_boundary * L_bd. Paper: Eq. 6."""

    def __init__(
        self,
        *,
        segmentation: str,
        lambda_srpp: float,
        lambda_boundary: float,
        boundary_normalise: Literal["weight_sum", "mean", "sum"] = "weight_sum",
    ) -> None:
        self.segmentation = SEGMENTATION_LOSSES[segmentation]
        self.lambda_srpp = lambda_srpp
        self.lambda_boundary = lambda_boundary
        self.boundary_normalise = boundary_normalise

    def __call__(self, prediction: Prediction, masks: Tensor, positions: Tensor) -> LossTerms:
        """The loss of a batch.

        masks: GT_seg (B, K, D, H, W), at full resolution, to which logits are upsampled as in SAM2's training;
        positions: (B, D), each slice's index in its volume.
        """
        size = (masks.shape[-2], masks.shape[-1])
        zero = masks.new_zeros(())
        segmentation = self.segmentation(upsample(prediction.segmentation, size), masks)
        srpp = boundary = zero
        if prediction.relative_position is not None:
            srpp = relative_position_loss(prediction.relative_position.float(), relative_positions(positions))
        if prediction.boundary is not None:
            boundary = boundary_loss(
                upsample(prediction.boundary, size), boundary_masks(masks), self.boundary_normalise
            )
        total = segmentation + self.lambda_srpp * srpp + self.lambda_boundary * boundary
        return LossTerms(total, segmentation, srpp, boundary)
