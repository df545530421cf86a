"""Masks on a grid of voxels: checks, and the box around the foreground."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.affine import is_sheared
from sam2_3dmed.volume.volume import Volume

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Box = tuple[slice, slice, slice]
Three = tuple[float, float, float]
Spacing = Three | tuple[Three, Three, Three]
"""Three voxel sizes in mm; for a sheared grid the rows of the matrix from steps in voxels to mm."""


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


def check_spacing(spacing_mm: Sequence[float] | Sequence[Sequence[float]] | Floats) -> Spacing:
    """Return three voxel sizes in mm, or the (3, 3) upper left of the affine of a sheared grid, as tuples.

    Raises:
        VolumeError: the sizes are not positive and finite, or the matrix is singular.
    """
    values = np.asarray(spacing_mm, dtype=np.float64)
    if values.shape == (3, 3):
        if not np.isfinite(values).all() or np.linalg.det(values) == 0:
            raise VolumeError(f"the steps of the grid must not lie in one plane: {values.tolist()}")
        return tuple(tuple(row) for row in values.tolist())  # type: ignore[return-value]
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise VolumeError(f"spacing_mm must be three positive numbers, not {tuple(values.ravel().tolist())}")
    x, y, z = values.tolist()
    return x, y, z


def grid_spacing(volume: Volume) -> Spacing:
    """The spacing of a volume's grid, as `check_spacing` returns it."""
    return check_spacing(volume.affine[:3, :3] if is_sheared(volume.affine) else volume.spacing_mm)


def voxel_mm3(spacing_mm: Spacing) -> float:
    """The volume of a voxel."""
    values = np.array(spacing_mm)
    return math.prod(values.tolist()) if values.ndim == 1 else abs(float(np.linalg.det(values)))


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


def diagonal_mm(shape: Sequence[int], spacing_mm: Spacing, axes: Sequence[int] = (0, 1, 2)) -> float:
    """The largest length from corner to corner of the whole grid, or of its part along some axes."""
    sizes = np.array([size if axis in axes else 0 for axis, size in enumerate(shape)])
    values = np.array(spacing_mm)
    if values.ndim == 1:
        return math.hypot(*(sizes * values).tolist())
    signs = np.array([(1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1)])
    return float(np.linalg.norm((signs * sizes) @ values.T, axis=1).max())
