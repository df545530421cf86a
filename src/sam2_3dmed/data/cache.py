"""Preprocessed cases on disk: slices and class indices as memory maps, made once and read many times."""

import errno
import json
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from sam2_3dmed.config import Plan
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_case
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import replacing
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.files import with_voxels
from sam2_3dmed.volume.slices import volume_to_slices

_VERSION = 2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class CachedCase:
    """One prepared case; small, and cheap to send to another process.

    Args:
        class_slices: for class k = 1..K, the ascending indices of the slices that hold it; empty where it is absent.
        annotated_slices: those with a voxel that is not to be ignored; None where the data set has no ignore label.
    """

    name: str
    folder: Path
    num_slices: int
    class_slices: dict[int, NDArray[np.int64]]
    annotated_slices: NDArray[np.int64] | None = None

    @property
    def image(self) -> "np.memmap[Any, np.dtype[np.float16]]":
        """(D, C, H, W) float16 in [0, 1] at native in-plane size; read-only, opened anew each time."""
        return open_array(self.folder / f"{self.name}.image.npy")

    @property
    def label(self) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """(D, H, W) as `LabelScheme.indexed` has it: without regions 0 is background, k class k, K + 1 to be ignored.

        uint8, or uint16 for more values; read-only, opened anew each time.
        """
        return open_array(self.folder / f"{self.name}.label.npy")

    @property
    def key(self) -> str:
        """A hash of everything that the prepared arrays depend on."""
        key: str = read_object(self.folder / f"{self.name}.json")["key"]
        return key


def build_cache(
    dataset: MedicalDataset,
    plan: Plan,
    folder: Path | str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[CachedCase]:
    """Prepare every case of `dataset` by `plan`, below `folder`; complete and current cases are kept.

    A case is current if neither its files (size, time of change) nor the plan's intensities, labels and axis have
    changed, and its arrays still have their checksums. An interrupted build goes on where it stopped. `workers` and
    `progress` as in `map_cases`.

    Raises:
        DataError: unusable cases (all are listed), or no space left; finished cases stay.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return map_cases(partial(_prepare, plan=plan, folder=folder), dataset.cases, workers=workers, progress=progress)
    except OSError as error:
        reason = "no space left on the device" if error.errno in _NO_SPACE else error.strerror or str(error)
        raise DataError(f"{folder}: the cache cannot be written: {reason}") from None


def _prepare(case: Case, *, plan: Plan, folder: Path) -> CachedCase:
    """The case from the cache, or prepared now. The index is written last: where it is, the arrays are complete."""
    key = _key(case, plan)
    cached = _load(case.name, key, folder)
    if cached is not None:
        return cached
    scheme = plan.scheme
    image, label = read_case(case, scheme.allowed)
    if label is None and scheme.ignore is None:
        raise DataError(f"{case.images[0]}: has no label, so it cannot be prepared for training")
    try:
        slices = plan.preprocessing.slices(image).astype(np.float16)
    except VolumeError as error:
        raise VolumeError(f"{case.images[0]}: {error}") from None
    if label is None:
        label = image.with_array(np.full(image.shape, scheme.ignore, dtype=np.uint16))
    indices = scheme.to_indices(volume_to_slices(label, plan.slicing_axis))  # (D, H, W)
    held = {
        k: np.flatnonzero(scheme.indexed.holds(indices, index).any(axis=(1, 2)))
        for k, index in enumerate(scheme.indexed, start=1)
    }
    known = scheme.indexed.annotated(indices)
    annotated = None if known is None else np.flatnonzero(known.any(axis=(1, 2)))
    index = {
        "key": key,
        "num_slices": len(slices),
        "class_slices": {str(k): held[k].tolist() for k in held},
        "annotated_slices": None if annotated is None else annotated.tolist(),
        "checksums": [checksum(slices), checksum(indices)],
    }
    index_file = folder / f"{case.name}.json"
    index_file.unlink(missing_ok=True)
    write_array(slices, folder / f"{case.name}.image.npy")
    write_array(indices, folder / f"{case.name}.label.npy")
    write_index(index, index_file)
    return CachedCase(case.name, folder, len(slices), held, annotated)


def _key(case: Case, plan: Plan) -> str:
    try:
        status = [(file.name, file.stat()) for stored in case.files for file in with_voxels(stored)]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    depends_on: dict[str, Any] = {
        "version": _VERSION,
        "files": [(name, s.st_size, s.st_mtime_ns) for name, s in status],
        "slicing_axis": plan.slicing_axis,
        "channels": [(c.normalisation, c.low, c.high) for c in plan.channels],
        "labels": plan.label_values,
    }
    if plan.regions or plan.ignore_label is not None:
        depends_on["regions"] = sorted(plan.regions.items())
        depends_on["ignore_label"] = plan.ignore_label
    return sha256(json.dumps(depends_on).encode()).hexdigest()


def _load(name: str, key: str, folder: Path) -> CachedCase | None:
    """The case, if its index has this key and both arrays are as they were written."""
    try:
        index = read_index(folder / f"{name}.json")
        if index["key"] != key:
            return None
        held = {int(k): np.array(slices, dtype=np.int64) for k, slices in index["class_slices"].items()}
        annotated = index["annotated_slices"]
        known = None if annotated is None else np.array(annotated, dtype=np.int64)
        case = CachedCase(name, folder, int(index["num_slices"]), held, known)
        found = [checksum(case.image), checksum(case.label)]
    except (OSError, EOFError, ValueError, KeyError, DataError):
        return None
    return case if found == index["checksums"] else None


def write_index(index: dict[str, Any], file: Path) -> None:
    """Write the index of a case, whole or not at all, with a checksum of its own. Raises OSError."""
    with replacing(file) as stream:
        stream.write(json.dumps(index | {"sha256": _seal(index)}).encode())


def read_index(file: Path) -> dict[str, Any]:
    """The index of a case. Raises DataError if it is not as `write_index` has written it."""
    index = read_object(file)
    if index.pop("sha256", None) != _seal(index):
        raise DataError(f"{file}: damaged")
    return index


def _seal(index: dict[str, Any]) -> str:
    return sha256(json.dumps(index).encode()).hexdigest()


def checksum(array: NDArray[Any]) -> int:
    """CRC-32 of an array's type, shape and content, which finds damage that leaves a file its length."""
    about = isal_zlib.crc32(f"{array.dtype} {array.shape}".encode())
    return int(isal_zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), about))


def write_array(array: NDArray[Any], file: Path) -> None:
    """Write `.npy`, whole or not at all. Raises OSError."""
    with replacing(file) as stream:
        # NumPy gets `write` alone: from a real file, on a full disk, it raises an OSError without errno.
        np.lib.format.write_array(SimpleNamespace(write=stream.write), np.ascontiguousarray(array), allow_pickle=False)


def open_array(file: Path) -> "np.memmap[Any, Any]":
    """A `.npy` file as a read-only memory map. Raises OSError, or ValueError if it is damaged."""
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy's parser of the header raises many kinds
        raise ValueError(f"{file}: damaged: {error}") from None
