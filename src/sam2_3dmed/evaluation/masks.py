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
    box = [slice(None)] * 3
    # The slowest axis comes first: this reads memory in order, and leaves less for the others. `any` is far slower.
    for axis in np.argsort([-abs(stride) for stride in arrays[0].strides], kind="stable").tolist():
        others = tuple(other for other in range(3) if other != axis)
        reduced = [np.bitwise_or.reduce(array[tuple(box)], axis=others) for array in arrays]
        filled = np.flatnonzero(np.any(reduced, axis=0))
        if not filled.size:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        box[axis] = slice(int(filled[0]), int(filled[-1]) + 1)
    return box[0], box[1], box[2]


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The length from corner to corner of the whole grid."""
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))
