import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.surface import surface_distances


def spacings_mm():
    sizes = st.floats(0.3, 6)
    return st.tuples(sizes, sizes, sizes)


@st.composite
def mask_pairs(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=3, max_size=3)))
    pair = [draw(arrays(bool, shape)) for _ in range(2)]
    for mask in pair:
        mask.flat[draw(st.integers(0, mask.size - 1))] = True
    return pair


def one_voxel(shape, place):
    mask = np.zeros(shape, dtype=bool)
    mask[place] = True
    return mask


def test_single_voxels_by_hand():
    """Eight corners each, an eighth of an octahedron's area: sqrt(3) / 8 of a face; 3 voxels apart."""
    found = surface_distances(one_voxel((5, 5, 5), (1, 2, 2)), one_voxel((5, 5, 5), (4, 2, 2)), (2, 1, 1))
    np.testing.assert_allclose(found.prediction_to_truth_mm, [4, 4, 4, 4, 6, 6, 6, 6])
    np.testing.assert_allclose(found.truth_to_prediction_mm, [4, 4, 4, 4, 6, 6, 6, 6])
    area_mm2 = np.linalg.norm([1 / 8, 2 / 8, 2 / 8])
    np.testing.assert_allclose(found.prediction_weights, [area_mm2] * 8)
    np.testing.assert_allclose(found.truth_weights, [area_mm2] * 8)


def test_mask_that_fills_the_array_has_a_surface_at_the_border():
    full = np.ones((3, 4, 5), dtype=bool)
    found = surface_distances(full, full, (1, 1, 1))
    assert found.prediction_weights.size == 4 * 5 * 6 - 2 * 3 * 4
    assert not found.prediction_to_truth_mm.any()


def test_empty_masks_have_no_surface():
    empty, voxel = np.zeros((3, 3, 3), dtype=bool), one_voxel((3, 3, 3), (1, 1, 1))
    found = surface_distances(empty, voxel, (1, 1, 1))
    assert found.prediction_to_truth_mm.size == found.prediction_weights.size == 0
    assert np.isinf(found.truth_to_prediction_mm).all()
    assert found.truth_weights.size == 8
    neither = surface_distances(empty, empty, (1, 1, 1))
    assert neither.prediction_weights.size == neither.truth_weights.size == 0


@settings(max_examples=60, deadline=None)
@given(masks=mask_pairs(), spacing_mm=spacings_mm())
def test_distances_and_areas_are_those_of_surface_distance(oracle, masks, spacing_mm):
    prediction, truth = masks
    found = surface_distances(prediction, truth, spacing_mm)
    expected = oracle(prediction, truth, spacing_mm).distances
    np.testing.assert_allclose(found.prediction_to_truth_mm, expected["distances_pred_to_gt"], atol=1e-9)
    np.testing.assert_allclose(found.truth_to_prediction_mm, expected["distances_gt_to_pred"], atol=1e-9)
    np.testing.assert_allclose(found.prediction_weights.sum(), expected["surfel_areas_pred"].sum())
    np.testing.assert_allclose(found.truth_weights.sum(), expected["surfel_areas_gt"].sum())


def test_single_voxels_by_the_voxel_definition():
    found = surface_distances(one_voxel((5, 5, 5), (1, 2, 2)), one_voxel((5, 5, 5), (4, 3, 2)), (2, 1, 1), "voxel")
    assert found.prediction_to_truth_mm == found.truth_to_prediction_mm == pytest.approx(np.sqrt(6**2 + 1))
    assert found.prediction_weights.tolist() == found.truth_weights.tolist() == [1]


def test_percentiles_and_mean_by_hand():
    """One line of voxels against three: 0, 0 and 4 mm one way, 0, 0 the other."""
    short, long = np.zeros((2, 1, 1, 9), dtype=bool)
    short[0, 0, :2] = long[0, 0, :2] = long[0, 0, 5] = True
    found = surface_distances(long, short, (1, 1, 1), "voxel")
    assert found.prediction_to_truth_mm.tolist() == [0, 0, 4]
    assert found.hausdorff_mm(100) == 4
    assert found.hausdorff_mm(95) == pytest.approx(4 * 0.9)  # linearly between the second and the third
    assert found.average_mm() == pytest.approx(4 / 5)
    assert found.share_within(3.9) == pytest.approx(4 / 5)
    assert found.share_within(4) == 1


def test_what_is_undefined_is_nan():
    empty, voxel = np.zeros((3, 3, 3), dtype=bool), one_voxel((3, 3, 3), (1, 1, 1))
    for definition in ("surfel", "voxel"):
        missed = surface_distances(empty, voxel, (1, 1, 1), definition)
        assert np.isnan([missed.hausdorff_mm(95), missed.average_mm()]).all()
        assert missed.share_within(1000) == 0
        absent = surface_distances(empty, empty, (1, 1, 1), definition)
        assert np.isnan([absent.hausdorff_mm(95), absent.average_mm(), absent.share_within(1)]).all()


@settings(max_examples=60, deadline=None)
@given(masks=mask_pairs(), spacing_mm=spacings_mm())
def test_percentiles_and_means_are_those_of_surface_distance(oracle, masks, spacing_mm):
    found, expected = surface_distances(*masks, spacing_mm), oracle(*masks, spacing_mm)
    for percent in (50, 95, 100):
        assert found.hausdorff_mm(percent) == pytest.approx(expected.hausdorff(percent), abs=1e-6)
    assert found.average_mm() == pytest.approx(expected.assd(), abs=1e-6)


def test_no_such_definition():
    with pytest.raises(VolumeError, match="no surface definition 'area'; there are surfel and voxel"):
        surface_distances(np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), (1, 1, 1), "area")
