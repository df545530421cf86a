"""DICOM RTSTRUCT: contours as masks on the grid of their series, and masks as contours that name the series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.contours import Polygon, rasterise, trace
from sam2_3dmed.dicom.files import DicomFile, quiet, require_dicom
from sam2_3dmed.dicom.geometry import LPS_TO_RAS
from sam2_3dmed.dicom.segmentation import MAKER
from sam2_3dmed.dicom.series import DicomSeries
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.volume.label import class_colour
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_BETWEEN_SLICES = 0.2  # of the distance of two slices
_DECIMALS = 4  # of a mm; a number may have 16 characters
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_OF_THE_STUDY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)


def read_structures(
    file: DicomFile, dataset: Dataset, series: DicomSeries, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The regions of an RTSTRUCT on a series' grid, one at a time: pixel centres inside contours, even-odd.

    wanted: names of regions; None: all. Yields: name, mask (X, Y, Z); a region without contours is empty.

    Raises:
        VolumeError: broken contours, or contours that lie on no slice of the series.
    """
    names = structure_names(dataset)
    contours = {int(item.ReferencedROINumber): item.get("ContourSequence", []) for item in _items(dataset)}
    for number, name in names.items():
        if wanted is None or name in wanted:
            where = f"{file}: region {name!r}"
            on_slices: defaultdict[int, list[Polygon]] = defaultdict(list)
            for contour in contours.get(number, []):
                if contour.get("ContourGeometricType", "CLOSED_PLANAR") in _CLOSED:
                    place, polygon = _on_slice(where, contour, series)
                    on_slices[place].append(polygon)
            mask = np.zeros(series.shape, bool)
            for place, polygons in on_slices.items():
                mask[:, :, place] = rasterise(polygons, series.shape[:2])
            yield name, mask


def structure_names(dataset: Dataset) -> dict[int, str]:
    """The name of each region by its number."""
    return {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.get("StructureSetROISequence", [])}


def write_structures(mask: Volume, series: DicomSeries, path: Path, labels: Mapping[int, str]) -> None:
    """Write a mask as an RTSTRUCT whose contours give exactly its voxels back, even-odd at pixel centres.

    mask: on the series' grid, as `series.read()` gives it. labels: the name of each value above 0.

    Raises:
        VolumeError: it cannot be written, or the extra is missing.
    """
    require_dicom()
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    sources = series.headers()
    now = datetime.now()
    with quiet():  # values of the source that its scanner wrote loosely
        structures = _same_patient(sources[0])
    _set(
        structures,
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(),
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=None,
        Modality="RTSTRUCT",
        SeriesDescription=f"{MAKER} segmentation",
        Manufacturer=MAKER,
        ManufacturerModelName=MAKER,
        SoftwareVersions=version("sam2-3dmed"),
        OperatorsName="",
        InstanceNumber=1,
        StructureSetLabel=MAKER,
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
        ApprovalStatus="UNAPPROVED",
    )
    structures.ensure_file_meta()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _refer(structures, sources, series.uid)
    _add_regions(structures, sources, series, mask, labels)
    try:
        with quiet(), replacing(path) as stream:
            structures.save_as(stream, enforce_file_format=True)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written: {error.strerror or error}") from error


def _items(dataset: Dataset) -> list[Dataset]:
    return list(dataset.get("ROIContourSequence", []))


def _on_slice(where: str, contour: Dataset, series: DicomSeries) -> tuple[int, Polygon]:
    """The slice that a contour lies on, and the contour in its columns and rows."""
    try:
        with quiet():
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError):
        raise VolumeError(f"{where}: a contour is not a list of points") from None
    if not points.size:
        raise VolumeError(f"{where}: a contour has no points")
    to_voxels = np.linalg.inv(series.affine) @ LPS_TO_RAS
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    place = round(float(np.median(voxels[:, 2])))
    if np.abs(voxels[:, 2] - place).max() > _BETWEEN_SLICES:
        raise VolumeError(f"{where}: a contour lies across or between the slices of series {series.uid}")
    if not 0 <= place < series.shape[2]:
        raise VolumeError(f"{where}: a contour lies beyond the slices of series {series.uid}")
    return place, voxels[:, :2]


def _set(dataset: Dataset, **elements: object) -> Dataset:
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _same_patient(source: Dataset) -> Dataset:
    """A new dataset that belongs to the patient and the study of another."""
    from pydicom import Dataset

    made = Dataset()
    for keyword in _OF_THE_STUDY:
        setattr(made, keyword, source.get(keyword, ""))
    return made


def _refer(structures: Dataset, sources: list[Dataset], series_uid: str) -> None:
    """The series and its images, as the standard wants them: nested four deep."""
    from pydicom import Dataset

    series = _set(Dataset(), SeriesInstanceUID=series_uid, ContourImageSequence=[_reference(s) for s in sources])
    study = _set(
        Dataset(),
        ReferencedSOPClassUID=_STUDY_CLASS,
        ReferencedSOPInstanceUID=sources[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    space = sources[0].get("FrameOfReferenceUID", "")
    of_reference = _set(Dataset(), FrameOfReferenceUID=space, RTReferencedStudySequence=[study])
    _set(structures, FrameOfReferenceUID=space, ReferencedFrameOfReferenceSequence=[of_reference])


def _reference(source: Dataset, index: int | None = None) -> Dataset:
    from pydicom import Dataset

    made = _set(Dataset(), ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
    return made if index is None else _set(made, ReferencedFrameNumber=index + 1)


def _add_regions(
    structures: Dataset, sources: list[Dataset], series: DicomSeries, mask: Volume, labels: Mapping[int, str]
) -> None:
    from pydicom import Dataset
    from pydicom.uid import generate_uid

    space = sources[0].get("FrameOfReferenceUID", "")
    regions, contoured, observed = [], [], []
    for number, (value, name) in enumerate(labels.items(), start=1):
        regions.append(
            _set(
                Dataset(),
                ROINumber=number,
                ReferencedFrameOfReferenceUID=space,
                ROIName=name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        contours = [
            contour for place in range(series.shape[2]) for contour in _contours(mask, value, place, series, sources)
        ]
        colour = list(class_colour(number))
        contoured.append(_set(Dataset(), ReferencedROINumber=number, ROIDisplayColor=colour, ContourSequence=contours))
        observed.append(
            _set(
                Dataset(),
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="",
                ROIInterpreter="",
                ObservationUID=generate_uid(),
            )
        )
    _set(structures, StructureSetROISequence=regions, ROIContourSequence=contoured, RTROIObservationsSequence=observed)


def _contours(mask: Volume, value: int, place: int, series: DicomSeries, sources: list[Dataset]) -> list[Dataset]:
    """The closed outlines of a class on one slice, in mm."""
    from pydicom import Dataset

    inside = mask.array[:, :, place] == value
    if not inside.any():
        return []
    file, index = series.planes[place].file, series.planes[place].index
    several = len(sources) == 1 < len(series.planes)
    source = sources[0] if several else sources[[plane.file for plane in series.planes].index(file)]
    made = []
    for polygon in trace(inside):
        voxels = np.column_stack([polygon, np.full(len(polygon), place), np.ones(len(polygon))])
        points = (voxels @ (LPS_TO_RAS @ series.affine).T)[:, :3]
        made.append(
            _set(
                Dataset(),
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=len(points),
                ContourImageSequence=[_reference(source, index if several else None)],
                ContourData=[f"{number:.{_DECIMALS}f}" for number in points.ravel()],
            )
        )
    return made
