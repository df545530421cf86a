"""All metrics of one case: per class, their mean and their union, with empty masks decided once and for all.

Paper: appendix C. `definitions.py` says what each metric is and what an empty mask makes of it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.definitions import METRICS, EmptyPolicy, check_policy, nsd_column
from sam2_3dmed.evaluation.grid import Mask, bounding_box, check_masks, check_spacing, diagonal_mm
from sam2_3dmed.evaluation.lesions import LesionCounts, count_lesions
from sam2_3dmed.evaluation.surface import SurfaceDefinition, SurfaceDistances, check_definition, surface_distances

MEAN_NAME = "mean"
UNION_NAME = "foreground"
DEFAULT_TOLERANCES_MM = (2.0, 1.0)

Kind = Literal["class", "mean", "union"]
Presence = Literal["both", "missed", "invented", "absent"]

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Scoring:
    """How cases are scored.

    tolerances_mm: of the NSD, each once. surface: "surfel" or "voxel". empty: "penalise" or "nan".
    Raises: VolumeError if there is no tolerance or an unusable one, or no such definition or policy.
    """

    tolerances_mm: tuple[float, ...] = DEFAULT_TOLERANCES_MM
    surface: SurfaceDefinition = "surfel"
    empty: EmptyPolicy = "penalise"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tolerances_mm", _checked_tolerances(self.tolerances_mm))
        check_definition(self.surface)
        check_policy(self.empty)


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class in one case, of the mean over the classes, or of their union.

    label: the class's value in the label map; None for the mean and the union.
    dice, iou, sensitivity, precision, lesion_f1: in [0, 1]. nsd: tolerance in mm -> score in [0, 1].
    hd95_mm, hd100_mm, assd_mm: at most the volume's diagonal.
    volume_error_ml, volume_error_percent: above 0 if the prediction is larger than the truth.
    presence: "missed" if only the truth has the class, "invented" if only the prediction has it, "absent" if
        neither does.
    prediction_mm3, truth_mm3: the class's volume. These two, `lesions` and `presence` are None for the mean.
    """

    kind: Kind
    name: str
    label: int | None
    dice: float
    iou: float
    hd95_mm: float
    hd100_mm: float
    assd_mm: float
    nsd: Mapping[float, float]
    volume_error_ml: float
    volume_error_percent: float
    sensitivity: float
    precision: float
    lesion_f1: float
    presence: Presence | None = None
    lesions: LesionCounts | None = None
    prediction_mm3: float | None = None
    truth_mm3: float | None = None

    def columns(self) -> dict[str, float]:
        """Column of the tables -> value."""
        columns: dict[str, float] = {}
        for name in METRICS:
            if name == "nsd":
                columns |= {nsd_column(tolerance_mm): score for tolerance_mm, score in self.nsd.items()}
            else:
                columns[name] = getattr(self, name)
        return columns


@dataclass(frozen=True)
class Overlap:
    """Voxels of the prediction, of the truth and of both; every ratio is NaN where it is 0 to 0."""

    prediction: int
    truth: int
    both: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask) -> "Overlap":
        """Counted over two (X, Y, Z) bool masks.

        Raises: VolumeError if a mask is not boolean and 3D, or the shapes differ.
        """
        check_masks(prediction, truth)
        masks = (prediction, truth, prediction & truth)
        return cls(*(int(np.count_nonzero(mask)) for mask in masks))

    @property
    def presence(self) -> Presence:
        """Which of the masks hold anything."""
        if self.prediction:
            return "both" if self.truth else "invented"
        return "missed" if self.truth else "absent"

    def scores(self, voxel_mm3: float) -> dict[str, float]:
        """The metrics that counting voxels gives."""
        surplus = self.prediction - self.truth
        return {
            "dice": _ratio(2 * self.both, self.prediction + self.truth),
            "iou": _ratio(self.both, self.prediction + self.truth - self.both),
            "sensitivity": _ratio(self.both, self.truth),
            "precision": _ratio(self.both, self.prediction),
            "volume_error_ml": surplus * voxel_mm3 / _MM3_PER_ML,
            "volume_error_percent": _ratio(100 * surplus, self.truth),
        }


@dataclass(frozen=True)
class _Case:
    """What is the same for every class of a case."""

    spacing_mm: tuple[float, float, float]
    diagonal_mm: float
    scoring: Scoring = field(default_factory=Scoring)

    def settled(self, name: str, value: float, presence: Presence) -> float:
        """The value, or what the policy for empty masks puts in the place of an undefined one."""
        if not math.isnan(value) or self.scoring.empty == "nan":
            return value
        metric = METRICS[name]
        if presence == "absent":
            return metric.if_absent
        return self.diagonal_mm if metric.if_one_sided is None else metric.if_one_sided


def dice(prediction: Mask, truth: Mask) -> float:
    """Dice of two (X, Y, Z) bool masks, in [0, 1]; 1 if both are empty.

    Raises: VolumeError if a mask is not boolean and 3D, or the shapes differ.
    """
    overlap = Overlap.of(prediction, truth)
    return 1.0 if overlap.presence == "absent" else overlap.scores(voxel_mm3=1)["dice"]


def case_metrics(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float],
    scoring: Scoring | None = None,
) -> list[ClassMetrics]:
    """All metrics of one case.

    prediction, truth: (X, Y, Z) integer label maps.
    labels: value -> name of the foreground classes; other values count as background.
    spacing_mm: three voxel sizes in the array's axis order. scoring: None for the defaults.
    Returns: a row per class in the order of `labels`, their mean and, if there are several, their union.
    Raises: VolumeError if a map is not 3D and integer, the shapes differ, `labels` is empty or names the
        background, or the spacing is unusable.
    """
    scoring = scoring or Scoring()
    spacing = check_spacing(spacing_mm)
    check_label_maps(prediction, truth, labels)
    case = _Case(spacing, diagonal_mm(truth.shape, spacing), scoring)
    box = bounding_box(prediction, truth)
    maps = prediction[box], truth[box]
    rows = [_row("class", name, value, class_masks(maps, value), case) for value, name in labels.items()]
    rows.append(_mean_row(rows, scoring))
    if len(labels) > 1:
        rows.append(_row("union", UNION_NAME, None, class_masks(maps, *labels), case))
    return rows


def class_masks(maps: tuple[NDArray[Any], NDArray[Any]], *values: int) -> tuple[Mask, Mask]:
    """Where the two maps hold one of the values, as (X, Y, Z) bool in C order."""
    prediction, truth = (
        np.ascontiguousarray(array == values[0] if len(values) == 1 else np.isin(array, values)) for array in maps
    )
    return prediction, truth


def check_label_maps(prediction: NDArray[Any], truth: NDArray[Any], labels: Mapping[int, str]) -> None:
    """Raise VolumeError unless both are 3D maps of integers of one shape, and `labels` names foreground only."""
    for name, array in (("prediction", prediction), ("truth", truth)):
        if array.ndim != 3 or array.dtype.kind not in "iub":
            raise VolumeError(f"the {name} must be a 3D map of integers, not {array.ndim}D of type {array.dtype}")
    if prediction.shape != truth.shape:
        raise VolumeError(f"the prediction's shape {prediction.shape} is not the truth's, {truth.shape}")
    if not labels or min(labels) < 1:
        raise VolumeError(f"labels must name one or more classes of value 1 or more, not {dict(labels)}")


def _checked_tolerances(tolerances_mm: Iterable[float]) -> tuple[float, ...]:
    """The tolerances in mm without repetitions, in the order given."""
    tolerances = tuple(dict.fromkeys(float(tolerance) for tolerance in tolerances_mm))
    if not tolerances or not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in tolerances):
        raise VolumeError(f"the tolerances must be one or more lengths of 0 mm or more, not {tolerances}")
    return tolerances


def _row(kind: Kind, name: str, label: int | None, masks: tuple[Mask, Mask], case: _Case) -> ClassMetrics:
    box = bounding_box(*masks)
    prediction, truth = (mask[box] for mask in masks)
    overlap, lesions = Overlap.of(prediction, truth), count_lesions(prediction, truth)
    surfaces = surface_distances(prediction, truth, case.spacing_mm, case.scoring.surface)
    voxel_mm3 = math.prod(case.spacing_mm)
    presence = overlap.presence
    scores = overlap.scores(voxel_mm3) | _surface_scores(surfaces) | {"lesion_f1": lesions.f1()}
    settled: dict[str, Any] = {metric: case.settled(metric, value, presence) for metric, value in scores.items()}
    return ClassMetrics(
        kind=kind,
        name=name,
        label=label,
        **settled,
        nsd={
            tolerance_mm: case.settled("nsd", surfaces.share_within(tolerance_mm), presence)
            for tolerance_mm in case.scoring.tolerances_mm
        },
        presence=presence,
        lesions=lesions,
        prediction_mm3=overlap.prediction * voxel_mm3,
        truth_mm3=overlap.truth * voxel_mm3,
    )


def _surface_scores(surfaces: SurfaceDistances) -> dict[str, float]:
    return {
        "hd95_mm": surfaces.hausdorff_mm(95),
        "hd100_mm": surfaces.hausdorff_mm(100),
        "assd_mm": surfaces.average_mm(),
    }


def _mean_row(rows: Sequence[ClassMetrics], scoring: Scoring) -> ClassMetrics:
    means: dict[str, Any] = {name: _mean(getattr(row, name) for row in rows) for name in METRICS if name != "nsd"}
    return ClassMetrics(
        kind="mean",
        name=MEAN_NAME,
        label=None,
        **means,
        nsd={tolerance_mm: _mean(row.nsd[tolerance_mm] for row in rows) for tolerance_mm in scoring.tolerances_mm},
    )


def _mean(values: Iterable[float]) -> float:
    """Over what is defined, as numpy.nanmean; NaN if nothing is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else float("nan")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
