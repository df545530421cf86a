"""Surfaces lie where the masks end and point outward; the renderer shows the nearest one, the right way round."""

import base64

import numpy as np
import pytest

from sam2_3dmed.report.surfaces import Mesh, bounds, packed, render, simplified, surface_meshes, view_axes

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


RED, BLUE = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])


def ball_mesh(centre=(0.0, 0.0, 0.0), radius: float = 10) -> Mesh:
    grid = np.stack(np.meshgrid(*[np.arange(25)] * 3, indexing="ij"), axis=-1) - 12
    mask = np.linalg.norm(grid, axis=-1) <= radius
    affine = np.eye(4)
    affine[:3, 3] = np.array(centre) - 12
    mesh, _ = surface_meshes(mask, mask, affine, 10**9)
    return mesh


def middle(pixels, colour) -> tuple[float, float]:
    """Row and column of the middle of what has mostly that colour."""
    where = np.argwhere((pixels * (1 - colour)).max(axis=-1) < 60)
    return tuple(where.mean(axis=0))


def test_a_ball_is_a_filled_disc() -> None:
    picture = render([(ball_mesh(), RED)], 200, np.zeros(3), 20)
    drawn = (picture != 255).any(axis=-1)
    assert drawn.sum() == pytest.approx(np.pi * (10.5 * 5) ** 2, rel=0.04)  # 5 pixels a mm
    assert drawn[100, 100 - 50 : 100 + 50].all()
    assert (picture[100, 100] > picture[100, 145]).any(), "lit from where one looks"


def test_nearer_hides_farther_whatever_the_order() -> None:
    toward = view_axes()[2]
    near, far = (ball_mesh(toward * 15), RED), (ball_mesh(toward * -15), BLUE)
    for meshes in ([near, far], [far, near]):
        picture = render(meshes, 60, np.zeros(3), 20)
        assert picture[30, 30, 0] > 100
        assert picture[30, 30, 2] == 0


@pytest.mark.parametrize(("place", "axis", "sign"), [((0, 0, 1), 0, -1), ((-1, 0, 0), 1, 1)])
def test_the_head_is_up_and_the_patients_left_is_on_the_right(place, axis: int, sign: int) -> None:
    """Rows run down, columns to the right. RAS: +z is the head, -x the patient's left."""
    meshes = [(ball_mesh(), RED), (ball_mesh(np.array(place) * 24.0), BLUE)]
    picture = render(meshes, 100, np.zeros(3), 50)
    moved = np.array(middle(picture, BLUE)) - np.array(middle(picture, RED))
    assert np.abs(moved).argmax() == axis
    assert np.sign(moved[axis]) == sign


def test_every_vertex_has_its_colour() -> None:
    mesh = ball_mesh()
    colours = np.where(mesh.vertices[:, 2:] > 0, RED, BLUE)
    picture = render([(mesh, colours)], 100, np.zeros(3), 12)
    assert middle(picture, RED)[0] < middle(picture, BLUE)[0]


def test_bounds_hold_everything() -> None:
    meshes = [ball_mesh((100, 0, 0)), ball_mesh((0, 0, -60))]
    centre, half_width = bounds(meshes)
    picture = render([(mesh, RED) for mesh in meshes], 120, centre, half_width)
    drawn = (picture != 255).any(axis=-1)
    assert not drawn[[0, -1]].any()
    assert not drawn[:, [0, -1]].any()
    assert max(np.ptp(np.flatnonzero(drawn.any(axis=axis))) for axis in (0, 1)) > 0.8 * 120


def test_nothing_is_white() -> None:
    assert (render([], 10, np.zeros(3), 1) == 255).all()


def test_what_is_seen_from_behind_alone_is_not_there() -> None:
    """A triangle, and the same turned over."""
    right, up, _ = view_axes()
    vertices = np.array([np.zeros(3), right * 5, up * 5])
    pictures = []
    for triangle in ([0, 1, 2], [0, 2, 1]):
        mesh = Mesh(vertices, np.array([triangle]), np.zeros(3))
        pictures.append(render([(mesh, RED)], 200, np.zeros(3), 10))
    assert (pictures[0] != 255).any(axis=-1).sum() == pytest.approx(1250, rel=0.08)  # 10 pixels a mm
    assert (pictures[1] == 255).all()
