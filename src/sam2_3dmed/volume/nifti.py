"""NIfTI-1 and -2 files to arrays and affines, and back; every error is one line that names the file."""

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import SEEK_END, BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.volume.affine import largest_distance_mm
from sam2_3dmed.volume.placement import Placement

_GZIP_MAGIC = b"\x1f\x8b"
# isal's stubs take the exception type for an exception.
_DAMAGED = (igzip.BadGzipFile, cast("type[Exception]", igzip_lib.IsalError))
_MAX_DEFLATE_RATIO = 1032  # no gzip stream expands further
_CHUNK = 1 << 20
_INTEGERS = tuple(np.dtype(name) for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32"))
_MAX_AXIS = int(np.iinfo(np.int16).max)
_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "this is a folder, not an image file",
    errno.ENOSPC: "no space left on the device",
    errno.EACCES: "permission denied",
}


def read_nifti(path: Path | BinaryIO) -> tuple[NDArray[Any], NDArray[np.float64], Placement]:
    """The array, (X, Y, Z) or (X, Y, Z, C), the affine and the forms of a file; `Volume.read` documents the rest.

    An array that is a memory map may be written to: that changes memory only. Its file must stay as long as it is.
    """
    with _naming(path if isinstance(path, Path) else getattr(path, "name", "open file")):
        header_path = _with_ending(path, ".img", ".hdr")
        if isinstance(header_path, Path) and header_path != path and not header_path.is_file():
            raise VolumeError(f"its header {header_path.name} is missing")
        with _opened(header_path) as (file, size):
            header = _read_header(file)
            if header.is_single:
                return _read_voxels(file, header, size), *_placed(header)
        data_path = _with_ending(header_path, ".hdr", ".img")
        if not isinstance(data_path, Path) or data_path == header_path or not data_path.is_file():
            raise VolumeError("this is a header whose .img file is missing")
        with _opened(data_path) as (file, size):
            return _read_voxels(file, header, size), *_placed(header)


def read_affine(path: Path) -> NDArray[np.float64]:
    """The affine of a file, without reading its voxels. Raises VolumeError if the header cannot be used."""
    with _naming(path), _opened(_with_ending(path, ".img", ".hdr")) as (file, _):
        return Placement(_read_header(file)).affine()


def write_nifti(
    path: Path, array: NDArray[Any], affine: NDArray[np.float64], placement: Placement | None = None
) -> None:
    """Write an array, (X, Y, Z) or (X, Y, Z, C); `Volume.write` documents the rest."""
    stored = np.dtype({"bool": "u1", "float16": "f4"}.get(array.dtype.name, array.dtype)).newbyteorder("=")
    with writing_nifti(path, array.shape, stored, affine, placement) as stream:
        planes = array.T  # (C, Z, Y, X) in C order is NIfTI's order on disk
        for index in np.ndindex(planes.shape[:-2]):
            stream.write(planes[index].astype(stored, copy=False).tobytes())


@contextmanager
def writing_nifti(
    path: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    placement: Placement | None = None,
    slope: float = 1.0,
) -> Iterator[Any]:
    """A stream for the voxels of a file, which appears whole at the end or not at all.

    Args:
        path: ends with .nii, or with .nii.gz to be compressed.
        dtype: of the voxels as stored.
        placement: of the file that the affine comes from. It is kept. None: both forms hold the affine if they can.
        slope: the real value of a stored 1.

    Raises:
        VolumeError: another ending, an axis too long for NIfTI, or any OSError while the file is written.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise VolumeError(f"{path}: a volume is written as .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd")
    if max(shape) > _MAX_AXIS:
        raise VolumeError(f"{path}: NIfTI has no room for the shape {shape}")
    header = _make_header(shape, dtype, affine, placement, slope)
    try:
        with (
            replacing(path) as file,
            compressing(file) if path.suffix.lower() == ".gz" else nullcontext(file) as stream,
        ):
            header.write_to(stream)
            yield stream
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written: {_reason(error)}") from error


def compressing(file: IO[bytes]) -> Any:
    """A stream that writes gzip to `file`, the same bytes for the same content."""
    return igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0)


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Errors as a VolumeError whose message names the file."""
    try:
        yield
    except (VolumeError, EOFError, OSError, MemoryError, *_DAMAGED) as error:
        raise VolumeError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the file is truncated"
    if isinstance(error, _DAMAGED):
        return "the compressed data is damaged"
    if isinstance(error, MemoryError):
        return "the image does not fit in memory"
    if isinstance(error, OSError):
        return _REASONS.get(error.errno or 0) or error.strerror or str(error) or "the file cannot be used"
    return str(error)


def _with_ending(path: Path | BinaryIO, ending: str, other: str) -> Path | BinaryIO:
    """The path with `other` in place of `ending`, before a `.gz` if there is one; anything else as it is.

    Capitals stay capitals.
    """
    if isinstance(path, Path):
        for gz in ("", ".gz"):
            stem, found = path.name[: -len(ending + gz)], path.name[-len(ending + gz) :]
            if found.lower() == ending + gz:
                return path.with_name(stem + (other + gz).upper() if found.isupper() else stem + other + gz)
    return path


@contextmanager
def _opened(path: Path | BinaryIO) -> Iterator[tuple[Any, int]]:
    """The content of a file, decompressed if it is gzipped, and the bytes it takes as stored."""
    with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
        size = file.seek(0, SEEK_END)
        file.seek(0)
        magic = file.read(2)
        file.seek(0)
        if not magic:
            raise VolumeError("the file is empty")
        with igzip.IGzipFile(fileobj=file, mode="rb") if magic == _GZIP_MAGIC else nullcontext(file) as content:
            yield content, size


def _read_header(file: Any) -> Any:
    """A nibabel header with the repairs that the standard asks for, and no others."""
    from nibabel import nifti1, nifti2

    block = file.read(nifti2.Nifti2Header.sizeof_hdr)
    if block[344:348] in (b"n+1\0", b"ni1\0"):
        kind = nifti1.Nifti1Header if block[345:346] == b"+" else nifti1.Nifti1PairHeader
    elif block[4:8] in (b"n+2\0", b"ni2\0"):
        kind = nifti2.Nifti2Header if block[5:6] == b"+" else nifti2.Nifti2PairHeader
    else:
        raise VolumeError("this is not a NIfTI image")
    if len(block) < kind.sizeof_hdr:
        raise VolumeError("the file is truncated inside its header")
    header = kind(block[: kind.sizeof_hdr], check=False)
    num_axes = int(header["dim"][0])
    if not 2 <= num_axes <= 7:
        raise VolumeError(f"an image has 2 to 7 axes, its header says {num_axes}")
    for code in ("qform_code", "sform_code"):
        header[code] = max(0, int(header[code]))
    pixdim = header["pixdim"]
    pixdim[0] = -1 if pixdim[0] < 0 else 1
    if num_axes == 2 and pixdim[3] == 0:
        pixdim[3] = 1
    return header


def _placed(header: Any) -> tuple[NDArray[np.float64], Placement]:
    placement = Placement(header)
    return placement.affine(), placement


def _make_header(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    placement: Placement | None,
    slope: float,
) -> Any:
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, 0)
    if placement is not None:
        placement.copy_to(header)
        return header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    # A quaternion has no shears, and is imprecise near half turns: better no qform than a wrong one.
    tolerance_mm = 0.02 * np.linalg.norm(affine[:3, :3], axis=0).min()
    if not largest_distance_mm(shape, affine, header.get_qform()) <= tolerance_mm:
        header.set_qform(None, code="unknown")
    return header


def _read_voxels(file: Any, header: Any, file_size: int) -> NDArray[Any]:
    """The array in native byte order, scaled if the header asks for it, as small as it is stored."""
    stored = _stored_dtype(header)
    stored_shape = tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])
    if min(stored_shape) < 1:
        raise VolumeError(f"there are no voxels (shape {stored_shape})")
    shape = _volume_shape(stored_shape)
    num_bytes = math.prod(shape) * stored.itemsize
    if num_bytes > _MAX_DEFLATE_RATIO * file_size:
        raise VolumeError(f"the file is truncated: {num_bytes} bytes of voxels cannot be in {file_size} bytes")
    offset, smallest = header["vox_offset"], header.single_vox_offset if header.is_single else 0
    offset = max(int(offset), smallest) if np.isfinite(offset) else smallest
    if offset > _MAX_DEFLATE_RATIO * file_size:
        raise VolumeError(f"the file is truncated: its voxels start at byte {offset}, beyond {file_size} bytes")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope != 0 and math.isfinite(slope) and not math.isfinite(intercept):
        raise VolumeError(f"the header scales the voxels by {slope:g} and adds {intercept} (scl_slope, scl_inter)")
    is_scaled = slope != 0 and math.isfinite(slope) and (slope, intercept) != (1, 0)
    if isinstance(file, BufferedReader) and stored.isnative and not is_scaled and offset + num_bytes <= file_size:
        array: NDArray[Any] = np.memmap(file, stored, "c", offset, shape, "F")
    else:
        array = _load(file, offset, stored, shape)
    if is_scaled:
        array = _scaled(array, slope, intercept)
    return array


def require_finite(array: NDArray[Any]) -> None:
    """Raise VolumeError if a voxel is NaN or infinite."""
    if array.dtype.kind == "f":
        num_bad = sum(len(chunk) - int(np.count_nonzero(np.isfinite(chunk))) for chunk in _chunks(array))
        if num_bad:
            raise VolumeError(f"{num_bad} of {array.size} voxels are NaN or infinite")


def _load(file: Any, offset: int, stored: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    file.seek(offset)
    array = np.empty(shape, stored, order="F")
    buffer, done = array.reshape(-1, order="F").view(np.uint8).data, 0
    while done < len(buffer) and (count := file.readinto(buffer[done : done + (1 << 24)])):
        done += count
    if done < array.nbytes:
        raise VolumeError(f"the file is truncated: {done} of {array.nbytes} bytes of voxels")
    while file.read(_CHUNK):  # only at its end does a gzip stream compare its checksum
        pass
    if not stored.isnative:
        array = array.byteswap(inplace=True).view(stored.newbyteorder("="))
    return array


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
    if len(further) > 1 or any(n > 3 for n in further):
        raise VolumeError(f"a volume is 3D, or 4D with 2 or 3 channels; this image has the shape {shape}")
    return spatial + further


def _scaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """slope * array + intercept: integers if all three are and 4 bytes hold the result, else float32 or float64."""
    dtype = _integer_dtype(array, slope, intercept) or np.result_type(array.dtype, np.float32)
    scaled = array if dtype.itemsize == array.itemsize else np.empty(array.shape, dtype, order="F")
    wide = np.dtype(np.int64) if dtype.kind in "iu" else dtype
    with np.errstate(over="ignore", invalid="ignore"):  # voxels that are infinite or NaN are reported later
        for chunk, target in zip(_chunks(array), _chunks(scaled.view(dtype)), strict=True):
            values = chunk.astype(wide)
            values *= wide.type(slope)
            values += wide.type(intercept)
            target[:] = values
    return scaled.view(dtype)


def _integer_dtype(array: NDArray[Any], slope: float, intercept: float) -> np.dtype[Any] | None:
    """The smallest that holds slope * array + intercept exactly, the array's own if it does; None if there is none."""
    if array.dtype.kind == "f" or not all(part.is_integer() and abs(part) < 2**62 for part in (slope, intercept)):
        return None
    ends = [int(end) * int(slope) + int(intercept) for end in (array.min(), array.max())]
    fitting = [d for d in _INTEGERS if np.iinfo(d).min <= min(ends) and max(ends) <= np.iinfo(d).max]
    return array.dtype if array.dtype in fitting else next(iter(fitting), None)


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of a few MiB each, in the order of the file."""
    flat = array.reshape(-1, order="F")
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
