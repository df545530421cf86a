"""The surfaces of masks by both definitions, and the distances between them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion, generate_binary_structure
from surface_distance import lookup_tables

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.surface import border_voxels, surface_areas_mm2, surface_distances, surfels


def border(mask, axes=(0, 1, 2)):
    """The border voxels; each weighs 1."""
    voxels, weights = border_voxels(mask, axes)
    assert weights.tolist() == [1] * np.count_nonzero(voxels)
    return voxels


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


SPACINGS_MM = [(1, 1, 1), (0.8, 0.8, 5), (5, 0.8, 0.8), (3, 1, 0.7), (0.02, 7, 1.3)]


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


def test_code_of_every_neighbourhood():
    """A mask of 2 x 2 x 2 has its own code's area at its middle corner."""
    areas_mm2 = surface_areas_mm2((3, 1, 0.7))
    for corners in itertools.product((False, True), repeat=8):
        mask = np.array(corners).reshape(2, 2, 2)
        code = sum(128 >> bit for bit, inside in enumerate(corners) if inside)
        surface, areas = surfels(mask, (3, 1, 0.7))
        assert surface[1, 1, 1] == (0 < code < 255)
        if surface[1, 1, 1]:
            assert (
                areas[np.count_nonzero(surface.ravel()[: np.ravel_multi_index((1, 1, 1), surface.shape)])]
                == (areas_mm2[code])
            )


@pytest.mark.parametrize("order", ["C", "F"])
def test_box_has_the_area_of_its_faces_but_for_the_bevelled_edges(order):
    """A box of 4 x 5 x 6 mm: its edges are bevelled by sqrt(2) / 2, its corners are triangles of sqrt(3) / 8."""
    mask = np.zeros((8, 9, 10), dtype=bool, order=order)
    mask[2:6, 2:7, 2:8] = True
    surface, areas_mm2 = surfels(mask, (1, 1, 1))
    assert np.count_nonzero(surface) == 5 * 6 * 7 - 3 * 4 * 5
    faces = 2 * (3 * 4 + 3 * 5 + 4 * 5)
    edges = 4 * (3 + 4 + 5) * np.sqrt(2) / 2
    assert areas_mm2.sum() == pytest.approx(faces + edges + 8 * np.sqrt(3) / 8)


def test_border_of_a_box():
    mask = np.zeros((7, 7, 7), dtype=bool)
    mask[1:6, 1:6, 1:5] = True
    expected = mask.copy()
    expected[2:5, 2:5, 2:4] = False
    np.testing.assert_array_equal(border(mask), expected)


def test_what_touches_the_border_of_the_array_is_border():
    mask = np.ones((3, 4, 5), dtype=bool)
    assert np.argwhere(~border(mask)).tolist() == [[1, y, z] for y in (1, 2) for z in (1, 2, 3)]
    assert border(np.ones((1, 1, 1), dtype=bool)).all()


def test_in_plane_the_slices_above_and_below_do_not_matter():
    mask = np.ones((4, 4, 1), dtype=bool)
    assert border(mask).all()
    assert np.argwhere(~border(mask, axes=(0, 1)))[:, :2].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


@given(mask=arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)))
def test_it_is_the_mask_without_its_erosion(mask):
    before = mask.copy()
    expected = mask & ~binary_erosion(mask, generate_binary_structure(3, 1))
    np.testing.assert_array_equal(border(mask), expected)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.slow
def test_it_is_the_border_monai_takes():
    monai = pytest.importorskip("monai.metrics.utils", reason="MONAI is not installed")
    masks = np.random.default_rng(0).random((2, 9, 8, 7)) < 0.8
    edges = monai.get_mask_edges(*masks, crop=False)
    for mask, edge in zip(masks, edges, strict=True):
        np.testing.assert_array_equal(border(mask), edge)
