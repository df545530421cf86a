"""Where the slices of a DICOM series lie: sorted along their normal, and refused unless they make a regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.files import DicomFile, quiet
from sam2_3dmed.errors import VolumeError

if TYPE_CHECKING:
    from pydicom import Dataset

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE_MM = 0.1  # scanners round positions
_TOLERANCE_OF_GAP = 0.05
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice: where its pixels are stored, where they lie, and what they mean.

    index: its number inside a multi-frame file, 0 in any other. position_mm: centre of the first pixel, LPS.
    directions: (2, 3), unit vectors along increasing column and row numbers, LPS. spacing_mm: between columns, between
    rows. stored: bits and sign of the stored values. slope, intercept: from stored to real values.
    """

    file: DicomFile
    index: int
    position_mm: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    thickness_mm: float
    size: tuple[int, int]
    stored: tuple[int, bool]
    slope: float
    intercept: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit vector at a right angle to the slice."""
        return np.cross(self.directions[0], self.directions[1])


def planes_of(file: DicomFile, header: Dataset) -> list[Plane]:
    """The slices in a file: one, or each of a multi-frame file.

    Raises:
        VolumeError: it does not say where they lie, or its voxels are no grey values.
    """
    if header.get("SamplesPerPixel", 1) != 1:
        raise VolumeError(f"{file}: a colour picture, not grey values")
    if "ModalityLUTSequence" in header:
        raise VolumeError(f"{file}: its values go through a table (Modality LUT), which is not supported")
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = header.get("PerFrameFunctionalGroupsSequence") or [None]
    if groups[0] is None and int(header.get("NumberOfFrames") or 1) > 1:
        raise VolumeError(f"{file}: a multi-frame file that does not say where each slice lies")
    try:
        with quiet():
            return [_plane(file, index, header, [group, shared]) for index, group in enumerate(groups)]
    except KeyError as error:
        raise VolumeError(f"{file}: no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise VolumeError(f"{file}: its header cannot be used: {error}") from None


def arrange(planes: Sequence[Plane]) -> tuple[list[Plane], NDArray[np.float64]]:
    """The slices in order along their normal, and the affine of the volume they make.

    Returns: slices; (4, 4), from (column, row, slice) to mm in RAS+.

    Raises:
        VolumeError: mixed sizes, orientations or pixel spacings; doubled or missing slices, uneven gaps, gantry tilt.
    """
    first = planes[0]
    _check_alike(planes)
    heights = np.array([float(plane.position_mm @ first.normal) for plane in planes])
    order = np.argsort(heights, kind="stable")
    ordered = [planes[i] for i in order]
    step = _step(heights[order], ordered)
    lps = np.eye(4)
    lps[:3, 0] = first.directions[0] * first.spacing_mm[0]
    lps[:3, 1] = first.directions[1] * first.spacing_mm[1]
    lps[:3, 2] = step
    lps[:3, 3] = ordered[0].position_mm
    return ordered, LPS_TO_RAS @ lps


def _plane(file: DicomFile, index: int, header: Dataset, groups: Sequence[Dataset | None]) -> Plane:
    def value(keyword: str, sequence: str, default: object = None) -> object:
        """From the slice's own group, else from the one all share, else from the file itself."""
        places = [_first(group, sequence) for group in groups if group is not None]
        values = (place.get(keyword) for place in (*places, header) if place is not None)
        found = next((value for value in values if value not in (None, "")), default)
        if found is None:
            raise KeyError(keyword)
        return found

    directions = np.array(value("ImageOrientationPatient", "PlaneOrientationSequence"), float).reshape(2, 3)
    rows_mm, columns_mm = np.array(value("PixelSpacing", "PixelMeasuresSequence"), float)
    thickness = value("SpacingBetweenSlices", "PixelMeasuresSequence", 0) or value(
        "SliceThickness", "PixelMeasuresSequence", 1
    )
    position = np.array(value("ImagePositionPatient", "PlanePositionSequence"), float).reshape(3)
    numbers = [*directions.flat, rows_mm, columns_mm, *position]
    if not np.isfinite(numbers).all() or min(rows_mm, columns_mm) <= 0 or not _orthonormal(directions):
        raise ValueError("position, orientation or spacing is out of range")
    transformation = "PixelValueTransformationSequence"
    return Plane(
        file,
        index,
        position,
        directions / np.linalg.norm(directions, axis=1, keepdims=True),
        (float(columns_mm), float(rows_mm)),
        float(str(thickness)),
        (int(header["Columns"].value), int(header["Rows"].value)),
        (int(header["BitsStored"].value), bool(header.get("PixelRepresentation", 0))),
        float(str(value("RescaleSlope", transformation, 1))),
        float(str(value("RescaleIntercept", transformation, 0))),
    )


def _first(dataset: Dataset | None, sequence: str) -> Dataset | None:
    items = dataset.get(sequence) if dataset is not None else None
    return items[0] if items else None


def _orthonormal(directions: NDArray[np.float64]) -> bool:
    return bool(np.allclose(directions @ directions.T, np.eye(2), atol=1e-2))


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    sizes = sorted({plane.size for plane in planes})
    if len(sizes) > 1:
        raise VolumeError(f"slices of different sizes: {' and '.join(f'{c} x {r}' for c, r in sizes[:3])}")
    if any(np.abs(plane.directions - first.directions).max() > _SAME_DIRECTION for plane in planes):
        raise VolumeError("slices of different orientations")
    if not all(np.allclose(plane.spacing_mm, first.spacing_mm, rtol=1e-4) for plane in planes):
        raise VolumeError("slices of different pixel spacings")


def _step(heights: NDArray[np.float64], ordered: Sequence[Plane]) -> NDArray[np.float64]:
    """From one slice to the next, in mm; heights ascend."""
    count, normal = len(heights), ordered[0].normal
    if count == 1:
        return normal * (ordered[0].thickness_mm or 1.0)
    gaps = np.diff(heights)
    gap = float(np.median(gaps))
    doubled = np.flatnonzero(gaps < 0.01)
    if doubled.size:
        at = int(doubled[0])
        raise VolumeError(
            f"{doubled.size} doubled slices: {ordered[at].file} and {ordered[at + 1].file} lie at the same place"
        )
    tolerance = max(_TOLERANCE_OF_GAP * gap, _TOLERANCE_MM)
    even = heights[0] + np.linspace(0, heights[-1] - heights[0], count)
    if np.abs(heights - even).max() > tolerance:
        _refuse_gaps(gaps, gap, tolerance, ordered)
    whole = ordered[-1].position_mm - ordered[0].position_mm
    sideways = whole - (whole @ normal) * normal
    if np.linalg.norm(sideways) > tolerance:
        degrees = np.degrees(np.arctan2(np.linalg.norm(sideways), whole @ normal))
        raise VolumeError(f"gantry tilt: the stack leans by {degrees:.1f} degrees; resample it first")
    return np.asarray(normal * (heights[-1] - heights[0]) / (count - 1))


def _refuse_gaps(gaps: NDArray[np.float64], gap: float, tolerance: float, ordered: Sequence[Plane]) -> None:
    multiples = np.rint(gaps / gap)
    if (np.abs(gaps - multiples * gap) <= tolerance).all() and multiples.max() > 1:
        at = int(np.argmax(multiples))
        missing = int((multiples - 1).sum())
        raise VolumeError(
            f"{missing} missing slices: {gaps[at]:.4g} mm between {ordered[at].file} and {ordered[at + 1].file}, "
            f"{gap:.4g} mm elsewhere"
        )
    raise VolumeError(f"uneven gaps between slices: {gaps.min():.4g} to {gaps.max():.4g} mm")
