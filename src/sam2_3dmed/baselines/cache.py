"""Cases on the grid that patches are cut from, as memory maps beside the cache of prepared cases."""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.baselines.grid import Grid, resample_image, resample_labels, resampled_shape, thick_axis
from sam2_3dmed.baselines.recipe import PatchSpec
from sam2_3dmed.data.cache import CachedCase, checksum, open_array, read_index, write_array, write_index
from sam2_3dmed.data.dataset import MedicalDataset
from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import naming
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.nifti import read_affine
from sam2_3dmed.volume.slices import SlicingAxis, slice_spacing_mm
from sam2_3dmed.volume.volume import Volume

_VERSION = 4
_PARTS = ("image", "label", "centres")
_MOST_CENTRES = 10_000
"""Voxels of a class in a case that patches may be centred on, as in nnU-Net."""


class GriddedCase(NamedTuple):
    """A prepared case and its grid; small, and cheap to send to another process."""

    cached: CachedCase
    grid: Grid

    @property
    def num_bytes(self) -> int:
        return int(self.cached.image.nbytes)


def with_grids(cases: Iterable[CachedCase], dataset: MedicalDataset, axis: SlicingAxis) -> list[GriddedCase]:
    """The cases with the spacing of their files' headers."""
    files = {case.name: case.images[0] for case in dataset.cases}
    point = np.zeros((1, 1, 1), dtype=np.uint8)
    found = []
    for case in cases:
        spacing_mm = slice_spacing_mm(Volume(point, read_affine(files[case.name])), axis)
        d, h, w = case.label.shape
        found.append(GriddedCase(case, Grid((d, h, w), spacing_mm)))
    return found


@dataclass(frozen=True, eq=False)
class PatchCase:
    """A case on the common grid. counts: for class k = 1..K the number of its voxels that patches may centre on."""

    name: str
    folder: Path
    counts: dict[int, int]

    @property
    def image(self) -> "np.memmap[Any, np.dtype[np.float16]]":
        """(C, D, H, W), normalised."""
        return open_array(self._file("image"))

    @property
    def label(self) -> "np.memmap[Any, np.dtype[np.uint8]]":
        """(D, H, W), as `LabelScheme.indexed` has it."""
        return open_array(self._file("label"))

    def random_voxel(self, k: int, rng: np.random.Generator) -> NDArray[np.integer]:
        """A random voxel of a class, (3,)."""
        before = sum(count for other, count in self.counts.items() if other < k)
        return np.array(open_array(self._file("centres"))[before + rng.integers(self.counts[k])])

    def _file(self, part: str) -> Path:
        return self.folder / f"{self.name}.{part}.npy"


def build_patch_cache(
    cases: list[GriddedCase],
    spec: PatchSpec,
    scheme: LabelScheme,
    folder: Path,
    progress: Progress | None = None,
) -> list[PatchCase]:
    """Bring every case to the common grid, below `folder`; complete and current cases are kept, also after an error.

    scheme: what the labels mean (`LabelScheme.indexed`).
    """
    parts = [_VERSION, spec.spacing_mm, [one.model_dump() for one in spec.intensities]]
    parts += [[scheme.members(value) for value in scheme], scheme.ignore]
    folder = folder / f"patches-{sha256(json.dumps(parts).encode()).hexdigest()[:12]}"
    with naming(folder, "the cache cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        return map_cases(partial(_prepare, spec=spec, scheme=scheme, folder=folder), cases, progress=progress)


def _prepare(case: GriddedCase, *, spec: PatchSpec, scheme: LabelScheme, folder: Path) -> PatchCase:
    """The case from the cache, or resampled now. The index is written last, so it marks complete arrays."""
    name, index_file = case.cached.name, folder / f"{case.cached.name}.json"
    cached = _load(name, case.cached.key, folder)
    if cached is not None:
        return cached
    index_file.unlink(missing_ok=True)
    shape = resampled_shape(*case.grid, spec.spacing_mm)
    thick = thick_axis(case.grid.spacing_mm, spec.spacing_mm)
    image = resample_image(spec.normalise(np.asarray(case.cached.image)), shape, thick).astype(np.float16)
    label = resample_labels(np.asarray(case.cached.label), max(scheme.allowed), shape, thick)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    centres = {k: _centres(scheme.holds(label, value), rng) for k, value in enumerate(scheme, start=1)}
    counts = {k: len(found) for k, found in centres.items()}
    arrays = dict(zip(_PARTS, (image, label, np.concatenate(list(centres.values()))), strict=True))
    for part, array in arrays.items():
        write_array(array, folder / f"{name}.{part}.npy")
    checksums = [checksum(array) for array in arrays.values()]
    index = {"key": case.cached.key, "counts": {str(k): count for k, count in counts.items()}, "checksums": checksums}
    write_index(index, index_file)
    return PatchCase(name, folder, counts)


def _load(name: str, key: str, folder: Path) -> PatchCase | None:
    """The case, if its index has this key and its arrays are as they were written."""
    try:
        index = read_index(folder / f"{name}.json")
        if index["key"] != key:
            return None
        found = [checksum(open_array(folder / f"{name}.{part}.npy")) for part in _PARTS]
    except (OSError, EOFError, ValueError, KeyError, DataError):
        return None
    counts = {int(k): int(count) for k, count in index["counts"].items()}
    return PatchCase(name, folder, counts) if found == index["checksums"] else None


def _centres(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int32]:
    """The voxels (N, 3) of a mask; a random part of them if there are many."""
    found = np.argwhere(mask).astype(np.int32)
    return found if len(found) <= _MOST_CENTRES else found[rng.choice(len(found), _MOST_CENTRES, replace=False)]
