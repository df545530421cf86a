"""A volume as slices, and back: axes permute and flip, nothing is resampled. A file written slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_END
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import naming
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.nifti import writing_nifti
from sam2_3dmed.volume.volume import Volume

SlicingAxis = Literal["sagittal", "coronal", "axial"]

_KEPT_IN_MEMORY = 1 << 20
_BLOCK_BYTES = 1 << 26
WORLD_AXES: dict[SlicingAxis, tuple[int, int, int]] = {"sagittal": (0, 2, 1), "coronal": (1, 2, 0), "axial": (2, 1, 0)}
"""World axes (R = 0, A = 1, S = 2) along D, H and W."""


def volume_to_slices(volume: Volume, axis: SlicingAxis) -> NDArray[Any]:
    """The slices of a volume in canonical RAS order, as a view of its array.

    The array's axes are matched to the closest world axes and flipped where they run against them. An oblique volume
    keeps its own planes. D runs toward R (sagittal), A (coronal) or S (axial); (H, W) run toward (S, A), (S, R) or
    (A, R). The way back is to write into the view of an empty array on the same grid.

    Returns:
        (D, H, W), or (D, C, H, W) if the volume has channels.
    """
    axes, flips = array_axes(volume, axis)
    if volume.array.ndim == 3:
        return volume.array.transpose(axes)[flips]
    return np.moveaxis(volume.array.transpose(*axes, 3)[flips], 3, 1)


def slice_spacing_mm(volume: Volume, axis: SlicingAxis) -> tuple[float, float, float]:
    """Distances in mm between slices, between their rows (along H) and between their columns (along W)."""
    axes, _ = array_axes(volume, axis)
    d, h, w = (volume.spacing_mm[i] for i in axes)
    return d, h, w


def array_axes(volume: Volume, axis: SlicingAxis) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The array axes along D, H and W, and the step, forward or backward, along each."""
    if axis not in WORLD_AXES:
        raise VolumeError(f"there is no slicing axis {axis!r}: choose sagittal, coronal or axial")
    canonical = canonical_axes(volume.affine)
    chosen = [canonical[world] for world in WORLD_AXES[axis]]
    return tuple(i for i, _ in chosen), tuple(slice(None, None, -1 if flipped else 1) for _, flipped in chosen)


@contextmanager
def writing_slices(path: Path, grid: Volume, axis: SlicingAxis, slope: float = 1.0) -> Iterator[SliceWriter]:
    """A writer of uint8 slices into a file on the grid of a volume, as `writing_nifti`."""
    with (
        writing_nifti(path, grid.shape, np.dtype(np.uint8), grid.affine, grid.placement, slope) as stream,
        SpooledTemporaryFile(_KEPT_IN_MEMORY, dir=str(path.parent)) as waiting,
    ):
        writer = SliceWriter(path, grid, axis, stream, waiting)
        yield writer
        writer.finish()


class SliceWriter:
    """Slices (H, W) of uint8 for `stream`, which takes voxels in the order of the array's last axis.

    A slice that is the file's next is written at once. Any other waits in the file `waiting`. Memory holds one slice,
    or 64 MiB where the slicing axis is not the array's last.
    """

    def __init__(self, path: Path, grid: Volume, axis: SlicingAxis, stream: Any, waiting: IO[bytes]) -> None:
        self._path, self._grid, self._axis = path, grid, axis
        self._stream, self._waiting = stream, waiting
        self._axes, steps = array_axes(grid, axis)
        self._orders = [range(grid.shape[i])[step] for i, step in zip(self._axes, steps, strict=True)]
        self._kept: dict[int, int] = {}  # where each slice that waits begins in its file
        self._done = 0  # planes of the array's last axis

    def write(self, index: int, plane: NDArray[np.uint8]) -> None:
        """Write slice `index`; each once. Raises VolumeError if there is no room for it."""
        with naming(self._path, "cannot be written", VolumeError):
            if self._axes[0] == 2 and index == self._orders[0][self._done]:
                block, slices = self._block(1)
                slices[0] = plane
                self._append(block)
            else:
                self._kept[index] = self._waiting.seek(0, SEEK_END)
                self._waiting.write(plane.tobytes())

    def finish(self) -> None:
        """Write the slices that wait. Raises VolumeError if one is missing."""
        if self._done + len(self._kept) < len(self._orders[0]):
            raise VolumeError(f"{self._path}: not every slice was written")
        last = self._axes.index(2)  # the array's last axis is D, H or W
        largest = 1 if last == 0 else max(1, _BLOCK_BYTES // (self._grid.shape[0] * self._grid.shape[1]))
        while self._done < self._grid.shape[2]:
            block, slices = self._block(min(largest, self._grid.shape[2] - self._done))
            parts = [range(len(order)) for order in self._orders]
            planes = self._orders[last][self._done : self._done + block.shape[2]]
            parts[last] = range(min(planes), max(planes) + 1)
            for target, index in zip(slices, parts[0], strict=True):
                target[:] = self._read(index)[parts[1].start : parts[1].stop, parts[2].start : parts[2].stop]
            self._append(block)

    def _read(self, index: int) -> NDArray[np.uint8]:
        height, width = (len(order) for order in self._orders[1:])
        self._waiting.seek(self._kept[index])
        return np.frombuffer(self._waiting.read(height * width), np.uint8).reshape(height, width)

    def _block(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Empty planes along the array's last axis, and the same memory as (parts of) slices."""
        block = np.empty((*self._grid.shape[:2], count), np.uint8, order="F")
        return block, volume_to_slices(Volume(block, self._grid.affine), self._axis)

    def _append(self, block: NDArray[np.uint8]) -> None:
        self._stream.write(block.T.tobytes())
        self._done += block.shape[2]
