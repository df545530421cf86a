"""Masks on a grid of voxels: checks, and the box around the foreground."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Box = tuple[slice, slice, slice]


def check_masks(prediction: NDArray[Any], truth: NDArray[Any], kinds: str = "b", what: str = "boolean mask") -> None:
    """Raise VolumeError unless both arrays are 3D, of one shape, and of numpy's `kinds` of data types."""
    for name, array in (("prediction", prediction), ("truth", truth)):
        if array.ndim != 3 or array.dtype.kind not in kinds:
            raise VolumeError(f"the {name} must be a 3D {what}, not {array.ndim}D of type {array.dtype}")
    if prediction.shape != truth.shape:
        raise VolumeError(f"the prediction's shape {prediction.shape} is not the truth's, {truth.shape}")


def check_label_maps(prediction: NDArray[Any], truth: NDArray[Any], labels: Mapping[int, str]) -> None:
    """Raise VolumeError unless both are 3D maps of integers of one shape, and `labels` names foreground only."""
    check_masks(prediction, truth, "iub", "map of integers")
    if not labels or min(labels) < 1:
        raise VolumeError(f"labels must name one or more classes of value 1 or more, not {dict(labels)}")


def check_spacing(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """Return three voxel sizes in mm; raise VolumeError unless they are positive and finite."""
    values = np.asarray(spacing_mm, dtype=np.float64)
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise VolumeError(f"spacing_mm must be three positive numbers, not {tuple(values.ravel().tolist())}")
    x, y, z = values.tolist()
    return x, y, z


def class_masks(maps: tuple[NDArray[Any], NDArray[Any]], *values: int) -> tuple[Mask, Mask]:
    """Where each of two label maps holds one of the values, as bool in C order."""
    prediction, truth = (
        np.ascontiguousarray(array == values[0] if len(values) == 1 else np.isin(array, values)) for array in maps
    )
    return prediction, truth


def bounding_box(*arrays: NDArray[Any]) -> Box:
    """The smallest box around all voxels that are not 0, of bool or integer arrays of one (X, Y, Z) shape.

    The box is empty if all voxels are 0.
    """
    extents = np.array([_extents(array) for array in arrays])
    filled = extents[extents[:, 0, 1] > 0]
    if not filled.size:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    starts, stops = filled[..., 0].min(axis=0).tolist(), filled[..., 1].max(axis=0).tolist()
    return slice(starts[0], stops[0]), slice(starts[1], stops[1]), slice(starts[2], stops[2])


def _extents(array: NDArray[Any]) -> list[tuple[int, int]]:
    """Start and stop of the voxels that are not 0 along each axis; (0, 0) if there are none.

    The axis with the largest stride is reduced first. This reads memory in order and leaves one plane for the others.
    """
    extents = [(0, 0)] * 3
    box = [slice(None)] * 3
    slow, *others = np.argsort([-abs(stride) for stride in array.strides], kind="stable").tolist()
    plane = np.expand_dims(np.bitwise_or.reduce(array, axis=slow) != 0, slow)
    for axis in others:
        filled = np.flatnonzero(plane.any(axis=tuple(other for other in range(3) if other != axis)))
        if not filled.size:
            return extents
        extents[axis] = int(filled[0]), int(filled[-1]) + 1
        box[axis] = slice(*extents[axis])
    filled = np.flatnonzero((array[tuple(box)] != 0).any(axis=tuple(others)))
    extents[slow] = int(filled[0]), int(filled[-1]) + 1
    return extents


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The length from corner to corner of the whole grid."""
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))
