"""The exact distance from each voxel of one set to the nearest voxel of another, by the fastest of three methods.

Compared surfaces mostly lie close together. So the positions around each voxel are looked up first, the closest first.
Most voxels find their neighbour in a few steps. A KD-tree finds the others, or a distance transform if they are many
and far away. A small box goes to the transform at once. All methods give the same number to the last bit.
"""

import itertools
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import Floats, Mask

Indices = NDArray[np.intp]

_SMALL_BOX = 2_000  # voxels
_LOOKED_UP = 512  # positions around a voxel, about
# A tree may have to visit every target, for every voxel; beyond so many visits a transform of the box is faster.
_MAX_VISITS_PER_VOXEL = 60


def nearest_mm(voxels: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
    """(n,) mm from each voxel of one (X, Y, Z) set, in its order, to the nearest target; infinite if there is none."""
    count = int(np.count_nonzero(voxels))
    if count == 0 or not targets.any():
        return np.full(count, np.inf)
    if voxels.size <= _SMALL_BOX:
        return _by_transform(voxels, targets, spacing_mm)
    distances = _by_lookup(voxels, targets, spacing_mm)
    missing = np.flatnonzero(np.isinf(distances))
    if missing.size * np.count_nonzero(targets) > _MAX_VISITS_PER_VOXEL * voxels.size:
        return _by_transform(voxels, targets, spacing_mm)
    if missing.size:
        left = np.stack(np.unravel_index(np.flatnonzero(voxels)[missing], voxels.shape), axis=-1)
        distances[missing] = _by_tree(left, np.argwhere(targets), np.array(spacing_mm))
    return distances


def _by_lookup(voxels: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
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
def _steps(spacing_mm: tuple[float, float, float]) -> tuple[Indices, Floats]:
    """All steps in voxels within a ball of about `_LOOKED_UP` voxels, and their lengths in mm; shortest first."""
    radius_mm = (3 * _LOOKED_UP * math.prod(spacing_mm) / (4 * math.pi)) ** (1 / 3)
    sides = [range(-int(radius_mm // size), int(radius_mm // size) + 1) for size in spacing_mm]
    steps = np.array(list(itertools.product(*sides)))
    lengths_mm = _lengths_mm(steps, np.array(spacing_mm))
    order = np.argsort(lengths_mm, kind="stable")
    order = order[lengths_mm[order] <= radius_mm]
    return steps[order], lengths_mm[order]


def _by_tree(voxels: Indices, targets: Indices, spacing_mm: Floats) -> Floats:
    from scipy.spatial import cKDTree  # here: scipy takes half a second to import

    tree = cKDTree(targets * spacing_mm, balanced_tree=False)
    nearest = np.asarray(tree.query(voxels * spacing_mm)[1])
    return _lengths_mm(targets[nearest] - voxels, spacing_mm)


def _by_transform(voxels: Mask, targets: Mask, spacing_mm: tuple[float, float, float]) -> Floats:
    from scipy.ndimage import distance_transform_edt

    # Its indices take 12 bytes a voxel of the box; the distances of all voxels would take 44.
    nearest = distance_transform_edt(~targets, sampling=spacing_mm, return_distances=False, return_indices=True)
    return _lengths_mm(nearest[:, voxels].T - np.argwhere(voxels), np.array(spacing_mm))


def _lengths_mm(steps: Indices, spacing_mm: Floats) -> Floats:
    """(n, 3) steps in voxels -> (n,) mm. All methods end here: i * s - j * s would round differently."""
    lengths: Floats = np.sqrt(((steps * spacing_mm) ** 2).sum(axis=1))
    return lengths
