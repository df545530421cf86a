"""L_bd: class-balanced cross entropy of the boundary. Paper: 3.3, Eq. 5; readings 7 and 8."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_3dmed.training.losses.registry import SPACE, LossInputs, term


@term("boundary")
def _of_prediction(inputs: LossInputs) -> Tensor:
    logits = inputs.prediction.boundary
    if logits is None:
        return inputs.zero
    known = None if inputs.annotated is None else known_boundaries(inputs.annotated)
    target = boundary_masks(inputs.masks)
    return boundary_loss(inputs.upsampled(logits), target, inputs.config.boundary_normalise, known)


def boundary_loss(
    logits: Tensor,
    target: Tensor,
    normalise: Literal["weight_sum", "mean", "sum"] = "weight_sum",
    known: Tensor | None = None,
) -> Tensor:
    """Cross entropy in which boundary pixels weigh N_non / N and the others N_bd / N. Paper: Eq. 5; reading 8.

    The mean over B and K. A class without boundary in a slab contributes 0.

    Args:
        target: GT_bd; like the logits (B, K, D, H, W). N, N_bd and N_non count its pixels per sample and class.
        normalise: what the weighted sum is divided by: the sum of the weights, N, or 1.
        known: (B, 1, D, H, W) bool, of the pixels that count; None: all.
    """
    number: Tensor | int = target[0, 0].numel()
    if known is None:
        boundary_share = target.mean(dim=SPACE, keepdim=True)
        weights = torch.where(target > 0, 1 - boundary_share, boundary_share)
    else:
        number = known.sum(dim=SPACE).clamp_min(1)
        target = target * known
        boundary_share = target.sum(dim=SPACE, keepdim=True) / number[..., None, None, None]
        weights = torch.where(target > 0, 1 - boundary_share, boundary_share) * known
    weighted = weights * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    total = weighted.sum(dim=SPACE)
    if normalise == "weight_sum":
        total = total / weights.sum(dim=SPACE).clamp_min(torch.finfo(weights.dtype).tiny)
    elif normalise == "mean":
        total = total / number
    return torch.where(boundary_share.flatten(1) > 0, total.flatten(1), 0.0).mean()


def boundary_masks(masks: Tensor) -> Tensor:
    """GT_bd: the in-plane morphological gradient, 3 x 3, per class (reading 7).

    masks: (B, K, D, H, W) of 0 and 1 -> the same, 1 where the neighbourhood of a pixel holds both values.
    """
    some = every = masks > 0  # of the neighbourhood; for bool, much faster than two max_pool2d
    for axis in (-2, -1):
        some, every = (
            _with_neighbours(some, Tensor.logical_or_, axis),
            _with_neighbours(every, Tensor.logical_and_, axis),
        )
    return (some & ~every).float()


def known_boundaries(annotated: Tensor) -> Tensor:
    """Where it is known whether a pixel is a boundary: all of its in-plane neighbourhood, 3 x 3, is annotated."""
    for axis in (-2, -1):
        annotated = _with_neighbours(annotated, Tensor.logical_and_, axis)
    return annotated


def _with_neighbours(mask: Tensor, join: Callable[[Tensor, Tensor], Tensor], axis: int) -> Tensor:
    """Every pixel joined with the pixels before and after it along an axis, where there are any."""
    joined, rest = mask.clone(), mask.shape[axis] - 1
    join(joined.narrow(axis, 1, rest), mask.narrow(axis, 0, rest))
    join(joined.narrow(axis, 0, rest), mask.narrow(axis, 1, rest))
    return joined
