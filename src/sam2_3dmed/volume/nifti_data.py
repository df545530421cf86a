"""The voxels of a NIfTI file, as small as they are stored: mapped or read, scaled without rounding, checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError

_MAX_DEFLATE_RATIO = 1032  # no gzip stream expands further
_CHUNK = 1 << 20
_INTEGERS = tuple(np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32"))


def read_voxels(file: Any, header: Any, file_size: int) -> NDArray[Any]:
    """The array in its volume shape and native byte order, scaled if the header says so.

    Voxels of a file that is not compressed are mapped, not read, where they need no change: writing to the array
    changes memory only, and the file must stay as long as it is.
    file: open at its start; file_size: in bytes, as stored.
    Raises: VolumeError if voxels are missing, of a type that is no number, NaN or infinite; EOFError at the sudden
        end of a gzip stream.
    """
    stored = _stored_dtype(header)
    shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    if min(shape) < 1:
        raise VolumeError(f"there are no voxels (shape {shape})")
    volume_shape = _volume_shape(shape)
    num_bytes = math.prod(shape) * stored.itemsize
    if num_bytes > _MAX_DEFLATE_RATIO * file_size:
        raise VolumeError(f"the file is truncated: {num_bytes} bytes of voxels cannot be in {file_size} bytes")
    offset, smallest = header["vox_offset"], header.single_vox_offset if header.is_single else 0
    offset = max(int(offset), smallest) if np.isfinite(offset) else smallest
    if offset > _MAX_DEFLATE_RATIO * file_size:
        raise VolumeError(f"the file is truncated: its voxels start at byte {offset}, beyond {file_size} bytes")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    is_scaled = slope != 0 and math.isfinite(slope) and (slope, intercept) != (1, 0)
    if isinstance(file, BufferedReader) and stored.isnative and not is_scaled and offset + num_bytes <= file_size:
        array: NDArray[Any] = np.memmap(file, stored, "c", offset, volume_shape, "F")
    else:
        array = _read(file, offset, stored, volume_shape)
    if is_scaled:
        array = _scaled(array, slope, intercept)
    _check_finite(array)
    return array


def _read(file: Any, offset: int, stored: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    file.seek(offset)
    array = np.empty(shape, stored, order="F")
    num_read = _fill(array.reshape(-1, order="F").view(np.uint8).data, file)
    if num_read < array.nbytes:
        raise VolumeError(f"the file is truncated: {num_read} of {array.nbytes} bytes of voxels")
    while file.read(_CHUNK):  # only at its end does a gzip stream compare its checksum
        pass
    if not stored.isnative:
        array = array.byteswap(inplace=True).view(stored.newbyteorder("="))
    return array


def _fill(buffer: memoryview, file: Any) -> int:
    """Read into all of `buffer`; returns the number of bytes there were."""
    done = 0
    while done < len(buffer) and (count := file.readinto(buffer[done : done + (1 << 24)])):
        done += count
    return done


def _stored_dtype(header: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except KeyError as error:
        raise VolumeError(f"there is no voxel type of code {int(header['datatype'])}") from error
    if dtype.kind not in "iuf":
        name = header.get_value_label("datatype")
        raise VolumeError(f"voxels must be integers or real numbers, not {name}")
    return dtype


def _volume_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(X, Y, Z) or (X, Y, Z, C) from the shape in the file."""
    spatial = (*shape, 1)[:3]
    further = tuple(n for n in shape[3:] if n > 1)
    if not further:
        return spatial
    if len(further) > 1 or further[0] > 3:
        raise VolumeError(f"a volume is 3D, or 4D with 2 or 3 channels; this image has the shape {shape}")
    return spatial + further


def _scaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """slope * array + intercept: integers if all three are and 4 bytes hold the result, else float32 or float64."""
    dtype = _integer_dtype(array, slope, intercept) or np.result_type(array.dtype, np.float32)
    scaled = array if dtype.itemsize == array.itemsize else np.empty(array.shape, dtype, order="F")
    wide = np.dtype(np.int64) if dtype.kind in "iu" else dtype
    target = _flat(scaled.view(dtype))
    with np.errstate(over="ignore"):  # infinite voxels are reported by `_check_finite`
        for start, chunk in _chunks(array):
            values = chunk.astype(wide)
            values *= wide.type(slope)
            values += wide.type(intercept)
            target[start : start + len(chunk)] = values
    return scaled.view(dtype)


def _integer_dtype(array: NDArray[Any], slope: float, intercept: float) -> np.dtype[Any] | None:
    """The smallest that holds slope * array + intercept exactly, the array's own if it does; None if there is none."""
    if array.dtype.kind == "f" or not all(part.is_integer() and abs(part) < 2**62 for part in (slope, intercept)):
        return None
    ends = [int(end) * int(slope) + int(intercept) for end in (array.min(), array.max())]
    fitting = [d for d in _INTEGERS if np.iinfo(d).min <= min(ends) and max(ends) <= np.iinfo(d).max]
    return array.dtype if array.dtype in fitting else next(iter(fitting), None)


def _check_finite(array: NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    num_bad = sum(len(chunk) - int(np.count_nonzero(np.isfinite(chunk))) for _, chunk in _chunks(array))
    if num_bad:
        raise VolumeError(f"{num_bad} of {array.size} voxels are NaN or infinite")


def _chunks(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Where each piece of a few MiB starts, and the piece, a view; in the order of the file."""
    flat = _flat(array)
    for start in range(0, flat.size, _CHUNK):
        yield start, flat[start : start + _CHUNK]


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """The array, whose first axis runs fastest, as a view of one axis."""
    return array.reshape(-1, order="F")
