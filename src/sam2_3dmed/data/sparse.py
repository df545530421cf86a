"""A data set of which only some slices are labelled: a copy whose labels have the ignore label on all other slices."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.data.dataset import Case, read_dataset
from sam2_3dmed.errors import ConfigError, DataError, VolumeError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.processes.atomic import make_folder, naming, write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.processes.unfinished import making
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.label_scheme import LabelScheme, whole_number
from sam2_3dmed.volume.slices import SlicingAxis, array_axes

_MAX_LABEL = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True)
class LabelledSlices:
    """Which slices of a label are labelled: every so many, those of a list, or those on which something is drawn.

    Args:
        axis: along which slices are counted, from 0 as in the file.
        every: the first is half as many from the end.
        listed: by the name of a case; all slices of a case that is not listed are labelled.
    """

    axis: SlicingAxis = "axial"
    every: int | None = None
    listed: Mapping[str, frozenset[int]] | None = None

    def among(self, name: str, slices: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
        """(D,): the labelled slices of a label (D, ., .). Raises VolumeError for a listed slice that it has not."""
        numbers = np.arange(len(slices))
        if self.every is not None:
            return np.asarray(numbers % self.every == min(self.every, len(slices)) // 2)
        if self.listed is None:
            return np.asarray(slices.any(axis=(1, 2)))
        wanted = self.listed.get(name, frozenset(numbers.tolist()))
        if beyond := sorted(wanted - set(numbers.tolist())):
            raise VolumeError(f"slice {beyond[0]} is listed, and it has the {self.axis} slices 0 to {len(slices) - 1}")
        return np.isin(numbers, list(wanted))


def read_labelled_slices(table: Path, axis: SlicingAxis) -> LabelledSlices:
    """A CSV file with the columns `case` and `slice`, a line for each labelled slice. Raises DataError."""
    listed: dict[str, set[int]] = {}
    for number, line in read_csv(table, ["case", "slice"]).lines:
        index = whole_number(line["slice"])
        if index is None or index < 0 or not line["case"]:
            raise DataError(f"{table}: line {number} must have a case and the number of a slice, from 0")
        listed.setdefault(line["case"], set()).add(index)
    return LabelledSlices(axis, listed={name: frozenset(slices) for name, slices in listed.items()})


def make_sparse(data: Path, out: Path, labelled: LabelledSlices, *, progress: Progress | None = None) -> list[str]:
    """Make `out`, the data set in `data` with the ignore label on all slices that are not labelled.

    Images are linked where the file system can, and copied otherwise.

    Returns: the names of the cases.

    Raises:
        DataError: no data set with a dataset.json, a case in the list that it has not, `out` is not empty, or cases
            that cannot be read; all are listed.
    """
    dataset, described = read_dataset(data), data / "dataset.json"
    if not described.is_file():
        raise DataError(f"{data}: needs a dataset.json, which names the classes and the value to ignore")
    if unknown := sorted((labelled.listed or {}).keys() - set(dataset.names)):
        raise DataError(f"{data}: has no case {shown(unknown[0])}, of which slices are listed")
    scheme = dataset.labels
    ignore = max(scheme.allowed) + 1 if scheme.ignore is None else scheme.ignore
    if ignore > _MAX_LABEL:
        raise DataError(f"{described}: no value is left for the ignore label")
    with making(out), naming(out, "cannot be written"):
        write = partial(_write_case, root=data, out=out, labelled=labelled, scheme=scheme, ignore=ignore)
        map_cases(write, dataset.cases, progress=progress)
        content = read_object(described)
        if scheme.ignore is None:
            by_value = all(whole_number(key) is not None for key in content["labels"])
            content["labels"] |= {str(ignore): "ignore"} if by_value else {"ignore": ignore}
        write_text(out / described.name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return list(dataset.names)


def _write_case(
    case: Case, *, root: Path, out: Path, labelled: LabelledSlices, scheme: LabelScheme, ignore: int
) -> None:
    assert case.label is not None  # the cases of a data set are labelled
    label = read_label(case.label, scheme.allowed)
    (along, *_), _ = array_axes(label, labelled.axis)
    try:
        kept = labelled.among(case.name, np.moveaxis(label.array, along, 0))
    except VolumeError as error:
        raise VolumeError(f"{case.label}: {error}") from None
    array = label.array.astype(np.result_type(label.array.dtype, np.min_scalar_type(ignore)))
    np.moveaxis(array, along, 0)[~kept] = ignore
    for file in case.files:
        make_folder((out / file.relative_to(root)).parent)
    label.with_array(array).write(out / case.label.relative_to(root))
    for image in case.images:
        _link(image, out / image.relative_to(root))


def _link(file: Path, to: Path) -> None:
    with suppress(FileExistsError):
        try:
            os.link(file.resolve(), to)
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, to)


def parse_selection(every: int | None, table: Path | None, drawn: bool, axis: SlicingAxis) -> LabelledSlices:
    """The choice of the command line, of which exactly one is given. Raises: ConfigError, or as the list's reader."""
    if [every is not None, table is not None, drawn].count(True) != 1:
        raise ConfigError("say which slices are labelled: --every N, --slices FILE or --drawn")
    return LabelledSlices(axis, every) if table is None else read_labelled_slices(table, axis)
