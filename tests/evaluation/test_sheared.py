"""Volumes, areas and distances on a sheared grid, such as that of a scan with a tilted gantry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sam2_3dmed import Volume, evaluate
from sam2_3dmed.evaluation import surface
from sam2_3dmed.evaluation.masks import diagonal_mm, voxel_mm3
from sam2_3dmed.evaluation.metrics import Scoring, case_metrics
from sam2_3dmed.evaluation.surface import border_voxels, nearest_mm, surface_areas_mm2, surface_distances

TILT = np.array([[0.7, 0, 0], [0, 0.8, 2.5 * np.tan(np.deg2rad(18.5))], [0, 0, 2.5]])


def places_mm(voxels, steps):
    return np.argwhere(voxels) @ np.asarray(steps).T


@pytest.mark.parametrize("looked_up", [5, 512])
def test_distances_are_those_in_the_world(monkeypatch, looked_up):
    monkeypatch.setattr(surface, "_LOOKED_UP", looked_up)
    surface._steps.cache_clear()
    rng = np.random.default_rng(0)
    for density in (0.02, 0.3):
        voxels, targets = rng.random((2, 14, 13, 12)) < density
        apart = np.linalg.norm(places_mm(voxels, TILT)[:, None] - places_mm(targets, TILT)[None], axis=-1)
        found = nearest_mm(voxels, targets, tuple(map(tuple, TILT.tolist())))
        np.testing.assert_allclose(found, apart.min(axis=1), rtol=1e-12)
    surface._steps.cache_clear()


@settings(max_examples=30)
@given(seed=st.integers(0, 99), angles=st.tuples(*[st.floats(-180, 180)] * 3))
def test_a_grid_that_is_only_turned_is_the_grid_of_its_spacing(seed, angles):
    spacing = (0.7, 0.8, 2.5)
    steps = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(spacing)
    np.testing.assert_allclose(surface_areas_mm2(steps), surface_areas_mm2(spacing), rtol=1e-9)
    prediction, truth = np.random.default_rng(seed).random((2, 6, 7, 5)) < 0.4
    straight, turned = (surface_distances(prediction, truth, grid) for grid in (spacing, steps))
    np.testing.assert_allclose(turned.prediction_to_truth_mm, straight.prediction_to_truth_mm, rtol=1e-9, atol=1e-9)
    assert turned.hausdorff_mm(95) == pytest.approx(straight.hausdorff_mm(95))
    assert turned.average_mm() == pytest.approx(straight.average_mm())


@pytest.mark.parametrize(
    ("code", "first", "second"), [(0b00001111, 1, 2), (0b00110011, 0, 2), (0b01010101, 0, 1)], ids=["x", "y", "z"]
)
def test_a_flat_face_has_the_area_of_its_parallelogram(code, first, second):
    expected = np.linalg.norm(np.cross(TILT[:, first], TILT[:, second]))
    assert surface_areas_mm2(TILT)[code] == pytest.approx(expected, rel=1e-12)


def test_a_cut_corner_has_the_area_of_its_triangle():
    """One voxel of the eight: the triangle between the middles of the three edges that leave it."""
    middles = TILT.T / 2
    expected = np.linalg.norm(np.cross(middles[1] - middles[0], middles[2] - middles[0])) / 2
    areas = surface_areas_mm2(TILT)
    assert areas[0b10000000] == pytest.approx(expected, rel=1e-12)
    assert areas[0b00000001] == pytest.approx(expected, rel=1e-12)
    mirrored = np.array([TILT[:, 0], TILT[:, 1], -TILT[:, 2]]) / 2  # the voxel (0, 0, 1), whose edge along z runs back
    expected = np.linalg.norm(np.cross(mirrored[1] - mirrored[0], mirrored[2] - mirrored[0])) / 2
    assert areas[0b01000000] == pytest.approx(expected, rel=1e-12)


def test_volume_and_diagonal():
    assert voxel_mm3(tuple(map(tuple, TILT))) == pytest.approx(0.7 * 0.8 * 2.5)
    corners = np.array([(x, y, z) for x in (0, 4) for y in (0, 5) for z in (0, 6)]) @ TILT.T
    longest = np.linalg.norm(corners[:, None] - corners[None], axis=-1).max()
    assert diagonal_mm((4, 5, 6), tuple(map(tuple, TILT))) == pytest.approx(longest)


def test_evaluation_of_sheared_files(tmp_path):
    """Two boxes, one slice apart: volumes by the determinant, the distance along the oblique axis."""
    affine = np.eye(4)
    affine[:3, :3] = TILT
    truth, prediction = np.zeros((2, 12, 12, 10), np.uint8)
    truth[3:8, 3:8, 2:6] = prediction[3:8, 3:8, 3:7] = 1
    for name, array in (("truth", truth), ("prediction", prediction)):
        Volume(array, affine).write(tmp_path / f"{name}.nii.gz")
    row = evaluate(tmp_path / "prediction.nii.gz", tmp_path / "truth.nii.gz", surface="voxel").cases[0].rows[0]
    voxel = 0.7 * 0.8 * 2.5
    assert (row.truth_mm3, row.prediction_mm3) == pytest.approx((100 * voxel, 100 * voxel))
    ends = places_mm(border_voxels(prediction > 0)[0], TILT), places_mm(border_voxels(truth > 0)[0], TILT)
    apart = np.linalg.norm(ends[0][:, None] - ends[1][None], axis=-1)
    assert row.scores["hd100_mm"] == pytest.approx(max(apart.min(axis=0).max(), apart.min(axis=1).max()), abs=1e-5)
    straight = case_metrics(prediction, truth, {1: "a"}, (0.7, 0.8, 2.5), Scoring(surface="voxel"))[0]
    assert straight.scores["hd100_mm"] == 2.5
