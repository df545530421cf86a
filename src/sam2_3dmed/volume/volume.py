"""What a scan is: an array of voxels and the affine that places it in the world."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

_DIRECTIONS = (("R", "L"), ("A", "P"), ("S", "I"))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask on its grid.

    array: (X, Y, Z), or (X, Y, Z, C) with C = 2 or 3 channels; bool, integers or floats, never copied.
    affine: (4, 4) float64, voxel index -> mm in RAS+ world space; kept as a read-only copy.
    Raises: VolumeError if the array has another shape or dtype, or the affine is not finite or is singular.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        _check_array(array)
        affine = _checked_affine(self.affine)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z), without the channels."""
        x, y, z = self.array.shape[:3]
        return x, y, z

    @property
    def num_channels(self) -> int:
        """1 for a 3D array, otherwise the length of the last axis."""
        return int(self.array.shape[3]) if self.array.ndim == 4 else 1

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm, in the array's axis order."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def canonical_spacing_mm(self) -> tuple[float, float, float]:
        """Spacing in mm along the array's axes closest to R, A and S, in this order."""
        spacing = self.spacing_mm
        r, a, s = (spacing[axis] for axis, _ in canonical_axes(self.affine))
        return r, a, s

    @property
    def orientation(self) -> str:
        """Where each array axis points, by its closest world axis, such as "RAS" or "LPS"."""
        codes = ["", "", ""]
        for names, (axis, flipped) in zip(_DIRECTIONS, canonical_axes(self.affine), strict=True):
            codes[axis] = names[flipped]
        return "".join(codes)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Another array on the same grid.

        array: (X, Y, Z) or (X, Y, Z, C) with this volume's X, Y, Z.
        Raises: VolumeError if X, Y, Z differ.
        """
        if array.shape[:3] != self.shape:
            raise VolumeError(f"an array of shape {array.shape} does not fit the grid {self.shape}")
        return Volume(array, self.affine)

    @classmethod
    def read(cls, path: str | Path) -> Volume:
        """Read a NIfTI file; see `nifti.read_volume`.

        Raises: VolumeError, in one line that names the file, if it cannot be used.
        """
        from sam2_3dmed.volume.nifti import read_volume

        return read_volume(path)

    def write(self, path: str | Path) -> None:
        """Write a NIfTI file, whole or not at all; see `nifti.write_volume`.

        Raises: VolumeError, in one line that names the file, if it cannot be written.
        """
        from sam2_3dmed.volume.nifti import write_volume

        write_volume(self, path)


def canonical_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, bool], ...]:
    """The array axis closest to each of R, A and S, and whether it runs against it.

    affine: (4, 4), voxel index -> mm; may be oblique.
    Returns: three (array axis, flipped), for R, A and S; every array axis occurs once.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(directions)
    # Rounded, so that at 45 degrees the axes' own order decides and not the last bit.
    best = max(
        permutations(range(3)),
        key=lambda axes: round(float(sum(cosines[world, axis] for world, axis in enumerate(axes))), 6),
    )
    return tuple((axis, bool(directions[world, axis] < 0)) for world, axis in enumerate(best))


def same_grid(a: Volume, b: Volume, tolerance_mm: float = 0.05) -> bool:
    """Whether two volumes have the same X, Y, Z and no voxel lies further apart than `tolerance_mm`."""
    return describe_difference(a, b, tolerance_mm) is None


def describe_difference(a: Volume, b: Volume, tolerance_mm: float = 0.05) -> str | None:
    """How the grids of two volumes differ, in one line; None if they are the same.

    tolerance_mm: how far apart, in world space, the same voxel of both may lie.
    """
    if a.shape != b.shape:
        return f"shapes differ: {a.shape} and {b.shape}"
    # The difference is affine in the voxel index, so it is largest at a corner.
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in a.shape), [1], indexing="ij"), -1).reshape(-1, 4)
    distance = float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())
    if distance <= tolerance_mm:
        return None
    if a.orientation != b.orientation:
        return f"affines differ: orientations {a.orientation} and {b.orientation}"
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3):
        return f"affines differ: spacings {_in_mm(a.spacing_mm)} and {_in_mm(b.spacing_mm)}"
    return f"affines differ: the same voxel lies up to {distance:.3g} mm apart"


def _in_mm(spacing_mm: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.4g}" for value in spacing_mm) + " mm"


def _check_array(array: NDArray[Any]) -> None:
    if array.ndim not in (3, 4):
        raise VolumeError(f"a volume has 3 axes, or 4 with channels, not {array.ndim} (shape {array.shape})")
    if array.ndim == 4 and array.shape[3] not in (2, 3):
        raise VolumeError(f"the fourth axis holds 2 or 3 channels, not {array.shape[3]} (shape {array.shape})")
    if array.size == 0:
        raise VolumeError(f"there are no voxels (shape {array.shape})")
    if array.dtype.kind not in "buif":
        raise VolumeError(f"voxels must be integers or real numbers, not {array.dtype}")


def _checked_affine(affine: NDArray[Any]) -> NDArray[np.float64]:
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
        raise VolumeError(f"the affine is singular: the voxel size is {_in_mm(tuple(spacing.tolist()))}")
    if abs(np.linalg.det(checked[:3, :3] / spacing)) < 1e-6:
        raise VolumeError("the affine is singular: its axes lie in one plane")
    checked.flags.writeable = False
    return checked
