import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.masks import bounding_box, check_masks, check_spacing, diagonal_mm


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (
            np.zeros((2, 2, 2), np.uint8),
            np.zeros((2, 2, 2), bool),
            "the prediction must be a 3D boolean mask",
        ),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2), bool), "the truth must be a 3D boolean mask, not 2D"),
        (
            np.zeros((2, 2, 2), bool),
            np.zeros((2, 2, 3), bool),
            r"\(2, 2, 2\) is not the truth's, \(2, 2, 3\)",
        ),
    ],
)
def test_unusable_masks(prediction, truth, message):
    with pytest.raises(VolumeError, match=message):
        check_masks(prediction, truth)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, math.nan), (1, 1, math.inf)])
def test_unusable_spacing(spacing_mm):
    with pytest.raises(VolumeError, match="three positive numbers"):
        check_spacing(spacing_mm)


def test_bounding_box():
    mask = np.zeros((6, 7, 8), dtype=bool)
    assert bounding_box(mask) == bounding_box(mask, mask) == (slice(0, 0), slice(0, 0), slice(0, 0))
    mask[2, 0, 3] = mask[4, 0, 7] = True
    assert bounding_box(mask) == (slice(2, 5), slice(0, 1), slice(3, 8))
    assert bounding_box(np.zeros_like(mask), mask) == bounding_box(mask)


@given(
    masks=st.tuples(*[st.integers(1, 5)] * 3).flatmap(
        lambda shape: st.tuples(*[arrays(np.int8, shape, elements=st.sampled_from([0, 0, 0, -1, 4]))] * 2)
    ),
    axes=st.permutations(range(3)),
)
def test_bounding_box_of_any_layout_in_memory(masks, axes):
    turned = [np.asfortranarray(mask).transpose(axes) for mask in masks]
    places = np.argwhere(np.any([mask != 0 for mask in turned], axis=0))
    expected = [(low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True)] if places.size else []
    assert [(side.start, side.stop) for side in bounding_box(*turned)] == (expected or [(0, 0)] * 3)


def test_diagonal():
    assert diagonal_mm((3, 4, 12), (1, 1, 1)) == 13
    assert diagonal_mm((3, 2), (1, 2)) == 5
