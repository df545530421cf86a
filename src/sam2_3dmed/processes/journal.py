"""A file with one line of JSON for each piece of work that is done, so that a killed call can be called again."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import file_digest, sha256
from io import BufferedRandom
from pathlib import Path
from typing import Any

from sam2_3dmed.errors import DataError
from sam2_3dmed.files.structured import parse_json
from sam2_3dmed.processes.atomic import naming

logger = logging.getLogger(__name__)


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line, after removing a torn line that a killed process has left. Raises DataError."""
    with naming(path, "cannot be written"), open(path, "a+b", opener=_not_through_a_link) as file:
        with suppress(ImportError, OSError):  # one process at a time, on systems that have locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        _cut_torn_line(file)
        file.write(json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def read(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Content and text of each whole line with a "name"; the work of a torn line is done again. Raises DataError."""
    with naming(path, "cannot be read"):
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for text in texts:
        try:
            line = parse_json(text, path)
        except DataError:
            continue
        if isinstance(line, dict) and "name" in line:
            yield line, text


def checksum(files: Sequence[Path]) -> str:
    """SHA-256 of the contents of the files. Raises DataError if one cannot be read."""
    digests = []
    for path in files:
        with naming(path, "cannot be read"), path.open("rb") as file:
            digests.append(file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()


def checksums(files: Sequence[Path], folder: Path) -> dict[str, str]:
    """The checksum of each file, by its path within a folder, as `are_whole` reads them."""
    return {path.relative_to(folder).as_posix(): checksum([path]) for path in files}


def are_whole(outputs: Any, folder: Path) -> bool:
    """Whether a line names outputs at all, and each still has its checksum."""
    try:
        return bool(outputs) and all(checksum([folder / name]) == sha for name, sha in outputs.items())
    except (DataError, AttributeError, ValueError):  # a ValueError: a name holds a null byte
        return False


def state(files: Sequence[Path]) -> tuple[int, str]:
    """The bytes of all files, and a digest of the name, size and modification time of each.

    Contents do not count: reading thousands of scans only to find that nothing is left to do would take hours.

    Raises:
        DataError: a file is gone.
    """
    digest, size = sha256(), 0
    for file in files:
        with naming(file, "cannot be read"):
            found = file.stat()
        size += found.st_size
        digest.update(os.fsencode(file.name) + f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return size, digest.hexdigest()


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _cut_torn_line(file: BufferedRandom) -> None:
    """Remove a last line without an end. Its writer is dead, since it would hold the lock otherwise."""
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)
        logger.warning("%s: its last line was torn, and is removed", file.name)
