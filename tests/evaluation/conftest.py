"""DeepMind's surface-distance as the oracle; it cannot take empty masks."""

import warnings

import numpy as np
import pytest
import surface_distance


class SurfaceDistance:
    """The oracle's answers for a prediction and a truth, neither of them empty."""

    def __init__(self, prediction, truth, spacing_mm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses names that scipy and numpy are about to drop
            self.distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)

    def hd95(self):
        return surface_distance.compute_robust_hausdorff(self.distances, 95)

    def nsd(self, tolerance_mm):
        return surface_distance.compute_surface_dice_at_tolerance(self.distances, tolerance_mm)


@pytest.fixture(scope="session")
def oracle():
    return SurfaceDistance


@pytest.fixture(scope="session")
def sphere():
    """A function that draws a sphere on a grid of 5 x 0.8 x 0.8 mm whose centre is a corner of voxels."""
    spacing_mm = (5.0, 0.8, 0.8)

    def draw(radius_mm, centre_mm=(0.0, 0.0, 0.0)):
        axes = [
            (np.arange(-round(50 / size), round(50 / size) + 1) + 0.5) * size - centre
            for size, centre in zip(spacing_mm, centre_mm, strict=True)
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        return x**2 + y**2 + z**2 <= radius_mm**2

    return draw
