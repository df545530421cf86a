"""DICOM RTSTRUCT: contours as masks on the grid of their series, and masks as contours that refer to the series."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.contours import rasterise, trace
from sam2_3dmed.dicom.files import DicomFile, left_out, quiet, require_dicom
from sam2_3dmed.dicom.series import LPS_TO_RAS, DicomSeries
from sam2_3dmed.dicom.sources import CHARACTERS, MAKER, element_names, source_headers
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import naming, replacing
from sam2_3dmed.volume.label import class_colour
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_FEWEST_POINTS = 3
_BETWEEN_SLICES = 0.2  # of the distance of two slices
_ONE_PLANE = 0.005  # mm
_DECIMALS = 4  # of a mm; a number may have 16 characters
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_OF_THE_STUDY = """
    PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName StudyDescription
    """


def read_structures(
    file: DicomFile, dataset: Dataset, series: DicomSeries, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The regions of an RTSTRUCT as masks (X, Y, Z) on a series' grid, one at a time; None for `wanted` takes all.

    Regions in another frame of reference are passed over. Contours that lie on no slice of the series are left out,
    and so are those that lie farther from a slice than others, with a line for each region.

    Raises:
        VolumeError: broken contours.
    """
    contours = _contours_of(dataset)
    names = structure_names(dataset, series.uid, series.space_uid)
    elsewhere = [name for number, name in structure_names(dataset).items() if number not in names]
    left_out(file.path, f"regions in another frame of reference than series {series.uid}", elsewhere)
    for number, name in names.items():
        if wanted is not None and name not in wanted:
            continue
        on_slices: defaultdict[int, list[NDArray[np.float64]]] = defaultdict(list)
        outside: Counter[str] = Counter()
        where = f"{file}: region {name!r}"
        for contour in contours.get(number, []):
            place, voxels = _on_slice(where, contour, series)
            if isinstance(place, str):
                outside[place] += 1
            else:
                on_slices[place].append(voxels)
        mask = np.zeros(series.shape, bool)
        for place, found in on_slices.items():
            nearest = _nearest_plane(found, place, float(np.linalg.norm(series.affine[:3, 2])))
            mask[:, :, place] = rasterise([voxels[:, :2] for voxels in nearest], series.shape[:2])
            outside["farther from a slice than others"] += len(found) - len(nearest)
        if outside := +outside:  # without zeros
            listed = ", ".join(f"{count} {how}" for how, count in sorted(outside.items()))
            logger.warning("%s: contours left out: %s of series %s", where, listed, series.uid)
        yield name, mask


def structure_names(dataset: Dataset, series_uid: str = "", space_uid: str = "") -> dict[int, str]:
    """The name of each region by its number.

    Args:
        series_uid: with `space_uid`, its frame of reference: only regions that lie in that frame.
    """
    spaces = {str(dataset.get("FrameOfReferenceUID") or ""): {""}}
    for item in dataset.get("ReferencedFrameOfReferenceSequence", []):
        space = str(item.get("FrameOfReferenceUID") or "")
        spaces.setdefault(space, set()).update(referred_series(item))
    spaces.pop("", None)
    mine = {space for space, uids in spaces.items() if series_uid in uids} | ({space_uid} - {""})
    names = {}
    for item in dataset.get("StructureSetROISequence", []):
        space = str(item.get("ReferencedFrameOfReferenceUID") or (next(iter(spaces)) if len(spaces) == 1 else ""))
        is_unknown = not mine or (not space and not spaces)
        if is_unknown or space in mine or not series_uid:
            names[int(item.ROINumber)] = str(item.get("ROIName") or "")
    return names


def referred_series(space: Dataset) -> set[str]:
    """The series in an item of the referenced frames of reference, two levels down."""
    return {
        str(series.get("SeriesInstanceUID", ""))
        for study in space.get("RTReferencedStudySequence", [])
        for series in study.get("RTReferencedSeriesSequence", [])
    }


def drawn_structures(dataset: Dataset) -> set[int]:
    """The numbers of the regions that have a closed contour, and not only points, lines or nothing."""
    return {number for number, contours in _contours_of(dataset).items() if contours}


def write_structures(mask: Volume, series: DicomSeries, path: Path, labels: Mapping[int, str]) -> None:
    """Write a mask as an RTSTRUCT whose contours give exactly its voxels back, even-odd at pixel centres.

    Args:
        mask: on the series' grid, as `series.read()` gives it.
        labels: the name of each value above 0.

    Raises:
        VolumeError: it cannot be written, or the extra is missing.
    """
    require_dicom()
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    sources = source_headers(series)
    with quiet():  # for values of the source that its scanner wrote loosely
        structures = _dataset(
            {"SpecificCharacterSet": CHARACTERS}
            | {keyword: sources[0].get(keyword, "") for keyword in _OF_THE_STUDY.split()}
            | dict.fromkeys(["Manufacturer", "ManufacturerModelName", "StructureSetLabel"], MAKER)
            | _source_elements(sources, series.uid)
            | _region_elements(sources, series, mask, labels),
            SOPClassUID=RTStructureSetStorage,
            SOPInstanceUID=generate_uid(),
            SeriesInstanceUID=generate_uid(),
            SeriesNumber=None,
            Modality="RTSTRUCT",
            SeriesDescription=f"{MAKER} segmentation",
            SoftwareVersions=version("sam2-3dmed"),
            OperatorsName="",
            InstanceNumber=1,
            StructureSetDate=f"{datetime.now():%Y%m%d}",
            StructureSetTime=f"{datetime.now():%H%M%S}",
            ApprovalStatus="UNAPPROVED",
        )
    structures.ensure_file_meta()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with quiet(), naming(path, "cannot be written", VolumeError), replacing(path) as stream:
        structures.save_as(stream, enforce_file_format=True)


def _contours_of(dataset: Dataset) -> dict[int, list[Dataset]]:
    """The contours that enclose something, by the number of the region."""
    found: defaultdict[int, list[Dataset]] = defaultdict(list)
    for item in dataset.get("ROIContourSequence", []):
        for contour in item.get("ContourSequence", []):
            is_closed = contour.get("ContourGeometricType", "CLOSED_PLANAR") in _CLOSED
            if is_closed and _count_of_points(contour) >= _FEWEST_POINTS:
                found[int(item.ReferencedROINumber)].append(contour)
    return found


def _count_of_points(contour: Dataset) -> int:
    """The number of points in a contour's data, whatever number it states.

    If the data are no whole points, the larger of the two counts, so that `read_structures` refuses them.
    """
    from pydicom import DataElement

    data = contour.get_item("ContourData")  # parsing all numbers only to count them would take long
    if data is None or not data.value:
        numbers = 0
    else:
        numbers = data.VM if isinstance(data, DataElement) else data.value.count(b"\\") + 1
    points, rest = divmod(numbers, 3)
    return max(points, int(contour.get("NumberOfContourPoints") or 0)) if rest or not points else points


def _nearest_plane(contours: list[NDArray[np.float64]], place: int, gap_mm: float) -> list[NDArray[np.float64]]:
    """The contours of the plane that lies nearest to a slice; of two as near, that of the first contour.

    Each may be away from it by as much as its own points and those of the nearest contour are from one plane.
    """
    heights = [(voxels[:, 2] - place) * gap_mm for voxels in contours]
    middles, spreads = np.array([(points.mean(), np.ptp(points)) for points in heights]).T
    nearest = (np.abs(middles) / _ONE_PLANE).round().argmin()
    same = np.abs(middles - middles[nearest]) <= _ONE_PLANE + spreads + spreads[nearest]
    return [voxels for voxels, is_same in zip(contours, same, strict=True) if is_same]


def _on_slice(where: str, contour: Dataset, series: DicomSeries) -> tuple[int | str, NDArray[np.float64]]:
    """The slice that a contour lies on, or how it lies on none, and the contour in voxels."""
    try:
        with quiet():
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
    except (AttributeError, TypeError, ValueError):
        raise VolumeError(f"{where}: a contour is not a list of points") from None
    if not points.size or not np.isfinite(points).all():
        raise VolumeError(f"{where}: a contour has no points, or a point is not finite")
    to_voxels = np.linalg.inv(series.affine) @ LPS_TO_RAS
    voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    heights = voxels[:, 2]
    place = round(float(np.median(heights)))
    if not 0 <= place < series.shape[2]:
        return "beyond the slices", voxels
    if np.abs(heights - place).max() > _BETWEEN_SLICES:
        return "across or between the slices", voxels
    return place, voxels


def _dataset(elements: dict[str, Any], **more: Any) -> Dataset:
    """Elements by keyword; a sequence is a list of mappings."""
    from pydicom import Dataset

    dataset = Dataset()
    for keyword, value in (elements | more).items():
        setattr(dataset, keyword, list(map(_dataset, value)) if keyword.endswith("Sequence") else value)
    return dataset


def _reference(source: Dataset) -> dict[str, Any]:
    return {"ReferencedSOPClassUID": source.SOPClassUID, "ReferencedSOPInstanceUID": source.SOPInstanceUID}


def _source_elements(sources: list[Dataset], series_uid: str) -> dict[str, Any]:
    """The references to the series and its images, which the standard nests four deep."""
    referred = {"SeriesInstanceUID": series_uid, "ContourImageSequence": [_reference(source) for source in sources]}
    study = {"ReferencedSOPClassUID": _STUDY_CLASS, "ReferencedSOPInstanceUID": sources[0].StudyInstanceUID}
    study["RTReferencedSeriesSequence"] = [referred]
    space = {"FrameOfReferenceUID": sources[0].get("FrameOfReferenceUID", "")}
    return {**space, "ReferencedFrameOfReferenceSequence": [{**space, "RTReferencedStudySequence": [study]}]}


def _region_elements(
    sources: list[Dataset], series: DicomSeries, mask: Volume, labels: Mapping[int, str]
) -> dict[str, Any]:
    """The regions, their contours, and the observations that the standard demands for each."""
    from pydicom.uid import generate_uid

    shared = {
        "ROIGenerationAlgorithm": "AUTOMATIC",
        "ReferencedFrameOfReferenceUID": sources[0].get("FrameOfReferenceUID", ""),
    }
    regions, contoured, observed = [], [], []
    for number, (value, name) in enumerate(zip(labels, element_names(labels.values()), strict=True), start=1):
        regions.append({"ROINumber": number, "ROIName": name, **shared})
        contours = list(_contours(mask.array == value, series, sources))
        colour = list(class_colour(number))
        drawn = {"ContourSequence": contours} if contours else {}
        contoured.append({"ReferencedROINumber": number, "ROIDisplayColor": colour, **drawn})
        observation = {"RTROIInterpretedType": "", "ROIInterpreter": "", "ObservationUID": generate_uid()}
        observed.append({"ObservationNumber": number, "ReferencedROINumber": number, **observation})
    return {"StructureSetROISequence": regions, "ROIContourSequence": contoured, "RTROIObservationsSequence": observed}


def _contours(mask: NDArray[np.bool_], series: DicomSeries, sources: list[Dataset]) -> Iterator[dict[str, Any]]:
    """The closed outlines of a class, slice by slice, in mm."""
    files = list(dict.fromkeys(plane.file for plane in series.planes))
    for place in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        plane = series.planes[place]
        image = _reference(sources[files.index(plane.file)])
        if len(files) == 1 < len(series.planes):
            image["ReferencedFrameNumber"] = plane.index + 1
        for polygon in trace(mask[:, :, place]):
            voxels = np.column_stack([polygon, np.full(len(polygon), place), np.ones(len(polygon))])
            points = (voxels @ (LPS_TO_RAS @ series.affine).T)[:, :3]
            yield {
                "ContourGeometricType": "CLOSED_PLANAR",
                "NumberOfContourPoints": len(points),
                "ContourImageSequence": [image],
                "ContourData": [f"{number:.{_DECIMALS}f}" for number in points.ravel()],
            }
