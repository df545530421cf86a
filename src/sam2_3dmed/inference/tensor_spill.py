"""Tensors that wait for a second pass: in memory while they are few, else in a temporary file."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

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
        self._records: dict[int, list[Tensor]] = {}
        self._file: IO[bytes] | None = None
        self._offsets: dict[int, int] = {}
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._records.clear()
        if self._file is not None:
            self._file.close()

    def put(self, number: int, record: Sequence[Tensor]) -> None:
        """Keep a record.

        Raises:
            DataError: there is no room for all of them, or it cannot be written.
        """
        record = [tensor.detach().cpu().contiguous() for tensor in record]
        if not self._kinds:
            self._kinds = [(tensor.shape, tensor.dtype) for tensor in record]
            self._choose(self._count * sum(tensor.nbytes for tensor in record))
        if self._file is None:
            self._records[number] = record
            return
        try:
            self._offsets[number] = self._file.seek(0, os.SEEK_END)
            for tensor in record:
                self._file.write(_bytes(tensor))
        except OSError as error:
            raise _cannot(error) from None

    def take(self, number: int) -> list[Tensor]:
        """Remove a record. Returns: its tensors, on the CPU.

        Raises:
            DataError: it cannot be read.
        """
        if self._file is None:
            return self._records.pop(number)
        record = []
        try:
            self._file.seek(self._offsets.pop(number))
            for shape, dtype in self._kinds:
                tensor = torch.empty(shape, dtype=dtype)
                self._file.readinto(_bytes(tensor))  # type: ignore[attr-defined]
                record.append(tensor)
        except OSError as error:
            raise _cannot(error) from None
        return record

    def _choose(self, total_bytes: int) -> None:
        if total_bytes <= self._in_memory_bytes:
            return
        folder = temporary_folder()
        try:
            free = shutil.disk_usage(folder).free
            if free < total_bytes:
                raise OSError(f"{total_bytes / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free")
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it is open as long as this object)
        except OSError as error:
            self._kinds = []
            raise _cannot(error) from None


def temporary_folder() -> str:
    """TMPDIR, else /var/tmp, which is on disk where /tmp may be in memory."""
    if "TMPDIR" not in os.environ and Path("/var/tmp").is_dir():
        return "/var/tmp"
    return tempfile.gettempdir()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.flatten().view(torch.uint8).numpy().data


def _cannot(error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"{temporary_folder()}: no temporary file: {reason}; TMPDIR names another folder")
