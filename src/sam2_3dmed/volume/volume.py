"""`Volume`: a scan or a mask, as an array of voxels and the affine that places it in the world."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.affine import canonical_axes, checked_affine, in_mm, largest_distance_mm, spacing_mm
from sam2_3dmed.volume.itk_files import ENDINGS, read_itk, write_itk
from sam2_3dmed.volume.nifti import read_nifti, require_finite, write_nifti
from sam2_3dmed.volume.placement import Placement

MOST_APART = 0.25
"""The largest distance, in voxels, between the same voxel of two files on one grid. Files round their affines."""

_DIRECTIONS = (("R", "L"), ("A", "P"), ("S", "I"))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask on its grid.

    Args:
        array: (X, Y, Z), or (X, Y, Z, C) with C = 2 or 3 channels. Bool, integers or floats; not copied.
        affine: (4, 4), voxel index -> mm in RAS+ world space. Kept as a read-only copy in float64.
        placement: of the NIfTI file that the affine was read from; `write` keeps it.

    Raises:
        VolumeError: the array has another shape or dtype, or the affine is not finite or is singular.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    placement: Placement | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim not in (3, 4):
            raise VolumeError(f"a volume has 3 axes, or 4 with channels, not {array.ndim} (shape {array.shape})")
        if array.ndim == 4 and array.shape[3] not in (2, 3):
            raise VolumeError(f"the fourth axis holds 2 or 3 channels, not {array.shape[3]} (shape {array.shape})")
        if array.size == 0:
            raise VolumeError(f"there are no voxels (shape {array.shape})")
        if array.dtype.kind not in "buif":
            raise VolumeError(f"voxels must be integers or real numbers, not {array.dtype}")
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", checked_affine(self.affine))

    @classmethod
    def read(cls, path: str | Path | BinaryIO) -> Volume:
        """Read an image from NIfTI-1 or -2: `.nii`, `.nii.gz`, a `.hdr` / `.img` pair, or an open binary file.

        With the extra `itk`, SimpleITK reads `.nrrd`, `.nhdr`, `.mha` and `.mhd`, too. What follows is about NIfTI. The
        content decides whether a file is gzipped, not its name. Voxels keep the file's dtype unless the header
        scales them. Then integers stay integers where slope and intercept are: in the file's dtype if it holds them,
        else in the smallest of up to 4 bytes that does. All others become float32, or float64 from 4-byte integers
        up. The voxels of a file that is not gzipped are a memory map if nothing has to change. A 2D image becomes
        (X, Y, 1). Axes of length 1 after the third are dropped; one of length 2 or 3 holds channels. The affine is
        the sform, else the qform, else the voxel size; metres and microns become mm.

        Raises:
            VolumeError: the file is missing, empty, truncated or not NIfTI; it has more than 3 channels, complex, RGB,
                NaN or infinite voxels, or an affine that is not finite or is singular. One line that names the file.
        """
        path = Path(path) if isinstance(path, str) else path
        if isinstance(path, Path) and path.name.lower().endswith(ENDINGS):
            (array, affine), placement = read_itk(path), None
        else:
            array, affine, placement = read_nifti(path)
        try:
            require_finite(array)
            return cls(array, affine, placement=placement)
        except VolumeError as error:
            raise VolumeError(f"{path}: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write `.nii`, `.nii.gz`, or with the extra `itk` `.nrrd`, `.nhdr`, `.mha` or `.mhd`; whole or not at all.

        The dtype is kept, except that bool becomes uint8 and float16 float32. On the grid of a NIfTI file both forms,
        their codes and the unit are that file's own. Else the sform (float32) holds the affine, and so does the qform
        where a quaternion can. The same volume always gives the same bytes.

        Raises:
            VolumeError: the name has another ending, or the file cannot be written. Nothing is left behind then, and
                a file that was there is unchanged.
        """
        path = Path(path)
        if path.name.lower().endswith(ENDINGS):
            write_itk(path, self.array, self.itk_affine)
        else:
            write_nifti(path, self.array, self.affine, self.placement)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z), without the channels."""
        x, y, z = self.array.shape[:3]
        return x, y, z

    @property
    def num_channels(self) -> int:
        return int(self.array.shape[3]) if self.array.ndim == 4 else 1

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels in mm, in the array's axis order; see `affine.spacing_mm`."""
        return spacing_mm(self.affine)

    @property
    def canonical_spacing_mm(self) -> tuple[float, float, float]:
        """Spacing in mm along the array's axes closest to R, A and S, in this order."""
        r, a, s = (self.spacing_mm[axis] for axis, _ in canonical_axes(self.affine))
        return r, a, s

    @property
    def orientation(self) -> str:
        """The closest world direction of each array axis, such as "RAS" or "LPS"."""
        codes = ["", "", ""]
        for names, (axis, flipped) in zip(_DIRECTIONS, canonical_axes(self.affine), strict=True):
            codes[axis] = names[flipped]
        return "".join(codes)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Another array on the same grid. Raises VolumeError if X, Y, Z differ."""
        if array.shape[:3] != self.shape:
            raise VolumeError(f"an array of shape {array.shape} does not fit the grid {self.shape}")
        return Volume(array, self.affine, placement=self.placement)

    @property
    def itk_affine(self) -> NDArray[np.float64]:
        """The affine by which ITK's programs read the file of this grid; `affine` if it is from no NIfTI file."""
        found = None if self.placement is None else self.placement.itk_affine()
        return self.affine if found is None else found


def same_grid(a: Volume, b: Volume, tolerance_mm: float | None = None) -> bool:
    """Whether two volumes have the same X, Y, Z and no voxel lies further apart than `tolerance_mm`.

    tolerance_mm: None: `describe_difference` decides.
    """
    if tolerance_mm is None:
        return describe_difference(a, b) is None
    return a.shape == b.shape and largest_distance_mm(a.shape, a.affine, b.affine) <= tolerance_mm


def describe_difference(a: Volume, b: Volume) -> str | None:
    """How the grids of two volumes differ, in one line; None if they are one grid.

    They are if no voxel lies further apart than `MOST_APART` voxels, either as nibabel or as ITK reads their files.
    """
    if a.shape != b.shape:
        return f"shapes differ: {a.shape} and {b.shape}"
    if voxels_apart(a, b) <= MOST_APART:
        return None
    if a.orientation != b.orientation:
        return f"affines differ: orientations {a.orientation} and {b.orientation}"
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3):
        return f"affines differ: spacings {in_mm(a.spacing_mm)} and {in_mm(b.spacing_mm)}"
    distance = largest_distance_mm(a.shape, a.affine, b.affine)
    return f"affines differ: the same voxel lies up to {distance:.3g} mm apart"


def voxels_apart(a: Volume, b: Volume, *, itk: bool = True) -> float:
    """How far apart two grids of one shape put the same voxel, at most, in sides of the smallest voxel.

    itk: as ITK reads their files, where that is less.
    """
    apart = [largest_distance_mm(a.shape, a.affine, b.affine)]
    if itk:
        apart.append(largest_distance_mm(a.shape, a.itk_affine, b.itk_affine))
    return min(apart) / min(*a.spacing_mm, *b.spacing_mm)
