import itertools

import numpy as np
import pytest
from surface_distance import lookup_tables

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.surfel import surface_areas_mm2, surfels

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
