"""The metrics in all the ways in which a paper may have averaged them.

A table with "Dice" and "HD95" may average over volumes or slices, in millimetres or voxels, and may count or leave out
slices without the class. On the same masks these numbers differ by more than most methods do. This module computes all
of them, so that a reader can find the one that a reported number could be. Surfaces are border voxels of equal weight,
as in the common tools; in a slice they are border pixels. Our own results come from `metrics.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import Mask, bounding_box, check_label_maps, check_spacing, class_masks, diagonal_mm
from sam2_3dmed.evaluation.metrics import Overlap, Scoring, mean_scores
from sam2_3dmed.evaluation.surface import surface_distances

Averaging = Literal["volume", "slices_with_either", "slices_with_truth", "all_slices"]
AVERAGINGS: dict[Averaging, str] = {
    "volume": "the whole volume at once, in 3D",
    "slices_with_either": "the mean over the slices in which prediction or truth has the class",
    "slices_with_truth": "the mean over the slices in which the truth has the class: errors elsewhere are free",
    "all_slices": "the mean over all slices: the empty ones, rightly left empty, count as perfect",
}
UNITS = {"mm": "lengths in mm, from the voxel size", "voxel": "lengths in voxels, as if all their sides were 1"}


@dataclass(frozen=True)
class PaperRow:
    """One class of one case, averaged in one way in one unit. scores: column -> value; lengths are in the unit."""

    name: str
    averaging: Averaging
    unit: str
    scores: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """A line of the table."""
        return {"class": self.name, "averaging": self.averaging, "unit": self.unit, **self.scores}


def paper_style(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float],
    slice_axis: int,
    scoring: Scoring,
) -> list[PaperRow]:
    """Score every class of a case in every averaging and unit.

    Args:
        prediction, truth: (X, Y, Z) integer label maps.
        slice_axis: The array axis along which slices lie.
        scoring: Its tolerances are taken as mm and as voxels in turn. Under "penalise", a slice that has the class in
            one mask only costs the diagonal of the slice. The surface is not used.

    Raises:
        VolumeError: As for `case_metrics`.
    """
    check_label_maps(prediction, truth, labels)
    units = {"mm": check_spacing(spacing_mm), "voxel": (1.0, 1.0, 1.0)}
    box = bounding_box(prediction, truth)
    rows = []
    for value, name in labels.items():
        masks = class_masks((prediction[box], truth[box]), value)
        for unit, spacing in units.items():
            averagings = _SliceScorer(spacing, scoring, truth.shape, slice_axis).averagings(*masks)
            rows += [PaperRow(name, averaging, unit, mean_scores(scores)) for averaging, scores in averagings]
    return rows


def summarise_paper_style(cases: Sequence[Sequence[PaperRow]]) -> dict[str, Any]:
    """Average the rows of `paper_style` over cases, and describe the averagings and units."""
    results = []
    for rows in zip(*cases, strict=True):
        means = mean_scores([row.scores for row in rows])
        results.append(rows[0].record() | {key: None if math.isnan(mean) else mean for key, mean in means.items()})
    return {
        "results": results,
        "averagings": AVERAGINGS,
        "units": UNITS,
        "surface": "border voxels, of a slice border pixels, each of weight 1",
        "slices": "axial: along the array axis closest to the body's",
    }


@dataclass(frozen=True)
class _SliceScorer:
    spacing: tuple[float, float, float]
    scoring: Scoring
    shape: tuple[int, ...]
    slice_axis: int

    def averagings(self, prediction: Mask, truth: Mask) -> Iterator[tuple[Averaging, list[dict[str, float]]]]:
        """Each averaging with the scores of the volume or of the slices that it averages."""
        yield "volume", [self._score(prediction, truth, (0, 1, 2))]
        in_plane = tuple(axis for axis in range(3) if axis != self.slice_axis)
        with_prediction, with_truth = (mask.any(axis=in_plane) for mask in (prediction, truth))
        scores = {}
        for index in np.flatnonzero(with_prediction | with_truth).tolist():
            one_slice = [slice(None)] * 3
            one_slice[self.slice_axis] = slice(index, index + 1)
            scores[index] = self._score(prediction[tuple(one_slice)], truth[tuple(one_slice)], in_plane)
        empty = np.zeros((1, 1, 1), dtype=bool)
        absent = self._score(empty, empty, in_plane)
        yield "slices_with_either", list(scores.values()) or [absent]
        yield "slices_with_truth", [scores[index] for index in np.flatnonzero(with_truth).tolist()] or [absent]
        yield "all_slices", [*scores.values(), *[absent] * (self.shape[self.slice_axis] - len(scores))]

    def _score(self, prediction: Mask, truth: Mask, axes: tuple[int, ...]) -> dict[str, float]:
        overlap = Overlap.of(prediction, truth)
        surfaces = surface_distances(prediction, truth, self.spacing, "voxel", axes)
        ratios = overlap.scores(voxel_mm3=1)
        diagonal = diagonal_mm([self.shape[axis] for axis in axes], [self.spacing[axis] for axis in axes])
        scores = {
            "dice": ratios["dice"],
            "iou": ratios["iou"],
            "hd95": surfaces.hausdorff_mm(95),
            **{f"nsd_{tolerance:g}": surfaces.share_within(tolerance) for tolerance in self.scoring.tolerances_mm},
        }
        if self.scoring.empty == "penalise":
            # Only an absent class has undefined ratios, so they are 1; a distance is undefined for one empty mask, too.
            penalties = dict.fromkeys(scores, 1.0) | {"hd95": 0.0 if overlap.presence == "absent" else diagonal}
            scores = {column: penalties[column] if math.isnan(value) else value for column, value in scores.items()}
        return scores
