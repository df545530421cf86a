"""Dice, IoU, HD95 and NSD of one case, with empty masks decided once and for all.

Paper: appendix C. A class absent from prediction and truth alike was rightly left out: every score is 1 and
HD95 is 0. Absent from only one of them it scores 0, and HD95 is the volume's diagonal in mm, never NaN: a
miss must cost.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.surface import (
    SURFACE_DEFINITION,
    Floats,
    Mask,
    SurfaceDistances,
    bounding_box,
    check_masks,
    check_spacing,
    surface_distances,
)

DEFINITIONS: dict[str, str] = {
    "dice": "2 |P and G| / (|P| + |G|) over voxels",
    "iou": "|P and G| / |P or G| over voxels",
    "hd95": "the larger of the two directed 95th percentiles of surface distance, weighted by area",
    "nsd": "the share of both surfaces' area that lies within the tolerance of the other surface",
    SURFACE_DEFINITION: (
        "surface elements at the corners of voxels, each weighing its marching-cubes area (surface-distance)"
    ),
}
EMPTY_MASKS = (
    "a class absent from prediction and truth scores 1 and HD95 0; absent from only one it scores 0 "
    "and HD95 is the volume's diagonal in mm, from corner to corner of all its voxels"
)
MEAN_NAME = "mean"
UNION_NAME = "foreground"

Kind = Literal["class", "mean", "union"]
Presence = Literal["both", "missed", "invented", "absent"]


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class in one case, of the mean over the classes, or of their union.

    label: the class's value in the label map; None for the mean and the union.
    dice, iou: in [0, 1]. hd95_mm: at most the volume's diagonal. nsd: tolerance in mm -> score in [0, 1].
    presence: "missed" if only the truth has the class, "invented" if only the prediction has it, "absent" if
        neither does.
    prediction_mm3, truth_mm3: the class's volume. These two and `presence` are None for the mean.
    """

    kind: Kind
    name: str
    label: int | None
    dice: float
    iou: float
    hd95_mm: float
    nsd: Mapping[float, float]
    presence: Presence | None
    prediction_mm3: float | None
    truth_mm3: float | None


def dice(prediction: Mask, truth: Mask) -> float:
    """Dice of two (X, Y, Z) bool masks, in [0, 1]; 1 if both are empty.

    Raises: VolumeError if a mask is not boolean and 3D, or the shapes differ.
    """
    check_masks(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * float(np.count_nonzero(prediction & truth)) / total if total else 1.0


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union of two (X, Y, Z) bool masks, in [0, 1]; 1 if both are empty.

    Raises: VolumeError if a mask is not boolean and 3D, or the shapes differ.
    """
    check_masks(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return float(np.count_nonzero(prediction & truth)) / union if union else 1.0


def hd95(prediction: Mask, truth: Mask, spacing_mm: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of surface distance, weighted by area, in mm.

    prediction, truth: (X, Y, Z) bool. spacing_mm: three voxel sizes in the array's axis order.
    Returns: mm; 0 if both masks are empty, the volume's diagonal if one is.
    Raises: VolumeError if a mask is not boolean and 3D, the shapes differ, or the spacing is unusable.
    """
    surfaces = surface_distances(prediction, truth, spacing_mm)
    return _hd95_mm(surfaces, _diagonal_mm(truth.shape, spacing_mm))


def nsd(prediction: Mask, truth: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> float:
    """The share of both surfaces' area that lies within `tolerance_mm`, inclusive, of the other surface.

    prediction, truth: (X, Y, Z) bool. spacing_mm: three voxel sizes in the array's axis order.
    Returns: in [0, 1]; 1 if both masks are empty, 0 if one is.
    Raises: VolumeError if a mask is not boolean and 3D, the shapes differ, or spacing or tolerance is
        unusable.
    """
    (tolerance,) = check_tolerances([tolerance_mm])
    return _nsd(surface_distances(prediction, truth, spacing_mm), tolerance)


def case_metrics(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float],
    tolerances_mm: Iterable[float],
) -> list[ClassMetrics]:
    """All metrics of one case.

    prediction, truth: (X, Y, Z) integer label maps.
    labels: value -> name of the foreground classes; other values count as background.
    spacing_mm: three voxel sizes in the array's axis order. tolerances_mm: of the NSD.
    Returns: a row per class in the order of `labels`, their mean and, if there are several, their union.
    Raises: VolumeError if a map is not 3D and integer, the shapes differ, `labels` is empty or names the
        background, or the spacing or a tolerance is unusable.
    """
    tolerances, spacing = check_tolerances(tolerances_mm), check_spacing(spacing_mm)
    _check_label_maps(prediction, truth, labels)
    box = bounding_box((prediction != 0) | (truth != 0))
    geometry = (spacing, tolerances, _diagonal_mm(truth.shape, spacing))
    prediction, truth = prediction[box], truth[box]
    rows = [
        _row("class", name, value, (prediction == value, truth == value), *geometry) for value, name in labels.items()
    ]
    rows.append(_mean_row(rows, tolerances))
    if len(labels) > 1:
        masks = np.isin(prediction, list(labels)), np.isin(truth, list(labels))
        rows.append(_row("union", UNION_NAME, None, masks, *geometry))
    return rows


def check_tolerances(tolerances_mm: Iterable[float]) -> tuple[float, ...]:
    """The tolerances in mm without repetitions, in the order given.

    Raises: VolumeError if there is none, or one is negative or not finite.
    """
    tolerances = tuple(dict.fromkeys(float(tolerance) for tolerance in tolerances_mm))
    if not tolerances or not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in tolerances):
        raise VolumeError(f"the tolerances must be one or more lengths of 0 mm or more, not {tolerances}")
    return tolerances


def _check_label_maps(prediction: NDArray[Any], truth: NDArray[Any], labels: Mapping[int, str]) -> None:
    for name, array in (("prediction", prediction), ("truth", truth)):
        if array.ndim != 3 or array.dtype.kind not in "iub":
            raise VolumeError(f"the {name} must be a 3D map of integers, not {array.ndim}D of type {array.dtype}")
    if prediction.shape != truth.shape:
        raise VolumeError(f"the prediction's shape {prediction.shape} is not the truth's, {truth.shape}")
    if not labels or min(labels) < 1:
        raise VolumeError(f"labels must name one or more classes of value 1 or more, not {dict(labels)}")


def _row(
    kind: Kind,
    name: str,
    label: int | None,
    masks: tuple[Mask, Mask],
    spacing_mm: tuple[float, ...],
    tolerances_mm: tuple[float, ...],
    diagonal_mm: float,
) -> ClassMetrics:
    prediction, truth = masks
    surfaces = surface_distances(prediction, truth, spacing_mm)
    voxel_mm3 = math.prod(spacing_mm)
    return ClassMetrics(
        kind=kind,
        name=name,
        label=label,
        dice=dice(prediction, truth),
        iou=iou(prediction, truth),
        hd95_mm=_hd95_mm(surfaces, diagonal_mm),
        nsd={tolerance: _nsd(surfaces, tolerance) for tolerance in tolerances_mm},
        presence=_presence(prediction, truth),
        prediction_mm3=int(np.count_nonzero(prediction)) * voxel_mm3,
        truth_mm3=int(np.count_nonzero(truth)) * voxel_mm3,
    )


def _mean_row(rows: Sequence[ClassMetrics], tolerances_mm: tuple[float, ...]) -> ClassMetrics:
    return ClassMetrics(
        kind="mean",
        name=MEAN_NAME,
        label=None,
        dice=math.fsum(row.dice for row in rows) / len(rows),
        iou=math.fsum(row.iou for row in rows) / len(rows),
        hd95_mm=math.fsum(row.hd95_mm for row in rows) / len(rows),
        nsd={tolerance: math.fsum(row.nsd[tolerance] for row in rows) / len(rows) for tolerance in tolerances_mm},
        presence=None,
        prediction_mm3=None,
        truth_mm3=None,
    )


def _presence(prediction: Mask, truth: Mask) -> Presence:
    if prediction.any():
        return "both" if truth.any() else "invented"
    return "missed" if truth.any() else "absent"


def _hd95_mm(surfaces: SurfaceDistances, diagonal_mm: float) -> float:
    """`diagonal_mm` is the answer if only one of the masks has a surface."""
    sizes = surfaces.prediction_areas_mm2.size, surfaces.truth_areas_mm2.size
    if not all(sizes):
        return diagonal_mm if any(sizes) else 0.0
    return max(
        _percentile_mm(surfaces.prediction_to_truth_mm, surfaces.prediction_areas_mm2, 95),
        _percentile_mm(surfaces.truth_to_prediction_mm, surfaces.truth_areas_mm2, 95),
    )


def _percentile_mm(distances_mm: Floats, areas_mm2: Floats, percent: float) -> float:
    """The smallest distance within which `percent` of the area lies; the distances ascend."""
    share = np.cumsum(areas_mm2) / areas_mm2.sum()
    return float(distances_mm[min(int(np.searchsorted(share, percent / 100)), distances_mm.size - 1)])


def _nsd(surfaces: SurfaceDistances, tolerance_mm: float) -> float:
    total = surfaces.prediction_areas_mm2.sum() + surfaces.truth_areas_mm2.sum()
    if total == 0:
        return 1.0
    within = surfaces.prediction_areas_mm2[surfaces.prediction_to_truth_mm <= tolerance_mm].sum()
    within += surfaces.truth_areas_mm2[surfaces.truth_to_prediction_mm <= tolerance_mm].sum()
    return float(within / total)


def _diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))
