"""What a label map may hold: small non-negative integers that the data set names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume

_MAX_LABEL = int(np.iinfo(np.uint16).max)


def as_label(volume: Volume, allowed: Collection[int] | None = None) -> Volume:
    """The volume as a label map, whatever dtype it came in.

    allowed: the foreground values that may occur; background, 0, always may. None: any up to 65535.
    Returns: a volume whose array is (X, Y, Z) uint8, or uint16 if a value exceeds 255.
    Raises: VolumeError if there are channels, or values that are not integers, are negative, exceed 65535 or
        are not in `allowed`; it names them.
    """
    if volume.num_channels != 1:
        raise VolumeError(f"a label has one value a voxel, not {volume.num_channels} channels")
    label = _as_integers(volume.array)
    if allowed is not None:
        _check_allowed(label, allowed)
    return volume.with_array(label)


def _as_integers(array: NDArray[Any]) -> NDArray[Any]:
    """The array as uint8 or uint16; itself if it is that already."""
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        # Files that scale their voxels miss integers by a rounding error.
        is_integer = np.abs(array - rounded) <= 1e-4
        if not is_integer.all():
            raise VolumeError(f"label values must be integers, not {_listed(array[~is_integer])}")
        array = rounded
    low, high = array.min(), array.max()
    if low < 0:
        raise VolumeError(f"label values must not be negative: {_listed(array[array < 0])}")
    if high > _MAX_LABEL:
        raise VolumeError(f"label values must not exceed {_MAX_LABEL}: {_listed(array[array > _MAX_LABEL])}")
    return array.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16, copy=False)


def _check_allowed(label: NDArray[Any], allowed: Collection[int]) -> None:
    found = np.zeros(_MAX_LABEL + 1, dtype=bool)
    for plane in label.T:  # one at a time, since indexing makes 8 bytes of every voxel
        found[plane] = True
    unknown = np.setdiff1d(np.flatnonzero(found), [0, *allowed])
    if unknown.size:
        named = ", ".join(str(value) for value in sorted({0, *allowed}))
        raise VolumeError(f"label values that are not allowed: {_listed(unknown)} (allowed: {named})")


def _listed(values: NDArray[Any], most: int = 5) -> str:
    """The distinct values, the first few of them, for a message."""
    distinct = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in distinct[:most].tolist())
    return f"{shown} and {distinct.size - most} more" if distinct.size > most else shown
