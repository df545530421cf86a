"""The training step: slabs through the network, and the loss. Training, memory estimates and benchmarks call it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sam2_3dmed.data.slabs import Slabs, ViewSlabs
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.training.feature_cache import FeatureCache
from sam2_3dmed.training.losses import TotalLoss, class_masks
from sam2_3dmed.training.losses.relative_position import position_error, relative_positions


def training_step(
    network: SAM2For3dMed,
    loss: TotalLoss,
    batch: Sequence[Slabs] | Sequence[ViewSlabs],
    num_classes: int,
    *,
    single_slices: bool = False,
    features: FeatureCache | None = None,
    on_position_error: Callable[[Tensor, int], None] | None = None,
) -> dict[str, Tensor]:
    """The total loss and its terms over a batch, of which every slab weighs the same. The caller computes gradients.

    Args:
        network: in training mode.
        batch: groups of slabs of equal length.
        single_slices: every slice becomes a slab of its own.
        features: gives the features of slabs of views.
        on_position_error: called for each group of slabs with SRPP's mean error in slices, and the number of slabs.
    """
    total = sum(len(slabs.labels) for slabs in batch)
    shares = [len(slabs.labels) / total for slabs in batch]
    losses = []
    for slabs in batch:
        if single_slices:
            slabs = slabs.single_slices()
        masks = class_masks(slabs.labels, num_classes)
        prompts = network.prompts_from_labels(slabs.labels, range(1, num_classes + 1), slabs.positions)
        if isinstance(slabs, Slabs):
            prediction = network(slabs.slices, prompts)
        else:
            assert features is not None
            prediction = network.decode(features(slabs), prompts, pre_fpn=True)
        losses.append(loss(prediction, masks, slabs.positions))
        predicted = prediction.relative_position
        if on_position_error is not None and predicted is not None and slabs.positions.shape[1] > 1:
            error = position_error(predicted.detach(), relative_positions(slabs.positions))
            on_position_error(error, len(slabs.labels))

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum()

    return {name: mean([group[name] for group in losses]) for name in losses[0]}
