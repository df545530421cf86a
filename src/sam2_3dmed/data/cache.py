"""Preprocessed cases on disk: slices and class indices as memory maps, made once and read many times."""

import errno
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_case
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.slices import volume_to_slices

_VERSION = 1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class CachedCase:
    """One prepared case; small, and cheap to send to another process.

    class_slices: for class k = 1..K, the ascending indices of the slices that hold it; empty where it is
    absent.
    """

    name: str
    folder: Path
    num_slices: int
    class_slices: dict[int, NDArray[np.int64]]

    @property
    def image(self) -> "np.memmap[Any, np.dtype[np.float16]]":
        """(D, C, H, W) float16 in [0, 1] at native in-plane size; read-only, opened anew each time."""
        return _open(_files(self.folder, self.name)[0])

    @property
    def key(self) -> str:
        """What the prepared arrays depend on, as a hash."""
        key: str = json.loads(_files(self.folder, self.name)[2].read_text(encoding="utf-8"))["key"]
        return key

    @property
    def label(self) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """(D, H, W) class index, 0 is background, uint8, or uint16 if K > 255; read-only, opened anew."""
        return _open(_files(self.folder, self.name)[1])


@dataclass(frozen=True, eq=False)
class CaseCache:
    """The prepared cases of a data set, sorted by name."""

    cases: tuple[CachedCase, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[CachedCase]:
        return iter(self.cases)

    def __getitem__(self, name: str) -> CachedCase:
        """The case of this name.

        Raises:
            DataError: there is none.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise DataError(f"the cache has no case {name!r}")

    def subset(self, names: Collection[str]) -> "CaseCache":
        """The cases of these names, such as a part of a split.

        Raises:
            DataError: a name that the cache does not have.
        """
        return CaseCache(tuple(self[name] for name in sorted(set(names))))


def build_cache(
    catalog: MedicalDataset,
    plan: Plan,
    folder: Path | str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CaseCache:
    """Prepare every case of `catalog` as `plan` says, below `folder`; what is whole and current is kept.

    A case is current if neither its files (size, time of change) nor what the plan says of intensities,
    labels and axis have changed. An interrupted build goes on where it stopped. workers, progress: see
    `map_cases`.

    Raises:
        DataError: unusable cases (all are listed), or no space left; what is finished stays.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prepared = map_cases(
            partial(_prepare, plan=plan, folder=folder), catalog.cases, workers=workers, progress=progress
        )
    except OSError as error:
        reason = "no space left on the device" if error.errno in _NO_SPACE else error.strerror or str(error)
        raise DataError(f"{folder}: the cache cannot be written: {reason}") from None
    return CaseCache(tuple(prepared))


def _prepare(case: Case, *, plan: Plan, folder: Path) -> CachedCase:
    """The case from the cache, or prepared now. Where the index is, the arrays are whole: it comes last."""
    key = _key(case, plan)
    cached = _load(case.name, key, folder)
    if cached is not None:
        return cached
    image, label = read_case(case, plan.label_values)
    if label is None:
        raise DataError(f"{case.images[0]}: has no label, so it cannot be prepared for training")
    try:
        slices = plan.preprocessing.slices(image).astype(np.float16)
    except VolumeError as error:
        raise VolumeError(f"{case.images[0]}: {error}") from None
    indices = _class_indices(volume_to_slices(label, plan.slicing_axis), plan.label_values)
    index = {
        "key": key,
        "num_slices": len(slices),
        "class_slices": {
            str(k): np.flatnonzero((indices == k).any(axis=(1, 2))).tolist() for k in range(1, plan.num_classes + 1)
        },
    }
    image_file, label_file, index_file = _files(folder, case.name)
    index_file.unlink(missing_ok=True)
    _write_array(slices, image_file)
    _write_array(indices, label_file)
    _write(index_file, json.dumps(index).encode())
    return _cached_case(case.name, folder, index)


def _class_indices(labels: NDArray[Any], values: tuple[int, ...]) -> NDArray[Any]:
    """Class indices 0..K for label values; (D, H, W) both."""
    table = np.zeros(max(values) + 1, dtype=np.min_scalar_type(len(values)))
    table[list(values)] = np.arange(1, len(values) + 1)
    indices: NDArray[Any] = table[labels]
    return indices


def _key(case: Case, plan: Plan) -> str:
    """What the prepared arrays depend on, as a hash."""
    files = (*case.images, *((case.label,) if case.label else ()))
    try:
        status = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    depends_on = {
        "version": _VERSION,
        "files": [(name, s.st_size, s.st_mtime_ns) for name, s in status],
        "slicing_axis": plan.slicing_axis,
        "channels": [(c.normalisation, c.low, c.high) for c in plan.channels],
        "labels": plan.label_values,
    }
    return sha256(json.dumps(depends_on).encode()).hexdigest()


def _files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / f"{name}.image.npy", folder / f"{name}.label.npy", folder / f"{name}.json"


def _load(name: str, key: str, folder: Path) -> CachedCase | None:
    """The case, if its index has this key and both arrays are as long as their headers say."""
    image_file, label_file, index_file = _files(folder, name)
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        if index["key"] != key:
            return None
        case = _cached_case(name, folder, index)
        image, label = _open(image_file), _open(label_file)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = image.ndim == 4 and label.shape == (image.shape[0], *image.shape[2:]) and len(image) == case.num_slices
    return case if whole else None


def _cached_case(name: str, folder: Path, index: dict[str, Any]) -> CachedCase:
    class_slices = {int(k): np.array(slices, dtype=np.int64) for k, slices in index["class_slices"].items()}
    return CachedCase(name, folder, int(index["num_slices"]), class_slices)


def _open(file: Path) -> "np.memmap[Any, Any]":
    array: np.memmap[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _write_array(array: NDArray[Any], file: Path) -> None:
    # Not np.save: on a full disk it raises an OSError that does not say so.
    array = np.ascontiguousarray(array)
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    _write(file, header.getvalue(), array.data)


def _write(file: Path, *parts: bytes | memoryview) -> None:
    with replacing(file) as stream:
        for part in parts:
            stream.write(part)
