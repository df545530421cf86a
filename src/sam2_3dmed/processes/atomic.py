"""Files that appear whole or not at all: written under a temporary name beside their own, then renamed."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sam2_3dmed.errors import DataError, UserError
from sam2_3dmed.files.tables import csv_text


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An open file that takes the place of `path` at the end, or vanishes if the body raises."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 to `path`, whose folder is made if need be; a DataError if it cannot be written.

    What is no UTF-8 in the name of a file becomes an escape, which JSON reads back as it was.
    """
    with naming(path, "cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under a header of all their names, with empty fields for missing values. Raises: as `write_text`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_text(path, csv_text([names, *([row.get(name) for name in names] for row in rows)]))


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there; a DataError if it cannot be made."""
    with naming(path, "cannot be made"):
        path.mkdir(parents=True, exist_ok=True)


def require_path(path: Path) -> None:
    """Raise DataError for a path that the system cannot look up, such as a name that is too long."""
    with naming(path, "cannot be read"):
        path.exists()


@contextmanager
def naming(path: Path, problem: str, kind: type[UserError] = DataError) -> Iterator[None]:
    """An OSError in the body becomes an error of this kind that names the path and the problem."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: {problem}: {error.strerror or error}") from error
