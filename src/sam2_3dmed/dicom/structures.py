"""DICOM RTSTRUCT: contours as masks on the grid of their series, and masks as contours that refer to the series.

A pixel belongs to a region if its centre lies inside, by the even-odd rule. matplotlib and scikit-image give the same
pixels unless an outline runs through pixel centres: then they count a shared edge twice or depend on the direction of
the outline. They also take 150 times as long for a fine outline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.files import DicomFile, quiet, require_dicom
from sam2_3dmed.dicom.segmentation import MAKER
from sam2_3dmed.dicom.series import LPS_TO_RAS, DicomSeries
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import naming, replacing
from sam2_3dmed.volume.label import class_colour
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

Polygon = NDArray[np.float64]
"""(n, 2): column and row of each corner, in pixels, 0 at the centre of the first; the last joins the first."""

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_BETWEEN_SLICES = 0.2  # of the distance of two slices
_DECIMALS = 4  # of a mm; a number may have 16 characters
_ROUNDING = 6  # decimals of a pixel, so that rounding errors of mm do not decide the side of a centre
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_OF_THE_STUDY = """
    PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName StudyDescription
    """


def read_structures(
    file: DicomFile, dataset: Dataset, series: DicomSeries, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The regions of an RTSTRUCT as masks (X, Y, Z) on a series' grid, one at a time; None for `wanted` takes all.

    Raises:
        VolumeError: broken contours, or contours that lie on no slice of the series.
    """
    items = dataset.get("ROIContourSequence", [])
    contours = {int(item.ReferencedROINumber): item.get("ContourSequence", []) for item in items}
    for number, name in structure_names(dataset).items():
        if wanted is not None and name not in wanted:
            continue
        on_slices: defaultdict[int, list[Polygon]] = defaultdict(list)
        for contour in contours.get(number, []):
            if contour.get("ContourGeometricType", "CLOSED_PLANAR") in _CLOSED:
                place, polygon = _on_slice(f"{file}: region {name!r}", contour, series)
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

    Args:
        mask: on the series' grid, as `series.read()` gives it.
        labels: the name of each value above 0.

    Raises:
        VolumeError: it cannot be written, or the extra is missing.
    """
    require_dicom()
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    sources = series.headers()
    with quiet():  # for values of the source that its scanner wrote loosely
        structures = _dataset(
            {keyword: sources[0].get(keyword, "") for keyword in _OF_THE_STUDY.split()}
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


def rasterise(polygons: Sequence[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels, (columns, rows), whose centres lie inside an odd number of polygons; one in another is a hole."""
    columns, rows = size
    # Each edge that crosses the centre line of a row swaps inside and outside for all pixels to its right.
    swaps = np.zeros((rows, columns + 1), np.int32)
    for polygon in polygons:
        at_rows, at_columns = _crossings(np.round(polygon, _ROUNDING), rows)
        np.add.at(swaps, (at_rows, np.clip(np.ceil(at_columns), 0, columns).astype(np.int64)), 1)
    inside: NDArray[np.bool_] = np.cumsum(swaps[:, :columns], axis=1) % 2 == 1
    return inside.T


def trace(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Closed outlines of a mask (columns, rows), half-way between pixels inside and outside.

    Holes have outlines of their own. `rasterise` gives the same mask back.
    """
    from contourpy import contour_generator

    padded = np.pad(mask.T, 1).astype(np.float64)
    lines = contour_generator(z=padded).lines(0.5)
    return [np.asarray(line, np.float64)[:-1] - 1 for line in lines]


def _crossings(polygon: Polygon, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row and column of every crossing of an edge with the centre line of a row.

    An edge owns its upper end and not its lower one, so a corner on a centre line counts once or twice as it must.
    """
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    first = np.clip(np.ceil(np.minimum(y, next_y)), 0, rows).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, next_y)), 0, rows).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = (row - y[edge]) / (next_y - y)[edge]
    return row, np.round(x[edge] + along * (next_x - x)[edge], _ROUNDING)


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
    for number, (value, name) in enumerate(labels.items(), start=1):
        regions.append({"ROINumber": number, "ROIName": name[:64], **shared})
        contours = list(_contours(mask.array == value, series, sources))
        colour = list(class_colour(number))
        contoured.append({"ReferencedROINumber": number, "ROIDisplayColor": colour, "ContourSequence": contours})
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
