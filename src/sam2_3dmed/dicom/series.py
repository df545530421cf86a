"""DICOM series in: chosen, checked and decoded slice by slice; every failure is one line that names the series."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.dicom.files import NEEDS_THE_EXTRA, DicomFile, opened, quiet, read_dataset, read_headers
from sam2_3dmed.dicom.geometry import Plane, arrange, planes_of
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

_NO_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "PR", "SR", "KO", "REG", "DOC"}


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """A series that makes a volume.

    planes: its slices in order. affine: (4, 4), from (column, row, slice) to mm in RAS+.
    """

    path: Path
    uid: str
    modality: str
    description: str
    planes: tuple[Plane, ...]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices): X, Y, Z of the volume."""
        return *self.planes[0].size, len(self.planes)

    def read(self) -> Volume:
        """The voxels, in real values: integers where slope and intercept are, else float32.

        Raises:
            VolumeError: a file is truncated, or its compression needs a codec that is not installed.
        """
        dtype = _dtype(self.planes)
        stack = np.empty((len(self.planes), *reversed(self.planes[0].size)), dtype)
        for place, plane, pixels in _decoded(self.planes):
            scale = int if dtype.kind == "i" else float
            values = pixels.astype(np.int64 if dtype.kind == "i" else np.float64)
            stack[place] = values * scale(plane.slope) + scale(plane.intercept)
        return Volume(stack.T, self.affine)

    def headers(self) -> list[Dataset]:
        """Everything but the pixels, of each file, in the order of the slices."""
        files = dict.fromkeys(plane.file for plane in self.planes)
        return [read_dataset(file, stream) for file, stream in opened(files)]


def choose_series(path: Path, uid: str | None = None) -> DicomSeries:
    """The series with this UID among all at `path`, or without one the only series that makes a volume.

    path: a folder with its subfolders, a zip, or a file.

    Raises:
        VolumeError: no image series; none or several that fit, then all are listed; the series' slices make no
            regular grid; or the extra `dicom` is missing.
    """
    groups = image_groups(read_headers(path))
    if not groups:
        raise VolumeError(f"{path}: DICOM files, but no images among them")
    if uid is not None:
        if uid not in groups:
            raise VolumeError(f"{path}: no series {uid} here; there are {_listed(groups)}")
        return make_series(path, groups[uid])
    if len(groups) == 1:
        return make_series(path, next(iter(groups.values())))
    fitting = []
    for group in groups.values():
        try:
            series = make_series(path, group)
        except VolumeError:
            continue
        if len(series.planes) > 1:
            fitting.append(series)
    if len(fitting) != 1:
        raise VolumeError(f"{path}: {len(groups)} series, choose one by its UID (--series): {_listed(groups)}")
    logger.info("%s: series %s of %d, the only one that makes a volume", path, fitting[0].uid, len(groups))
    return fitting[0]


def read_dicom(path: str | Path, series_uid: str | None = None) -> Volume:
    """The volume of a series; see `choose_series` and `DicomSeries.read`.

    Raises:
        VolumeError: as those do, in one line that names the path and the series.
    """
    return choose_series(Path(path), series_uid).read()


Group = list[tuple[DicomFile, "Dataset"]]


def image_groups(headers: Group) -> dict[str, Group]:
    """The files of each image series, by its UID."""
    groups: defaultdict[str, Group] = defaultdict(list)
    for file, header in headers:
        if "Rows" in header and header.get("Modality") not in _NO_IMAGES:
            groups[str(header.get("SeriesInstanceUID", ""))].append((file, header))
    return dict(groups)


def make_series(path: Path, group: Group) -> DicomSeries:
    """The series that these files make.

    Raises:
        VolumeError: their slices make no regular grid; the line names the series.
    """
    header = group[0][1]
    uid, modality, description = (
        str(header.get(k, "")) for k in ("SeriesInstanceUID", "Modality", "SeriesDescription")
    )
    try:
        planes, affine = arrange([plane for file, header in group for plane in planes_of(file, header)])
    except VolumeError as error:
        raise VolumeError(f"{path}: series {uid} ({modality}, {description or 'no description'}): {error}") from None
    return DicomSeries(path, uid, modality, description, tuple(planes), affine)


def _listed(groups: dict[str, Group]) -> str:
    """UID, modality, description and number of files of each series."""
    lines = []
    for uid, group in groups.items():
        header = group[0][1]
        count = sum(int(h.get("NumberOfFrames") or 1) for _, h in group)
        description = header.get("SeriesDescription") or "no description"
        lines.append(f"{uid} ({header.get('Modality', '?')}, {description}, {count} slices)")
    return "; ".join(lines)


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
            yield place, plane, _stored_bits(values, *plane.stored)


def _pixels(file: DicomFile, stream: BinaryIO, indices: list[int]) -> Iterator[NDArray[np.integer]]:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import iter_pixels

    syntax = read_dataset(file, stream, ["Rows"]).file_meta.get("TransferSyntaxUID")
    try:
        available = get_decoder(syntax).is_available
    except (NotImplementedError, ValueError, TypeError):  # a syntax that pydicom does not know, or none in the file
        name = getattr(syntax, "name", syntax)
        raise VolumeError(f"{file}: pixels stored as {name!r} cannot be read") from None
    if not available:
        raise VolumeError(
            f"{file}: pixels stored as {syntax.name!r} need a codec that is not installed; {NEEDS_THE_EXTRA}"
        )
    stream.seek(0)
    several = iter_pixels(stream, indices=indices, raw=True)
    for _ in indices:
        try:
            with quiet():
                yield next(several)
        except Exception as error:  # whatever the codec raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise VolumeError(f"{file}: its pixels are truncated or damaged: {reason}") from None


def _stored_bits(values: NDArray[np.integer], bits: int, signed: bool) -> NDArray[np.integer]:
    """The values without what some scanners leave in the bits above."""
    unused = 8 * values.dtype.itemsize - bits
    if unused <= 0:
        return values
    kind = np.dtype(f"{'i' if signed else 'u'}{values.dtype.itemsize}")
    return (values.view(kind) << unused) >> unused
