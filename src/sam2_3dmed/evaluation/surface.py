"""Distances between the surfaces of two masks, for two definitions of a surface (appendix C, Eq. 9).

`surfel`: a surface element lies on each corner of voxels whose 2 x 2 x 2 neighbourhood holds both mask and background.
Its weight is the area, in mm^2, of the marching-cubes triangles inside the neighbourhood, so that the sampling of the
scan does not change the result. This is the definition of DeepMind's surface-distance (Nikolov et al. 2021, doi
10.2196/26151).

`voxel`: a border voxel shares a face with background or with the outside of the array. Each has the weight 1. This is
the definition of MONAI and of Metrics Reloaded (Maier-Hein et al. 2024, doi 10.1038/s41592-023-02151-z). A finely
sampled direction counts more than a coarse one.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from sam2_3dmed.evaluation.masks import Floats, Mask, bounding_box, check_masks, check_spacing
from sam2_3dmed.evaluation.nearest import nearest_mm

SurfaceDefinition = Literal["surfel", "voxel"]
SURFACES: dict[SurfaceDefinition, str] = {
    "surfel": (
        "surface elements at the corners of voxels, each weighing its marching-cubes area in mm^2 (as surface-distance "
        "and the MSD evaluation do); a percentile is the smallest distance within which that share of the area lies"
    ),
    "voxel": (
        "voxels of the mask that share a face with background, each of weight 1 (as MONAI and Metrics Reloaded do); "
        "a percentile is interpolated linearly between voxels"
    ),
}

# The marching cubes, up to rotation, mirroring and swapping mask with background: the neighbourhood's code,
# and its triangles' area vectors (absolute values along the three axes, in eighths of a voxel's face). Corner
# (x, y, z) of the neighbourhood is the bit 128 >> (4x + 2y + z) of the code.
_BASE_CUBES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((3, 3, 3), (2, 0, 2), (0, 2, 2), (1, 1, 1)),
    0b00011110: ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}
_FULL = 0b11111111


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The surface elements of prediction and truth, each with its distance to the nearest element of the other.

    Attributes:
        prediction_to_truth_mm, truth_to_prediction_mm: (n,) and (m,), ascending; infinite where the other mask has no
            surface.
        prediction_weights, truth_weights: (n,) and (m,), of the same elements: areas in mm^2, or 1 for each voxel.
    """

    definition: SurfaceDefinition
    prediction_to_truth_mm: Floats
    prediction_weights: Floats
    truth_to_prediction_mm: Floats
    truth_weights: Floats

    def hausdorff_mm(self, percent: float) -> float:
        """The larger of the two directed percentiles (Eq. 9); NaN if a mask has no surface."""
        if not self._is_defined:
            return math.nan
        return max(
            self._percentile_mm(self.prediction_to_truth_mm, self.prediction_weights, percent),
            self._percentile_mm(self.truth_to_prediction_mm, self.truth_weights, percent),
        )

    def average_mm(self) -> float:
        """The weighted mean distance over the elements of both surfaces; NaN if a mask has no surface."""
        if not self._is_defined:
            return math.nan
        total = self.prediction_to_truth_mm @ self.prediction_weights + self.truth_to_prediction_mm @ self.truth_weights
        return float(total / self._weight)

    def share_within(self, tolerance_mm: float) -> float:
        """The share of both surfaces within `tolerance_mm`, inclusive; NaN if neither mask has a surface."""
        within = self.prediction_weights[self.prediction_to_truth_mm <= tolerance_mm].sum()
        within += self.truth_weights[self.truth_to_prediction_mm <= tolerance_mm].sum()
        return float(within / self._weight) if self._weight else math.nan

    @property
    def _is_defined(self) -> bool:
        return bool(self.prediction_weights.size and self.truth_weights.size)

    @property
    def _weight(self) -> float:
        return float(self.prediction_weights.sum() + self.truth_weights.sum())

    def _percentile_mm(self, distances_mm: Floats, weights: Floats, percent: float) -> float:
        if self.definition == "voxel":
            return float(np.percentile(distances_mm, percent))
        if percent == 100:  # the rounding of sums must not leave out the last element
            return float(distances_mm[-1])
        share = np.cumsum(weights) / weights.sum()
        return float(distances_mm[min(int(np.searchsorted(share, percent / 100)), distances_mm.size - 1)])


def surface_distances(
    prediction: Mask,
    truth: Mask,
    spacing_mm: Sequence[float],
    definition: SurfaceDefinition = "surfel",
    axes: Iterable[int] = (0, 1, 2),
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two (X, Y, Z) bool masks, in both directions.

    The outside of the array is background, so a mask that touches the border of the array has a surface there.

    axes: only for `voxel`, the axes along which a border voxel has a neighbour in the background.
    """
    check_masks(prediction, truth)
    spacing = check_spacing(spacing_mm)
    box = bounding_box(prediction, truth)
    (predicted, predicted_weights), (true, true_weights) = (
        surfels(mask, spacing) if definition == "surfel" else border_voxels(mask, axes)
        for mask in (np.ascontiguousarray(prediction[box]), np.ascontiguousarray(truth[box]))
    )
    return SurfaceDistances(
        definition,
        *_sorted(nearest_mm(predicted, true, spacing), predicted_weights),
        *_sorted(nearest_mm(true, predicted, spacing), true_weights),
    )


def border_voxels(mask: Mask, axes: Iterable[int] = (0, 1, 2)) -> tuple[Mask, Floats]:
    """The voxels of an (X, Y, Z) mask with a neighbour along `axes` that is background, and (n,) weights of 1."""
    inside = mask.copy()
    for axis in axes:
        kept, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[:1] = kept[-1:] = False
    border = mask & ~inside
    return border, np.ones(np.count_nonzero(border))


def surfels(mask: Mask, spacing_mm: Sequence[float]) -> tuple[Mask, Floats]:
    """The surface elements of an (X, Y, Z) mask, as (X + 1, Y + 1, Z + 1) bool, and their (n,) areas in mm^2."""
    codes = np.pad(mask, 1).view(np.uint8)
    for axis, bits in ((2, 1), (1, 2), (0, 4)):  # neighbours along an axis become one number of twice the bits
        before, after = (np.moveaxis(codes, axis, 0)[side] for side in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis((before << np.uint8(bits)) | after, 0, axis)
    codes = np.ascontiguousarray(codes)
    surface = (codes != 0) & (codes != _FULL)
    return surface, surface_areas_mm2(spacing_mm)[codes[surface]]


def surface_areas_mm2(spacing_mm: Sequence[float]) -> Floats:
    """(256,) area in mm^2 of the surface inside a 2 x 2 x 2 neighbourhood of each code; 0 for the codes 0 and 255."""
    x, y, z = check_spacing(spacing_mm)
    areas: Floats = np.linalg.norm(_area_vectors() * np.array([y * z, x * z, x * y]), axis=-1).sum(axis=-1)
    return areas


@cache
def _area_vectors() -> Floats:
    """(256, 4, 3) area vectors of each code's triangles, in voxel faces; codes with fewer triangles end in zeros."""
    vectors = np.zeros((256, 4, 3))
    for base, triangles in _BASE_CUBES.items():
        corners = np.unpackbits(np.array([base], dtype=np.uint8)).reshape(2, 2, 2)
        for axes in itertools.permutations(range(3)):
            eighths = np.array(triangles)[:, axes]
            for steps in itertools.product((1, -1), repeat=3):
                turned = corners.transpose(axes)[:: steps[0], :: steps[1], :: steps[2]]
                code = int(np.packbits(turned.ravel())[0])
                for same_surface in (code, _FULL - code):
                    vectors[same_surface, : len(triangles)] = eighths / 8
    return vectors


def _sorted(distances_mm: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sort by distance, then by weight: sums round alike however the array is turned."""
    order = np.lexsort((weights, distances_mm))
    return distances_mm[order], weights[order]
