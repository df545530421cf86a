"""The distance from every voxel of one set to the nearest voxel of another, exactly, by whichever way is faster.

Surfaces that are compared mostly lie close together. So the places around each voxel are looked up first, the closest
place first: most voxels find their partner in a few steps. What is left goes to a KD-tree, and to a distance transform
if it is much and far away. A small box goes to the transform at once.
"""

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.grid import Floats, Mask

Indices = NDArray[np.intp]

_SMALL_BOX = 2_000  # voxels
_LOOKED_UP = 512  # places around a voxel, about
# A tree may have to visit every target, for every voxel; beyond so many visits a transform of the box is better.
_MAX_VISITS_PER_VOXEL = 60


def nearest_mm(places: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
    """(n,) float64: from the voxels of `places`, in the array's order, to the nearest of `targets`, in mm.

    places, targets: bool of one (X, Y, Z) shape. Infinite where there are no targets.
    """
    num_places = int(np.count_nonzero(places))
    if num_places == 0 or not targets.any():
        return np.full(num_places, np.inf)
    if places.size <= _SMALL_BOX:
        return _by_transform(places, targets, spacing_mm)
    distances = _by_looking_up(places, targets, spacing_mm)
    missing = np.flatnonzero(np.isinf(distances))
    if not missing.size:
        return distances
    if missing.size * np.count_nonzero(targets) > _MAX_VISITS_PER_VOXEL * places.size:
        return _by_transform(places, targets, spacing_mm)
    elements = np.stack(np.unravel_index(np.flatnonzero(places)[missing], places.shape), axis=-1)
    distances[missing] = _by_tree(elements, np.argwhere(targets), np.array(spacing_mm))
    return distances


def _by_looking_up(places: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
    """As `nearest_mm`, but infinite beyond the places that are looked up."""
    steps, lengths_mm = _steps(spacing_mm)
    possible = (np.abs(steps) < places.shape).all(axis=1)
    steps, lengths_mm = steps[possible], lengths_mm[possible]
    reach = np.abs(steps).max(axis=0)
    margin = [(int(n), int(n)) for n in reach]
    padded = np.pad(targets, margin)
    flat = padded.ravel()
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    around = np.flatnonzero(np.pad(places, margin))
    distances = np.full(around.size, np.inf)
    waiting = np.arange(around.size)
    for step, length_mm in zip((steps @ strides).tolist(), lengths_mm.tolist(), strict=True):
        hit = flat.take(around + step)
        if hit.any():
            distances[waiting[hit]] = length_mm
            np.logical_not(hit, out=hit)
            around, waiting = around[hit], waiting[hit]
            if not waiting.size:
                break
    return distances


@lru_cache(maxsize=64)
def _steps(spacing_mm: tuple[float, float, float]) -> tuple[Indices, Floats]:
    """Every step in voxels within a ball of about `_LOOKED_UP` voxels, and its length in mm; shortest first."""
    radius_mm = (3 * _LOOKED_UP * math.prod(spacing_mm) / (4 * math.pi)) ** (1 / 3)
    sides = [range(-int(radius_mm // size), int(radius_mm // size) + 1) for size in spacing_mm]
    steps = np.array(list(itertools.product(*sides)))
    lengths_mm = _lengths_mm(steps, np.array(spacing_mm))
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= radius_mm]
    return steps[order], lengths_mm[order]


def _by_tree(elements: Indices, targets: Indices, spacing_mm: Floats) -> Floats:
    from scipy.spatial import cKDTree  # here: scipy takes half a second to import

    tree = cKDTree(targets * spacing_mm, balanced_tree=False)
    nearest = np.asarray(tree.query(elements * spacing_mm)[1])
    return _lengths_mm(targets[nearest] - elements, spacing_mm)


def _by_transform(places: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
    from scipy.ndimage import distance_transform_edt

    # Its indices take 12 bytes a voxel of the box; the distances of all voxels would take 44.
    nearest = distance_transform_edt(~targets, sampling=spacing_mm, return_distances=False, return_indices=True)
    return _lengths_mm(nearest[:, places].T - np.argwhere(places), np.array(spacing_mm))


def _lengths_mm(steps: Indices, spacing_mm: Floats) -> Floats:
    """(n, 3) steps in voxels -> (n,) mm. Every way ends here: i * s - j * s would round differently."""
    lengths: Floats = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    return lengths
