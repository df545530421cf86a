"""Tensors that wait for a second pass: in memory while they are few, else in a temporary file."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from sam2_3dmed.errors import DataError


class TensorSpill:
    """Records of tensors by number, all of the same shapes and types. Use it with `with`: the file is gone afterwards.

    The file has no name where the system allows that, so it cannot outlive the process. It is read and written, not
    mapped: with a `numpy.memmap`, 1,050 MiB of records took 1,100 MiB of memory instead of 60, in the same time.

    Args:
        count: the number of records that will come.
        in_memory_bytes: the records stay in memory if all of them together take no more.
    """

    def __init__(self, count: int, in_memory_bytes: int) -> None:
        self._count = count
        self._in_memory_bytes = in_memory_bytes
        self._file: IO[bytes] | None = None
        self._offsets: dict[int, int] = {}
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, number: int) -> bool:
        return number in self._offsets

    def put(self, number: int, record: Sequence[Tensor]) -> None:
        """Keep a record.

        Raises:
            DataError: there is no room for all of them, or it cannot be written.
        """
        record = [tensor.detach().cpu().contiguous() for tensor in record]
        with _in_one_line():
            if self._file is None:
                self._file = self._open(self._count * sum(tensor.nbytes for tensor in record))
                self._kinds = [(tensor.shape, tensor.dtype) for tensor in record]
            offset = self._file.seek(0, os.SEEK_END)
            for tensor in record:
                self._file.write(_bytes(tensor))
            self._offsets[number] = offset

    def take(self, number: int) -> list[Tensor]:
        """Remove a record. Returns: its tensors, on the CPU.

        Raises:
            DataError: it cannot be read.
        """
        file: Any = self._file
        record = [torch.empty(shape, dtype=dtype) for shape, dtype in self._kinds]
        with _in_one_line():
            file.seek(self._offsets.pop(number))
            for tensor in record:
                file.readinto(_bytes(tensor))
        return record

    def _open(self, total_bytes: int) -> IO[bytes]:
        if total_bytes <= self._in_memory_bytes:
            return BytesIO()
        free = shutil.disk_usage(temporary_folder()).free
        if free < total_bytes:
            raise OSError(f"{total_bytes / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free")
        return tempfile.TemporaryFile(dir=temporary_folder())


def temporary_folder() -> str:
    """TMPDIR, else /var/tmp, which is on disk where /tmp may be in memory."""
    if "TMPDIR" not in os.environ and Path("/var/tmp").is_dir():
        return "/var/tmp"
    return tempfile.gettempdir()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        message = f"{temporary_folder()}: no temporary file: {reason}; TMPDIR names another folder"
        raise DataError(message) from None
