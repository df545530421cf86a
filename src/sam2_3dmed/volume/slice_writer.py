"""A NIfTI file that is written slice by slice, in whatever order slices come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.nifti import require_writable, write_header, writing
from sam2_3dmed.volume.slices import SlicingAxis, array_axes, volume_to_slices
from sam2_3dmed.volume.volume import Volume

_KEPT_IN_MEMORY = 1 << 20
_BLOCK_BYTES = 1 << 26


@contextmanager
def writing_slices(path: Path, grid: Volume, axis: SlicingAxis, slope: float = 1.0) -> Iterator[SliceWriter]:
    """A writer of uint8 slices into a file on the grid of a volume; the file appears whole or not at all.

    slope: what a voxel of 1 stands for.
    Raises: VolumeError if the file cannot be written.
    """
    require_writable(path, grid.shape)
    with writing(path) as stream, SpooledTemporaryFile(_KEPT_IN_MEMORY, dir=str(path.parent)) as waiting:
        write_header(grid, grid.shape, np.dtype(np.uint8), stream, slope)
        writer = SliceWriter(path, grid, axis, stream, waiting)
        yield writer
        writer.finish()


class SliceWriter:
    """Slices (H, W) of uint8 on their way into `stream`, which takes them in the order of the array's last axis only.

    A slice that comes when the file is just there goes straight in. Any other waits in the file `waiting`. Memory holds
    a slice, or 64 MiB where the slicing axis is not the file's last.
    """

    def __init__(self, path: Path, grid: Volume, axis: SlicingAxis, stream: Any, waiting: IO[bytes]) -> None:
        self._path, self._grid, self._axis = path, grid, axis
        self._stream, self._waiting = stream, waiting
        self._axes, self._steps = array_axes(grid, axis)
        depth, height, width = (grid.shape[i] for i in self._axes)
        self._plane_shape = height, width
        self._order = range(depth)[self._steps[0]]  # the slices as they lie along their array axis
        self._is_last = self._axes[0] == 2
        self._kept: dict[int, int] = {}  # where each slice that waits begins in its file
        self._next = 0

    def write(self, index: int, plane: NDArray[np.uint8]) -> None:
        """Slice `index`; each once.

        Raises: VolumeError if there is no room for it.
        """
        try:
            if not self._is_last or index != self._order[self._next]:
                self._kept[index] = self._waiting.seek(0, SEEK_END)
                self._waiting.write(plane.tobytes())
                return
            self._append(plane)
            while self._next < len(self._order) and self._order[self._next] in self._kept:
                self._append(self._read(self._order[self._next]))
        except OSError as error:
            raise VolumeError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def finish(self) -> None:
        """Write what waits.

        Raises: VolumeError if not every slice was written.
        """
        if (self._next if self._is_last else len(self._kept)) < len(self._order):
            raise VolumeError(f"{self._path}: not every slice was written")
        if self._is_last:
            return
        count = max(1, _BLOCK_BYTES // (self._grid.shape[0] * self._grid.shape[1]))
        for start in range(0, self._grid.shape[2], count):
            self._append_block(start, min(start + count, self._grid.shape[2]))

    def _read(self, index: int) -> NDArray[np.uint8]:
        height, width = self._plane_shape
        self._waiting.seek(self._kept[index])
        return np.frombuffer(self._waiting.read(height * width), np.uint8).reshape(height, width)

    def _append(self, plane: NDArray[np.uint8]) -> None:
        block = np.empty((*self._grid.shape[:2], 1), np.uint8, order="F")
        volume_to_slices(Volume(block, self._grid.affine), self._axis)[0] = plane
        self._stream.write(block.T.tobytes())
        self._next += 1

    def _append_block(self, start: int, stop: int) -> None:
        """Planes from `start` to `stop` of the array's last axis, which is H or W of every slice."""
        block = np.empty((*self._grid.shape[:2], stop - start), np.uint8, order="F")
        slices = volume_to_slices(Volume(block, self._grid.affine), self._axis)
        which = self._axes.index(2)
        if self._steps[which].step == -1:
            start, stop = self._grid.shape[2] - stop, self._grid.shape[2] - start
        part = (slice(start, stop), slice(None)) if which == 1 else (slice(None), slice(start, stop))
        for index in range(len(slices)):
            slices[index] = self._read(index)[part]
        self._stream.write(block.T.tobytes())
