import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, generate_binary_structure

from sam2_3dmed.evaluation.voxel import border_voxels


def test_border_of_a_box():
    mask = np.zeros((7, 7, 7), dtype=bool)
    mask[1:6, 1:6, 1:5] = True
    expected = mask.copy()
    expected[2:5, 2:5, 2:4] = False
    np.testing.assert_array_equal(border_voxels(mask), expected)


def test_what_touches_the_border_of_the_array_is_border():
    mask = np.ones((3, 4, 5), dtype=bool)
    assert np.argwhere(~border_voxels(mask)).tolist() == [[1, y, z] for y in (1, 2) for z in (1, 2, 3)]
    assert border_voxels(np.ones((1, 1, 1), dtype=bool)).all()


def test_in_plane_the_slices_above_and_below_do_not_matter():
    mask = np.ones((4, 4, 1), dtype=bool)
    assert border_voxels(mask).all()
    assert np.argwhere(~border_voxels(mask, axes=(0, 1)))[:, :2].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


@given(mask=arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)))
def test_it_is_the_mask_without_its_erosion(mask):
    before = mask.copy()
    expected = mask & ~binary_erosion(mask, generate_binary_structure(3, 1))
    np.testing.assert_array_equal(border_voxels(mask), expected)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.slow
def test_it_is_the_border_monai_takes():
    monai = pytest.importorskip("monai.metrics.utils", reason="MONAI is not installed")
    masks = np.random.default_rng(0).random((2, 9, 8, 7)) < 0.8
    edges = monai.get_mask_edges(*masks, crop=False)
    for mask, edge in zip(masks, edges, strict=True):
        np.testing.assert_array_equal(border_voxels(mask), edge)
