"""The volumes in a folder, the names of their cases, and several files of one channel each as one volume."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume, describe_difference

ENDINGS = (".nii.gz", ".nii")


def case_name(file: Path, *, channel_suffix: bool = False) -> str:
    """A file's name without its ending, and without nnU-Net's `_0000` if `channel_suffix`."""
    ending = next((e for e in ENDINGS if file.name.endswith(e)), file.suffix)
    name = file.name.removesuffix(ending)
    return name[:-5] if channel_suffix and name[-5:-4] == "_" and name[-4:].isdigit() else name


def list_volumes(folder: Path, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """The image files of a folder, sorted, without hidden ones and macOS's `._` copies. VolumeError: no such folder."""
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such folder")
    return sorted(f for f in folder.iterdir() if f.name.endswith(tuple(endings)) and not f.name.startswith("."))


def read_channels(files: Sequence[Path]) -> Volume:
    """One volume from one file, (X, Y, Z) or (X, Y, Z, C), or from one file per channel.

    Raises:
        VolumeError: an unreadable file, files on different grids, or several files of which one has channels itself.
    """
    first = Volume.read(files[0])
    if len(files) == 1:
        return first
    # At most one file is in memory beside the result. Each channel is contiguous, as slices are cut from it.
    channels = np.empty((*first.shape, len(files)), first.array.dtype, order="F")
    for channel, file in enumerate(files):
        volume = first if channel == 0 else Volume.read(file)
        if volume.num_channels != 1:
            raise VolumeError(f"{file}: {volume.num_channels} channels, but one file per channel is expected")
        require_same_grid(first, files[0], volume, file)
        channels = channels.astype(np.result_type(channels, volume.array), copy=False)
        channels[..., channel] = volume.array
    return first.with_array(channels)


def require_same_grid(a: Volume, file_a: Path, b: Volume, file_b: Path) -> None:
    """Raise a VolumeError that names both files and the difference unless two volumes lie on one grid."""
    difference = describe_difference(a, b)
    if difference:
        raise VolumeError(f"{file_b}: not on the grid of {file_a}: {difference}")
