"""The fingerprint of a data set: every case read once, checked, and summed up in a few numbers."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sam2_3dmed.data.dataset import Case, MedicalDataset, read_case
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.label import label_values, read_label
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.slices import WORLD_AXES, SlicingAxis

if TYPE_CHECKING:
    from rich.console import RenderableType

Three = tuple[float, float, float]
AXES: tuple[SlicingAxis, ...] = tuple(WORLD_AXES)
"""The slicing axes in the order of R, A and S."""

# Of a case with more foreground voxels than this, so many evenly spaced quantiles stand for all.
_SAMPLE_SIZE = 4096


@dataclass(frozen=True)
class ClassFingerprint:
    """One class in one case. `num_slices`: how many slices hold it, cut across R, A and S."""

    volume_ml: float
    num_slices: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class CaseFingerprint:
    """One case. Shape and spacing are along R, A and S, not along the file's own axes."""

    name: str
    shape: tuple[int, int, int]
    spacing_mm: Three
    orientation: str
    num_channels: int
    classes: dict[int, ClassFingerprint]  # by the value in a mask; only classes that are present
    intensities: tuple[Three, ...]  # 0.5, 50 and 99.5 percentile of the foreground of each channel, if there is any
    num_foreground: int
    foreground_sample: NDArray[np.float64]  # (C, n) ascending, all foreground voxels or evenly spaced quantiles of them


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """A data set. Channels and labels are complete, also where the layout names none."""

    dataset: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    cases: tuple[CaseFingerprint, ...]

    @property
    def with_foreground(self) -> tuple[str, ...]:
        """The names of the cases whose label holds a class."""
        return tuple(case.name for case in self.cases if case.num_foreground)


def fingerprint(
    dataset: MedicalDataset, *, workers: int | None = None, progress: Progress | None = None
) -> Fingerprint:
    """Read and check every case once; `workers` and `progress` as in `map_cases`.

    Raises:
        DataError: unusable cases (all are listed, by file), images with different numbers of channels, or no
            foreground.
    """
    function = partial(_fingerprint_case, labels=dataset.labels, num_channels=len(dataset.channels))
    cases = tuple(map_cases(function, dataset.cases, workers=workers, progress=progress))
    present = sorted({value for case in cases for value in case.classes})
    if not present:
        raise DataError(f"{dataset.name}: no label holds any foreground")
    labels = dataset.labels or LabelScheme({value: f"class {value}" for value in present})
    return Fingerprint(dataset.name, dataset.channels or _channel_names(dataset.name, cases), labels, cases)


def _channel_names(dataset: str, cases: Sequence[CaseFingerprint]) -> tuple[str, ...]:
    counts = Counter(case.num_channels for case in cases)
    (usual, _), *others = counts.most_common()
    if others:
        odd = next(case for case in cases if case.num_channels != usual)
        raise DataError(f"{dataset}: {odd.name} has {odd.num_channels} channels, most cases have {usual}")
    return ("image",) if usual == 1 else tuple(f"channel {i}" for i in range(usual))


def _fingerprint_case(case: Case, *, labels: LabelScheme, num_channels: int) -> CaseFingerprint:
    """The fingerprint of a case; `labels` and `num_channels` are empty and 0 where the layout names none."""
    image, label = read_case(case, labels.allowed or None)
    if num_channels and image.num_channels != num_channels:
        raise VolumeError(f"{case.images[0]}: {image.num_channels} channels, but the data set names {num_channels}")
    if label is None:
        raise DataError(f"{case.images[0]}: has no label")
    label = label.with_array(*labels.cut(label.array))
    # In the smallest box that holds the foreground: four times as fast as in the whole volume.
    planes = [np.flatnonzero(label.array.any(axis=rest)) for rest in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(held[0], held[-1] + 1) if held.size else slice(0) for held in planes)
    found = np.ascontiguousarray(label.array[box])
    inside = image.array[box].reshape(*found.shape, image.num_channels)
    ordered = np.sort(inside[found > 0].T.astype(np.float64), axis=1)
    count = ordered.shape[1]
    ranks = (np.arange(_SAMPLE_SIZE) + 0.5) * (count / _SAMPLE_SIZE)
    axes = [axis for axis, _ in canonical_axes(image.affine)]
    classes = {}
    for value, mask in _class_masks(found, labels):
        r, a, s = (_num_slices(mask, axis, labels) for axis in axes)
        volume_ml = float(mask.sum()) * (float(np.prod(image.spacing_mm)) / 1000)
        classes[value] = ClassFingerprint(volume_ml, (r, a, s))
    return CaseFingerprint(
        name=case.name,
        shape=(image.shape[axes[0]], image.shape[axes[1]], image.shape[axes[2]]),
        spacing_mm=image.canonical_spacing_mm,
        orientation=image.orientation,
        num_channels=image.num_channels,
        classes=classes,
        intensities=tuple(zip(*np.percentile(ordered, [0.5, 50, 99.5], axis=1).tolist(), strict=True)) if count else (),
        num_foreground=count,
        foreground_sample=ordered[:, ranks.astype(np.int64)] if count > _SAMPLE_SIZE else ordered,
    )


def _num_slices(mask: NDArray[np.bool_], axis: int, labels: LabelScheme) -> int:
    """How many slices hold a class; with an ignore label from the first to the last, as some between are unknown."""
    held = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return len(held) if labels.ignore is None else int(held[-1] - held[0] + 1)


def _class_masks(found: NDArray[Any], labels: LabelScheme) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """The classes of a label that have a voxel, each with a mask of a box that holds it."""
    if labels.regions:
        yield from ((value, mask) for value in labels if (mask := labels.holds(found, value)).any())
        return
    for value, part in enumerate(ndimage.find_objects(found) if found.size else [], start=1):
        if part is not None:  # some voxel has this value
            yield value, found[part] == value


def cases_with_foreground(
    dataset: MedicalDataset, values: Collection[int], *, progress: Progress | None = None
) -> tuple[str, ...]:
    """The names of the cases whose label holds one of the values; no image is opened.

    Raises:
        DataError: labels that cannot be read; all are listed.
    """
    held = map_cases(partial(_holds, values=tuple(values)), dataset.cases, progress=progress)
    return tuple(case.name for case, holds in zip(dataset.cases, held, strict=True) if holds)


def _holds(case: Case, *, values: tuple[int, ...]) -> bool:
    assert case.label is not None  # the cases of a data set are labelled
    return bool(np.isin(values, label_values(read_label(case.label).array)).any())


def foreground_percentiles(cases: Sequence[CaseFingerprint], channel: int, percentiles: Sequence[float]) -> list[float]:
    """Percentiles of the foreground voxels of all cases together, every voxel with the same weight.

    Raises:
        DataError: the cases hold no foreground.
    """
    counted = [case for case in cases if case.num_foreground]
    if not counted:
        raise DataError("no foreground voxel to take intensities from")
    values = np.concatenate([case.foreground_sample[channel] for case in counted])
    lengths = [case.foreground_sample.shape[1] for case in counted]
    weights = np.repeat([case.num_foreground / n for case, n in zip(counted, lengths, strict=True)], lengths)
    found: list[float] = np.percentile(values, percentiles, weights=weights, method="inverted_cdf").tolist()
    return found


def describe(found: Fingerprint, axis: SlicingAxis) -> "RenderableType":
    """Two tables for a terminal: the data set, and its classes with slices counted along `axis`."""
    from rich.console import Group
    from rich.table import Table

    cases = found.cases
    overview = Table("", "median (range)", title=f"{found.dataset}: {len(cases)} cases", title_justify="left")
    for i, letter in enumerate("RAS"):
        overview.add_row(f"voxels along {letter}", _spread([case.shape[i] for case in cases]))
    for i, letter in enumerate("RAS"):
        overview.add_row(f"spacing along {letter} (mm)", _spread([case.spacing_mm[i] for case in cases]))
    for i, channel in enumerate(found.channels):
        middles = [case.intensities[i][1] for case in cases if case.intensities]
        overview.add_row(f"{channel}, median of the foreground", _spread(middles))
    orientations = Counter(case.orientation for case in cases).most_common()
    overview.add_row("stored as", ", ".join(f"{name} ({count})" for name, count in orientations))
    overview.add_row("without foreground", f"{len(cases) - len(found.with_foreground)} cases")
    classes = Table("", "class", "ml", f"{axis} slices", "absent in", title="Where present", title_justify="left")
    for value, name in found.labels.items():
        present = [case.classes[value] for case in cases if value in case.classes]
        slices = _spread([entry.num_slices[AXES.index(axis)] for entry in present])
        absent = f"{len(cases) - len(present)} cases" if len(present) < len(cases) else "-"
        classes.add_row(str(value), name, _spread([c.volume_ml for c in present]), slices, absent)
    return Group(overview, classes)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle, low, high = (f"{number:.4g}" for number in (median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
