"""NRRD and MetaImage files to arrays and affines, and back, by SimpleITK (extra `itk`)."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import ConfigError, VolumeError
from sam2_3dmed.processes.atomic import naming
from sam2_3dmed.volume.meta_image import require_sound

_READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
ENDINGS = tuple(_READERS)
"""Of the files that this module reads and writes."""
_NEEDS_THE_EXTRA = "NRRD and MetaImage need the extra: pip install 'sam2-3dmed[itk]'"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The array, (X, Y, Z) or (X, Y, Z, C), and the affine of a file; `Volume.read` documents the rest.

    Raises:
        VolumeError: the file is missing, damaged, of another kind, or has complex voxels or more than three axes.
        ConfigError: SimpleITK is not installed.
    """
    sitk = _simpleitk()
    if not path.is_file():
        raise VolumeError(f"{path}: {'this is a folder, not an image file' if path.is_dir() else 'no such file'}")
    reader = _READERS[path.suffix.lower()]  # ITK does not know capitals
    try:
        if reader == "MetaImageIO":
            require_sound(path)
        image = sitk.ReadImage(str(path), imageIO=reader)
    except VolumeError as error:
        raise VolumeError(f"{path}: {error}") from None
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except RuntimeError as error:
        raise VolumeError(f"{path}: cannot be read: {_reason(error)}") from error
    if "complex" in (kind := image.GetPixelIDTypeAsString()):
        raise VolumeError(f"{path}: voxels must be integers or real numbers, not {kind}")
    if (axes := image.GetDimension()) > 3:
        raise VolumeError(f"{path}: a volume is 3D; this image has {axes} axes")
    array = sitk.GetArrayFromImage(image)  # (Z, Y, X), or (Z, Y, X, C) with channels
    array = array.transpose(*reversed(range(axes)), *range(axes, array.ndim))
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(axes, axes) * image.GetSpacing()
    affine[:axes, :axes], affine[:axes, 3] = directions, image.GetOrigin()
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return array if axes == 3 else np.expand_dims(array, 2), affine


def write_itk(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an array, (X, Y, Z) or (X, Y, Z, C), compressed; `Volume.write` documents the rest."""
    sitk = _simpleitk()
    stored = array.astype({"bool": "u1", "float16": "f4"}.get(array.dtype.name, array.dtype), copy=False)
    planes = stored.transpose(2, 1, 0, *range(3, stored.ndim))
    image = sitk.GetImageFromArray(np.ascontiguousarray(planes), isVector=stored.ndim == 4)
    steps = _LPS_TO_RAS @ affine[:3]
    spacing = np.linalg.norm(steps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(steps[:, 3].tolist())
    image.SetDirection((steps[:, :3] / spacing).ravel().tolist())
    partial = path.parent / f".{uuid.uuid4().hex}.partial"
    with naming(path, "cannot be written", VolumeError):
        partial.mkdir()
        try:
            sitk.WriteImage(image, str(partial / path.name), useCompression=True)
            # The file that names another one comes last, so that what it names is there.
            for file in sorted(partial.iterdir(), key=lambda file: file.name == path.name):
                file.replace(path.parent / file.name)
        except RuntimeError as error:
            raise VolumeError(f"{path}: cannot be written: {_reason(error)}") from error
        finally:
            for file in partial.iterdir():
                file.unlink()
            partial.rmdir()


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise ConfigError(_NEEDS_THE_EXTRA) from None
    return SimpleITK


def _reason(error: RuntimeError) -> str:
    """The last line of ITK's message, which says what is wrong."""
    return str(error).strip().splitlines()[-1].strip()[:200]
