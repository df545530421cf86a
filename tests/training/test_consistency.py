"""Consistency with a teacher, on slabs that need no labels; and how such slabs come about."""

import math

import numpy as np
import pytest
import torch

from sam2_3dmed.config import AugmentationConfig, LossConfig, NetworkConfig, read_recipe, with_settings
from sam2_3dmed.data.augment import SlabAugmentation, strong
from sam2_3dmed.data.slabs import SampleKey, SlabDataset, collate
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import Prediction
from sam2_3dmed.run.build_model import check_recipe
from sam2_3dmed.training.losses import TotalLoss
from sam2_3dmed.training.losses.consistency import CONFIDENT, consistency
from sam2_3dmed.training.slab_training import training_step

SURE = math.log(CONFIDENT / (1 - CONFIDENT)) + 0.1


def test_only_where_the_teacher_is_confident_it_counts() -> None:
    teacher = torch.full((1, 2, 1, 4, 4), -SURE)
    teacher[:, 0, :, :2] = SURE
    teacher[:, 1, :, 3] = 1.0  # not sure of class 2 in the last row, so nothing counts there
    logits = torch.zeros(1, 2, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(consistency(logits, teacher), logits)
    assert (gradient[:, :, :, 3] == 0).all()
    assert (gradient[:, 0, :, :2] < 0).all()
    assert (gradient[:, 0, :, 2] > 0).all()
    assert (gradient[:, 1, :, :3] > 0).all()
    agreed = consistency(100 * teacher, teacher)
    assert agreed < 1e-3 < consistency(-100 * teacher, teacher)


def test_an_unsure_teacher_teaches_nothing() -> None:
    logits = torch.randn(1, 1, 2, 4, 4, requires_grad=True)
    value = consistency(logits, torch.zeros_like(logits))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.abs() < 1e-6
    assert (gradient == 0).all()


def test_strong_changes_are_at_least_the_recipes() -> None:
    config = AugmentationConfig(noise=0.1, blur=0.9, intensity=0.1, rotation_degrees=7)
    stronger = strong(SlabAugmentation(config, 64)).config
    assert (stronger.noise, stronger.blur, stronger.intensity) == (0.8, 0.9, 0.5)
    assert stronger.rotation_degrees == 7


def test_both_views_lie_alike() -> None:
    """A weak view is the strong one without change of intensities: the labels belong to both."""
    config = AugmentationConfig(noise=1.0, blur=1.0, intensity=0.5, mosaic=0.5)
    augmentation = SlabAugmentation(config, 64)
    image = torch.zeros(2, 1, 64, 64)
    image[..., 10:30, 20:45] = 1
    labels = image[:, 0].int()
    for seed in range(5):
        seen, moved, weak = augmentation.views(image, labels, np.random.default_rng(seed))
        alone, again = augmentation(image, labels, np.random.default_rng(seed))
        assert torch.equal(seen, alone)
        assert torch.equal(moved, again)
        assert not torch.allclose(seen, weak, atol=0.02)
        assert ((weak[:, 0] > 0.5) == (moved == 1)).float().mean() > 0.97


@pytest.fixture
def dataset(prepared) -> SlabDataset:
    """Of two labelled and two unlabelled cases, whose voxels are all to be ignored."""
    _, cases = prepared
    without = [replace_annotated(case) for case in cases[2:4]]
    return SlabDataset(
        cases[:2],
        slab_slices=3,
        augmentation=SlabAugmentation(AugmentationConfig(), 64),
        foreground_fraction=0.5,
        seed=1,
        unlabelled=without,
        unlabelled_fraction=0.4,
        weak_views=True,
    )


def replace_annotated(case):
    from dataclasses import replace

    return replace(case, annotated_slices=np.zeros(0, dtype=np.int64))


def test_so_many_slabs_come_from_scans_without_labels(dataset: SlabDataset) -> None:
    drawn = [dataset.draw(SampleKey(0, number), np.random.default_rng([1, number]), 3)[0].name for number in range(300)]
    names = {case.name for case in dataset.unlabelled}
    assert 0.3 < np.mean([name in names for name in drawn]) < 0.5
    assert set(drawn) == names | {case.name for case in dataset.cases}


def test_slabs_have_a_weak_view_alike_in_batches_and_single_slices(dataset: SlabDataset) -> None:
    (batch,) = collate([dataset[SampleKey(0, number)] for number in range(3)])
    assert batch.weak.shape == batch.slices.shape == (3, 3, 1, 64, 64)
    assert not torch.equal(batch.weak, batch.slices)
    assert batch.single_slices().weak.shape == (9, 1, 1, 64, 64)
    dataset.weak_views = False
    (batch,) = collate([dataset[SampleKey(0, number)] for number in range(3)])
    assert batch.weak is None
    assert batch.single_slices().weak is None


def test_a_teacher_is_asked_about_the_weak_view_and_its_answer_is_learnt(dataset: SlabDataset) -> None:
    torch.manual_seed(0)
    network = build_network(
        NetworkConfig(size="nano", image_size=64, srpp=False, boundary=False, memory="none", slice_mixing=True), 2
    )
    batch = collate([dataset[SampleKey(0, number)] for number in range(2)])
    asked = []

    def teach(weak: torch.Tensor) -> torch.Tensor:
        asked.append(weak)
        return torch.full((len(weak), 2, 3, 16, 16), SURE)

    loss = TotalLoss(LossConfig(terms={"bce": 1, "consistency": 0.5}))
    found = training_step(network, loss, batch, 2, teach=teach)
    assert torch.equal(asked[0], batch[0].weak)
    assert found["consistency"] > 0.1
    torch.testing.assert_close(found["total"], found["bce"] + 0.5 * found["consistency"])
    found["consistency"].backward()
    assert network.segmentation.mask_decoder.conv_s0.weight.grad.abs().sum() > 0
    assert training_step(network, loss, batch, 2)["consistency"] == 0  # no teacher yet


def test_what_does_not_go_together_is_told() -> None:
    recipe = read_recipe("scratch")
    terms = "loss.terms={bce: 1, dice: 1, consistency: 1}"
    with pytest.raises(ConfigError, match=r"training\.ema_decay"):
        check_recipe(with_settings(recipe, [terms]), "none")
    with pytest.raises(ConfigError, match=r"feature_cache\.views=0"):
        check_recipe(with_settings(recipe, [terms, "training.ema_decay=0.99", "feature_cache.views=2"]), "none")
    taught = [terms, "training.ema_decay=0.99", "training.unlabelled_fraction=0.5"]
    check_recipe(with_settings(recipe, taught), "none")
    with pytest.raises(ConfigError, match="no loss takes such scans"):
        check_recipe(with_settings(recipe, ["training.unlabelled_fraction=0.5"]), "none")
    by_position = [
        "training.unlabelled_fraction=0.5",
        "model.srpp=true",
        "loss.terms={bce: 1, relative_position: 0.01}",
    ]
    check_recipe(with_settings(recipe, by_position), "none")
    with pytest.raises(ConfigError, match=r"model\.box_every=0"):
        check_recipe(with_settings(recipe, [*taught, "model.box_every=2"]), "none")


@pytest.mark.parametrize("name", ["dice", "bce", "focal", "focal_tversky"])
def test_a_slab_without_labels_changes_no_other_loss(name: str) -> None:
    """The mean is over what is labelled: the gradient of the labelled slab is that of a batch of its own."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 2, 4, 4, generator=generator, requires_grad=True)
    masks = (torch.rand(2, 1, 2, 16, 16, generator=generator) > 0.5).float()
    masks[1] = 0
    annotated = torch.ones(2, 1, 2, 16, 16, dtype=torch.bool)
    annotated[1] = False
    loss = TotalLoss(LossConfig(terms={name: 1}))

    def gradient(part: slice, known: torch.Tensor | None) -> torch.Tensor:
        prediction = Prediction(logits[part], None, None)
        total = loss(prediction, masks[part], torch.zeros(2, 2)[part], known)["total"]
        return torch.autograd.grad(total, logits)[0]

    both, alone = gradient(slice(0, 2), annotated), gradient(slice(0, 1), None)
    torch.testing.assert_close(both, alone)
    assert alone[0].abs().sum() > 0
    assert gradient(slice(1, 2), annotated[1:]).abs().sum() == 0
