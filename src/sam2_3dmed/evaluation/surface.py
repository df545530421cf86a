"""Surfaces of masks, and the distances between them.

A surface element ("surfel") sits wherever a 2 x 2 x 2 neighbourhood of voxels holds both mask and background,
and weighs the area, in mm^2, of the marching-cubes triangles inside that neighbourhood. Elements therefore
count by the surface they stand for and not by how finely a scanner sampled it. This is the definition of
DeepMind's surface-distance (Nikolov et al. 2021, doi 10.2196/26151).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from sam2_3dmed.errors import VolumeError

SURFACE_DEFINITION = "surfel"

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

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

# A distance transform costs the same for every voxel of the box around both surfaces. A tree costs next to
# nothing for what lies close by, and up to a visit to every target for what lies far away.
_MIN_TREE_VOXELS = 200_000
_MIN_VOXELS_PER_ELEMENT = 20
_NEAR_VOXELS = 5  # along the coarsest axis
_MAX_VISITS_PER_VOXEL = 20


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """The surface elements of a prediction and of the truth, with the distance to the nearest of the other.

    prediction_to_truth_mm, truth_to_prediction_mm: (n,) and (m,) float64 distances, ascending; infinite where
        the other mask has no surface.
    prediction_areas_mm2, truth_areas_mm2: (n,) and (m,) float64, the areas of the same elements.
    """

    prediction_to_truth_mm: Floats
    prediction_areas_mm2: Floats
    truth_to_prediction_mm: Floats
    truth_areas_mm2: Floats


def surface_areas_mm2(spacing_mm: Sequence[float]) -> Floats:
    """The area of the surface inside a neighbourhood of 2 x 2 x 2 voxels, for each of its 256 codes.

    spacing_mm: three voxel sizes in the array's axis order.
    Returns: (256,) float64 in mm^2; 0 for the codes 0 and 255, which hold no surface.
    Raises: VolumeError if spacing_mm is not three positive finite numbers.
    """
    x, y, z = check_spacing(spacing_mm)
    areas: Floats = np.linalg.norm(_area_vectors() * np.array([y * z, x * z, x * y]), axis=-1).sum(axis=-1)
    return areas


def surface_distances(prediction: Mask, truth: Mask, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """The distances between the surfaces of two masks, in both directions.

    prediction, truth: (X, Y, Z) bool. What lies outside the array is background, so a mask that touches the
        border has a surface there.
    spacing_mm: three voxel sizes in the array's axis order.
    Returns: the elements of both sides; none for an empty mask.
    Raises: VolumeError if a mask is not boolean and 3D, the shapes differ, or the spacing is unusable.
    """
    check_masks(prediction, truth)
    spacing = np.array(check_spacing(spacing_mm))
    box = bounding_box(prediction | truth)
    areas_mm2 = surface_areas_mm2(spacing_mm)
    prediction_codes = _neighbour_codes(prediction[box])
    truth_codes = _neighbour_codes(truth[box])
    prediction_surface = (prediction_codes != 0) & (prediction_codes != _FULL)
    truth_surface = (truth_codes != 0) & (truth_codes != _FULL)
    to_truth = _distances_mm(prediction_surface, truth_surface, spacing)
    to_prediction = _distances_mm(truth_surface, prediction_surface, spacing)
    return SurfaceDistances(
        *_sorted(to_truth, areas_mm2[prediction_codes[prediction_surface]]),
        *_sorted(to_prediction, areas_mm2[truth_codes[truth_surface]]),
    )


def check_masks(prediction: Mask, truth: Mask) -> None:
    """Raise VolumeError unless both masks are boolean, 3D and of one shape."""
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise VolumeError(f"the {name} must be a 3D boolean mask, not {mask.ndim}D of type {mask.dtype}")
    if prediction.shape != truth.shape:
        raise VolumeError(f"the prediction's shape {prediction.shape} is not the truth's, {truth.shape}")


def check_spacing(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Three voxel sizes in mm, or VolumeError unless they are positive and finite."""
    values = np.asarray(spacing_mm, dtype=np.float64)
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise VolumeError(f"spacing_mm must be three positive numbers, not {tuple(values.ravel().tolist())}")
    x, y, z = values.tolist()
    return x, y, z


def bounding_box(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box around an (X, Y, Z) bool mask; an empty one for an empty mask."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0))
    return box[0], box[1], box[2]


@cache
def _area_vectors() -> Floats:
    """(256, 4, 3): the area vectors of each code's triangles, in voxel faces; zeros after the last one."""
    vectors = np.zeros((256, 4, 3))
    for base, triangles in _BASE_CUBES.items():
        corners = np.array([base >> (7 - bit) & 1 for bit in range(8)], dtype=np.uint8).reshape(2, 2, 2)
        for axes in itertools.permutations(range(3)):
            eighths = np.array(triangles)[:, axes]
            for steps in itertools.product((1, -1), repeat=3):
                turned = corners.transpose(axes)[:: steps[0], :: steps[1], :: steps[2]]
                code = int(np.packbits(turned.ravel())[0])
                for same_surface in (code, _FULL - code):
                    vectors[same_surface, : len(triangles)] = eighths / 8
    return vectors


def _neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """(X, Y, Z) bool -> (X + 1, Y + 1, Z + 1) uint8: the code of the voxels around each corner of a voxel."""
    padded = np.pad(mask, 1).view(np.uint8)
    x, y, z = mask.shape
    codes = np.zeros((x + 1, y + 1, z + 1), dtype=np.uint8)
    for bit, (i, j, k) in enumerate(itertools.product((0, 1), repeat=3)):
        codes |= padded[i : i + x + 1, j : j + y + 1, k : k + z + 1] << np.uint8(7 - bit)
    return codes


def _distances_mm(surface: Mask, other: Mask, spacing: Floats) -> Floats:
    """(n,) distances from the elements of `surface`, in array order, to the nearest of `other`."""
    num_elements, num_targets = int(np.count_nonzero(surface)), int(np.count_nonzero(other))
    distances = np.full(num_elements, np.inf)
    if num_elements == 0 or num_targets == 0:
        return distances
    if surface.size >= max(_MIN_TREE_VOXELS, _MIN_VOXELS_PER_ELEMENT * (num_elements + num_targets)):
        distances = _tree_distances_mm(surface, other, spacing)
    if np.isinf(distances).any():
        distances = distance_transform_edt(~other, sampling=spacing)[surface]
    return distances


def _tree_distances_mm(surface: Mask, other: Mask, spacing: Floats) -> Floats:
    """As `_distances_mm`, but infinite for elements far from `other` if they are many."""
    elements, targets = np.argwhere(surface), np.argwhere(other)
    tree = cKDTree(targets * spacing)
    distances = np.full(len(elements), np.inf)
    for reach_mm in (_NEAR_VOXELS * spacing.max(), np.inf):
        missing = np.flatnonzero(np.isinf(distances))
        if np.isinf(reach_mm) and missing.size * len(targets) > _MAX_VISITS_PER_VOXEL * surface.size:
            break
        nearest = np.asarray(tree.query(elements[missing] * spacing, distance_upper_bound=reach_mm)[1])
        found = nearest < len(targets)
        # From the offset in voxels, as the transform does it: i * s - j * s would round differently.
        offsets = (targets[nearest[found]] - elements[missing[found]]) * spacing
        distances[missing[found]] = np.sqrt((offsets**2).sum(axis=1))
    return distances


def _sorted(distances_mm: Floats, areas_mm2: Floats) -> tuple[Floats, Floats]:
    """By distance, and by area where distances are equal: sums then round alike however the array lies."""
    order = np.lexsort((areas_mm2, distances_mm))
    return distances_mm[order], areas_mm2[order]
