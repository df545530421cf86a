"""Patches: the same key the same patch, foreground as often as asked for, image and label moved alike."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sam2_3dmed.baselines.cache import PatchCase, build_patch_cache
from sam2_3dmed.baselines.patches import PatchDataset, collate, cut
from sam2_3dmed.baselines.recipe import PatchAugmentationConfig, PatchSpec
from sam2_3dmed.data.slabs import SampleKey

STILL = PatchAugmentationConfig(flip=0, affine=0, noise=0, intensity=0)


@pytest.fixture(scope="module")
def cases(balls: Any, make_spec: Callable[..., PatchSpec], tmp_path_factory: pytest.TempPathFactory) -> list[PatchCase]:
    folder: Path = tmp_path_factory.mktemp("patches")
    return build_patch_cache(balls.cases[:3], make_spec(), balls.plan.scheme.indexed, folder)


def dataset(cases: list[PatchCase], augmentation: PatchAugmentationConfig, **changes: Any) -> PatchDataset:
    how = {"patch": (6, 12, 12), "spacing_mm": (3.0, 1.5, 1.5), "foreground_fraction": 0.5, "seed": 0} | changes
    spec: Any = SimpleNamespace(patch=how.pop("patch"), spacing_mm=how.pop("spacing_mm"))
    return PatchDataset(cases, spec, augmentation, **how)


def test_a_key_names_a_patch(cases: list[PatchCase]) -> None:
    config = PatchAugmentationConfig(affine=1, noise=1, intensity=1)
    one, other = dataset(cases, config), dataset(cases, config)
    for number in (3, 1, 2):
        a, b = one[SampleKey(1, number)], other[SampleKey(1, number)]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.labels, b.labels)
    assert not torch.equal(one[SampleKey(1, 1)].image, one[SampleKey(2, 1)].image)
    assert not torch.equal(one[SampleKey(1, 1)].image, dataset(cases, config, seed=1)[SampleKey(1, 1)].image)


def test_shapes_and_kinds(cases: list[PatchCase]) -> None:
    patches = dataset(cases, PatchAugmentationConfig(affine=1))
    batch = collate([patches[SampleKey(0, i)] for i in range(3)])
    assert (batch.image.shape, batch.image.dtype) == ((3, 1, 6, 12, 12), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((3, 6, 12, 12), torch.int32)
    assert set(batch.labels.unique().tolist()) <= {0, 1, 2}


def test_the_middle_is_foreground_as_often_as_asked_for(cases: list[PatchCase]) -> None:
    every = dataset(cases, STILL, patch=(1, 1, 1), foreground_fraction=1.0)
    classes = [int(every[SampleKey(0, i)].labels) for i in range(100)]
    assert 0 not in classes
    assert 30 < classes.count(1) < 70
    none = dataset(cases, STILL, patch=(1, 1, 1), foreground_fraction=0.0)
    assert np.mean([int(none[SampleKey(0, i)].labels) > 0 for i in range(100)]) < 0.4


def test_without_augmentation_it_is_a_part_of_the_case(cases: list[PatchCase]) -> None:
    patches = dataset(cases[:1], STILL)
    key = SampleKey(0, 0)
    _, centre = patches.draw(key, np.random.default_rng([0, *key]))
    d, h, w = (at - side // 2 for at, side in zip(centre, (6, 12, 12), strict=True))
    assert min(d, h, w) >= 0
    found = patches[key]
    assert np.array_equal(found.image[0], cases[0].image[:, d : d + 6, h : h + 12, w : w + 12].astype(np.float32))
    assert np.array_equal(found.labels[0], cases[0].label[d : d + 6, h : h + 12, w : w + 12])


@pytest.mark.parametrize("config", [{"flip": 1, "affine": 0}, {"flip": 0, "affine": 1}], ids=["flipped", "rotated"])
def test_image_and_label_move_alike(cases: list[PatchCase], config: dict[str, float]) -> None:
    """The balls are bright and dark: intensities tell the classes, wherever they went."""
    patches = dataset(cases, STILL.model_copy(update=config), patch=(7, 24, 20))
    still = dataset(cases, STILL, patch=(7, 24, 20))
    moved = 0
    for number in range(5):
        found = patches[SampleKey(0, number)]
        for k, sign in ((1, 1), (2, -1)):
            inside = found.image[0, 0][found.labels[0] == k] * sign
            assert (inside > 0).float().mean() > 0.9
        moved += not torch.equal(found.labels, still[SampleKey(0, number)].labels)
    assert moved >= 4


def test_a_box_that_leaves_the_volume() -> None:
    array = np.arange(1, 9).reshape(1, 2, 2, 2)
    assert np.array_equal(cut(array, (1, 1, 1), (2, 2, 2)), array)
    box = cut(array, (0, 0, 0), (4, 4, 4))
    assert box.shape == (1, 4, 4, 4)
    assert np.array_equal(box[:, 2:, 2:, 2:], array)
    assert box.sum() == array.sum()
    assert not cut(array, (9, 0, 0), (2, 2, 2)).any()
