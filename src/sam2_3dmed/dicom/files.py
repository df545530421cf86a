"""The DICOM files in a folder, a tree of folders or a zip, grouped by series; pixels are not touched here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile, ZipFile, is_zipfile

from sam2_3dmed.errors import VolumeError

if TYPE_CHECKING:
    from pydicom import Dataset

NEEDS_THE_EXTRA = "DICOM needs the extra: pip install 'sam2-3dmed[dicom]'"
HEADER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesDescription",
    "FrameOfReferenceUID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
)
_MAGIC = b"DICM"
_MAGIC_AT = 128


@dataclass(frozen=True, order=True)
class DicomFile:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


def require_dicom() -> None:
    """Raise VolumeError, saying what to install, unless the extra `dicom` is there."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise VolumeError(NEEDS_THE_EXTRA) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings on values that a scanner wrote loosely; what is unusable raises."""
    logger = logging.getLogger("pydicom")  # it gets every warning as well
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def holds_dicom(path: Path) -> bool:
    """Whether a file, a tree or a zip has a DICOM file in it; stops at the first."""
    return any(_has_magic(stream) for _, stream in opened(_list_files(path)))


def read_headers(path: Path, tags: Sequence[str] = HEADER_TAGS) -> list[tuple[DicomFile, Dataset]]:
    """The headers, without pixels, of all DICOM files at `path`; other files are passed over.

    path: a file, a folder (with its subfolders) or a zip. tags: the elements that are kept.

    Raises:
        VolumeError: nothing there, no DICOM file, or a damaged one; or the extra is missing.
    """
    require_dicom()
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    found = [(file, read_dataset(file, stream, tags)) for file, stream in opened(_list_files(path)) if is_dicom(stream)]
    found = [(file, header) for file, header in found if not is_directory(header)]
    if not found:
        raise VolumeError(f"{path}: no DICOM file here")
    for file, header in found:
        if "SeriesInstanceUID" not in header or ("Rows" not in header and _is_image(header)):
            raise VolumeError(f"{file}: the file is truncated or damaged: it ends inside its header")
    return found


def read_dataset(file: DicomFile, stream: BinaryIO, tags: Sequence[str] | None = None, **options: Any) -> Dataset:
    """A file's elements up to its pixels.

    Raises:
        VolumeError: the file is truncated or damaged.
    """
    import pydicom

    kept = None if tags is None else list(tags)
    try:
        with quiet():
            return pydicom.dcmread(stream, **{"stop_before_pixels": True, "specific_tags": kept} | options)
    except Exception as error:  # pydicom lets through whatever its parsers raise
        raise VolumeError(f"{file}: the file is truncated or damaged: {error}") from None


def opened(files: Iterable[DicomFile]) -> Iterator[tuple[DicomFile, BinaryIO]]:
    """Each file with its content, open until the next one is asked for; a zip is opened once.

    Raises:
        VolumeError: a file cannot be read.
    """
    archives: dict[Path, ZipFile] = {}
    with ExitStack() as stack:
        for file in files:
            try:
                if not file.member:
                    stream: BinaryIO = file.path.open("rb")
                else:
                    if file.path not in archives:
                        archives[file.path] = stack.enter_context(ZipFile(file.path))
                    stream = BytesIO(archives[file.path].read(file.member))
            except (OSError, BadZipFile, RuntimeError, NotImplementedError) as error:  # the last two: encrypted, exotic
                raise VolumeError(f"{file}: cannot be read: {error}") from None
            with stream:
                yield file, stream


def is_directory(header: Dataset) -> bool:
    """Whether this is a DICOMDIR, which lists other files."""
    return str(header.file_meta.get("MediaStorageSOPClassUID", "")) == "1.2.840.10008.1.3.10"


def _is_image(header: Dataset) -> bool:
    from pydicom.uid import UID

    return "Image Storage" in UID(str(header.file_meta.get("MediaStorageSOPClassUID", ""))).name


def files_below(folder: Path) -> list[Path]:
    """The files of a tree, sorted, but for hidden ones."""
    return sorted(found for found in folder.rglob("*") if found.is_file() and not found.name.startswith("."))


def _list_files(path: Path) -> list[DicomFile]:
    if path.is_dir():
        return [DicomFile(found) for found in files_below(path)]
    if not is_zipfile(path):
        return [DicomFile(path)]
    try:
        with ZipFile(path) as archive:
            members = [member for member in archive.namelist() if not member.endswith("/")]
    except BadZipFile as error:
        raise VolumeError(f"{path}: the zip is damaged: {error}") from None
    return sorted(DicomFile(path, member) for member in members if not Path(member).name.startswith("."))


def _has_magic(stream: BinaryIO) -> bool:
    return stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def is_dicom(stream: BinaryIO) -> bool:
    """Whether an open file is a DICOM file; it is left at its beginning."""
    answer = _has_magic(stream)
    stream.seek(0)
    return answer
