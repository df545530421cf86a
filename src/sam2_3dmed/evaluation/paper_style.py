"""The metrics in all the ways in which a paper may have averaged them.

A table may average over volumes or slices, in millimetres or voxels, and may count or leave out slices without the
class. On the same masks these numbers differ by more than most methods do. A reader can find here the one that a
reported number could be. Surfaces are border voxels of equal weight, as in the common tools; in a slice they are border
pixels. Our own results come from `metrics.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import (
    Mask,
    Spacing,
    bounding_box,
    check_label_maps,
    check_spacing,
    class_masks,
    diagonal_mm,
)
from sam2_3dmed.evaluation.metrics import METRICS, Overlap, Scoring, mean_scores, without_nan
from sam2_3dmed.evaluation.surface import surface_distances
from sam2_3dmed.volume.label_scheme import LabelScheme

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
        """A line of the table; None where a score is undefined."""
        return {"class": self.name, "averaging": self.averaging, "unit": self.unit, **without_nan(self.scores)}


def paper_style(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float] | Sequence[Sequence[float]],
    slice_axis: int,
    scoring: Scoring,
) -> list[PaperRow]:
    """Score every class of a case in every averaging and unit. See `case_metrics`. Ignored slices do not count.

    Args:
        slice_axis: The array axis along which slices lie.
        scoring: Its tolerances are taken as mm and as voxels in turn. Under "penalise", a slice that has the class in
            one mask only costs the diagonal of the slice. The surface is not used.
    """
    check_label_maps(prediction, truth, labels)
    units: dict[str, Spacing] = {"mm": check_spacing(spacing_mm), "voxel": (1.0, 1.0, 1.0)}
    scheme = LabelScheme.of(labels)
    known = scheme.annotated(truth)
    in_plane = tuple(axis for axis in range(3) if axis != slice_axis)
    num_slices = truth.shape[slice_axis] if known is None else int(known.any(axis=in_plane).sum())
    truth, prediction = scheme.cut(truth, prediction)
    box = bounding_box(prediction, truth)
    rows = []
    for value, name in labels.items():
        masks = class_masks((prediction[box], truth[box]), *scheme.members(value))
        for unit, spacing in units.items():
            score = partial(_score, shape=truth.shape, spacing=spacing, scoring=scoring)
            averagings = _averagings(*masks, slice_axis, num_slices, score)
            rows += [PaperRow(name, averaging, unit, mean_scores(scores)) for averaging, scores in averagings.items()]
    return rows


def summarise_paper_style(cases: Sequence[Sequence[PaperRow]]) -> dict[str, Any]:
    """Average the rows of `paper_style` over cases, and describe the averagings and units."""
    by_row = [(rows[0], mean_scores([row.scores for row in rows])) for rows in zip(*cases, strict=True)]
    return {
        "results": [replace(first, scores=means).record() for first, means in by_row],
        "averagings": AVERAGINGS,
        "units": UNITS,
        "surface": "border voxels, of a slice border pixels, each of weight 1",
        "slices": "axial: along the array axis closest to the body's",
    }


def _averagings(
    prediction: Mask, truth: Mask, slice_axis: int, num_slices: int, score: Callable[..., dict[str, float]]
) -> dict[Averaging, list[dict[str, float]]]:
    """Each averaging with the scores of the volume or of the slices that it averages."""
    in_plane = tuple(axis for axis in range(3) if axis != slice_axis)
    with_prediction, with_truth = (mask.any(axis=in_plane) for mask in (prediction, truth))
    scores = {}
    for index in np.flatnonzero(with_prediction | with_truth).tolist():
        scores[index] = score(*(mask.take([index], axis=slice_axis) for mask in (prediction, truth)), axes=in_plane)
    absent = score(*np.zeros((2, 1, 1, 1), dtype=bool), axes=in_plane)
    return {
        "volume": [score(prediction, truth, axes=(0, 1, 2))],
        "slices_with_either": list(scores.values()) or [absent],
        "slices_with_truth": [scores[index] for index in np.flatnonzero(with_truth).tolist()] or [absent],
        "all_slices": [*scores.values(), *[absent] * (num_slices - len(scores))] or [absent],
    }


def _score(
    prediction: Mask,
    truth: Mask,
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    spacing: Spacing,
    scoring: Scoring,
) -> dict[str, float]:
    """The scores of a volume, or of a slice along `axes`. shape: of the whole volume."""
    overlap = Overlap.of(prediction, truth)
    surfaces = surface_distances(prediction, truth, spacing, "voxel", axes)
    scores = overlap.scores(voxel_mm3=1) | {"hd95": surfaces.hausdorff_mm(95)}
    columns = {"dice": METRICS["dice"], "iou": METRICS["iou"], "hd95": METRICS["hd95_mm"]}
    for tolerance in scoring.tolerances_mm:
        scores[f"nsd_{tolerance:g}"] = surfaces.share_within(tolerance)
        columns[f"nsd_{tolerance:g}"] = METRICS["nsd"]
    diagonal = diagonal_mm(shape, spacing, axes)
    return scoring.penalised(scores, columns, overlap.presence, diagonal)
