"""The volumes in a folder, the names of their cases, and several files of one channel each as one volume."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.affine import largest_distance_mm
from sam2_3dmed.volume.volume import MOST_APART, Volume, describe_difference, voxels_apart

ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Of the image files that `Volume.read` reads, in small letters; case does not matter."""
LISTED = ".nii, .nii.gz, .nrrd, .mha or .mhd"
"""Their most common endings, for a message."""
_MASKS = {"segmentation", "seg", "label", "labels", "mask"}  # file names of masks in folders of one case each

_UNSEEN = 0.05  # voxels

_HEADER_BYTES = 2**16
_NAMES_VOXELS = re.compile(rb"^(?:ElementDataFile *[=:]|data ?file:) *([^\r\n]+?) *\r?$", re.MULTILINE | re.IGNORECASE)

logger = logging.getLogger(__name__)


def has_ending(file: Path, endings: Sequence[str] = ENDINGS) -> bool:
    """Whether the name of a file ends with one of some endings, in small letters or capitals."""
    return file.name.lower().endswith(tuple(endings))


def with_voxels(file: Path) -> list[Path]:
    """A file, and after it the one that has its voxels, where the first is a header alone (.hdr, .nhdr, .mhd)."""
    ending = file.suffix.lower()
    if ending == ".hdr":
        return [file, *(other for suffix in (".img", ".img.gz") if (other := file.with_suffix(suffix)).is_file())]
    if ending not in (".nhdr", ".mhd") or not file.is_file():
        return [file]
    with file.open("rb") as stream:
        named = _NAMES_VOXELS.search(stream.read(_HEADER_BYTES))
    other = file.parent / os.fsdecode(named[1]) if named else file
    return [file, other] if other.is_file() else [file]


def case_name(file: Path, *, channel_suffix: bool = False) -> str:
    """A file's name without its ending, and without nnU-Net's `_0000` if `channel_suffix`."""
    ending = next((e for e in ENDINGS if file.name.lower().endswith(e)), file.suffix)
    name = file.name[: len(file.name) - len(ending)]
    return name[:-5] if channel_suffix and name[-5:-4] == "_" and name[-4:].isdigit() else name


def named_by_folder(files: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The names of some files, of which those that share a name have the name of their folder instead.

    KiTS, for one, has case_00000/imaging.nii.gz. If the folders do not tell them apart, names stay as they are.
    """
    counts = Counter(names)
    named = [file.parent.name if counts[name] > 1 else name for file, name in zip(files, names, strict=True)]
    return named if len(set(named)) == len(named) else list(names)


def list_volumes(folder: Path, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """The image files of a folder, sorted, without hidden ones and macOS's `._` copies. VolumeError: no such folder."""
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such folder")
    return sorted(f for f in folder.iterdir() if has_ending(f, endings) and not f.name.startswith("."))


def volumes_of_case_folders(folder: Path, *, masks: bool = False) -> list[Path]:
    """The image of each folder of one case in a folder, or its mask; empty if there are no such folders.

    Masks are the files named segmentation, seg, label, labels or mask; if there is no such file, they are the images.

    Raises:
        VolumeError: a folder has several images.
    """
    found = []
    for case in sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")):
        files = list_volumes(case)
        of_masks = [file for file in files if case_name(file).lower() in _MASKS]
        chosen = (masks and of_masks) or [file for file in files if file not in of_masks]
        if len(chosen) > 1:
            names = f"{chosen[0].name}, {chosen[1].name}"
            raise VolumeError(f"{folder}: no image in this folder, and {case.name} has {len(chosen)} ({names})")
        found += chosen
    return found


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
    """Raise a VolumeError that names both files and the difference unless two volumes lie on one grid.

    A line in the log says where they are one grid for ITK's programs only, or lie apart by a visible part of a voxel.
    """
    if difference := describe_difference(a, b):
        raise VolumeError(f"{file_b}: not on the grid of {file_a}: {difference}")
    if (apart := voxels_apart(a, b, itk=False)) > _UNSEEN:
        how = (
            f"its voxels lie up to {apart:.2g} voxels apart"
            if apart <= MOST_APART
            else "its forms are read as ITK does"
        )
        logger.warning("%s: taken to be on the grid of %s: %s", file_b, file_a, how)


def uncropped(label: Volume, file: Path, image: Volume) -> Volume:
    """A label on the grid of its image, if it is a `.seg.nrrd` that was saved without the empty border; else as it is.

    3D Slicer crops its segmentations so. Their voxels lie on voxels of the image.
    """
    if label.shape == image.shape or not has_ending(file, (".seg.nrrd",)):
        return label
    between = np.linalg.inv(image.itk_affine) @ label.itk_affine
    start = np.rint(between[:3, 3]).astype(int)
    stop = start + label.shape
    moved = np.eye(4)
    moved[:3, 3] = start
    if largest_distance_mm(label.shape, between, moved) > MOST_APART or (start < 0).any() or (stop > image.shape).any():
        return label
    whole = np.zeros(image.shape, label.array.dtype)
    whole[tuple(map(slice, start, stop))] = label.array
    return image.with_array(whole)
