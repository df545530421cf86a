import numpy as np
import pytest

from sam2_3dmed.data.anatomy import Canvas, centreline, grain, smooth_field

SIZE = 41
STEP = 2 / (SIZE - 1)


@pytest.fixture
def canvas() -> Canvas:
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y, z = (np.ascontiguousarray(field) for field in np.meshgrid(axis, axis, axis, indexing="ij"))
    blank = np.zeros_like(x)
    return Canvas(x=x, y=y, z=z, hu=blank.copy(), fine_grain=blank, coarse_grain=blank, voxel=STEP, half_height=1.0)


def test_the_distance_to_a_sphere_is_exact_near_it_and_large_far_away(canvas: Canvas) -> None:
    distance = canvas.ellipsoid((0.1, 0.0, -0.1), (0.3, 0.3, 0.3))
    exact = np.sqrt((canvas.x - 0.1) ** 2 + canvas.y**2 + (canvas.z + 0.1) ** 2) - 0.3
    near = np.abs(exact) < 0.09
    np.testing.assert_allclose(distance[near], exact[near], atol=1e-5)
    assert (distance[exact > 0.09] > 0.08).all()


def test_an_ellipsoid_turns_about_z(canvas: Canvas) -> None:
    turned = canvas.ellipsoid((0, 0, 0), (0.5, 0.2, 0.3), np.pi / 2)
    np.testing.assert_array_equal(turned < 0, canvas.ellipsoid((0, 0, 0), (0.2, 0.5, 0.3)) < 0)


def test_a_tube_is_as_wide_as_asked(canvas: Canvas) -> None:
    line = np.stack([np.linspace(-0.5, 0.5, 60), np.zeros(60), np.zeros(60)], axis=1)
    distance = canvas.tube(line, np.linspace(0.1, 0.3, 60))
    middle = SIZE // 2
    for x, radius in ((-0.4, 0.12), (0.0, 0.2), (0.4, 0.28)):
        width = (distance[round((x + 1) / STEP), :, middle] < 0).sum() * STEP
        assert width == pytest.approx(2 * radius, abs=1.5 * STEP)


def test_painting_covers_the_inside_whole_and_the_edge_in_part(canvas: Canvas) -> None:
    distance = canvas.ellipsoid((0, 0, 0), (0.4, 0.4, 0.4))
    canvas.paint(distance, 100.0)
    assert (canvas.hu[distance < -STEP] == 100).all()
    assert (canvas.hu[distance > STEP] == 0).all()
    # The partial volumes add up to the sphere's own volume.
    assert canvas.hu.sum() / 100 * STEP**3 == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.01)


def test_a_shape_outside_the_grid_paints_nothing(canvas: Canvas) -> None:
    canvas.paint(canvas.ellipsoid((3, 0, 0), (0.3, 0.3, 0.3)), 100.0)
    assert not canvas.hu.any()


def test_a_centreline_passes_through_its_points() -> None:
    points = np.array([[0.0, 0, 0], [1, 2, 0], [3, 1, 1], [4, 4, 2], [5, 0, 0]])
    np.testing.assert_allclose(centreline(points, 9)[::2], points, atol=1e-12)
    assert centreline(points[:3]).shape == (48, 3)


def test_fields_are_standardised_repeat_and_are_as_smooth_as_asked() -> None:
    def roughness(field: np.ndarray) -> float:
        return float(np.diff(field, axis=0).std())

    rng, shape = np.random.default_rng(0), (30, 20, 10)
    warp, fine, coarse = smooth_field(rng, shape, (5, 4, 3)), grain(rng, shape, 1), grain(rng, shape, 3)
    for field in (warp, fine, coarse):
        assert field.dtype == np.float32
        assert field.flags.c_contiguous
        assert field.std() == pytest.approx(1, abs=1e-3)
    assert roughness(warp) < 0.4
    assert roughness(coarse) < 0.5 * roughness(fine)
    np.testing.assert_array_equal(warp, smooth_field(np.random.default_rng(0), shape, (5, 4, 3)))
