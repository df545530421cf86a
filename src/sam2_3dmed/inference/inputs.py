"""The volumes to predict: found in files, folders and lists, or given in memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_3dmed.dicom.files import files_below, holds_dicom, study_folders, study_name
from sam2_3dmed.dicom.series import DicomSeries, choose_series
from sam2_3dmed.errors import ConfigError, DataError
from sam2_3dmed.files.structured import read_text
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.volume.files import (
    LISTED,
    case_name,
    has_ending,
    list_volumes,
    named_by_folder,
    read_channels,
    volumes_of_case_folders,
    with_voxels,
)
from sam2_3dmed.volume.volume import Volume


@dataclass(frozen=True)
class Input:
    """One volume to predict."""

    name: str
    files: tuple[Path, ...] = ()
    """A file, a file for each channel, or the folder, zip or file of a DICOM series; empty for a volume in memory."""
    series_uid: str | None = None
    """The DICOM series to take. None takes the only one that makes a volume."""
    reference: Path | None = None
    """A mask to draw boxes around, for a model that takes them."""
    content: Volume | BinaryIO | None = None
    """Instead of files: a volume, or an open .nii or .nii.gz file."""

    @property
    def source(self) -> str:
        """The name of the input in messages."""
        return str(self.files[0]) if self.files else self.name

    @property
    def sources(self) -> list[Path]:
        """The files or the folder, and the reference."""
        return [*self.files, *filter(None, [self.reference])]

    def series(self) -> DicomSeries | None:
        """The DICOM series, if it is one. Raises VolumeError as `choose_series`."""
        if not self.files or has_ending(self.files[0]) or not holds_dicom(self.files[0]):
            return None
        return choose_series(self.files[0], self.series_uid)

    def all_files(self) -> list[Path]:
        """Every file that may be a part of it; for a folder, the files of its whole tree."""
        return [file for path in self.sources for file in (files_below(path) if path.is_dir() else with_voxels(path))]

    def read(self) -> Volume:
        """The volume. Several files, which must lie on one grid, become channels."""
        if isinstance(self.content, Volume):
            return self.content
        if self.content is not None:
            return Volume.read(self.content)
        series = self.series()
        return read_channels(self.files) if series is None else series.read()


def in_memory(
    number: int, content: Volume | BinaryIO | NDArray[Any], affine: ArrayLike | None, spacing_mm: Sequence[float] | None
) -> Input:
    """A volume that is not a path: input_NUMBER, or an open file that has a name. See `PredictRequest`.

    Raises ConfigError for an array without affine and spacing, or with both.
    """
    name = f"input_{number}"
    if isinstance(content, np.ndarray):
        if (affine is None) == (spacing_mm is None):
            raise ConfigError(f"{name}: an array needs either affine or spacing_mm")
        grid = np.asarray(affine, dtype=float) if spacing_mm is None else np.diag([*spacing_mm, 1.0])
        content = Volume(content, grid)
    elif not isinstance(content, Volume) and isinstance(given := getattr(content, "name", None), str):
        name = case_name(Path(given))
    return Input(name, content=content)


def find_inputs(paths: Sequence[Path], num_channels: int, series_uid: str | None = None) -> list[Input]:
    """The volumes among files and folders.

    NAME_0000, NAME_0001, ... are one volume if the model has as many channels. A folder with DICOM files and without
    others is one volume, or one volume for each study below it. With `series_uid`, a single path is one volume. Files
    of one name have the names of their folders; a folder may hold a folder for each case.
    Raises DataError if a path is missing, a folder has no volume, or a UID is for several paths.
    """
    if series_uid is not None and len(paths) != 1:
        raise DataError(f"--series {series_uid}: a series can be chosen for one input, not for {len(paths)}")
    grouped: dict[tuple[Path, str], list[Path]] = {}
    inputs: list[Input] = []
    for path in paths:
        files = _files(path)
        if files == [path] and path.is_dir():
            studies = study_folders(path) if series_uid is None else [path]
            inputs += [Input(study_name(path, study), (study,), series_uid) for study in studies]
        else:
            for file in files:
                grouped.setdefault((file.parent, case_name(file, channel_suffix=True)), []).append(file)
    found: list[tuple[str, tuple[Path, ...]]] = []
    for (_, name), group in grouped.items():
        files = sorted(group, key=lambda file: file.name)
        if [case_name(file) for file in files] == [f"{name}_{channel:04d}" for channel in range(num_channels)]:
            found.append((name, tuple(files)))
        else:
            found += [(case_name(file), (file,)) for file in files]
    names = named_by_folder([files[0] for _, files in found], [name for name, _ in found])
    return inputs + [Input(name, files, series_uid) for name, (_, files) in zip(names, found, strict=True)]


def require_unique_names(inputs: Sequence[Input]) -> None:
    """Raise DataError if two inputs have one name."""
    counts = Counter(item.name for item in inputs)
    for item in inputs:
        if counts[item.name] > 1:
            raise DataError(f"{item.source}: {counts[item.name]} inputs have the name {item.name!r}")


def with_references(inputs: Sequence[Input], source: Path) -> list[Input]:
    """The inputs with their references: NAME.nii.gz or NAME.nii in a folder, or a file for a single input."""
    if source.is_file() and len(inputs) == 1:
        return [replace(inputs[0], reference=source)]
    files = _files(source, masks=True)
    masks = dict(zip(named_by_folder(files, [case_name(file) for file in files]), files, strict=True))
    if missing := [item.name for item in inputs if item.name not in masks]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{source}: has no mask {missing[0]}.nii.gz{more}")
    return [replace(item, reference=masks[item.name]) for item in inputs]


def read_list(table: Path) -> list[Path]:
    """The paths in a text file, one a line, or in column `input` of a CSV file.

    Relative paths count from the folder of the file. Empty lines, and lines of a text file that begin with #, are
    passed over. Raises DataError if the file cannot be read, has no such column, or lists nothing.
    """
    if table.suffix.lower() == ".csv":
        texts = [cells["input"] for _, cells in read_csv(table, ["input"]).lines]
    else:
        texts = [line for line in read_text(table).split("\n") if not line.startswith("#")]
    paths = [table.parent / text.strip() for text in texts if text.strip()]
    if not paths:
        raise DataError(f"{table}: lists nothing")
    return paths


def _files(path: Path, *, masks: bool = False) -> list[Path]:
    """The image files of a folder, or of its folders of one case; the path itself if it is a file or holds DICOM."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = list_volumes(path) if path.is_dir() else [path]
    if not found and not holds_dicom(path) and not (found := volumes_of_case_folders(path, masks=masks)):
        raise DataError(
            f"{path}: no {LISTED} file in this folder or in a folder of one case, and no DICOM file below it"
        )
    return found or [path]
