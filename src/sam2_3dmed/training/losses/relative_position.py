"""L_srpp: how far apart along the body SRPP places two slices. Paper: 3.2, Eq. 2; reading 2."""

import torch
from torch import Tensor

from sam2_3dmed.training.losses.registry import LossInputs, term


@term("relative_position")
def _of_prediction(inputs: LossInputs) -> Tensor:
    predicted = inputs.prediction.relative_position
    if predicted is None:
        return inputs.zero
    return relative_position_loss(predicted.float(), relative_positions(inputs.positions))


def relative_position_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error over the pairs i != j, divided by D (D - 1), the mean over the batch. Paper: Eq. 2.

    predicted, target: P_pos and GT_pos, (B, D, D). A single slice has no pair, and a loss of 0.
    """
    depth = predicted.shape[-1]
    if depth < 2:
        return predicted.sum() * 0.0
    different = ~torch.eye(depth, dtype=torch.bool, device=predicted.device)
    squared = (predicted - target).square() * different
    return squared.sum(dim=(-2, -1)).mean() / (depth * (depth - 1))


def position_error(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean absolute error over the pairs i != j, in slices: easier to read than Eq. 2.

    predicted, target: (B, D, D), D > 1.
    """
    errors = (predicted - target).abs()
    pairs = errors.sum() - errors.diagonal(dim1=-2, dim2=-1).sum()
    return pairs / (errors.numel() - errors.shape[:-1].numel())


def relative_positions(positions: Tensor) -> Tensor:
    """GT_pos[i, j] = position j - position i, in slices along the body, whatever the order of the slab.

    positions: (B, D), the index of each slice in its volume -> (B, D, D) float32.
    """
    return (positions.unsqueeze(1) - positions.unsqueeze(2)).float()
