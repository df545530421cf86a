"""Surfaces lie where the masks end, point outward in any orientation, and know their distances."""

import base64

import numpy as np
import pytest

from sam2_3dmed.report.meshes import Mesh, packed, simplified, surface_meshes

MANY = 10**9
AFFINE = np.array([[0.0, 2, 0, 10], [3, 0, 0, -5], [0, 0, 4, 7], [0, 0, 0, 1]])


def box(*where: slice, shape=(20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[where] = True
    return mask


def ball(radius: float, centre=(16, 16, 16), shape=(33, 33, 33)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid - np.array(centre), axis=-1) <= radius


def volume(mesh: Mesh) -> float:
    """By the divergence theorem; positive if the triangles point outward."""
    a, b, c = (mesh.vertices[mesh.triangles[:, i]] for i in range(3))
    return float(np.einsum("ni,ni->n", a, np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, -1, 1, 1]), np.diag([-1.0, 1, 1, 1]), AFFINE])
def test_a_ball_has_its_volume_whichever_way_the_axes_run(affine) -> None:
    mask = ball(10)
    mesh, _ = surface_meshes(mask, mask, affine, MANY)
    expected = mask.sum() * abs(np.linalg.det(affine[:3, :3]))
    assert volume(mesh) == pytest.approx(expected, rel=0.05)


def test_the_surface_is_half_way_between_voxels_in_world_millimetres() -> None:
    mask = box(slice(3, 6), slice(0, 20), slice(8, 9))
    mesh, _ = surface_meshes(mask, mask, AFFINE, MANY)
    # x = 2 j + 10, y = 3 i - 5, z = 4 k + 7, for i 2.5 to 5.5, j -0.5 to 19.5, k 7.5 to 8.5
    assert mesh.vertices.min(axis=0).tolist() == [9.0, 2.5, 37.0]
    assert mesh.vertices.max(axis=0).tolist() == [49.0, 11.5, 41.0]


def test_distances_are_those_to_the_other_surface() -> None:
    first, second = box(slice(5, 10), slice(5, 10), slice(5, 10)), box(slice(5, 10), slice(5, 10), slice(5, 12))
    short, long = surface_meshes(first, second, np.diag([1.0, 1, 2.5, 1]), MANY)
    # The middle of the face at k = 9.5: 2.5 mm from the sides of the longer box, whose vertices are at whole k.
    assert short.distances_mm.max() == pytest.approx(np.hypot(2.5, 1.25))
    assert long.distances_mm.max() == pytest.approx(5)  # two slices of 2.5 mm
    same, _ = surface_meshes(first, first, np.eye(4), MANY)
    assert not same.distances_mm.any()


def test_a_class_that_only_one_has_is_infinitely_far() -> None:
    first, second = surface_meshes(ball(5), np.zeros((33, 33, 33), bool), np.eye(4), 500)
    assert second is None
    assert np.isinf(first.distances_mm).all()
    assert len(first.triangles) <= 500


def test_fewer_triangles_stay_close() -> None:
    mask = ball(14)
    fine, _ = surface_meshes(mask, mask, np.eye(4), MANY)
    coarse = simplified(fine, len(fine.triangles) // 4)
    assert 0 < len(coarse.triangles) <= len(fine.triangles) // 4
    assert volume(coarse) == pytest.approx(volume(fine), rel=0.05)
    radii = np.linalg.norm(coarse.vertices - 16, axis=1)
    assert abs(radii - 14).max() < 1.0
    assert coarse.triangles.max() < len(coarse.vertices)
    assert simplified(fine, MANY) is fine


def test_packed_numbers_come_back() -> None:
    mesh, _ = surface_meshes(ball(6), ball(8), AFFINE, MANY)
    origin = np.array([1.0, 2.0, 3.0])
    content = packed(mesh, origin, limit_mm=4.0)

    def numbers(name: str, kind: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(content[name]), dtype=kind)

    vertices = np.array(content["low_mm"]) + numbers("vertices", "<u2").reshape(-1, 3) * content["step_mm"]
    assert abs(vertices + origin - mesh.vertices).max() < 0.01
    assert (numbers("triangles", "<u4").reshape(-1, 3) == mesh.triangles).all()
    expected = np.minimum(mesh.distances_mm, 4) / 4 * 255
    assert abs(numbers("distances", "u1") - expected).max() <= 0.5
