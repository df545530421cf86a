"""The ignore label in the losses: the voxels that are left cost what they cost alone."""

import numpy as np
import pytest
import torch

from sam2_3dmed.config import AugmentationConfig, LossConfig
from sam2_3dmed.data.augment import SlabAugmentation
from sam2_3dmed.data.cache import CachedCase
from sam2_3dmed.data.slabs import SampleKey, SlabDataset
from sam2_3dmed.model.network import Prediction
from sam2_3dmed.training.losses import TERMS, LossInputs, TotalLoss, class_masks
from sam2_3dmed.training.losses.boundary import boundary_loss, boundary_masks, known_boundaries
from sam2_3dmed.training.losses.segmentation import bce, focal

SEGMENTATION = ["bce", "dice", "focal", "focal_tversky"]


def prediction(seed=0, batch=2, classes=3, slices=4):
    """Random logits at stride 4 of slices of 16 x 16, and labels of 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, batch, classes, slices, 4, 4), generator=generator) * 3
    labels = torch.randint(0, classes + 1, (batch, slices, 16, 16), generator=generator, dtype=torch.int32)
    return logits[0].requires_grad_(), logits[1].requires_grad_(), labels


def terms_of(logits, boundary, labels, ignore=None, normalise="weight_sum", classes=3):
    """All terms of slabs."""
    annotated = None if ignore is None else (labels != ignore).unsqueeze(1)
    found = Prediction(segmentation=logits, boundary=boundary, relative_position=None)
    config = LossConfig(terms=dict.fromkeys([*SEGMENTATION, "boundary"], 1.0), boundary_normalise=normalise)
    positions = torch.arange(labels.shape[1]).expand(len(labels), -1)
    return TotalLoss(config)(found, class_masks(labels, classes), positions, annotated)


@pytest.mark.parametrize("normalise", ["weight_sum", "mean", "sum"])
def test_ignored_slices_are_as_if_they_were_not_there(normalise):
    logits, boundary, labels = prediction()
    cut = terms_of(logits[:, :, :3], boundary[:, :, :3], labels[:, :3], normalise=normalise)
    labels[:, 3] = 4
    found = terms_of(logits, boundary, labels, ignore=4, normalise=normalise)
    for name, expected in cut.items():
        assert found[name].item() == pytest.approx(expected.item(), rel=1e-5), name
    found["total"].backward()
    for gradient in (logits.grad, boundary.grad):
        assert (gradient[:, :, 3] == 0).all()
        assert (gradient[:, :, :3] != 0).any()


def test_a_slab_that_nobody_annotated_costs_nothing():
    logits, boundary, labels = prediction()
    found = terms_of(logits, boundary, torch.full_like(labels, 4), ignore=4)
    assert all(value.item() < 1e-4 for value in found.values())  # focal Tversky has a floor, for its gradient
    found["total"].backward()
    assert (logits.grad == 0).all()
    assert (boundary.grad == 0).all()


def test_every_segmentation_term_leaves_ignored_voxels_out():
    """Also a term that knows nothing of it: a change of the labels' neighbours in depth changes nothing."""
    logits, _, labels = prediction()
    labels[:, 3] = 4
    other = logits.detach().clone()
    other[:, :, 3] = 50.0
    annotated = (labels != 4).unsqueeze(1)
    for name in SEGMENTATION:
        values = [
            TERMS[name](
                LossInputs(
                    Prediction(segmentation=one, boundary=None, relative_position=None),
                    class_masks(labels, 3),
                    torch.zeros(2, 4),
                    LossConfig(),
                    annotated,
                )
            ).item()
            for one in (logits, other)
        ]
        assert values[0] == values[1], name


def test_means_are_over_annotated_voxels_by_hand():
    """Of three voxels the last is ignored: log(1 + e^-1) and log(1 + e^2), and the same with focal weights."""
    logits = torch.tensor([1.0, 2.0, -1e4]).view(1, 1, 1, 1, 3)
    masks = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 1, 3)
    annotated = torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    costs = np.log1p(np.exp([-1.0, 2.0]))
    missed = np.array([1 / (1 + np.exp(1.0)), 1 / (1 + np.exp(-2.0))])
    assert bce(logits, masks, annotated).item() == pytest.approx(costs.mean(), rel=1e-6)
    expected = (np.array([0.25, 0.75]) * missed**2 * costs).mean()
    assert focal(logits, masks, annotated=annotated).item() == pytest.approx(expected, rel=1e-6)


def test_boundaries_beside_ignored_voxels_are_not_known():
    """A row of six pixels: background, background, class, class, ignored, ignored; the fourth touches the ignored."""
    labels = torch.tensor([[0, 0, 1, 1, 2, 2]]).view(1, 1, 1, 6)
    known = known_boundaries((labels != 2).unsqueeze(1))
    assert known.flatten().tolist() == [True, True, True, False, False, False]
    target = boundary_masks(class_masks(labels, 1))
    logits = torch.tensor([0.5, -1.0, 2.0, 3.0, 3.0, -3.0]).view(1, 1, 1, 1, 6)
    cost = np.log1p(np.exp([0.5, 1.0, -2.0]))  # the first is no boundary, the two beside the edge are
    weights = np.array([2 / 3, 1 / 3, 1 / 3])
    expected = (weights * cost).sum() / weights.sum()
    assert target.flatten().tolist()[:3] == [0, 1, 1]
    assert boundary_loss(logits, target, known=known).item() == pytest.approx(expected, rel=1e-6)


def test_slabs_lie_around_annotated_slices(tmp_path):
    """Of 40 slices 10 and 30 are annotated, and class 1 is on 10 alone."""
    np.save(tmp_path / "a.image.npy", np.zeros((40, 1, 8, 8), np.float16))
    label = np.full((40, 8, 8), 2, np.uint8)
    label[[10, 30]] = 0
    label[10, 2:5, 2:5] = 1
    np.save(tmp_path / "a.label.npy", label)
    case = CachedCase("a", tmp_path, 40, {1: np.array([10])}, np.array([10, 30]))
    off = AugmentationConfig(horizontal_flip=0, affine=0, intensity=0, noise=0, blur=0, mosaic=0, reverse=0)
    for share, allowed in ((1.0, {10}), (0.0, {10, 30})):
        slabs = SlabDataset([case], 3, SlabAugmentation(off, 8), foreground_fraction=share, seed=0)
        drawn = [slabs[SampleKey(0, number)] for number in range(20)]
        assert {int(slab.positions[0, 1]) for slab in drawn} == allowed
        assert all((slab.labels[0, 1] != 2).all() and (slab.labels[0, [0, 2]] == 2).all() for slab in drawn)
