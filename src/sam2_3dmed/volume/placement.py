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
                return self._in_mm(self._sized(np.abs(self.header["pixdim"][1:4])).get_best_affine())
        except (HeaderDataError, ValueError) as error:
            raise VolumeError("the affine is unusable: its quaternion (qform) is no rotation") from error

    def itk_affine(self) -> Affine | None:
        """The affine by which ITK 5.3 and later read the file; in mm. None if ITK refuses it, or it is not finite."""
        from nibabel.spatialimages import HeaderDataError

        size = self.header["pixdim"][1:4].astype(np.float64)  # ITK keeps the signs
        if self._code("qform") <= 0 and self._code("sform") <= 0:
            return self._in_mm(np.diag([-size[0], -size[1], size[2], 1.0]))
        try:
            with np.errstate(all="ignore"):  # a form may hold zeros and NaN where another is read
                header = self._sized(np.where(size < 0, 1, size))  # as ITK makes the qform
                form = header.get_sform() if self._itk_takes_the_sform(header) else header.get_qform(coded=True)[0]
                if form is None:
                    return None
                affine = np.array(form, dtype=np.float64)
                affine[:3, :3] *= size / np.linalg.norm(affine[:3, :3], axis=0)
        except (HeaderDataError, ValueError):
            return None
        return self._in_mm(affine) if np.isfinite(affine).all() else None

    def _itk_takes_the_sform(self, header: Any) -> bool:
        if self._code("sform") <= 0:
            return False
        sform = header.get_sform()
        directions = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
        if not np.allclose(directions @ directions.T, np.eye(3), rtol=0, atol=1e-4):
            return False
        if self._code("qform") <= 0 or self._code("sform") == _SCANNER:
            return True
        qform = header.get_qform()
        return np.allclose(sform, qform, rtol=0, atol=1e-4) or _alike_to_itk(sform, qform)

    def copy_to(self, header: Any) -> None:
        """Give another nibabel header these forms, codes, voxel size with its signs, and unit of length."""
        for field in _FIELDS:
            header[field] = self.header[field]
        header["pixdim"][:4] = self.header["pixdim"][:4]
        header["xyzt_units"] = int(self.header["xyzt_units"]) & _UNIT_OF_LENGTH

    def _sized(self, sizes: NDArray[Any]) -> Any:
        """A copy of the header with other voxel sizes."""
        header = self.header.copy()
        header["pixdim"][1:4] = sizes
        return header

    def _code(self, form: str) -> int:
        return int(self.header[f"{form}_code"])

    def _in_mm(self, affine: NDArray[Any]) -> Affine:
        scaled = np.array(affine, dtype=np.float64)
        scaled[:3] *= _MM_PER_UNIT.get(int(self.header["xyzt_units"]) & _UNIT_OF_LENGTH, 1.0)
        return scaled


def _alike_to_itk(sform: Affine, qform: Affine) -> bool:
    """Whether ITK takes two forms for one, though axes may be reversed.

    ITK compares the left singular vectors of the forms, in which the sign of an axis is often lost. They are known
    for axes along those of the world, unless the quaternion is rounded. For oblique axes, ITK's choice depends on
    rounding: the answer is False.
    """
    pairs = (*zip(_left_singular(sform), _left_singular(qform), strict=True), (sform[:3, 3], qform[:3, 3]))
    return all(np.allclose(s, q, rtol=0, atol=1e-4) for s, q in pairs)


def _left_singular(form: Affine) -> tuple[Affine, Affine]:
    """Left singular vectors, signed as by LINPACK (which ITK uses), and singular values; NaN if an axis is oblique."""
    sizes = np.linalg.norm(form[:3, :3], axis=0)
    directions = form[:3, :3] / sizes
    aligned = np.rint(directions) + 0.0  # without negative zeros, whose sign LAPACK would take
    if not np.allclose(directions, aligned, rtol=0, atol=1e-4):
        return np.full((3, 3), np.nan), sizes
    order = np.argsort(-sizes, kind="stable")
    return np.linalg.qr(aligned)[0][:, order], sizes[order]
