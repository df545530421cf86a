"""The renderer shows what is nearer, in its place, the right way round."""

import numpy as np
import pytest

from sam2_3dmed.report.meshes import Mesh, surface_meshes
from sam2_3dmed.report.render import bounds, render, view_axes

RED, BLUE = np.array([1.0, 0, 0]), np.array([0, 0, 1.0])


def ball(centre=(0.0, 0.0, 0.0), radius: float = 10) -> Mesh:
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
    picture = render([(ball(), RED)], 200, np.zeros(3), 20)
    drawn = (picture != 255).any(axis=-1)
    assert drawn.sum() == pytest.approx(np.pi * (10.5 * 5) ** 2, rel=0.04)  # 5 pixels a mm
    assert drawn[100, 100 - 50 : 100 + 50].all()
    assert (picture[100, 100] > picture[100, 145]).any(), "lit from where one looks"


def test_nearer_hides_farther_whatever_the_order() -> None:
    toward = view_axes()[2]
    near, far = (ball(toward * 15), RED), (ball(toward * -15), BLUE)
    for meshes in ([near, far], [far, near]):
        picture = render(meshes, 60, np.zeros(3), 20)
        assert picture[30, 30, 0] > 100
        assert picture[30, 30, 2] == 0


@pytest.mark.parametrize(("place", "axis", "sign"), [((0, 0, 1), 0, -1), ((-1, 0, 0), 1, 1)])
def test_the_head_is_up_and_the_patients_left_is_on_the_right(place, axis: int, sign: int) -> None:
    """Rows run down, columns to the right. RAS: +z is the head, -x the patient's left."""
    meshes = [(ball(), RED), (ball(np.array(place) * 24.0), BLUE)]
    picture = render(meshes, 100, np.zeros(3), 50)
    moved = np.array(middle(picture, BLUE)) - np.array(middle(picture, RED))
    assert np.abs(moved).argmax() == axis
    assert np.sign(moved[axis]) == sign


def test_every_vertex_has_its_colour() -> None:
    mesh = ball()
    colours = np.where(mesh.vertices[:, 2:] > 0, RED, BLUE)
    picture = render([(mesh, colours)], 100, np.zeros(3), 12)
    assert middle(picture, RED)[0] < middle(picture, BLUE)[0]


def test_bounds_hold_everything() -> None:
    meshes = [ball((100, 0, 0)), ball((0, 0, -60))]
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
