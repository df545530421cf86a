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
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import Floats, Mask, Spacing, bounding_box, check_masks, check_spacing, voxel_mm3

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

Indices = NDArray[np.intp]

_SMALL_BOX = 2_000  # voxels
_LOOKED_UP = 512  # positions around a voxel, about
# A tree may have to visit every target, for every voxel; beyond so many visits a transform of the box is faster.
_MAX_VISITS_PER_VOXEL = 60

# The marching cubes, up to rotation, mirroring and swapping mask with background: the neighbourhood's code,
# and its triangles' area vectors along the three axes, in eighths of a voxel's face. Corner (x, y, z) of the
# neighbourhood is the bit 128 >> (4x + 2y + z) of the code.
_BASE_CUBES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, -1, 1), (1, 1, -1)),
    0b00000111: ((4, 0, 0), (2, 2, 2), (1, 1, 1)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, -1), (1, -1, 1), (-1, 1, 1)),
    0b00010111: ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00011000: ((-1, 1, 1), (-1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (-1, 1, 1)),
    0b00011011: ((3, 3, 3), (2, 0, -2), (0, 2, -2), (1, 1, 1)),
    0b00011110: ((4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    0b00111100: ((2, -2, 0), (2, -2, 0), (2, -2, 0), (2, -2, 0)),
    0b01101001: ((-1, 1, 1), (1, -1, 1), (1, 1, -1), (1, 1, 1)),
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
    spacing_mm: Sequence[float] | Sequence[Sequence[float]],
    definition: SurfaceDefinition = "surfel",
    axes: Iterable[int] = (0, 1, 2),
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two (X, Y, Z) bool masks, in both directions.

    The outside of the array is background, so a mask that touches the border of the array has a surface there.

    spacing_mm: three voxel sizes, or the (3, 3) upper left of the affine of a sheared grid.
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


def surfels(mask: Mask, spacing_mm: Spacing) -> tuple[Mask, Floats]:
    """The surface elements of an (X, Y, Z) mask, as (X + 1, Y + 1, Z + 1) bool, and their (n,) areas in mm^2."""
    codes = np.pad(mask, 1).view(np.uint8)
    for axis, bits in ((2, 1), (1, 2), (0, 4)):  # neighbours along an axis become one number of twice the bits
        before, after = (np.moveaxis(codes, axis, 0)[side] for side in (slice(None, -1), slice(1, None)))
        codes = np.moveaxis((before << np.uint8(bits)) | after, 0, axis)
    codes = np.ascontiguousarray(codes)
    surface = (codes != 0) & (codes != _FULL)
    return surface, surface_areas_mm2(spacing_mm)[codes[surface]]


def surface_areas_mm2(spacing_mm: Sequence[float] | Spacing) -> Floats:
    """(256,) area in mm^2 of the surface inside a 2 x 2 x 2 neighbourhood of each code; 0 for the codes 0 and 255."""
    values = np.array(check_spacing(spacing_mm))
    if values.ndim == 1:
        x, y, z = values
        vectors = _area_vectors() * np.array([y * z, x * z, x * y])
    else:  # the cofactors of the matrix take area vectors from voxels to mm
        vectors = _area_vectors() @ np.linalg.inv(values) * np.linalg.det(values)
    areas: Floats = np.linalg.norm(vectors, axis=-1).sum(axis=-1)
    return areas


@cache
def _area_vectors() -> Floats:
    """(256, 4, 3) area vectors of each code's triangles, in voxel faces; codes with fewer triangles end in zeros."""
    vectors = np.zeros((256, 4, 3))
    for base, triangles in _BASE_CUBES.items():
        corners = np.unpackbits(np.array([base], dtype=np.uint8)).reshape(2, 2, 2)
        for axes in itertools.permutations(range(3)):
            for steps in itertools.product((1, -1), repeat=3):
                eighths = np.array(triangles)[:, axes] * steps
                turned = corners.transpose(axes)[:: steps[0], :: steps[1], :: steps[2]]
                code = int(np.packbits(turned.ravel())[0])
                for same_surface in (code, _FULL - code):
                    vectors[same_surface, : len(triangles)] = eighths / 8
    return vectors


def _sorted(distances_mm: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Sort by distance, then by weight: sums round alike however the array is turned."""
    order = np.lexsort((weights, distances_mm))
    return distances_mm[order], weights[order]


def nearest_mm(voxels: Mask, targets: Mask, spacing_mm: Spacing) -> Floats:
    """(n,) mm from each voxel of one (X, Y, Z) set, in its order, to the nearest target; infinite if there is none.

    Compared surfaces mostly lie close together. So the positions around each voxel are looked up first, the closest
    first. A KD-tree finds the others, or a distance transform if they are many and far away. A small box goes to the
    transform at once. All three methods give the same number to the last bit. A sheared grid has no transform.
    """
    count = int(np.count_nonzero(voxels))
    if count == 0 or not targets.any():
        return np.full(count, np.inf)
    has_transform = np.ndim(spacing_mm) == 1
    if voxels.size <= _SMALL_BOX and has_transform:
        return _by_transform(voxels, targets, spacing_mm)
    distances = _by_lookup(voxels, targets, spacing_mm)
    missing = np.flatnonzero(np.isinf(distances))
    if has_transform and missing.size * np.count_nonzero(targets) > _MAX_VISITS_PER_VOXEL * voxels.size:
        return _by_transform(voxels, targets, spacing_mm)
    if missing.size:
        left = np.stack(np.unravel_index(np.flatnonzero(voxels)[missing], voxels.shape), axis=-1)
        distances[missing] = _by_tree(left, np.argwhere(targets), np.array(spacing_mm))
    return distances


def _by_lookup(voxels: Mask, targets: Mask, spacing_mm: Spacing) -> Floats:
    """As `nearest_mm`, but infinite beyond the positions that are looked up."""
    steps, lengths_mm = _steps(spacing_mm)
    possible = (np.abs(steps) < voxels.shape).all(axis=1)
    steps, lengths_mm = steps[possible], lengths_mm[possible]
    margin = [(reach, reach) for reach in np.abs(steps).max(axis=0).tolist()]
    padded = np.pad(targets, margin)
    flat = padded.ravel()
    around = np.flatnonzero(np.pad(voxels, margin))
    distances = np.full(around.size, np.inf)
    waiting = np.arange(around.size)
    offsets = steps @ (padded.shape[1] * padded.shape[2], padded.shape[2], 1)
    for offset, length_mm in zip(offsets.tolist(), lengths_mm.tolist(), strict=True):
        hit = flat.take(around + offset)
        if hit.any():
            distances[waiting[hit]] = length_mm
            np.logical_not(hit, out=hit)
            around, waiting = around[hit], waiting[hit]
            if not waiting.size:
                break
    return distances


@lru_cache(maxsize=64)
def _steps(spacing_mm: Spacing) -> tuple[Indices, Floats]:
    """All steps in voxels within a ball of about `_LOOKED_UP` voxels, and their lengths in mm; shortest first."""
    radius_mm = (3 * _LOOKED_UP * voxel_mm3(spacing_mm) / (4 * math.pi)) ** (1 / 3)
    values = np.array(spacing_mm)
    planes_mm = values if values.ndim == 1 else 1 / np.linalg.norm(np.linalg.inv(values), axis=1)
    sides = [range(-int(radius_mm // size), int(radius_mm // size) + 1) for size in planes_mm.tolist()]
    steps = np.array(list(itertools.product(*sides)))
    lengths_mm = _lengths_mm(steps, values)
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= radius_mm]
    return steps[order], lengths_mm[order]


def _by_tree(voxels: Indices, targets: Indices, spacing_mm: Floats) -> Floats:
    from scipy.spatial import cKDTree  # here: scipy takes half a second to import

    tree = cKDTree(_places_mm(targets, spacing_mm), balanced_tree=False)
    nearest = np.asarray(tree.query(_places_mm(voxels, spacing_mm))[1])
    return _lengths_mm(targets[nearest] - voxels, spacing_mm)


def _by_transform(voxels: Mask, targets: Mask, spacing_mm: Spacing) -> Floats:
    from scipy.ndimage import distance_transform_edt

    # Its indices take 12 bytes a voxel of the box; the distances of all voxels would take 44.
    nearest = distance_transform_edt(~targets, sampling=spacing_mm, return_distances=False, return_indices=True)
    return _lengths_mm(nearest[:, voxels].T - np.argwhere(voxels), np.array(spacing_mm))


def _lengths_mm(steps: Indices, spacing_mm: Floats) -> Floats:
    """(n, 3) steps in voxels -> (n,) mm. All methods end here: i * s - j * s would round differently."""
    lengths: Floats = np.sqrt((_places_mm(steps, spacing_mm) ** 2).sum(axis=1))
    return lengths


def _places_mm(indices: Indices, spacing_mm: Floats) -> Floats:
    """(n, 3) voxels -> (n, 3) mm."""
    places: Floats = indices * spacing_mm if spacing_mm.ndim == 1 else indices @ spacing_mm.T
    return places
