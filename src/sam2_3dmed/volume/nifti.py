"""NIfTI files in and out, whole or not at all; every failure is one line that names the file."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.volume.label import as_label
from sam2_3dmed.volume.nifti_data import read_voxels
from sam2_3dmed.volume.volume import Volume, same_grid

_GZIP_MAGIC = b"\x1f\x8b"
# isal's stubs take the exception type for an exception.
_DAMAGED = (igzip.BadGzipFile, cast("type[Exception]", igzip_lib.IsalError))
_MAX_AXIS = int(np.iinfo(np.int16).max)
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI's codes for metre and micron
_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "this is a folder, not an image file",
    errno.ENOSPC: "no space left on the device",
    errno.EACCES: "permission denied",
}


def read_volume(path: str | Path) -> Volume:
    """Read an image from NIfTI-1 or -2: `.nii`, `.nii.gz`, or a `.hdr` / `.img` pair.

    The content decides whether a file is gzipped, not its name. Voxels keep the file's dtype unless the
    header scales them: integers stay integers where slope and intercept are, in the file's dtype if it holds them,
    else in the smallest of up to 4 bytes that does; otherwise they become float32, or float64 from 4-byte integers
    up. The voxels of a file that is not gzipped are a memory map if nothing has to change. 2D becomes (X, Y, 1).
    Axes of length 1 after the third are dropped; one of length 2 or 3 holds channels. The affine is the sform, else
    the qform, else the voxel size; metres and microns become mm.
    Raises: VolumeError if the file is missing, empty, truncated or not NIfTI; has more than 3 channels,
        complex or RGB voxels, NaN or infinite voxels; or an affine that is not finite or is singular.
    """
    path = Path(path)
    try:
        return Volume(*_read(path))
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error
    except EOFError as error:
        raise VolumeError(f"{path}: the file is truncated") from error
    except _DAMAGED as error:
        raise VolumeError(f"{path}: the compressed data is damaged") from error
    except OSError as error:
        raise VolumeError(f"{path}: {_reason(error)}") from error
    except MemoryError as error:
        raise VolumeError(f"{path}: the image does not fit in memory") from error


def read_label(path: str | Path, allowed: Collection[int] | None = None) -> Volume:
    """Read a label map, whatever dtype it is stored in.

    allowed: the foreground values that may occur; background, 0, always may. None: any up to 65535.
    Returns: a volume whose array is (X, Y, Z) uint8, or uint16 if a value exceeds 255.
    Raises: VolumeError as `read_volume` does; or if the label has channels, or values that are not integers,
        are negative, exceed 65535 or are not in `allowed`.
    """
    volume = read_volume(path)
    try:
        return as_label(volume, allowed)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from error


def read_affine(path: Path) -> NDArray[np.float64]:
    """Where a file's voxels lie, (4, 4), without reading them.

    Raises: VolumeError if the header cannot be used.
    """
    try:
        with _open(_with_ending(path, ".img", ".hdr")) as file:
            return _affine(_read_header(file))
    except (VolumeError, OSError, EOFError, *_DAMAGED) as error:
        raise VolumeError(f"{path}: {_reason(error) if isinstance(error, OSError) else error}") from error


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write `.nii` or `.nii.gz`, under a temporary name that becomes `path` only once all is written.

    The dtype is kept, except that bool becomes uint8 and float16 float32. The sform (float32) holds the
    affine, and so does the qform where a quaternion can. The same volume always gives the same bytes.
    Raises: VolumeError if the name has another ending, or the file cannot be written: no such folder, no
        space left. Nothing is left behind then, and a file that was there is as it was.
    """
    path = Path(path)
    require_writable(path, volume.array.shape)
    with writing(path) as stream:
        _write(volume, stream)


def require_writable(path: Path, shape: tuple[int, ...]) -> None:
    """Raise VolumeError unless `path` is called .nii or .nii.gz and NIfTI has room for the shape."""
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError(f"{path}: a volume is written as .nii or .nii.gz")
    if max(shape) > _MAX_AXIS:
        raise VolumeError(f"{path}: NIfTI has no room for the shape {shape}")


@contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A stream for the content of `path`, which appears whole at the end or not at all; gzipped by its name.

    Raises: VolumeError for every OSError on the way.
    """
    try:
        with replacing(path) as file:
            if path.suffix != ".gz":
                yield file
                return
            with igzip.IGzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as stream:
                yield stream
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written: {_reason(error)}") from error


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    header_path = _with_ending(path, ".img", ".hdr")
    if header_path != path and not header_path.is_file():
        raise VolumeError(f"its header {header_path.name} is missing")
    with _open(header_path) as file:
        header = _read_header(file)
        if header.is_single:
            return read_voxels(file, header, header_path.stat().st_size), _affine(header)
    data_path = _with_ending(header_path, ".hdr", ".img")
    if data_path == header_path or not data_path.is_file():
        raise VolumeError("this is a header whose .img file is missing")
    with _open(data_path) as file:
        return read_voxels(file, header, data_path.stat().st_size), _affine(header)


def _with_ending(path: Path, ending: str, other: str) -> Path:
    """The path with `other` in place of `ending`, before a `.gz` if there is one; else the path itself."""
    for gz in ("", ".gz"):
        if path.name.endswith(ending + gz):
            return path.with_name(path.name.removesuffix(ending + gz) + other + gz)
    return path


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """The file's content, decompressed if it is gzipped."""
    with path.open("rb") as file:
        magic = file.read(2)
        file.seek(0)
        if not magic:
            raise VolumeError("the file is empty")
        if magic != _GZIP_MAGIC:
            yield file
            return
        with igzip.IGzipFile(fileobj=file, mode="rb") as decompressed:
            yield decompressed


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
    pixdim = header["pixdim"]
    pixdim[0] = -1 if pixdim[0] < 0 else 1
    pixdim[1:4] = np.abs(pixdim[1:4])
    if num_axes == 2 and pixdim[3] == 0:
        pixdim[3] = 1
    return header


def _affine(header: Any) -> NDArray[np.float64]:
    from nibabel.spatialimages import HeaderDataError

    try:
        with np.errstate(all="ignore"):  # `Volume` reports what is not finite
            affine = np.array(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise VolumeError("the affine is unusable: its quaternion (qform) is no rotation") from error
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return affine


def _write(volume: Volume, stream: Any) -> None:
    stored = volume.array.dtype.newbyteorder("=")
    if stored.kind == "b":
        stored = np.dtype(np.uint8)
    elif stored == np.float16:
        stored = np.dtype(np.float32)
    write_header(volume, volume.array.shape, stored, stream)
    planes = volume.array.T  # (C, Z, Y, X) in C order is NIfTI's order on disk
    for index in np.ndindex(planes.shape[:-2]):
        stream.write(planes[index].astype(stored, copy=False).tobytes())


def write_header(grid: Volume, shape: tuple[int, ...], dtype: np.dtype[Any], stream: Any, slope: float = 1.0) -> None:
    """Write what stands before the voxels, with the affine of `grid`. slope: what a voxel of 1 stands for."""
    from nibabel.nifti1 import Nifti1Header

    header = Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(slope, 0)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code="scanner")
    header.set_qform(grid.affine, code="scanner", strip_shears=True)
    # A quaternion has no shears, and is imprecise near half turns: better no qform than a wrong one.
    if not same_grid(grid, Volume(grid.array, header.get_qform()), 0.02 * min(grid.spacing_mm)):
        header.set_qform(None, code="unknown")
    header.write_to(stream)


def _reason(error: OSError) -> str:
    """What went wrong, in a user's words."""
    return _REASONS.get(error.errno or 0) or error.strerror or str(error) or "the file cannot be used"
