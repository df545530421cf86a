"""Masks on a grid of voxels: what they must be, and the box around them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Box = tuple[slice, slice, slice]


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


def bounding_box(*arrays: NDArray[Any]) -> Box:
    """The smallest box that holds every voxel that is not 0 of arrays of one (X, Y, Z) shape; an empty one if none is.

    arrays: bool or integers.
    """
    ends = np.array([_ends(array) for array in arrays])
    filled = ends[ends[:, 0, 1] > 0]
    if not filled.size:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    starts, stops = filled[..., 0].min(axis=0).tolist(), filled[..., 1].max(axis=0).tolist()
    return slice(starts[0], stops[0]), slice(starts[1], stops[1]), slice(starts[2], stops[2])


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """From corner to corner of all voxels."""
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))


def _ends(array: NDArray[Any]) -> list[tuple[int, int]]:
    """For each axis where the voxels that are not 0 begin and end; (0, 0) if there are none."""
    ends = [(0, 0)] * 3
    box = [slice(None)] * 3
    # The slowest axis first: whole planes are joined at once, in the order in which they lie in memory, and
    # what is left to look at for the other axes is one plane.
    slow, *others = np.argsort([-abs(stride) for stride in array.strides], kind="stable").tolist()
    plane = np.expand_dims(np.bitwise_or.reduce(array, axis=slow) != 0, slow)
    for axis in others:
        filled = np.flatnonzero(plane.any(axis=tuple(other for other in range(3) if other != axis)))
        if not filled.size:
            return ends
        ends[axis] = int(filled[0]), int(filled[-1]) + 1
        box[axis] = slice(*ends[axis])
    filled = np.flatnonzero((array[tuple(box)] != 0).any(axis=tuple(others)))
    ends[slow] = int(filled[0]), int(filled[-1]) + 1
    return ends
