"""The losses by hand, and the weights of the sizes."""

import math

import pytest
import torch

from sam2_3dmed.baselines.train import deep_supervision_loss, dice_cross_entropy, dice_sigmoid
from sam2_3dmed.volume.label_scheme import LabelScheme

SCHEME = LabelScheme.numbered(2)
LABELS = torch.tensor([[[[0, 1], [2, 2]]]], dtype=torch.uint8)


def test_logits_that_know_nothing() -> None:
    loss = dice_cross_entropy(torch.zeros(1, 3, 1, 2, 2), LABELS, SCHEME)
    # Every probability is 1/3. Class 1: overlap 1/3, sizes 4/3 + 1; class 2: 2/3 and 4/3 + 2.
    dice = ((2 / 3 + 1) / (7 / 3 + 1) + (4 / 3 + 1) / (10 / 3 + 1)) / 2
    assert loss.item() == pytest.approx(1 - dice + math.log(3))


def test_perfect_logits() -> None:
    one_hot = torch.nn.functional.one_hot(LABELS.long(), 3).movedim(-1, 1).float()
    assert dice_cross_entropy(100 * one_hot, LABELS, SCHEME).item() == pytest.approx(0, abs=1e-6)
    assert dice_sigmoid(200 * one_hot[:, 1:] - 100, LABELS, SCHEME).item() == pytest.approx(0, abs=1e-6)


def test_coarser_sizes_weigh_half_each() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 8, 8)).to(torch.uint8)
    fine, coarse = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 2, 4, 4)
    terms = deep_supervision_loss([fine, coarse], labels, SCHEME, background=True)
    small = torch.nn.functional.interpolate(labels[:, None].float(), (2, 4, 4), mode="nearest-exact")[:, 0]
    coarser = dice_cross_entropy(coarse, small.to(torch.uint8), SCHEME)
    expected = (2 * dice_cross_entropy(fine, labels, SCHEME) + coarser) / 3
    assert terms["total"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms["segmentation"].item() == dice_cross_entropy(fine, labels, SCHEME).item()


def test_a_case_weighs_the_same_alone() -> None:
    """So that a batch can be divided over processes and passes."""
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 3, (2, 4, 8, 8)).to(torch.uint8), torch.randn(2, 3, 4, 8, 8)
    for loss, channels in ((dice_cross_entropy, 3), (dice_sigmoid, 2)):
        alone = [loss(logits[i : i + 1, :channels], labels[i : i + 1], SCHEME).item() for i in range(2)]
        assert loss(logits[:, :channels], labels, SCHEME).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_voxels_to_be_ignored_count_nowhere() -> None:
    """A volume whose second half is to be ignored costs what the first half costs alone, and has no gradient there."""
    torch.manual_seed(0)
    scheme = LabelScheme({1: "a", 2: "b"}, ignore=3)
    labels = torch.randint(0, 3, (1, 4, 8, 8)).to(torch.uint8)
    labels[:, 2:] = 3
    for loss, channels in ((dice_cross_entropy, 3), (dice_sigmoid, 2)):
        logits = torch.randn(1, channels, 4, 8, 8, requires_grad=True)
        found = loss(logits, labels, scheme)
        assert found.item() == pytest.approx(loss(logits[:, :, :2], labels[:, :2], SCHEME).item(), rel=1e-5)
        found.backward()
        assert logits.grad is not None
        assert logits.grad[:, :, :2].any()
        assert not logits.grad[:, :, 2:].any()


def test_nothing_annotated_costs_no_cross_entropy() -> None:
    scheme = LabelScheme({1: "a", 2: "b"}, ignore=3)
    labels = torch.full((1, 2, 2, 2), 3)
    # Smoothed by 1, the Dice of nothing is 1.
    assert dice_cross_entropy(torch.randn(1, 3, 2, 2, 2), labels, scheme).item() == 0
    assert dice_sigmoid(torch.randn(1, 2, 2, 2, 2), labels, scheme).item() == pytest.approx(0)


def test_regions_overlap() -> None:
    """The whole is both values, the core the first alone; logits of this shape cost nothing."""
    scheme = LabelScheme({2: "whole", 1: "core"}, regions={2: (1, 2), 1: (1,)})
    whole, core = LABELS > 0, LABELS == 1
    logits = 200 * torch.stack([whole, core], dim=1).float() - 100
    assert dice_sigmoid(logits, LABELS, scheme).item() == pytest.approx(0, abs=1e-6)
    assert dice_sigmoid(logits.flip(1), LABELS, scheme).item() > 1
