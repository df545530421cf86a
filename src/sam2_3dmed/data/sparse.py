"""A data set of which only some slices are labelled: a copy whose labels have the ignore label on all other slices."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.data.dataset import UNLABELLED_FOLDER, Case, MedicalDataset, read_case, read_dataset
from sam2_3dmed.errors import ConfigError, DataError, VolumeError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.processes.atomic import make_folder, naming, write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.processes.unfinished import making
from sam2_3dmed.volume.files import with_voxels
from sam2_3dmed.volume.label_scheme import LabelScheme, whole_number
from sam2_3dmed.volume.slices import SlicingAxis, array_axes

_MAX_LABEL = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True)
class LabelledSlices:
    """Which slices of a label are labelled: every so many, those of a list, or those on which something is drawn.

    Args:
        axis: along which slices are counted, from 0 as in the file.
        every: the first one is half as many slices from the beginning.
        listed: by the name of a case; all slices of a case that is not listed are labelled.
    """

    axis: SlicingAxis = "axial"
    every: int | None = None
    listed: Mapping[str, frozenset[int]] | None = None

    def among(self, name: str, slices: NDArray[np.unsignedinteger], scheme: LabelScheme) -> NDArray[np.bool_]:
        """(D,): the labelled slices of a label (D, ., .). Raises VolumeError for a listed slice that it has not."""
        numbers = np.arange(len(slices))
        if self.every is not None:
            return np.asarray(numbers % self.every == min(self.every, len(slices)) // 2)
        if self.listed is None:
            return np.asarray(np.isin(slices, scheme.file_values).any(axis=(1, 2)))
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
    with making(out) as unfinished, naming(out, "cannot be written"):
        for case in (*dataset.cases, *dataset.unlabelled):
            unfinished.plan(case.name, [out / file.relative_to(data) for file in _files(case)])
        write = partial(_write_case, root=data, out=out, labelled=labelled, scheme=scheme, ignore=ignore)
        map_cases(write, [*dataset.cases, *dataset.unlabelled], progress=progress)
        unfinished.remove_all_but([case.name for case in (*dataset.cases, *dataset.unlabelled)])
        _describe(data, out, dataset, ignore)
    return list(dataset.names)


def _describe(data: Path, out: Path, dataset: MedicalDataset, ignore: int) -> None:
    """Write dataset.json: that of the data set, with the ignore label and with paths in `out`."""
    content = read_object(data / "dataset.json")
    if dataset.labels.ignore is None:
        by_value = all(whole_number(key) is not None for key in content["labels"])
        content["labels"] |= {str(ignore): "ignore"} if by_value else {"ignore": ignore}

    def paths(case: Case) -> list[str]:
        return [str(file.relative_to(data)) for file in case.images]

    def label(case: Case) -> dict[str, str]:
        return {} if case.label is None else {"label": str(case.label.relative_to(data))}

    if "training" in content:
        found = {data / "imagesTr", data / UNLABELLED_FOLDER}  # without being listed
        others = [case for case in dataset.unlabelled if case.images[0].parent not in found]
        listed = [(case, paths(case)) for case in (*dataset.cases, *others)]
        content["training"] = [{"image": p[0] if len(p) == 1 else p, **label(case)} for case, p in listed]
    if "dataset" in content:
        content["dataset"] = {case.name: {"images": paths(case), **label(case)} for case in dataset.cases}
    write_text(out / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _files(case: Case) -> list[Path]:
    """All files of a case, also those that its files name."""
    return [file for stored in case.files for file in with_voxels(stored)]


def _write_case(
    case: Case, *, root: Path, out: Path, labelled: LabelledSlices, scheme: LabelScheme, ignore: int
) -> None:
    for file in _files(case):
        make_folder((out / file.relative_to(root)).parent)
    for image in case.images:
        for file in with_voxels(image):
            _link(file, out / file.relative_to(root))
    if case.label is None:
        return
    _, label = read_case(case, scheme.allowed)  # with its image, onto which a cropped label is laid
    assert label is not None
    (along, *_), _ = array_axes(label, labelled.axis)
    try:
        kept = labelled.among(case.name, np.moveaxis(label.array, along, 0), scheme)
    except VolumeError as error:
        raise VolumeError(f"{case.label}: {error}") from None
    array = label.array.astype(np.result_type(label.array.dtype, np.min_scalar_type(ignore)))
    np.moveaxis(array, along, 0)[~kept] = ignore
    label.with_array(array).write(out / case.label.relative_to(root))


def _link(file: Path, to: Path) -> None:
    """A hard link in place of what is there; a copy on another file system, or on one without links."""
    partial_file = to.with_name(f".{to.name}.partial")
    partial_file.unlink(missing_ok=True)
    try:
        os.link(file.resolve(), partial_file)
    except OSError:
        shutil.copyfile(file, partial_file)
    partial_file.replace(to)


def parse_selection(every: int | None, table: Path | None, drawn: bool, axis: SlicingAxis) -> LabelledSlices:
    """The choice of the command line, of which exactly one is given. Raises: ConfigError, or as the list's reader."""
    if [every is not None, table is not None, drawn].count(True) != 1:
        raise ConfigError("say which slices are labelled: --every N, --slices FILE or --drawn")
    return LabelledSlices(axis, every) if table is None else read_labelled_slices(table, axis)
