"""The metrics in all the ways a paper may have averaged them, beside each other.

A table that says "Dice" and "HD95" may mean volumes or slices, millimetres or voxels, and slices without the class
counted or left out. On the same masks these differ by more than most methods do. This module computes all of them, so
that a reader can see which one a reported number could be. Surfaces are border voxels, unweighted, as the tools in use
have them; in a slice they are border pixels in plane. What we report ourselves is not here but in `metrics.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.definitions import EmptyPolicy, check_policy
from sam2_3dmed.evaluation.grid import Mask, bounding_box, check_spacing, diagonal_mm
from sam2_3dmed.evaluation.metrics import Overlap, check_label_maps, class_masks
from sam2_3dmed.evaluation.surface import distances_between
from sam2_3dmed.evaluation.voxel import border_voxels

Averaging = Literal["volume", "slices_with_either", "slices_with_truth", "all_slices"]
AVERAGINGS: dict[Averaging, str] = {
    "volume": "the whole volume at once, in 3D",
    "slices_with_either": "the mean over the slices in which prediction or truth has the class",
    "slices_with_truth": "the mean over the slices in which the truth has the class: inventions elsewhere are free",
    "all_slices": "the mean over all slices: the empty ones, rightly left empty, count as perfect",
}
UNITS = {"mm": "lengths in mm, from the voxel size", "voxel": "lengths in voxels, as if all their sides were 1"}


@dataclass(frozen=True)
class _Scores:
    """Scores of a volume or a slice. hd95, and the tolerance of nsd, are in the row's unit."""

    dice: float
    iou: float
    hd95: float
    nsd: Mapping[float, float]


@dataclass(frozen=True)
class PaperRow(_Scores):
    """One class of one case, averaged in one way in one unit."""

    name: str
    averaging: Averaging
    unit: str

    def columns(self) -> dict[str, float]:
        """Column of the table -> score."""
        nsd = {f"nsd_{tolerance:g}": score for tolerance, score in self.nsd.items()}
        return {"dice": self.dice, "iou": self.iou, "hd95": self.hd95, **nsd}

    def record(self) -> dict[str, Any]:
        """A line of the table."""
        return {"class": self.name, "averaging": self.averaging, "unit": self.unit, **self.columns()}


def paper_style(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float],
    slice_axis: int,
    tolerances: Sequence[float],
    empty: EmptyPolicy = "penalise",
) -> list[PaperRow]:
    """Every class of a case in every averaging and unit.

    prediction, truth: (X, Y, Z) integer label maps. slice_axis: the array axis along which slices lie.
    tolerances: of the NSD, taken as mm and as voxels in turn.
    empty: as for the metrics; a slice with the class in one mask only costs the diagonal of the slice.
    Raises: VolumeError as `case_metrics` does.
    """
    check_label_maps(prediction, truth, labels)
    check_policy(empty)
    units = {"mm": check_spacing(spacing_mm), "voxel": (1.0, 1.0, 1.0)}
    box = bounding_box(prediction, truth)
    rows = []
    for value, name in labels.items():
        masks = class_masks((prediction[box], truth[box]), value)
        for unit, spacing in units.items():
            scorer = _Scorer(spacing, tuple(tolerances), empty, truth.shape, slice_axis)
            rows += [
                PaperRow(**_mean(scores), name=name, averaging=averaging, unit=unit)
                for averaging, scores in scorer.averagings(*masks)
            ]
    return rows


def summarise_paper_style(cases: Sequence[Sequence[PaperRow]]) -> dict[str, Any]:
    """The means over cases of the rows of `paper_style`, and what the averagings and units are."""
    results = []
    for rows in zip(*cases, strict=True):
        columns = [row.columns() for row in rows]
        means = {column: _nanmean([values[column] for values in columns]) for column in columns[0]}
        results.append(rows[0].record() | {key: None if math.isnan(mean) else mean for key, mean in means.items()})
    return {
        "results": results,
        "averagings": AVERAGINGS,
        "units": UNITS,
        "surface": "border voxels, of a slice border pixels, each of weight 1",
        "slices": "axial: along the array axis closest to the body's",
    }


@dataclass(frozen=True)
class _Scorer:
    spacing: tuple[float, float, float]
    tolerances: tuple[float, ...]
    empty: EmptyPolicy
    shape: tuple[int, ...]
    slice_axis: int

    def averagings(self, prediction: Mask, truth: Mask) -> Iterator[tuple[Averaging, list[_Scores]]]:
        """What each averaging takes the mean of."""
        yield "volume", [self._score(prediction, truth, (0, 1, 2))]
        in_plane = tuple(axis for axis in range(3) if axis != self.slice_axis)
        with_prediction, with_truth = (mask.any(axis=in_plane) for mask in (prediction, truth))
        either, scores = np.flatnonzero(with_prediction | with_truth), {}
        for index in either.tolist():
            place = [slice(None)] * 3
            place[self.slice_axis] = slice(index, index + 1)
            scores[index] = self._score(prediction[tuple(place)], truth[tuple(place)], in_plane)
        nothing = np.zeros((1, 1, 1), dtype=bool)
        absent = self._score(nothing, nothing, in_plane)
        yield "slices_with_either", list(scores.values()) or [absent]
        yield "slices_with_truth", [scores[index] for index in np.flatnonzero(with_truth).tolist()] or [absent]
        yield "all_slices", [*scores.values(), *[absent] * (self.shape[self.slice_axis] - len(scores))]

    def _score(self, prediction: Mask, truth: Mask, axes: tuple[int, ...]) -> _Scores:
        overlap = Overlap.of(prediction, truth)
        surfaces = [border_voxels(np.ascontiguousarray(mask), axes) for mask in (prediction, truth)]
        weights = [np.ones(np.count_nonzero(surface)) for surface in surfaces]
        distances = distances_between(surfaces, weights, self.spacing, "voxel")
        ratios = overlap.scores(voxel_mm3=1)
        absent = overlap.presence == "absent"
        diagonal = diagonal_mm([self.shape[axis] for axis in axes], [self.spacing[axis] for axis in axes])
        return _Scores(
            dice=self._settled(ratios["dice"], 1.0),
            iou=self._settled(ratios["iou"], 1.0),
            hd95=self._settled(distances.hausdorff_mm(95), 0.0 if absent else diagonal),
            nsd={t: self._settled(distances.share_within(t), 1.0) for t in self.tolerances},
        )

    def _settled(self, value: float, instead: float) -> float:
        return instead if math.isnan(value) and self.empty == "penalise" else value


def _mean(scores: Sequence[_Scores]) -> dict[str, Any]:
    """The fields of `_Scores`, each the mean over what is defined."""
    means: dict[str, Any] = {
        field.name: _nanmean([getattr(score, field.name) for score in scores])
        for field in fields(_Scores)
        if field.name != "nsd"
    }
    means["nsd"] = {t: _nanmean([score.nsd[t] for score in scores]) for t in scores[0].nsd}
    return means


def _nanmean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else float("nan")
