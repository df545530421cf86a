"""Label maps: arrays of small non-negative integers, one for each class of the data set; colours and texts for each."""

import colorsys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume

_LONGEST_IN_PICTURES = 40
_MAX_LABEL = int(np.iinfo(np.uint16).max)


def read_label(path: str | Path, allowed: Collection[int] | None = None) -> Volume:
    """Read a label map, of any stored dtype, as (X, Y, Z) uint8, or uint16 if a value exceeds 255.

    Args:
        allowed: the foreground values that may occur, besides 0, the background. None: any up to 65535.

    Raises:
        VolumeError: as `Volume.read`; or the label has channels, or values that are not integers, are negative, exceed
            65535 or are not in `allowed`.
    """
    volume = Volume.read(path)
    try:
        if volume.num_channels != 1:
            raise VolumeError(f"a label has one value a voxel, not {volume.num_channels} channels")
        label = _as_integers(volume.array)
        if allowed is not None:
            _check_allowed(label, allowed)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    return volume.with_array(label)


def label_values(label: NDArray[np.unsignedinteger]) -> NDArray[np.intp]:
    """The values in an (X, Y, Z) label map of uint8 or uint16, ascending."""
    found = np.zeros(_MAX_LABEL + 1, dtype=bool)
    for plane in label.T:  # one at a time, since indexing makes 8 bytes of every voxel
        found[plane] = True
    return np.flatnonzero(found)


def class_colour(number: int) -> tuple[int, int, int]:
    """Red, green and blue (0 to 255) of the class `number`, from 1. Neighbours differ clearly."""
    hue = (number - 1) * 0.61803398875 % 1.0  # the golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if number % 2 else 0.55, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def in_pictures(name: str) -> str:
    """A name as matplotlib takes it for text, cut to what has room.

    It reads dollars as mathematics, and drops names that begin with _.
    """
    text = name if len(name) <= _LONGEST_IN_PICTURES else f"{name[:_LONGEST_IN_PICTURES]}..."
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _as_integers(array: NDArray[Any]) -> NDArray[Any]:
    """The array as uint8 or uint16; not copied if it is that already."""
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
    unknown = np.setdiff1d(label_values(label), [0, *allowed])
    if unknown.size:
        named = ", ".join(str(value) for value in sorted({0, *allowed}))
        raise VolumeError(f"label values that are not allowed: {_listed(unknown)} (allowed: {named})")


def _listed(values: NDArray[Any], most: int = 5) -> str:
    """The first few distinct values, for a message."""
    distinct = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in distinct[:most].tolist())
    return f"{shown} and {distinct.size - most} more" if distinct.size > most else shown
