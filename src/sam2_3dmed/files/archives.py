"""The one reader of zips: members as streams, within limits, and every kind of damage as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast
from zipfile import ZipFile

from sam2_3dmed.errors import UserError, VolumeError

MAX_MEMBER_BYTES = 2**32
"""Of an unpacked member."""
MAX_MEMBERS = 2**20
"""Of a zip."""
_IN_MEMORY_BYTES = 2**26
_CHUNK = 2**20


@contextmanager
def open_zip(path: Path, kind: type[UserError] = VolumeError) -> Iterator[ZipFile]:
    """An open zip. Raises UserError of this kind if it is damaged, or has more than `MAX_MEMBERS` members."""
    try:
        archive = ZipFile(path)
    except Exception as error:  # zipfile raises errors of many kinds for damaged directories
        raise kind(f"{path}: the zip is damaged: {_reason(error)}") from None
    with archive:
        if len(archive.filelist) > MAX_MEMBERS:
            raise kind(f"{path}: the zip has more than {MAX_MEMBERS} members")
        yield archive


def read_member(archive: ZipFile, name: str, kind: type[UserError] = VolumeError) -> BinaryIO:
    """A member from its beginning to its end, checked; above 64 MiB it is in a temporary file, not in memory.

    Raises:
        UserError: of this kind, if it is damaged, encrypted, or larger than `MAX_MEMBER_BYTES`.
    """
    where = f"{archive.filename}/{name}"
    if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
        raise kind(f"{where}: cannot be read: it has more than {MAX_MEMBER_BYTES >> 30} GiB")
    content = SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
    try:
        with archive.open(name) as member:  # ends at the size that the zip gives, whatever is packed
            copyfileobj(member, content, _CHUNK)
    except Exception as error:  # each way to compress has errors of its own
        content.close()
        raise kind(f"{where}: cannot be read: {_reason(error)}") from None
    content.seek(0)
    return cast(BinaryIO, content)


def is_whole_zip(path: Path) -> bool:
    """Whether a file is a zip whose members can all be read and have their checksums."""
    try:
        with ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # as above
        return False


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
