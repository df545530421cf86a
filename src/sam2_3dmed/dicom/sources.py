"""What a SEG or an RTSTRUCT takes over from the series that it is made from."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from sam2_3dmed.dicom.files import quiet
from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.errors import VolumeError

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

MAKER = "SAM2-3dMed"
CHARACTERS = "ISO_IR 192"  # UTF-8
_MAY_BE_EMPTY = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName PositionReferenceIndicator
    """
_MADE_UP = ("StudyInstanceUID", "FrameOfReferenceUID")
_CANNOT_BE_MADE_UP = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
_LONGEST_NAME = 64  # of the standard's LO


def source_headers(series: DicomSeries) -> list[Dataset]:
    """The headers of a series' files, in the order of the slices, with everything that a reference needs.

    De-identification may take elements away. Those that may be empty are empty here. The UID of the study or of the
    frame of reference becomes one that follows from the series.

    Raises:
        VolumeError: the series, or an image of it, has no UID.
    """
    from pydicom.uid import generate_uid

    sources = series.headers()
    thickness = float(np.linalg.norm(series.affine[:3, 2]))
    with quiet():
        for header in sources:
            for keyword in _CANNOT_BE_MADE_UP:
                if not header.get(keyword):
                    raise VolumeError(
                        f"series {series.uid}: an image has no {keyword}, so no DICOM-SEG or RTSTRUCT can refer to it; "
                        f"choose --format nifti or nrrd"
                    )
            for keyword in _MAY_BE_EMPTY.split():
                setattr(header, keyword, _usable(keyword, header.get(keyword)))
            for keyword in _MADE_UP:
                if not header.get(keyword):
                    setattr(header, keyword, generate_uid(entropy_srcs=[series.uid, keyword]))
            if not header.get("SliceThickness"):
                header.SliceThickness = f"{thickness:.6g}"
    return sources


def require_sources(series: DicomSeries) -> None:
    """Check that masks can refer to a series, with a line for each UID that has to be made up.

    Raises:
        VolumeError: as `source_headers`.
    """
    source_headers(series)
    for keyword in _MADE_UP:
        if any(not header.get(keyword) for header in series.headers()):
            logger.warning("series %s has no %s; its masks get one made from the series", series.uid, keyword)


def element_names(names: Iterable[str]) -> list[str]:
    """The names of classes, each as one value of an element.

    They have no backslashes, which separate values, and are not too long. Where that makes a name equal to one before
    it, it ends in a number.
    """
    taken: list[str] = []
    for name in names:
        text = name.replace("\\", "/")
        chosen = text[:_LONGEST_NAME].rstrip()  # spaces at the end do not count
        numbers = count(2)
        while chosen in taken:
            end = f" {next(numbers)}"
            chosen = text[: _LONGEST_NAME - len(end)].rstrip() + end
        taken.append(chosen)
    return taken


def _usable(keyword: str, value: Any) -> Any:
    """A value of the source, or nothing where the standard does not allow it."""
    from pydicom.valuerep import DA, TM

    text = str(value or "")
    try:
        if keyword.endswith("Date"):
            DA(text)
        elif keyword.endswith("Time"):
            TM(text)
    except ValueError:
        return ""
    is_other_sex = keyword == "PatientSex" and text not in ("M", "F", "O")
    return "" if value is None or is_other_sex else value
