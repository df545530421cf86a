"""DICOM series: chosen among several, sorted into a regular grid or refused, and decoded slice by slice.

highdicom's volume reader gives the same voxels and affines where it reads a series. Ours stays, since it names the
fault and its files, accepts rounded positions and orientations and headers without a SOP class or a frame of reference,
and decodes one slice at a time.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.coded_size import coded_pixels
from sam2_3dmed.dicom.files import (
    HEADER_TAGS,
    NEEDS_THE_EXTRA,
    DicomFile,
    left_out,
    opened,
    quiet,
    read_elements,
    read_headers,
    reading,
)
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.nifti import require_finite
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

logger = logging.getLogger(__name__)

Group = list[tuple[DicomFile, "Dataset"]]
"""The files of a series with their headers."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE_MM = 0.1  # scanners round positions
_TOLERANCE_OF_GAP = 0.05
_SAME_DIRECTION = 1e-3
_MOST_BITS = 64
_NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice: its file, its place in the world, and the meaning of its stored values."""

    file: DicomFile
    index: int  # inside a multi-frame file, 0 in any other
    position_mm: NDArray[np.float64]  # of the centre of the first pixel, LPS
    directions: NDArray[np.float64]  # (2, 3), unit vectors along increasing column and row numbers, LPS
    spacing_mm: tuple[float, float]  # between columns, between rows
    thickness_mm: float
    size: tuple[int, int]  # columns, rows
    stored: tuple[int, bool]  # bits and sign of the stored values
    slope: float  # with the intercept, from stored to real values
    intercept: float
    rescaled: tuple[bool, bool] = (True, True)  # whether the file has them; else they are 1 and 0
    image_uid: str = ""

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.directions[0], self.directions[1])

    @property
    def lps_from_pixels(self) -> NDArray[np.float64]:
        """(4, 3), from (column, row, 1) to mm in LPS."""
        steps = self.directions * np.array(self.spacing_mm)[:, None]
        return np.vstack([np.column_stack([*steps, self.position_mm]), [0, 0, 1]])


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series that makes a volume: its slices in order, and the affine from (column, row, slice) to mm in RAS+."""

    uid: str
    planes: tuple[Plane, ...]
    affine: NDArray[np.float64]
    space_uid: str = ""
    """The frame of reference, empty where the files name none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices): X, Y, Z of the volume."""
        return *self.planes[0].size, len(self.planes)

    def read(self) -> Volume:
        """The voxels, in real values: integers where slope and intercept are, else float32.

        Raises:
            VolumeError: a file is truncated, its compression needs a codec that is not installed, or a value is not
                finite.
        """
        dtype = _dtype(self.planes)
        kind = int if dtype.kind == "i" else float
        stack = None  # made when a slice of this size has been read, since a damaged header may ask for terabytes
        for place, plane, pixels in _decoded(self.planes):
            if stack is None:
                stack = np.empty((len(self.planes), *pixels.shape), dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # reported below
                stack[place] = pixels.astype(kind) * kind(plane.slope) + kind(plane.intercept)
        assert stack is not None
        require_finite(stack)
        return Volume(stack.T, self.affine)

    def headers(self) -> list[Dataset]:
        """Everything but the pixels, of each file, in the order of the slices."""
        files = dict.fromkeys(plane.file for plane in self.planes)
        return [read_elements(file, stream) for file, stream in opened(files)]


def choose_series(path: Path, uid: str | None = None) -> DicomSeries:
    """The series with this UID among all at `path`, or without one the only series that makes a volume.

    Args:
        path: a folder with its subfolders, a zip, or a file.

    Raises:
        VolumeError: no image series; none or several fit (all are listed); slices that make no regular grid; or the
            extra `dicom` is missing.
    """
    headers, damaged = read_headers(path)
    groups = image_groups(headers)
    if not groups:
        raise VolumeError(f"{path}: DICOM files, but no images among them")
    if uid is None and len(groups) == 1:
        uid = next(iter(groups))
    if uid is not None:
        if uid not in groups:
            raise VolumeError(f"{path}: no series {uid} here; there are {_listed(groups)}")
        return make_series(path, groups[uid], damaged)
    regular = []
    for group in groups.values():
        with suppress(VolumeError):
            regular.append(make_series(path, group, damaged))
    fitting = [series for series in regular if len(series.planes) > 1]
    if len(fitting) != 1:
        raise VolumeError(f"{path}: {len(groups)} series, choose one by its UID (--series): {_listed(groups)}")
    logger.info("%s: series %s of %d, the only one that makes a volume", path, fitting[0].uid, len(groups))
    return fitting[0]


def image_groups(headers: Group) -> dict[str, Group]:
    """The files of each image series, by its UID."""
    groups: defaultdict[str, Group] = defaultdict(list)
    for file, header in headers:
        if "Rows" in header and str(header.get("Modality")) not in _NO_IMAGES:
            groups[str(header.get("SeriesInstanceUID", ""))].append((file, header))
    return dict(groups)


def make_series(path: Path, group: Group, damaged: Mapping[str, str] | None = None) -> DicomSeries:
    """The series that these files make, without its localizers and copies of a file.

    Args:
        damaged: of `read_headers`.

    Raises:
        VolumeError: its slices make no regular grid of one patient's grey values, or one of its files may be damaged.
            The message names the series.
    """
    tags = "SeriesInstanceUID", "Modality", "SeriesDescription"
    uid, modality, description = (str(group[0][1].get(tag, "")) for tag in tags)
    try:
        for place in (uid, *sorted({str(file.folder) for file, _ in group})):
            if place in (damaged or {}):
                raise VolumeError((damaged or {})[place])
        group = _without_copies(path, _without_localizers(path, group))
        _require_one_source(group)
        for file, header in group:
            _require_grey_values(file, header)
        planes, affine = arrange([plane for file, header in group for plane in planes_of(file, header)])
    except VolumeError as error:
        raise VolumeError(f"{path}: series {uid} ({modality}, {description or 'no description'}): {error}") from None
    spaces = [space for _, header in group if (space := str(header.get("FrameOfReferenceUID") or ""))]
    return DicomSeries(uid, tuple(planes), affine, spaces[0] if spaces else "")


def _without_localizers(path: Path, group: Group) -> Group:
    localizers = {file for file, header in group if "LOCALIZER" in str(header.get("ImageType", "")).upper()}
    if len(localizers) == len(group):
        return group
    left_out(path, "localizers", map(str, sorted(localizers)))
    return [(file, header) for file, header in group if file not in localizers]


def _without_copies(path: Path, group: Group) -> Group:
    """Without files whose header and pixels another file has, too."""
    uids = {file: str(header.get("SOPInstanceUID") or "") for file, header in group}
    counts = Counter(uid for uid in uids.values() if uid)
    headers = dict(group)
    seen: set[tuple[object, ...]] = set()
    copies: set[DicomFile] = set()
    for file, stream in opened(file for file, uid in uids.items() if counts[uid] > 1):
        pixels = read_elements(file, stream, ["PixelData"], stop_before_pixels=False).get("PixelData", b"")
        content = (sha256(pixels).digest(), *(str(headers[file].get(tag)) for tag in HEADER_TAGS))
        if content in seen:
            copies.add(file)
        seen.add(content)
    left_out(path, "copies of files", map(str, sorted(copies)))
    return [(file, header) for file, header in group if file not in copies]


def _require_one_source(group: Group) -> None:
    """Raise VolumeError for slices of several patients, frames of reference or modalities; absent values fit all."""
    for what, keyword in (
        ("patients", "PatientID"),
        ("patients", "PatientName"),
        ("frames of reference", "FrameOfReferenceUID"),
        ("modalities", "Modality"),
    ):
        files: dict[str, DicomFile] = {}
        for file, header in group:
            value = " ".join(str(header.get(keyword) or "").casefold().replace("^", " ").split())
            files.setdefault(value, file)
        files.pop("", None)
        if len(files) > 1:
            first, second, *_ = sorted(files.values())
            raise VolumeError(f"slices of different {what} ({keyword}): {first} and {second}")


def _require_grey_values(file: DicomFile, header: Dataset) -> None:
    grey = str(header.get("PhotometricInterpretation") or "MONOCHROME2").startswith("MONOCHROME")
    if header.get("SamplesPerPixel", 1) != 1 or not grey:
        raise VolumeError(f"{file}: a colour picture, not grey values")
    if "ModalityLUTSequence" in header:
        raise VolumeError(f"{file}: its values go through a table (Modality LUT), which is not supported")


def _listed(groups: dict[str, Group]) -> str:
    """UID, modality, description and number of slices of each series."""
    lines = []
    for uid, group in groups.items():
        header = group[0][1]
        count = sum(_count(h) for _, h in group)
        description = header.get("SeriesDescription") or "no description"
        lines.append(f"{uid} ({header.get('Modality', '?')}, {description}, {count} slices)")
    return "; ".join(lines)


def planes_of(file: DicomFile, header: Dataset) -> list[Plane]:
    """The slices in a file: one, or each of a multi-frame file.

    Raises:
        VolumeError: the header does not place the slices.
    """
    try:
        shared = _first(header, "SharedFunctionalGroupsSequence")
        groups = header.get("PerFrameFunctionalGroupsSequence") or [None]
        if groups[0] is None and _count(header) > 1:
            raise VolumeError(f"{file}: a multi-frame file that does not say where each slice lies")
        with quiet():
            return [_plane(file, index, header, [group, shared]) for index, group in enumerate(groups)]
    except KeyError as error:
        raise VolumeError(f"{file}: no {error.args[0]}") from None
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise VolumeError(f"{file}: its header cannot be used: {error}") from None


def arrange(planes: Sequence[Plane]) -> tuple[list[Plane], NDArray[np.float64]]:
    """The slices in order along their normal, and the affine from (column, row, slice) to mm in RAS+.

    Raises:
        VolumeError: mixed sizes, orientations or pixel spacings; doubled or missing slices, uneven gaps, gantry tilt.
    """
    first = planes[0]
    _check_alike(planes)
    heights = np.array([float(plane.position_mm @ first.normal) for plane in planes])
    order = np.argsort(heights, kind="stable")
    ordered = [planes[i] for i in order]
    lps = np.eye(4)
    lps[:, [0, 1, 3]] = first.lps_from_pixels
    lps[:3, 2] = _step(heights[order], ordered)
    lps[:3, 3] = ordered[0].position_mm
    return ordered, LPS_TO_RAS @ lps


def _count(header: Dataset) -> int:
    """The number of slices in a file."""
    given = header.get("NumberOfFrames") or 1
    return int(given) if isinstance(given, int) else 1


def _plane(file: DicomFile, index: int, header: Dataset, groups: Sequence[Dataset | None]) -> Plane:
    def value(keyword: str, sequence: str, default: object = None) -> object:
        """From the slice's own group, else from the one that all share, else from the file itself."""
        places = [_first(group, sequence) for group in groups if group is not None]
        values = (place.get(keyword) for place in (*places, header) if place is not None)
        found = next((value for value in values if value not in (None, "")), default)
        if found is None:
            raise KeyError(keyword)
        return found

    directions = np.array(value("ImageOrientationPatient", "PlaneOrientationSequence"), float).reshape(2, 3)
    measures = "PixelMeasuresSequence"
    rows_mm, columns_mm = np.array(value("PixelSpacing", measures), float)
    thickness = value("SpacingBetweenSlices", measures, 0) or value("SliceThickness", measures, 1)
    position = np.array(value("ImagePositionPatient", "PlanePositionSequence"), float).reshape(3)
    numbers = [*directions.flat, rows_mm, columns_mm, *position, float(str(thickness))]
    is_orthonormal = np.allclose(directions @ directions.T, np.eye(2), atol=1e-2)
    transform = "PixelValueTransformationSequence"
    slope, intercept = (str(value(keyword, transform, "")) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if not np.isfinite([float(slope or 1), float(intercept or 0)]).all():
        raise ValueError(f"its slope {slope!r:.20} or intercept {intercept!r:.20} is not finite")
    if slope and float(slope) == 0:
        raise ValueError("its slope is 0, which leaves nothing of its pixels")
    if not 1 <= (bits := int(header["BitsStored"].value)) <= _MOST_BITS:
        raise ValueError(f"its values have {bits} bits")
    if not np.isfinite(numbers).all() or min(rows_mm, columns_mm) <= 0 or not is_orthonormal:
        raise ValueError("position, orientation or spacing is out of range")
    return Plane(
        file,
        index,
        position,
        directions / np.linalg.norm(directions, axis=1, keepdims=True),
        (float(columns_mm), float(rows_mm)),
        float(str(thickness)),
        (int(header["Columns"].value), int(header["Rows"].value)),
        (bits, bool(header.get("PixelRepresentation", 0))),
        float(slope or 1),
        float(intercept or 0),
        (slope != "", intercept != ""),
        str(header.get("SOPInstanceUID") or ""),
    )


def _first(dataset: Dataset | None, sequence: str) -> Dataset | None:
    items = dataset.get(sequence) if dataset is not None else None
    return items[0] if items else None


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    sizes = sorted({plane.size for plane in planes})
    if len(sizes) > 1:
        raise VolumeError(f"slices of different sizes: {' and '.join(f'{c} x {r}' for c, r in sizes[:3])}")
    if any(np.abs(plane.directions - first.directions).max() > _SAME_DIRECTION for plane in planes):
        raise VolumeError("slices of different orientations")
    if not all(np.allclose(plane.spacing_mm, first.spacing_mm, rtol=1e-4) for plane in planes):
        raise VolumeError("slices of different pixel spacings")
    odd = next((plane for plane in planes if plane.rescaled != first.rescaled), None)
    if odd is not None:
        raise VolumeError(f"{odd.file} has a slope or intercept and {first.file} has none, or the other way round")


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
    _check_one_above_the_other(heights - heights[0], ordered, tolerance)
    return np.asarray(normal * (heights[-1] - heights[0]) / (count - 1))


def _check_one_above_the_other(heights: NDArray[np.float64], ordered: Sequence[Plane], tolerance: float) -> None:
    """Raise VolumeError if the stack leans, or if a slice lies sideways of the others or is turned against them."""
    first = ordered[0]
    offsets = np.array([plane.position_mm - first.position_mm for plane in ordered])
    sideways = offsets - heights[:, None] * first.normal
    bent = np.linalg.norm(sideways - np.outer(heights / heights[-1], sideways[-1]), axis=1)
    if bent.max() > tolerance:
        away = np.linalg.norm(sideways - np.median(sideways, axis=0), axis=1)
        raise VolumeError(f"{ordered[int(away.argmax())].file} lies {away.max():.3g} mm sideways of the other slices")
    if np.linalg.norm(sideways[-1]) > tolerance:
        degrees = np.degrees(np.arctan2(np.linalg.norm(sideways[-1]), heights[-1]))
        raise VolumeError(f"gantry tilt: the stack leans by {degrees:.1f} degrees; resample it first")
    ends = np.array([[1, 0], [0, 1], [1, 1]]) * (np.array(first.size) - 1) * first.spacing_mm
    turned = np.array([np.linalg.norm(ends @ (plane.directions - first.directions), axis=1).max() for plane in ordered])
    if turned.max() > max(tolerance, min(first.spacing_mm) / 2):
        odd = ordered[int(turned.argmax())].file
        raise VolumeError(f"{odd} is turned against {first.file}: a corner lies {turned.max():.3g} mm away")


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


def _dtype(planes: Sequence[Plane]) -> np.dtype[Any]:
    """The smallest of int16, int32 and float32 that holds every value the headers allow."""
    if not all(plane.slope.is_integer() and plane.intercept.is_integer() for plane in planes):
        return np.dtype(np.float32)
    ends = []
    for plane in planes:
        bits, signed = plane.stored
        low = -(2 ** (bits - 1)) if signed else 0
        ends += [value * plane.slope + plane.intercept for value in (low, low + 2**bits - 1)]
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= min(ends) and max(ends) <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _decoded(planes: Sequence[Plane]) -> Iterator[tuple[int, Plane, NDArray[np.integer]]]:
    """Each slice's place, the slice, and its stored values, (rows, columns); one slice in memory."""
    numbered = sorted(enumerate(planes), key=lambda item: (item[1].file, item[1].index))
    groups = [(file, list(items)) for file, items in groupby(numbered, key=lambda item: item[1].file)]
    streams = opened(file for file, _ in groups)
    for (_, items), (file, stream) in zip(groups, streams, strict=True):
        pixels = _pixels(file, stream, [plane.index for _, plane in items])
        for (place, plane), values in zip(items, pixels, strict=True):
            if values.shape != plane.size[::-1]:
                raise VolumeError(f"{file}: {values.shape} pixels, but its header says {plane.size[::-1]}")
            yield place, plane, values


def _pixels(file: DicomFile, stream: BinaryIO, indices: list[int]) -> Iterator[NDArray[np.integer]]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import iter_pixels

    syntax = read_elements(file, stream, ["Rows"]).file_meta.get("TransferSyntaxUID")
    stream.seek(0)
    try:
        with quiet():
            available = get_decoder(syntax).is_available
    except (NotImplementedError, ValueError, TypeError):  # pydicom has no such syntax, or the file names none
        name = getattr(syntax, "name", syntax)
        raise VolumeError(f"{file}: pixels stored as {name!r} cannot be read") from None
    if not available:
        raise VolumeError(
            f"{file}: pixels stored as {syntax.name!r} need a codec that is not installed; {NEEDS_THE_EXTRA}"
        )
    stream.seek(0)
    source: BinaryIO | Dataset = stream
    if syntax.is_deflated:  # pydicom takes no pixels from such a stream
        source, syntax, stream = _inflated(file, stream)
    _require_filled(file, stream, syntax, indices)
    stream.seek(0)
    with reading(file, "its pixels are"):
        yield from iter_pixels(source, indices=indices, raw=True)


def _inflated(file: DicomFile, stream: BinaryIO) -> tuple[Dataset, UID, BinaryIO]:
    """A deflated file whole, and the same without compression."""
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = read_elements(file, stream, stop_before_pixels=False)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = BytesIO()
    with reading(file, "its pixels are"):
        dataset.save_as(plain, enforce_file_format=False)
    plain.seek(0)
    return dataset, ExplicitVRLittleEndian, plain


def _require_filled(file: DicomFile, stream: BinaryIO, syntax: UID, indices: list[int]) -> None:
    """Raise VolumeError if there are more pixels than rows and columns hold: then each row would begin elsewhere."""
    from pydicom.encaps import get_frame

    header = read_elements(file, stream, ["Rows", "Columns", "NumberOfFrames", "BitsAllocated"])
    with reading(file, "its pixels are"):
        size, count = (header.Columns, header.Rows), int(header.get("NumberOfFrames") or 1)
        element = stream.read(12)  # the tag, without or with the type of the value, and the length
        begin = stream.tell()
        for index in indices if syntax.is_encapsulated else []:
            stream.seek(begin)
            coded = coded_pixels(get_frame(stream, index, number_of_frames=count), syntax)
            if coded not in (size, size[0] * size[1], None):
                raise VolumeError(f"{file}: its compressed pixels are {coded}, but its columns and rows are {size}")
        expected = size[0] * size[1] * count * header.BitsAllocated // 8
        length = element[4:8] if syntax.is_implicit_VR else element[8:]
        given = int.from_bytes(length, "little" if syntax.is_little_endian else "big")
    if not syntax.is_encapsulated and given > expected + expected % 2:
        raise VolumeError(f"{file}: its pixels take {given} bytes, but its rows and columns hold {expected}")
