"""DICOM-SEG: segments as masks on the grid of their series, and masks as segments that refer to the series."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.codes import Code, category_of, code_of
from sam2_3dmed.dicom.files import NEEDS_THE_EXTRA, DicomFile, quiet, reading
from sam2_3dmed.dicom.series import LPS_TO_RAS, DicomSeries, Plane, planes_of
from sam2_3dmed.dicom.sources import CHARACTERS, MAKER, element_names, source_headers
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import naming, replacing
from sam2_3dmed.volume.label import class_colour
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

_OFF_THE_GRID = 0.05  # of a voxel, within a slice
_OFF_THE_SLICE = 0.2  # of the distance of two slices: positions are rounded
_BACKGROUND = ("125040", "DCM")


def read_segments(
    file: DicomFile, dataset: Dataset, series: DicomSeries, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The segments of a DICOM-SEG as masks (X, Y, Z) on a series' grid, one at a time; None for `wanted` takes all.

    Slices that it leaves out are empty. One of another resolution is resampled to the nearest pixel, and what lies
    beyond the series is left out, each with a line.

    Raises:
        VolumeError: damaged, in another frame of reference, on other slices than the series, or wholly beyond it.
    """
    space = str(dataset.get("FrameOfReferenceUID") or "")
    if space and series.space_uid and space != series.space_uid:
        raise VolumeError(f"{file}: lies in another frame of reference than series {series.uid}")
    planes = planes_of(file, dataset)
    counts: Counter[str] = Counter()
    for number, name in segment_names(dataset).items():
        if wanted is not None and name not in wanted:
            continue
        mask = np.zeros(series.shape, bool)
        places = _places(dataset, number, len(planes))
        for place, pixels in zip(places, _pixels(file, dataset, places), strict=True):
            counts += _draw(mask, file, planes[place], series, _inside(pixels, number, dataset))
        yield name, mask
    if counts["beyond"] and not counts["within"]:
        raise VolumeError(f"{file}: it lies wholly beyond series {series.uid}")
    if counts["beyond"]:
        logger.warning("%s: %d pixels beyond series %s are left out", file, counts["beyond"], series.uid)
    if counts["resampled"]:
        logger.warning("%s: %d slices are resampled to series %s", file, counts["resampled"], series.uid)


def segment_names(dataset: Dataset) -> dict[int, str]:
    """The label of each segment by its number, without the background of a label map."""
    is_map = dataset.get("SegmentationType") == "LABELMAP"
    background = int(dataset.get("PixelPaddingValue") or 0) if is_map else None
    names = {}
    for item in dataset.get("SegmentSequence", []):
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or [{}]
        code = (kinds[0].get("CodeValue"), kinds[0].get("CodingSchemeDesignator"))
        if int(item.SegmentNumber) != background and not (is_map and code == _BACKGROUND):
            names[int(item.SegmentNumber)] = str(item.get("SegmentLabel") or "")
    return names


def drawn_segments(dataset: Dataset) -> set[int]:
    """The numbers of the segments that have a slice; in a label map all of them may."""
    return {number for number in segment_names(dataset) if _places(dataset, number, 1)}


def segment_codes(dataset: Dataset) -> dict[str, Code]:
    """The code of each segment's type by its label."""
    codes = {}
    for item in dataset.get("SegmentSequence", []):
        for kind in item.get("SegmentedPropertyTypeCodeSequence", []):
            parts = (kind.get("CodeValue"), kind.get("CodingSchemeDesignator"), kind.get("CodeMeaning"))
            if all(parts):
                codes[str(item.get("SegmentLabel", ""))] = Code(*map(str, parts))
    return codes


def write_segmentation(
    mask: Volume, series: DicomSeries, path: Path, labels: Mapping[int, str], codes: Mapping[str, Code]
) -> None:
    """Write a mask as a DICOM-SEG that refers to the slices it was made from.

    Args:
        mask: on the series' grid, as `series.read()` gives it.
        labels: the name of each value above 0.
        codes: by name.

    Raises:
        VolumeError: it cannot be written, or the extra is missing.
    """
    try:
        from highdicom.seg import Segmentation
    except ImportError:
        raise VolumeError(NEEDS_THE_EXTRA) from None
    from pydicom.uid import generate_uid

    sources = source_headers(series)
    numbers = np.zeros(max(labels) + 1, np.uint8 if len(labels) < 256 else np.uint16)
    numbers[list(labels)] = np.arange(1, len(labels) + 1)
    described = zip(labels.values(), element_names(labels.values()), strict=True)
    in_file = np.argsort([plane.index for plane in series.planes], kind="stable") if len(sources) == 1 else slice(None)
    try:
        with quiet(), naming(path, "cannot be written", VolumeError), replacing(path) as stream:
            Segmentation(
                source_images=sources,
                pixel_array=numbers[mask.array.T][in_file],
                segmentation_type="BINARY",
                segment_descriptions=[_description(n, *names, codes) for n, names in enumerate(described, 1)],
                series_instance_uid=generate_uid(),
                series_number=max(int(sources[0].get("SeriesNumber") or 0), 0) + 1000,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=MAKER,
                manufacturer_model_name=MAKER,
                software_versions=version("sam2-3dmed"),
                device_serial_number="0",
                content_label="SEGMENTATION",
                specific_character_set=CHARACTERS,
                series_description=f"{MAKER} segmentation",
            ).save_as(stream, enforce_file_format=True)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a required element is missing
        raise VolumeError(f"{path}: no DICOM-SEG can refer to series {series.uid}: {error}") from None


def _description(number: int, name: str, label: str, codes: Mapping[str, Code]) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    return SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=CodedConcept(*category_of(name)),
        segmented_property_type=CodedConcept(*code_of(name, codes)),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=MAKER, family=CodedConcept("123109", "DCM", "Artificial Intelligence"), version=version("sam2-3dmed")
        ),
        display_color=CIELabColor.from_rgb(*class_colour(number)),
    )


def _places(dataset: Dataset, number: int, count: int) -> list[int]:
    """The numbers of the stored slices that belong to a segment; in a label map all of them may."""
    if dataset.get("SegmentationType") == "LABELMAP":
        return list(range(count))
    shared = _segment_of(dataset.get("SharedFunctionalGroupsSequence", [None])[0])
    groups = dataset.get("PerFrameFunctionalGroupsSequence", [])
    return [place for place, group in enumerate(groups) if (_segment_of(group) or shared) == number]


def _segment_of(group: Dataset | None) -> int | None:
    items = group.get("SegmentIdentificationSequence") if group is not None else None
    return int(items[0].ReferencedSegmentNumber) if items else None


def _pixels(file: DicomFile, dataset: Dataset, places: list[int]) -> Iterator[NDArray[Any]]:
    """The stored slices at these places, (rows, columns), one at a time."""
    from pydicom.pixels.utils import iter_pixels

    with reading(file, "its pixels are"):
        size = dataset.Rows * dataset.Columns
        if dataset.BitsAllocated != 1 or dataset.file_meta.TransferSyntaxUID.is_compressed:
            yield from iter_pixels(dataset, indices=places, raw=True) if places else []  # pydicom takes [] for all
            return
        # pydicom reads a byte too few where a slice starts within a byte.
        packed = np.frombuffer(dataset.PixelData, np.uint8)
        for first in (place * size for place in places):
            bits = np.unpackbits(packed[first // 8 : (first + size + 7) // 8], bitorder="little")
            yield bits[first % 8 :][:size].reshape(dataset.Rows, dataset.Columns)


def _inside(pixels: NDArray[Any], number: int, dataset: Dataset) -> NDArray[np.bool_]:
    kind = dataset.get("SegmentationType")
    if kind == "LABELMAP":
        return np.asarray(pixels == number)
    # Of fractions, at least half of the value that stands for certainty.
    least = int(dataset.get("MaximumFractionalValue", 255)) if kind == "FRACTIONAL" else 1
    return np.asarray(2 * pixels.astype(np.int64) >= least)


def _draw(
    mask: NDArray[np.bool_], file: DicomFile, plane: Plane, series: DicomSeries, inside: NDArray[np.bool_]
) -> Counter[str]:
    """Set the voxels under the pixels of a segment's slice, and count pixels within and beyond the series.

    The slice may be turned or mirrored, and between the voxels of a slice of the series it may have other steps.
    """
    to_voxels = (np.linalg.inv(series.affine) @ LPS_TO_RAS @ plane.lps_from_pixels)[:3]
    rows, columns = np.nonzero(inside)
    corners = to_voxels @ [[0, plane.size[0] - 1, 0], [0, 0, plane.size[1] - 1], [1, 1, 1]]
    off = np.abs(corners - np.rint(corners)).max(axis=1)
    # The next pixel is the next voxel along some axis, so that none is left out or taken twice.
    keeps_steps = np.allclose(np.sort(np.abs(to_voxels[:, :2]), axis=0), [[0, 0], [0, 0], [1, 1]], atol=1e-2)
    same_voxels = keeps_steps and off[:2].max() <= _OFF_THE_GRID
    if off[2] > _OFF_THE_SLICE or not (same_voxels or np.ptp(corners[2]) <= _OFF_THE_SLICE):
        raise VolumeError(f"{file}: its voxels are not those of series {series.uid}")
    voxels = np.floor(to_voxels @ np.stack([columns, rows, np.ones_like(rows)]) + 0.5).astype(np.int64)
    within = ((voxels >= 0) & (voxels < np.array(series.shape)[:, None])).all(axis=0)
    counts = Counter(within=int(within.sum()), beyond=int((~within).sum()), resampled=int(not same_voxels))
    if same_voxels:
        mask[tuple(voxels[:, within])] = True
    elif 0 <= (place := round(corners[2].mean())) < series.shape[2]:
        grid = np.indices(series.shape[:2]).reshape(2, -1)
        pixels = np.linalg.inv(to_voxels[:2, :2]) @ (grid - to_voxels[:2, 2:])
        at = np.floor(pixels + 0.5).astype(np.int64)
        there = ((at >= 0) & (at < np.array(plane.size)[:, None])).all(axis=0)
        found = np.zeros(grid.shape[1], bool)
        found[there] = inside[at[1, there], at[0, there]]
        mask[:, :, place] |= found.reshape(series.shape[:2])
    return counts
