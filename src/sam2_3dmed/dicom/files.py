"""DICOM files in folders, trees of folders and zips: their headers, and the studies they belong to. No pixels."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import ZipFile, is_zipfile

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.files.archives import open_zip, read_member
from sam2_3dmed.processes.atomic import naming

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

NEEDS_THE_EXTRA = "DICOM needs the extra: pip install 'sam2-3dmed[dicom]'"
_HEADER_TAGS = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SeriesDescription FrameOfReferenceUID
    Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored PixelRepresentation
    ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices
    RescaleSlope RescaleIntercept ModalityLUTSequence
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ReferencedSeriesSequence
    """
HEADER_TAGS = tuple(_HEADER_TAGS.split())
_MAGIC = b"DICM"
_MAGIC_AT = 128
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # a DICOMDIR, which lists other files


@dataclass(frozen=True, order=True)
class DicomFile:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)


def require_dicom() -> None:
    """Raise VolumeError with the command to install the extra `dicom` if it is missing."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise VolumeError(NEEDS_THE_EXTRA) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings on values that a scanner wrote loosely; unusable values raise."""
    logger = logging.getLogger("pydicom")  # it gets every warning as well
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def reading(file: DicomFile, what: str) -> Iterator[None]:
    """Any error of pydicom, whose parsers and codecs raise many types, as a VolumeError: `what` "... damaged"."""
    try:
        with quiet():
            yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VolumeError(f"{file}: {what} truncated or damaged: {reason}") from None


def holds_dicom(path: Path) -> bool:
    """Whether a file, a tree or a zip has a DICOM file in it; stops at the first."""
    return any(_is_dicom(stream) for _, stream in opened(_list_files(path)))


def read_headers(path: Path, tags: Sequence[str] = HEADER_TAGS) -> list[tuple[DicomFile, Dataset]]:
    """The headers, without pixels, of all DICOM files at `path`; other files are passed over.

    Args:
        path: a file, a folder (with its subfolders) or a zip.

    Raises:
        VolumeError: nothing is there, no file is DICOM, one is damaged, or the extra is missing.
    """
    require_dicom()
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    read = (
        (file, read_elements(file, stream, tags)) for file, stream in opened(_list_files(path)) if _is_dicom(stream)
    )
    found = [(file, header) for file, header in read if _kind(header) != _DIRECTORY_CLASS]
    if not found:
        raise VolumeError(f"{path}: no DICOM file here")
    for file, header in found:
        if "SeriesInstanceUID" not in header or ("Rows" not in header and "Image Storage" in _kind(header).name):
            raise VolumeError(f"{file}: the file is truncated or damaged: it ends inside its header")
    return found


def read_elements(file: DicomFile, stream: BinaryIO, tags: Sequence[str] | None = None, **options: Any) -> Dataset:
    """A file's elements up to its pixels, or those of `tags`; `options` as for `pydicom.dcmread`.

    Raises:
        VolumeError: the file is truncated or damaged.
    """
    import pydicom

    kept = None if tags is None else list(tags)
    with reading(file, "the file is"):
        return pydicom.dcmread(stream, **{"stop_before_pixels": True, "specific_tags": kept} | options)


def opened(files: Iterable[DicomFile]) -> Iterator[tuple[DicomFile, BinaryIO]]:
    """Each file with its content, open until the next one is asked for; a zip is opened once.

    Raises:
        VolumeError: a file cannot be read.
    """
    archives: dict[Path, ZipFile] = {}
    with ExitStack() as stack:
        for file in files:
            if not file.member:
                with naming(file.path, "cannot be read", VolumeError):
                    stream: BinaryIO = file.path.open("rb")
            else:
                if file.path not in archives:
                    archives[file.path] = stack.enter_context(open_zip(file.path))
                stream = read_member(archives[file.path], file.member)
            with stream:
                yield file, stream


def files_below(folder: Path) -> list[Path]:
    """The files of a tree, sorted, without hidden ones."""
    return sorted(found for found in folder.rglob("*") if found.is_file() and not found.name.startswith("."))


def study_folders(root: Path) -> list[Path]:
    """The folder of each DICOM study below `root`, the highest that holds this study alone; `root` if it is one study.

    Only one file of each folder is read, since trees are large.

    Raises:
        VolumeError: folders of two studies lie among each other, a file is damaged, or the extra is missing.
    """
    require_dicom()
    studies: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, files in groupby(files_below(root), key=lambda file: file.parent):
        uid = _study_of(files)
        if uid is not None:
            studies[uid].append(folder)
    if len(studies) <= 1:
        return [root]
    return sorted(_top_folder(root, uid, studies) for uid in studies)


def study_name(root: Path, folder: Path) -> str:
    """The name of a study below `root`: its folders below `root`, or `root` itself."""
    return root.resolve().name if folder == root else "_".join(folder.relative_to(root).parts)


def _top_folder(root: Path, uid: str, studies: dict[str, list[Path]]) -> Path:
    others = [folder for other, folders in studies.items() if other != uid for folder in folders]
    top = Path(commonpath(studies[uid]))
    if any(other.is_relative_to(top) for other in others):
        raise VolumeError(f"{top}: the folders of several studies lie among each other; give the folder of each study")
    while top.parent != root and not any(other.is_relative_to(top.parent) for other in others):
        top = top.parent
    return top


def _study_of(files: Iterable[Path]) -> str | None:
    """The study of the first DICOM file, empty where its UID was taken away; None if there is no DICOM file."""
    for file, stream in opened(map(DicomFile, files)):
        if _is_dicom(stream):
            header = read_elements(file, stream, ["StudyInstanceUID"])
            if _kind(header) != _DIRECTORY_CLASS:
                return str(header.get("StudyInstanceUID") or "")
    return None


def _is_dicom(stream: BinaryIO) -> bool:
    """Whether an open file is a DICOM file; it is left at its beginning."""
    answer = stream.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    stream.seek(0)
    return answer


def _kind(header: Dataset) -> UID:
    from pydicom.uid import UID

    return UID(str(header.file_meta.get("MediaStorageSOPClassUID", "")))


def _list_files(path: Path) -> list[DicomFile]:
    if path.is_dir():
        return [DicomFile(found) for found in files_below(path)]
    if not is_zipfile(path):
        return [DicomFile(path)]
    with open_zip(path) as archive:
        members = [member for member in archive.namelist() if not member.endswith("/")]
    return sorted(DicomFile(path, member) for member in members if not Path(member).name.startswith("."))
