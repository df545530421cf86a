"""A volume as slices, and back: axes permute and flip, nothing is resampled."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.volume import Volume

SlicingAxis = Literal["sagittal", "coronal", "axial"]

WORLD_AXES: dict[SlicingAxis, tuple[int, int, int]] = {"sagittal": (0, 2, 1), "coronal": (1, 2, 0), "axial": (2, 1, 0)}
"""World axes (R = 0, A = 1, S = 2) along D, H and W."""


def volume_to_slices(volume: Volume, axis: SlicingAxis) -> NDArray[Any]:
    """The slices of a volume in canonical RAS order, as a view of its array.

    The array's axes are matched to the closest world axes and flipped where they run against them. An oblique volume
    keeps its own planes. D runs toward R (sagittal), A (coronal) or S (axial); (H, W) run toward (S, A), (S, R) or
    (A, R). The way back is to write into the view of an empty array on the same grid.

    Returns:
        (D, H, W), or (D, C, H, W) if the volume has channels.
    """
    axes, flips = array_axes(volume, axis)
    if volume.array.ndim == 3:
        return volume.array.transpose(axes)[flips]
    return np.moveaxis(volume.array.transpose(*axes, 3)[flips], 3, 1)


def slice_spacing_mm(volume: Volume, axis: SlicingAxis) -> tuple[float, float, float]:
    """Distances in mm between slices, between their rows (along H) and between their columns (along W)."""
    axes, _ = array_axes(volume, axis)
    d, h, w = (volume.spacing_mm[i] for i in axes)
    return d, h, w


def array_axes(volume: Volume, axis: SlicingAxis) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The array axes along D, H and W, and the step, forward or backward, along each."""
    if axis not in WORLD_AXES:
        raise VolumeError(f"there is no slicing axis {axis!r}: choose sagittal, coronal or axial")
    canonical = canonical_axes(volume.affine)
    chosen = [canonical[world] for world in WORLD_AXES[axis]]
    return tuple(i for i, _ in chosen), tuple(slice(None, None, -1 if flipped else 1) for _, flipped in chosen)
