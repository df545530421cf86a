"""Surfaces of masks by either definition, the distances between them, and what the distances come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.grid import Floats, Mask, bounding_box, check_masks, check_spacing
from sam2_3dmed.evaluation.nearest import nearest_mm
from sam2_3dmed.evaluation.surfel import surfels
from sam2_3dmed.evaluation.voxel import border_voxels

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


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The surface elements of a prediction and of the truth, with the distance to the nearest of the other.

    definition: what an element is, and so what a percentile is.
    prediction_to_truth_mm, truth_to_prediction_mm: (n,) and (m,) float64 distances, ascending; infinite where
        the other mask has no surface.
    prediction_weights, truth_weights: (n,) and (m,) float64 of the same elements: areas in mm^2, or 1 for each voxel.
    """

    definition: SurfaceDefinition
    prediction_to_truth_mm: Floats
    prediction_weights: Floats
    truth_to_prediction_mm: Floats
    truth_weights: Floats

    @property
    def is_defined(self) -> bool:
        """Whether both masks have a surface, without which there is no distance."""
        return bool(self.prediction_weights.size and self.truth_weights.size)

    def hausdorff_mm(self, percent: float) -> float:
        """The larger of the two directed percentiles (Eq. 9); NaN if a mask has no surface."""
        if not self.is_defined:
            return float("nan")
        if self.definition == "voxel":
            both = (self.prediction_to_truth_mm, self.truth_to_prediction_mm)
            return max(float(np.percentile(distances_mm, percent)) for distances_mm in both)
        return max(
            _percentile_mm(self.prediction_to_truth_mm, self.prediction_weights, percent),
            _percentile_mm(self.truth_to_prediction_mm, self.truth_weights, percent),
        )

    def average_mm(self) -> float:
        """The mean distance over the elements of both surfaces, by weight; NaN if a mask has no surface."""
        if not self.is_defined:
            return float("nan")
        total = self.prediction_to_truth_mm @ self.prediction_weights + self.truth_to_prediction_mm @ self.truth_weights
        return float(total / self._weight())

    def share_within(self, tolerance_mm: float) -> float:
        """The share of both surfaces within `tolerance_mm`, inclusive; NaN if neither mask has a surface."""
        weight = self._weight()
        if weight == 0:
            return float("nan")
        within = self.prediction_weights[self.prediction_to_truth_mm <= tolerance_mm].sum()
        within += self.truth_weights[self.truth_to_prediction_mm <= tolerance_mm].sum()
        return float(within / weight)

    def _weight(self) -> float:
        return float(self.prediction_weights.sum() + self.truth_weights.sum())


def surface_distances(
    prediction: Mask, truth: Mask, spacing_mm: Sequence[float], definition: SurfaceDefinition = "surfel"
) -> SurfaceDistances:
    """The distances between the surfaces of two masks, in both directions.

    prediction, truth: (X, Y, Z) bool. What lies outside the array is background, so a mask that touches the
        border has a surface there.
    spacing_mm: three voxel sizes in the array's axis order.
    Returns: the elements of both sides; none for an empty mask.
    Raises: VolumeError if a mask is not boolean and 3D, the shapes differ, the spacing is unusable, or there is no
        such definition.
    """
    check_masks(prediction, truth)
    check_definition(definition)
    spacing = check_spacing(spacing_mm)
    box = bounding_box(prediction, truth)
    cropped = [np.ascontiguousarray(mask[box]) for mask in (prediction, truth)]
    if definition == "surfel":
        surfaces, weights = zip(*(surfels(mask, spacing) for mask in cropped), strict=True)
    else:
        surfaces = tuple(border_voxels(mask) for mask in cropped)
        weights = tuple(np.ones(np.count_nonzero(surface)) for surface in surfaces)
    return distances_between(surfaces, weights, spacing, definition)


def distances_between(
    surfaces: Sequence[Mask],
    weights: Sequence[Floats],
    spacing_mm: tuple[float, float, float],
    definition: SurfaceDefinition,
) -> SurfaceDistances:
    """The distances between two sets of elements, given as (X, Y, Z) bool with weights in the array's order."""
    prediction, truth = surfaces
    return SurfaceDistances(
        definition,
        *_sorted(nearest_mm(prediction, truth, spacing_mm), weights[0]),
        *_sorted(nearest_mm(truth, prediction, spacing_mm), weights[1]),
    )


def check_definition(definition: str) -> None:
    """Raise VolumeError, naming those there are, unless there is such a definition of a surface."""
    if definition not in get_args(SurfaceDefinition):
        raise VolumeError(f"there is no surface definition {definition!r}; there are {' and '.join(SURFACES)}")


def _percentile_mm(distances_mm: Floats, areas_mm2: Floats, percent: float) -> float:
    """The smallest distance within which `percent` of the area lies; the distances ascend."""
    if percent == 100:  # sums that round must not leave the last element out
        return float(distances_mm[-1])
    share = np.cumsum(areas_mm2) / areas_mm2.sum()
    return float(distances_mm[min(int(np.searchsorted(share, percent / 100)), distances_mm.size - 1)])


def _sorted(distances_mm: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """By distance, and by weight where distances are equal: sums then round alike however the array lies."""
    order = np.lexsort((weights, distances_mm))
    return distances_mm[order], weights[order]
