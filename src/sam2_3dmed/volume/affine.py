"""Affines, (4, 4): from the index of a voxel to its place in the world, in mm, RAS+."""

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

_RIGHT_ANGLE = 1e-3
"""The largest cosine of an angle that counts as a right one: 0.06 degrees."""


def checked_affine(affine: NDArray[Any]) -> NDArray[np.float64]:
    """A read-only copy in float64.

    Raises:
        VolumeError: the affine is not finite, is singular, or has another shape.
    """
    checked = np.array(affine, dtype=np.float64)
    if checked.shape != (4, 4):
        raise VolumeError(f"the affine must be 4 x 4, not of shape {checked.shape}")
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(checked[:3, :3], axis=0)
    if not (np.isfinite(checked).all() and np.isfinite(spacing).all()):
        raise VolumeError("the affine holds NaN or infinite values")
    if not np.allclose(checked[3], (0, 0, 0, 1)):
        raise VolumeError("the affine's last row must be 0 0 0 1")
    if (spacing == 0).any():
        raise VolumeError(f"the affine is singular: the voxel size is {in_mm(spacing)}")
    if abs(np.linalg.det(checked[:3, :3] / spacing)) < 1e-6:
        raise VolumeError("the affine is singular: its axes lie in one plane")
    checked.flags.writeable = False
    return checked


def spacing_mm(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """The distances between neighbouring voxels along the array's axes; their product is a voxel's volume.

    On a sheared grid, such as that of a tilted gantry, two axes at right angles span planes. The distance along the
    third is that between the planes. If two axes could be the third, it is the one with longer steps, or the later one.
    """
    steps = affine[:3, :3]
    spacing = np.linalg.norm(steps, axis=0)
    if is_sheared(affine):
        cosines = np.abs((steps / spacing).T @ (steps / spacing))
        pairs = ((0, 1), (0, 2), (1, 2))
        first, second = min(pairs, key=lambda pair: (round(cosines[pair], 6), -round(spacing[3 - sum(pair)], 6)))
        area = float(np.linalg.norm(np.cross(steps[:, first], steps[:, second])))
        spacing[second] = area / spacing[first]
        spacing[3 - first - second] = abs(np.linalg.det(steps)) / area
    x, y, z = spacing.tolist()
    return x, y, z


def is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether axes of the array are not at right angles; what rounding does to a file's affine does not count."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > _RIGHT_ANGLE)


def canonical_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, bool], ...]:
    """For each of R, A and S the closest array axis, each of them once, and whether it runs against R, A or S."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions)
    # Rounded, so that at 45 degrees the order of the axes decides and not the last bit.
    best = max(
        permutations(range(3)),
        key=lambda axes: round(float(sum(cosines[world, axis] for world, axis in enumerate(axes))), 6),
    )
    return tuple((axis, bool(directions[world, axis] < 0)) for world, axis in enumerate(best))


def largest_distance_mm(shape: tuple[int, ...], a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """How far apart two affines put the same voxel of an array (X, Y, Z), at most."""
    # The difference is affine in the voxel index, so it is largest at a corner.
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape[:3]), [1], indexing="ij"), -1).reshape(-1, 4)
    return float(np.linalg.norm((corners @ (a - b).T)[:, :3], axis=1).max())


def in_mm(spacing_mm: tuple[float, ...] | NDArray[np.float64]) -> str:
    """A voxel size for a message, such as "1 x 1 x 2.5 mm"."""
    return " x ".join(f"{value:.4g}" for value in spacing_mm) + " mm"
