"""The registry of loss terms, what a term is computed from, and their weighted sum. Paper: Eq. 6."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sam2_3dmed.config import LossConfig
from sam2_3dmed.errors import ConfigError, suggest
from sam2_3dmed.model.mask_decoder import upsample
from sam2_3dmed.model.network import Prediction
from sam2_3dmed.volume.label_scheme import LabelScheme

CERTAIN_BACKGROUND = -1e4
"""A logit that costs nothing where the mask is 0, and has no gradient."""
SPACE = (-3, -2, -1)
"""The dimensions D, H, W."""


@dataclass(frozen=True)
class LossInputs:
    """A prediction and its reference."""

    prediction: Prediction
    """Logits at stride 4, and P_pos."""
    masks: Tensor
    """GT_seg, (B, K, D, H, W) of 0 and 1."""
    positions: Tensor
    """(B, D), the index of each slice in its volume."""
    config: LossConfig
    annotated: Tensor | None = None
    """(B, 1, D, H, W) bool, false where voxels are to be ignored, whose masks are 0; None: all are annotated."""
    teacher: Tensor | None = None
    """The logits of a teacher at stride 4, (B, K, D, h, w); None while there is none."""

    @cached_property
    def segmentation(self) -> Tensor:
        """P_seg, logits (B, K, D, H, W), upsampled to the masks as in SAM2's training.

        Voxels to be ignored have the logit of certain background, which costs nothing and has no gradient.
        """
        logits = self.upsampled(self.prediction.segmentation)
        return logits if self.annotated is None else logits.masked_fill(~self.annotated, CERTAIN_BACKGROUND)

    def upsampled(self, logits: Tensor) -> Tensor:
        """(B, K, D, h, w) -> (B, K, D, H, W)."""
        return upsample(logits, (self.masks.shape[-2], self.masks.shape[-1]))

    @property
    def zero(self) -> Tensor:
        """The value of a term whose part of the network is switched off."""
        return self.masks.new_zeros(())


Term = Callable[[LossInputs], Tensor]
SegmentationLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits, masks), both (B, K, D, H, W) -> a scalar."""

TERMS: dict[str, Term] = {}
"""All terms by name; a term returns a scalar, unweighted."""


def term(name: str) -> Callable[[Term], Term]:
    """Register a term."""

    def register(function: Term) -> Term:
        TERMS[name] = function
        return function

    return register


def segmentation_term(name: str) -> Callable[[SegmentationLoss], SegmentationLoss]:
    """Register a loss between the upsampled logits of the segmentation and its masks.

    Where voxels are to be ignored, both are those of certain background. Samples of which all voxels are to be ignored
    do not count. A loss that divides by the number of voxels should take `LossInputs` instead, and `mean_of_annotated`.
    """

    def register(function: SegmentationLoss) -> SegmentationLoss:
        def of_inputs(inputs: LossInputs) -> Tensor:
            if inputs.annotated is None:
                return function(inputs.segmentation, inputs.masks)
            known = inputs.annotated.flatten(1).any(1)
            if not known.any():
                return inputs.segmentation.sum() * 0
            return function(inputs.segmentation[known], inputs.masks[known])

        TERMS[name] = of_inputs
        return function

    return register


class TotalLoss:
    """The loss of a recipe; a ConfigError if `loss.terms` names an unknown term."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        for name in config.terms:
            if name not in TERMS:
                raise ConfigError(f"loss.terms: no term {name!r}; {suggest(name, TERMS)}")

    def __call__(
        self,
        prediction: Prediction,
        masks: Tensor,
        positions: Tensor,
        annotated: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`total` and the unweighted terms of slabs of equal length, of which `LossInputs` has the shapes.

        The term of a part that is switched off is 0.
        """
        inputs = LossInputs(prediction, masks, positions, self.config, annotated, teacher)
        terms = {name: TERMS[name](inputs) for name in self.config.terms}
        total = inputs.zero
        for name, weight in self.config.terms.items():
            total = total + weight * terms[name]
        return {"total": total, **terms}


def mean_of_annotated(values: Tensor, annotated: Tensor | None) -> Tensor:
    """The mean of (B, K, D, H, W) over the voxels that are annotated, (B, 1, D, H, W) bool; 0 if none is."""
    if annotated is None:
        return values.mean()
    return (values * annotated).sum() / (annotated.sum() * values.shape[1]).clamp_min(1)


def reference_masks(labels: Tensor, scheme: LabelScheme) -> tuple[Tensor, Tensor | None]:
    """GT_seg (B, K, D, H, W), and where voxels are annotated, (B, 1, D, H, W) bool; None: everywhere.

    Args:
        labels: (B, D, H, W).
        scheme: what they mean (`LabelScheme.indexed`).
    """
    regions = [scheme.members(value) for value in scheme] if scheme.regions else []
    annotated = None if scheme.ignore is None else (labels != scheme.ignore).unsqueeze(1)
    return class_masks(labels, len(scheme), regions), annotated


def class_masks(labels: Tensor, num_classes: int, regions: Sequence[Sequence[int]] = ()) -> Tensor:
    """GT_seg: labels (B, D, H, W) of class indices, 0 background -> (B, K, D, H, W) float32 of 0 and 1.

    regions: the indices that belong to each class, where these are not 1, 2, ...
    """
    if regions:
        held = [torch.isin(labels, torch.tensor(members, device=labels.device)) for members in regions]
        return torch.stack(held, dim=1).float()
    classes = torch.arange(1, num_classes + 1, device=labels.device).view(1, -1, 1, 1, 1)
    return (labels.unsqueeze(1) == classes).float()
