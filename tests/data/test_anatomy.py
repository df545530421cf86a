import numpy as np
import pytest

from sam2_3dmed.data import anatomy
from sam2_3dmed.data.anatomy import Canvas


@pytest.fixture
def canvas() -> Canvas:
    axis, height = np.linspace(-1, 1, 64, dtype=np.float32), np.linspace(-0.7, 0.7, 44, dtype=np.float32)
    x, y, z = (np.ascontiguousarray(field) for field in np.meshgrid(axis, axis, height, indexing="ij"))
    blank = np.zeros_like(x)
    air = blank - 1000
    return Canvas(x=x, y=y, z=z, hu=air, fine_grain=blank, coarse_grain=blank, voxel=1 / 32, half_height=0.7)


def at(canvas: Canvas, x: float, y: float, z: float) -> float:
    """The HU painted at the voxel nearest to a place."""
    distance = (canvas.x - x) ** 2 + (canvas.y - y) ** 2 + (canvas.z - z) ** 2
    return float(canvas.hu.reshape(-1)[distance.argmin()])


@pytest.mark.parametrize("seed", range(3))
def test_organs_lie_on_their_own_side(canvas: Canvas, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cavity = anatomy.paint_trunk(canvas, rng)
    anatomy.paint_upper_organs(canvas, rng, cavity)
    anatomy.paint_spine(canvas, rng)
    assert at(canvas, 0, 0.95, 0) == -1000
    assert 60 < at(canvas, 0.5, 0.1, 0.2) < 125  # liver and its veins, on the right
    assert 95 < at(canvas, -0.5, -0.22, 0.3) < 135  # spleen, on the left
    assert at(canvas, 0.5, -0.1, 0.69) < -700  # lung above the liver
    assert 20 < at(canvas, 0, -0.445, 0) < 40  # canal of the spine
    assert 180 < at(canvas, -0.05, 0.15, 0.69) < 260  # heart
    slab = canvas.hu[:, :, 10]
    assert (slab > 300).any()  # vertebra
    assert slab[:, 32:].max() < 600


def test_the_cavity_lies_within_the_wall_within_the_fat(canvas: Canvas) -> None:
    cavity = anatomy.paint_trunk(canvas, np.random.default_rng(0))
    assert canvas.hu[cavity < -0.05].mean() == pytest.approx(anatomy.FAT + 5, abs=1)
    # On the right, where the fat is thick, and below the ribs.
    side = (canvas.x > 0) & (np.abs(canvas.y) < 0.1) & (canvas.z < -0.5)
    assert np.median(canvas.hu[side & (cavity > 0.03) & (cavity < 0.05)]) > 20
    assert np.median(canvas.hu[side & (cavity > 0.09) & (cavity < 0.12)]) < -70


@pytest.mark.parametrize("seed", range(5))
def test_the_tumour_is_brighter_than_the_pancreas_and_part_of_it(canvas: Canvas, seed: int) -> None:
    organ, tumour = anatomy.paint_pancreas(canvas, np.random.default_rng(seed))
    assert (organ <= tumour).all()
    pancreas = canvas.hu[(organ < -canvas.voxel) & (tumour > canvas.voxel)]
    assert 105 < pancreas.min() <= pancreas.max() < 127
    bright = canvas.hu[(tumour < -canvas.voxel) & (tumour > -0.04)]  # deeper in it some are necrotic
    assert bright.min() > pancreas.max() + 20
    assert at(canvas, 0, 0.9, 0) == -1000
