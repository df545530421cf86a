"""DICOM files in folders, trees of folders and zips: their headers, and the studies they belong to. No pixels."""

from __future__ import annotations

import logging
import os
import re
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from os.path import commonpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import ZipFile, is_zipfile

from sam2_3dmed.errors import UserError, VolumeError
from sam2_3dmed.files.archives import open_zip, read_member
from sam2_3dmed.processes.atomic import require_path

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

logger = logging.getLogger(__name__)

NEEDS_THE_EXTRA = "DICOM needs the extra: pip install 'sam2-3dmed[dicom]'"
_HEADER_TAGS = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SeriesDescription FrameOfReferenceUID
    Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored PixelRepresentation
    ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices
    RescaleSlope RescaleIntercept ModalityLUTSequence PhotometricInterpretation ImageType PatientID PatientName
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence ReferencedSeriesSequence
    """
HEADER_TAGS = tuple(_HEADER_TAGS.split())
_PREAMBLE = bytes(128) + b"DICM"
# A file without preamble begins with an element of group 2 or 8: an even tag, and its type (explicit) or length.
_EXPLICIT = re.compile(rb"[\x02\x08]\x00[\x00-\x1e]\x00(UL|UI|OB|CS|SH|DA|TM|LO)", re.DOTALL)
_IMPLICIT = re.compile(rb"\x08\x00[\x00-\x1e]\x00(.)\x00\x00\x00", re.DOTALL)
_CONTOUR_DATA = 0x30060050
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # a DICOMDIR, which lists other files


@dataclass(frozen=True, order=True)
class DicomFile:
    """A file on disk, or a member of a zip."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def folder(self) -> Path:
        """The folder, on disk or in the zip."""
        return Path(str(self)).parent


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
    except UserError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VolumeError(f"{file}: {what} truncated or damaged: {reason}") from None


def holds_dicom(path: Path) -> bool:
    """Whether a file, a tree or a zip has a DICOM file in it; stops at the first."""
    return any(_is_dicom(stream) for _, stream in opened(_list_files(path, {}), {}))


def read_headers(
    path: Path, tags: Sequence[str] = HEADER_TAGS
) -> tuple[list[tuple[DicomFile, Dataset]], dict[str, str]]:
    """The headers, without pixels, of all DICOM files at `path`; other files are passed over.

    What cannot be read is left out, with a line.

    Args:
        path: a file, a folder (with its subfolders) or a zip.

    Returns:
        The headers; and for each series, or folder where the series is unknown, the reason of a file that cannot be
        read and may be one of its slices.

    Raises:
        VolumeError: nothing is there, no file is DICOM, none can be read, or the extra is missing.
    """
    require_dicom()
    require_path(path)
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    found: list[tuple[DicomFile, Dataset]] = []
    unreadable: dict[DicomFile, str] = {}
    strays: dict[DicomFile, str] = {}
    damaged: dict[str, str] = {}
    for file, stream in opened(_list_files(path, unreadable), unreadable):
        if not _is_dicom(stream):
            if str(file).lower().endswith((".dcm", ".ima")):
                strays[file] = f"{file}: is not DICOM, in spite of its name"
            continue
        header = None
        try:
            header = read_elements(file, stream, tags)
            _require_whole(file, header)
        except VolumeError as error:
            strays[file] = str(error)
            if _names_an_image(stream):
                series = header.get("SeriesInstanceUID") if header is not None else None
                damaged[str(series or file.folder)] = str(error)
            continue
        if _kind(header) != _DIRECTORY_CLASS:
            found.append((file, header))
    reasons = [*unreadable.values(), *strays.values()]
    if not found:
        raise VolumeError(f"{path}: no DICOM file here" + "".join(f" that can be read: {text}" for text in reasons[:1]))
    left_out(path, "files", reasons)
    return found, damaged | {str(file.folder): reason for file, reason in unreadable.items()}


def left_out(path: Path, what: str, reasons: Iterable[str]) -> None:
    """Warn in one line, with the first reason, of what is left out; nothing if there are no reasons."""
    listed = list(reasons)
    if listed:
        logger.warning("%s: %d %s left out; the first: %s", path, len(listed), what, listed[0])


def read_elements(file: DicomFile, stream: BinaryIO, tags: Sequence[str] | None = None, **options: Any) -> Dataset:
    """A file's elements up to its pixels, or those of `tags`; `options` as for `pydicom.dcmread`.

    Raises:
        VolumeError: the file is truncated or damaged.
    """
    import pydicom

    kept = None if tags is None else list(tags)
    with reading(file, "the file is"):
        dataset = pydicom.dcmread(stream, **{"stop_before_pixels": True, "specific_tags": kept} | options)
        _convert(dataset.file_meta)
        if kept is not None:
            _convert(dataset)
    return dataset


def _convert(dataset: Dataset) -> None:
    """Have pydicom parse the values now, and not at their first use; but long lists of points."""
    for tag in list(dataset.keys()):
        if tag != _CONTOUR_DATA and (element := dataset[tag]).VR == "SQ":
            for item in element.value:
                _convert(item)


def opened(
    files: Iterable[DicomFile], unreadable: dict[DicomFile, str] | None = None
) -> Iterator[tuple[DicomFile, BinaryIO]]:
    """Each file with its content, open until the next one is asked for; a zip is opened once.

    A DICOM file that lacks its preamble gets one.

    Args:
        unreadable: takes the reason of each file that cannot be read, instead of an error.

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
                        archives[file.path] = stack.enter_context(open_zip(file.path))
                    stream = read_member(archives[file.path], file.member)
                with stream:
                    yield file, _with_preamble(stream)
            except (OSError, VolumeError) as error:
                told = isinstance(error, VolumeError)
                reason = str(error) if told else f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}"
                if unreadable is None:
                    raise VolumeError(reason) from None
                unreadable[file] = reason


def files_below(folder: Path) -> list[Path]:
    """The files of a tree, sorted, without hidden ones; links to folders are followed, and each folder counts once."""
    return sorted((file for files in _walk(folder, {}).values() for file in files), key=lambda file: file.parts)


def study_folders(root: Path) -> list[Path]:
    """The folder of each DICOM study below `root`, the highest that holds this study alone; `root` if it is one study.

    Only one file of each folder is read, since trees are large.

    Raises:
        VolumeError: folders of two studies lie among each other, or the extra is missing.
    """
    require_dicom()
    studies: defaultdict[str, list[Path]] = defaultdict(list)
    alone: dict[Path, str | None] = {}  # the study in a folder and below it; None for several
    unlisted: dict[DicomFile, str] = {}
    for folder, files in _walk(root, unlisted).items():
        uid = _study_of(files)
        if uid is None:
            continue
        studies[uid].append(folder)
        for above in (folder, *folder.parents):
            if alone.setdefault(above, uid) != uid:
                alone[above] = None
            if above == root:
                break
    if len(studies) <= 1:
        return [root]
    left_out(root, "files or folders", unlisted.values())
    return sorted(_top_folder(root, folders, alone) for folders in studies.values())


def study_name(root: Path, folder: Path) -> str:
    """The name of a study below `root`: its folders below `root`, or `root` itself."""
    return readable(root.resolve().name if folder == root else "_".join(folder.relative_to(root).parts))


def readable(name: str) -> str:
    """The name of a file that was not written in UTF-8, as Latin-1; other names as they are."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def _top_folder(root: Path, folders: list[Path], alone: dict[Path, str | None]) -> Path:
    top = Path(commonpath(folders))
    if alone[top] is None:
        raise VolumeError(f"{top}: the folders of several studies lie among each other; give the folder of each study")
    while top.parent != root and alone[top.parent] is not None:
        top = top.parent
    return top


def _study_of(files: Iterable[Path]) -> str | None:
    """The study of the first DICOM file, empty where its UID was taken away; None if there is no DICOM file."""
    for file, stream in opened(map(DicomFile, files), {}):
        if _is_dicom(stream):
            try:
                header = read_elements(file, stream, ["SOPClassUID", "StudyInstanceUID"])
            except VolumeError:
                continue
            if _kind(header) != _DIRECTORY_CLASS:
                return str(header.get("StudyInstanceUID") or "")
    return None


def _is_dicom(stream: BinaryIO) -> bool:
    """Whether a file as `opened` gives it is DICOM; it is left at its beginning."""
    answer = stream.read(len(_PREAMBLE))[128:] == _PREAMBLE[128:]
    stream.seek(0)
    return answer


def _with_preamble(stream: BinaryIO) -> BinaryIO:
    """The stream, or its content after what it lacks: the preamble and the group that names the transfer syntax."""
    head = stream.read(300)
    stream.seek(0)
    if head[128:132] == _PREAMBLE[128:]:
        return stream
    if _EXPLICIT.match(head):
        syntax = None if head[0] == 2 else b"1.2.840.10008.1.2.1\0"
    elif (implicit := _IMPLICIT.match(head)) and head[8 + implicit[1][0] :][:2] == b"\x08\0":
        syntax = b"1.2.840.10008.1.2\0"
    else:
        return stream
    group = b"" if syntax is None else b"\2\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    return BytesIO(_PREAMBLE + group + stream.read())


def _kind(header: Dataset) -> UID:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    return UID(str(header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or ""), IGNORE)


def _require_whole(file: DicomFile, header: Dataset) -> None:
    is_image = "Image Storage" in _kind(header).name
    if "Rows" not in header and (is_image or "SOPInstanceUID" not in header) and _kind(header) != _DIRECTORY_CLASS:
        raise VolumeError(f"{file}: the file is truncated or damaged: it ends inside its header")


def _names_an_image(stream: BinaryIO) -> bool:
    """Whether the beginning of a damaged file names a class of images."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    stream.seek(0)
    named = re.search(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[\d.]+", stream.read(1024))
    return named is not None and "Image Storage" in UID(named[0].decode(), IGNORE).name


def _list_files(path: Path, unlisted: dict[DicomFile, str]) -> list[DicomFile]:
    if path.is_dir():
        files = (file for files in _walk(path, unlisted).values() for file in files)
        return [DicomFile(file) for file in sorted(files, key=lambda file: file.parts)]
    if not is_zipfile(path):
        return [DicomFile(path)]
    with open_zip(path) as archive:
        members = [member for member in archive.namelist() if not member.endswith("/")]
    return sorted(DicomFile(path, member) for member in members if not Path(member).name.startswith("."))


def _walk(root: Path, unlisted: dict[DicomFile, str]) -> dict[Path, list[Path]]:
    """The files of each folder of a tree, without hidden ones. Links come last, so that a folder has its own name.

    Args:
        unlisted: takes the reason of each folder that cannot be listed, and of each link to nothing.
    """

    def refused(error: OSError) -> None:
        file = DicomFile(Path(os.fsdecode(error.filename)))
        unlisted[file] = f"{file}: cannot be listed: {error.strerror}"

    found: dict[Path, list[Path]] = {}
    seen: set[tuple[int, int]] = set()
    starts = [root]
    for start in starts:  # grows
        for here, folders, names in os.walk(start, onerror=refused):
            folder = Path(here)
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            starts += [folder / name for name in sorted(folders) if (folder / name).is_symlink()]
            files = [folder / name for name in sorted(names) if not name.startswith(".")]
            found[folder] = [file for file in files if file.is_file()]
            unlisted |= {DicomFile(f): f"{f}: a link to nothing" for f in files if f.is_symlink() and not f.exists()}
    return found
