"""One run at a time in a folder: a lock that ends with the process that holds it, however that ends."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import make_folder

LOCK_FILE = ".lock"
_SECONDS_BETWEEN_LOOKS = 0.05
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_guard = Lock()
_held: set[Path] = set()
"""The folders that this process holds, since the system lets a process take its own locks again."""


@contextmanager
def locked(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keep a folder, which is made if need be, for the body.

    The operating system holds the lock, so the file that a killed process leaves behind does not lock anything, nor do
    worker processes that outlive it. Where the system or the file system has no locks, there is none.

    Raises:
        DataError: another process still holds the folder after `wait_seconds`; the message names it. Or the folder
            cannot be made.
    """
    make_folder(folder)
    path = folder.resolve() / LOCK_FILE
    deadline = time.monotonic() + wait_seconds
    while isinstance(file := _take(path), str):
        if time.monotonic() >= deadline:
            raise DataError(f"{folder}: {file} works in this folder; wait until it ends, or choose another folder")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        if file is not None:
            with _guard:
                with suppress(OSError):  # while it is held, so that nobody takes a file that is about to vanish
                    path.unlink()
                os.close(file)
                _held.discard(path)


def _take(path: Path) -> int | str | None:
    """The open file of the lock; the name of the process that holds it; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    with _guard:
        if path in _held:
            return f"process {os.getpid()} on {socket.gethostname()}"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno in _READ_ONLY:  # whoever writes here reports it, and there may be nothing left to write
                return None
            raise DataError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(file).st_ino:
                os.truncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                _held.add(path)
                return file
            holder: str | None = "another process"  # which has just removed this file
        except FileNotFoundError:
            holder = "another process"
        except OSError as error:
            busy = error.errno in (errno.EACCES, errno.EAGAIN)
            holder = (os.pread(file, 200, 0).decode("utf-8", "replace").strip() or "another process") if busy else None
        os.close(file)
        return holder
