"""Where a NIfTI file puts its voxels, as nibabel and as ITK read it.

A file has two forms, the sform and the qform. Where they differ, programs choose differently: nibabel takes the sform
if its code is set. ITK (3D Slicer, ITK-SNAP, ANTs, SimpleITK) refuses a sheared sform, prefers the qform to an sform
that is not a scanner's, and takes the voxel size from a third place. So the mask of an image keeps the image's own
forms, codes and unit: with a new sform alone, it would overlay the image in some programs only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

Affine = NDArray[np.float64]

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes for metre and micron
_UNIT_OF_LENGTH = 7  # the bits of `xyzt_units`
_SCANNER = 1
_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)


@dataclass(frozen=True, eq=False)
class Placement:
    """The part of a NIfTI header that says where the voxels lie.

    Args:
        header: nibabel's header of the file. Nothing else in it is used.
    """

    header: Any

    def affine(self) -> Affine:
        """The sform if its code is set, else the qform, else the voxel size about the centre, as nibabel; in mm.

        Raises:
            VolumeError: the qform is needed and is no rotation.
        """
        from nibabel.spatialimages import HeaderDataError

        try:
            with np.errstate(all="ignore"):  # `Volume` reports values that are not finite
                return self._in_mm(self.header.get_best_affine())
        except (HeaderDataError, ValueError) as error:
            raise VolumeError("the affine is unusable: its quaternion (qform) is no rotation") from error

    def itk_affine(self) -> Affine | None:
        """The affine by which ITK 5.3 and later read the file; in mm. None if ITK refuses it, or it is not finite."""
        from nibabel.spatialimages import HeaderDataError

        size = np.abs(self.header["pixdim"][1:4].astype(np.float64))
        if self._code("qform") <= 0 and self._code("sform") <= 0:
            return self._in_mm(np.diag([-size[0], -size[1], size[2], 1.0]))
        try:
            with np.errstate(all="ignore"):  # a form may hold zeros and NaN where another is read
                form = self.header.get_sform() if self._itk_takes_the_sform() else self.header.get_qform(coded=True)[0]
                if form is None:
                    return None
                affine = np.array(form, dtype=np.float64)
                affine[:3, :3] *= size / np.linalg.norm(affine[:3, :3], axis=0)
        except (HeaderDataError, ValueError):
            return None
        return self._in_mm(affine) if np.isfinite(affine).all() else None

    def _itk_takes_the_sform(self) -> bool:
        if self._code("sform") <= 0:
            return False
        sform = self.header.get_sform()
        directions = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
        if not np.allclose(directions @ directions.T, np.eye(3), rtol=0, atol=1e-4):
            return False
        if self._code("qform") <= 0 or self._code("sform") == _SCANNER:
            return True
        return np.allclose(sform, self.header.get_qform(), rtol=0, atol=1e-4)

    def copy_to(self, header: Any) -> None:
        """Give another nibabel header these forms, codes, voxel size and unit of length."""
        for field in _FIELDS:
            header[field] = self.header[field]
        header["pixdim"][:4] = self.header["pixdim"][:4]
        header["xyzt_units"] = int(self.header["xyzt_units"]) & _UNIT_OF_LENGTH

    def _code(self, form: str) -> int:
        return int(self.header[f"{form}_code"])

    def _in_mm(self, affine: NDArray[Any]) -> Affine:
        scaled = np.array(affine, dtype=np.float64)
        scaled[:3] *= _MM_PER_UNIT.get(int(self.header["xyzt_units"]) & _UNIT_OF_LENGTH, 1.0)
        return scaled
