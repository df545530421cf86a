"""The slabs of pre-training: repeatable, an object on the slice that a batch shares, and prompts that are about it."""

import numpy as np
import pytest
import torch

from sam2_3dmed.data.slabs import SampleKey
from sam2_3dmed.model.prompts import BOTTOM_RIGHT, NEGATIVE, NOTHING, POSITIVE, TOP_LEFT, first_prompted
from sam2_3dmed.training.prompted_slabs import PromptedDataset, choose_object, collate, draw_prompts, make_validation

DATASET = PromptedDataset(slab_slices=8, size=64, batch_size=3, seed=5)


def test_the_same_key_gives_the_same_slab_and_others_give_others() -> None:
    one, again, other = (DATASET[SampleKey(*key)] for key in ((0, 4), (0, 4), (1, 4)))
    for a, b in zip(one, again, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(one.slices, other.slices)


def test_a_batch_has_a_prompted_slice_in_common() -> None:
    for first in (0, 3, 6):
        (batch,) = collate([DATASET[SampleKey(2, number)] for number in range(first, first + 3)])
        assert batch.slices.shape == (3, 8, 1, 64, 64)
        assert batch.labels.shape == (3, 8, 64, 64)
        start = first_prompted(batch.prompts)
        prompted = (batch.points[..., 2] != NOTHING).any(-1) | batch.masks.flatten(3).isfinite().all(-1)
        assert prompted[:, start].all()
        assert batch.labels[:, start].flatten(1).any(-1).all()


def test_prompts_are_about_the_object() -> None:
    kinds = {TOP_LEFT: 0, BOTTOM_RIGHT: 0, POSITIVE: 0, NEGATIVE: 0, NOTHING: 0}
    masks = 0
    for number in range(40):
        slab = DATASET[SampleKey(3, number)]
        for k, plane in enumerate(slab.labels[0]):
            for x, y, kind in slab.points[0, k, 0].tolist():
                kinds[int(kind)] += 1
                if kind in (POSITIVE, NEGATIVE):
                    assert plane[int(y * 64), int(x * 64)] == (kind == POSITIVE)
            left, top, right, bottom = slab.points[0, k, 0, :2, :2].flatten().tolist()
            if slab.points[0, k, 0, 0, 2] == TOP_LEFT:
                rows, columns = plane.nonzero().numpy().T / 64
                for drawn, true, side in (
                    (left, columns.min(), np.ptp(columns)),
                    (right, columns.max(), np.ptp(columns)),
                    (top, rows.min(), np.ptp(rows)),
                    (bottom, rows.max(), np.ptp(rows)),
                ):
                    assert abs(drawn - true - 0.5 / 64) <= 0.1 * side + 1e-6
            if slab.masks[0, k, 0].isfinite().any():
                masks += 1
                assert torch.equal(slab.masks[0, k, 0], plane.float())
    assert min(*kinds.values(), masks) > 5


@pytest.mark.parametrize("first", [0, 5])
def test_the_object_is_one_connected_structure_of_a_fair_size(first: int) -> None:
    from scipy import ndimage

    from sam2_3dmed.synthesis.volumes import synthesise

    found = 0
    for seed in range(10):
        slab = synthesise(seed, 8, 64)
        mask = choose_object(np.random.default_rng(seed), slab, first)
        if mask is not None:
            found += 1
            assert mask[first].any()
            assert ndimage.label(mask)[1] == 1
            assert len(np.unique(slab.labels[mask > 0])) == 1
            assert mask.mean() <= 0.5
    assert found >= 8


def test_without_a_structure_there_is_no_object() -> None:
    from sam2_3dmed.synthesis.volumes import SyntheticSlab

    empty = SyntheticSlab(np.zeros((4, 32, 32), np.float32), np.zeros((4, 32, 32), np.int16), 1.0)
    assert choose_object(np.random.default_rng(0), empty, 0) is None


def test_further_slices_are_prompted_where_they_show_it() -> None:
    mask = np.zeros((200, 16, 16), np.uint8)
    mask[50:150, 4:9, 4:9] = 1
    points, masks = draw_prompts(np.random.default_rng(0), mask, 60)
    given = (points[:, 0, :, 2] != NOTHING).any(-1) | masks.flatten(1).isfinite().all(-1)
    assert given[60]
    assert not given[:50].any()
    assert not given[150:].any()
    assert 5 < given.sum() < 35


def test_an_object_that_fills_the_slice_has_no_point_outside() -> None:
    full = np.ones((1, 16, 16), np.uint8)
    kinds = set()
    for seed in range(60):
        points, _ = draw_prompts(np.random.default_rng(seed), full, 0)
        kinds |= set(points[0, 0, 2:, 2].tolist())
    assert kinds == {NOTHING, POSITIVE}


def test_validation_volumes_are_cases(tmp_path) -> None:
    cases = make_validation(tmp_path / "validation", 2, 64, seed=1)
    for case in cases:
        assert case.image.shape == (32, 1, 64, 64)
        assert case.image.dtype == np.float16
        assert np.array_equal(np.flatnonzero(case.label.any(axis=(1, 2))), case.class_slices[1])
        assert case.label.max() == 1
    assert not np.array_equal(cases[0].label, cases[1].label)
