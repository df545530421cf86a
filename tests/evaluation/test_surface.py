import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from surface_distance import lookup_tables

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation import surface
from sam2_3dmed.evaluation.surface import bounding_box, surface_areas_mm2, surface_distances

SPACINGS_MM = [(1, 1, 1), (0.8, 0.8, 5), (5, 0.8, 0.8), (3, 1, 0.7), (0.02, 7, 1.3)]


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


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_every_code_has_the_area_surface_distance_gives_it(spacing_mm):
    expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    np.testing.assert_allclose(surface_areas_mm2(spacing_mm), expected, rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_every_code_has_the_area_monai_gives_it(spacing_mm):
    utils = pytest.importorskip("monai.metrics.utils", reason="MONAI is not installed")
    expected, _ = utils.create_table_neighbour_code_to_surface_area(spacing_mm)
    np.testing.assert_allclose(surface_areas_mm2(spacing_mm), expected.numpy(), rtol=1e-5)


def test_area_of_a_flat_face_is_the_voxel_face():
    areas_mm2 = surface_areas_mm2((2, 3, 5))
    assert areas_mm2[0b00001111] == pytest.approx(3 * 5)  # mask on one side along x
    assert areas_mm2[0b00110011] == pytest.approx(2 * 5)
    assert areas_mm2[0b01010101] == pytest.approx(2 * 3)
    assert areas_mm2[0] == areas_mm2[255] == 0


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, np.nan), (1, 1, np.inf)])
def test_unusable_spacing(spacing_mm):
    with pytest.raises(VolumeError, match="three positive numbers"):
        surface_areas_mm2(spacing_mm)


def test_single_voxels_by_hand():
    """Eight corners each, an eighth of an octahedron's area: sqrt(3) / 8 of a face; 3 voxels apart."""
    found = surface_distances(one_voxel((5, 5, 5), (1, 2, 2)), one_voxel((5, 5, 5), (4, 2, 2)), (2, 1, 1))
    np.testing.assert_allclose(found.prediction_to_truth_mm, [4, 4, 4, 4, 6, 6, 6, 6])
    np.testing.assert_allclose(found.truth_to_prediction_mm, [4, 4, 4, 4, 6, 6, 6, 6])
    area_mm2 = np.linalg.norm([1 / 8, 2 / 8, 2 / 8])
    np.testing.assert_allclose(found.prediction_areas_mm2, [area_mm2] * 8)
    np.testing.assert_allclose(found.truth_areas_mm2, [area_mm2] * 8)


def test_mask_that_fills_the_array_has_a_surface_at_the_border():
    full = np.ones((3, 4, 5), dtype=bool)
    found = surface_distances(full, full, (1, 1, 1))
    assert found.prediction_areas_mm2.size == 4 * 5 * 6 - 2 * 3 * 4
    assert not found.prediction_to_truth_mm.any()


def test_empty_masks_have_no_surface():
    empty, voxel = np.zeros((3, 3, 3), dtype=bool), one_voxel((3, 3, 3), (1, 1, 1))
    found = surface_distances(empty, voxel, (1, 1, 1))
    assert found.prediction_to_truth_mm.size == found.prediction_areas_mm2.size == 0
    assert np.isinf(found.truth_to_prediction_mm).all()
    assert found.truth_areas_mm2.size == 8
    neither = surface_distances(empty, empty, (1, 1, 1))
    assert neither.prediction_areas_mm2.size == neither.truth_areas_mm2.size == 0


@settings(max_examples=60, deadline=None)
@given(masks=mask_pairs(), spacing_mm=spacings_mm())
def test_distances_and_areas_are_those_of_surface_distance(oracle, masks, spacing_mm):
    prediction, truth = masks
    found = surface_distances(prediction, truth, spacing_mm)
    expected = oracle(prediction, truth, spacing_mm).distances
    np.testing.assert_allclose(found.prediction_to_truth_mm, expected["distances_pred_to_gt"], atol=1e-9)
    np.testing.assert_allclose(found.truth_to_prediction_mm, expected["distances_gt_to_pred"], atol=1e-9)
    np.testing.assert_allclose(found.prediction_areas_mm2.sum(), expected["surfel_areas_pred"].sum())
    np.testing.assert_allclose(found.truth_areas_mm2.sum(), expected["surfel_areas_gt"].sum())


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"_MIN_TREE_VOXELS": 10**9}, id="transform"),
        pytest.param({"_MAX_VISITS_PER_VOXEL": 10**9}, id="tree"),
        pytest.param({"_MAX_VISITS_PER_VOXEL": 10**9, "_NEAR_VOXELS": 0.5}, id="tree, near and far"),
        pytest.param({"_MAX_VISITS_PER_VOXEL": 0, "_NEAR_VOXELS": 0.5}, id="tree, then transform"),
    ],
)
@settings(max_examples=40, deadline=None)
@given(masks=mask_pairs(), spacing_mm=spacings_mm())
def test_every_way_finds_the_nearest_element(limits, masks, spacing_mm):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"_MIN_TREE_VOXELS": 0, "_MIN_VOXELS_PER_ELEMENT": 0} | limits).items():
            patch.setattr(surface, name, value)
        found = surface_distances(*masks, spacing_mm)
    places_mm = [corners_of_surface(mask) * spacing_mm for mask in masks]
    apart_mm = np.linalg.norm(places_mm[0][:, None] - places_mm[1][None], axis=-1)
    np.testing.assert_allclose(found.prediction_to_truth_mm, np.sort(apart_mm.min(axis=1)), atol=1e-9)
    np.testing.assert_allclose(found.truth_to_prediction_mm, np.sort(apart_mm.min(axis=0)), atol=1e-9)


def corners_of_surface(mask):
    """The corners of voxels, as indices, whose eight voxels are neither all mask nor all background."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2))
    count = windows.sum(axis=(3, 4, 5))
    return np.argwhere((count > 0) & (count < 8))


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
        surface_distances(prediction, truth, (1, 1, 1))


def test_bounding_box():
    mask = np.zeros((6, 7, 8), dtype=bool)
    assert bounding_box(mask) == (slice(0, 0), slice(0, 0), slice(0, 0))
    mask[2, 0, 3] = mask[4, 0, 7] = True
    assert bounding_box(mask) == (slice(2, 5), slice(0, 1), slice(3, 8))
