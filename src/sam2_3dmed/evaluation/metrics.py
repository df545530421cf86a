"""The metrics (appendix C): their definitions, and their values for one case per class, as mean and as union."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.masks import (
    Mask,
    Spacing,
    bounding_box,
    check_label_maps,
    check_masks,
    check_spacing,
    class_masks,
    diagonal_mm,
    voxel_mm3,
)
from sam2_3dmed.evaluation.surface import SURFACES, SurfaceDefinition, surface_distances
from sam2_3dmed.volume.label_scheme import LabelScheme

Better = Literal["higher", "lower", "zero"]
EmptyPolicy = Literal["penalise", "nan"]
Kind = Literal["class", "mean", "union"]
Presence = Literal["both", "missed", "false_positive", "absent"]

MEAN_NAME = "mean"
UNION_NAME = "foreground"
DEFAULT_TOLERANCES_MM = (2.0, 1.0)
EMPTY_POLICIES: dict[EmptyPolicy, str] = {
    "penalise": (
        "a class absent from prediction and truth scores 1, its distances and errors are 0; absent from only one it "
        "scores 0, and its distances are the volume's diagonal in mm, from corner to corner of all its voxels; a "
        "volume error in percent of a class that the truth does not have is 100"
    ),
    "nan": (
        "what the formula leaves undefined is NaN, written as nothing in CSV and null in JSON: every ratio of 0 to 0, "
        "and every distance to a mask without a surface; means are over the classes and cases where the metric is "
        "defined, and NaN if there are none"
    ),
}
_LESION_CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)
_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        better: Which values are good; "zero" is for signed errors.
        on_surface: Whether the definition of a surface changes the metric.
        if_absent, if_one_sided: The values that replace undefined ones under the policy "penalise", if neither mask
            has the class, and if only one of them has it. None is the diagonal of the volume.
    """

    definition: str
    unit: str | None
    better: Better
    on_surface: bool = False
    if_absent: float = 1.0
    if_one_sided: float | None = 0.0
    tolerance_mm: float | None = None

    def describe(self, surface: SurfaceDefinition) -> dict[str, Any]:
        """The metric's entry in summary.json."""
        described: dict[str, Any] = {"definition": self.definition, "unit": self.unit, "better": self.better}
        if self.on_surface:
            described["surface"] = surface
        if self.tolerance_mm is not None:
            described["tolerance_mm"] = self.tolerance_mm
        return described


def _distance(definition: str) -> Metric:
    return Metric(definition, "mm", "lower", on_surface=True, if_absent=0.0, if_one_sided=None)


METRICS: dict[str, Metric] = {
    "dice": Metric("2 |P and G| / (|P| + |G|) over voxels", None, "higher"),
    "iou": Metric("|P and G| / |P or G| over voxels", None, "higher"),
    "hd95_mm": _distance("the larger of the two directed 95th percentiles of surface distance"),
    "hd100_mm": _distance("the largest surface distance in either direction"),
    "assd_mm": _distance("the mean surface distance over the elements of both surfaces together, by weight"),
    "nsd": Metric("the share of both surfaces within the tolerance of the other", None, "higher", on_surface=True),
    "volume_error_ml": Metric("volume of P minus volume of G", "ml", "zero", if_absent=0.0),
    "volume_error_percent": Metric(
        "volume of P minus volume of G, of that of G", "%", "zero", if_absent=0.0, if_one_sided=100.0
    ),
    "sensitivity": Metric("|P and G| / |G| over voxels", None, "higher"),
    "precision": Metric("|P and G| / |P| over voxels", None, "higher"),
    "lesion_f1": Metric(
        "2 TP / (2 TP + FP + FN) over lesions, the 26-connected components of a mask: TP are those of G that share "
        "at least one voxel with P, FN the other ones of G, FP those of P that share none with G",
        None,
        "higher",
    ),
}


def nsd_column(tolerance_mm: float) -> str:
    """The column of the NSD at one tolerance."""
    return f"nsd_{tolerance_mm:g}mm"


@dataclass(frozen=True)
class Scoring:
    """How cases are scored.

    Attributes:
        tolerances_mm: Of the NSD; repetitions are dropped.
        surface: A key of `SURFACES`.
        empty: A key of `EMPTY_POLICIES`: the treatment of masks without a voxel.

    Raises VolumeError if there is no tolerance or an unusable one, or no such surface or policy.
    """

    tolerances_mm: tuple[float, ...] = DEFAULT_TOLERANCES_MM
    surface: SurfaceDefinition = "surfel"
    empty: EmptyPolicy = "penalise"

    def __post_init__(self) -> None:
        tolerances = tuple(dict.fromkeys(float(tolerance) for tolerance in self.tolerances_mm))
        if not tolerances or not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in tolerances):
            raise VolumeError(f"the tolerances must be one or more lengths of 0 mm or more, not {tolerances}")
        object.__setattr__(self, "tolerances_mm", tolerances)
        if self.surface not in SURFACES:
            raise VolumeError(f"there is no surface definition {self.surface!r}; there are {' and '.join(SURFACES)}")
        if self.empty not in EMPTY_POLICIES:
            policies = " and ".join(EMPTY_POLICIES)
            raise VolumeError(f"there is no policy {self.empty!r} for empty masks; there are {policies}")

    def columns(self) -> dict[str, Metric]:
        """Column of the tables -> metric; the NSD has a column for each tolerance."""
        columns: dict[str, Metric] = {}
        for name, metric in METRICS.items():
            if name == "nsd":
                columns |= {nsd_column(mm): replace(metric, tolerance_mm=mm) for mm in self.tolerances_mm}
            else:
                columns[name] = metric
        return columns

    def penalised(
        self, scores: Mapping[str, float], columns: Mapping[str, Metric], presence: Presence, diagonal: float
    ) -> dict[str, float]:
        """The scores of the columns; the policy decides whether undefined ones are replaced."""
        final = {column: scores[column] for column in columns}
        if self.empty == "penalise":
            for column in (column for column, score in final.items() if math.isnan(score)):
                metric = columns[column]
                penalty = metric.if_absent if presence == "absent" else metric.if_one_sided
                final[column] = diagonal if penalty is None else penalty
        return final


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of the truth, lesions of the truth that were found, and false positive lesions of the prediction.

    METRICS has the definitions. One component may find several lesions, and several may find one: neither is an error.
    """

    truth: int
    found: int
    false_positive: int

    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN if neither mask has a lesion."""
        return _ratio(2 * self.found, self.found + self.truth + self.false_positive)


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class in one case, of the mean over the classes, or of their union.

    Attributes:
        label: The value of the class in the label map; None for mean and union.
        scores: Column of the tables -> value.
        presence: "missed" if only the truth has the class, "false_positive" if only the prediction has it, "absent" if
            neither has it. This and the fields below are None for the mean.
    """

    kind: Kind
    name: str
    label: int | None
    scores: Mapping[str, float]
    presence: Presence | None = None
    lesions: LesionCounts | None = None
    prediction_mm3: float | None = None
    truth_mm3: float | None = None

    def record(self) -> dict[str, Any]:
        """A line of the tables; None where a value does not apply or is undefined."""
        return {
            "kind": self.kind,
            "class": self.name,
            "label": self.label,
            **without_nan(self.scores),
            "presence": self.presence,
            "lesions_truth": self.lesions and self.lesions.truth,
            "lesions_found": self.lesions and self.lesions.found,
            "lesions_false_positive": self.lesions and self.lesions.false_positive,
            "prediction_mm3": self.prediction_mm3,
            "truth_mm3": self.truth_mm3,
        }


@dataclass(frozen=True)
class Overlap:
    """The numbers of voxels of the prediction, of the truth, and of both."""

    prediction: int
    truth: int
    both: int

    @classmethod
    def of(cls, prediction: Mask, truth: Mask) -> "Overlap":
        """Count over two (X, Y, Z) bool masks of one shape."""
        check_masks(prediction, truth)
        return cls(*(int(np.count_nonzero(mask)) for mask in (prediction, truth, prediction & truth)))

    @property
    def presence(self) -> Presence:
        """Which of the masks have a voxel."""
        if self.prediction:
            return "both" if self.truth else "false_positive"
        return "missed" if self.truth else "absent"

    def scores(self, voxel_mm3: float) -> dict[str, float]:
        """Metric -> value for the metrics that are counts of voxels; NaN for a ratio of 0 to 0."""
        surplus = self.prediction - self.truth
        return {
            "dice": _ratio(2 * self.both, self.prediction + self.truth),
            "iou": _ratio(self.both, self.prediction + self.truth - self.both),
            "sensitivity": _ratio(self.both, self.truth),
            "precision": _ratio(self.both, self.prediction),
            "volume_error_ml": surplus * voxel_mm3 / _MM3_PER_ML,
            "volume_error_percent": _ratio(100 * surplus, self.truth),
        }


def dice(prediction: Mask, truth: Mask) -> float:
    """Dice of two (X, Y, Z) bool masks of one shape, in [0, 1]; 1 if both are empty."""
    overlap = Overlap.of(prediction, truth)
    return 1.0 if overlap.presence == "absent" else overlap.scores(voxel_mm3=1)["dice"]


def case_metrics(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    labels: Mapping[int, str],
    spacing_mm: Sequence[float] | Sequence[Sequence[float]],
    scoring: Scoring = Scoring(),
) -> list[ClassMetrics]:
    """Compute all metrics of one case.

    Args:
        prediction, truth: (X, Y, Z) integer label maps.
        labels: Value -> name of the foreground classes; other values count as background. A `LabelScheme` may name
            regions, and a value of the truth that is ignored: both maps are background there.
        spacing_mm: In the array's axis order; for a sheared grid the (3, 3) upper left of its affine.

    Returns:
        A row for each class in the order of `labels`, for their mean and, if there are several, for their union.

    Raises:
        VolumeError: A map is not 3D and integer, the shapes differ, `labels` is empty or names the background, or the
            spacing is unusable.
    """
    spacing = check_spacing(spacing_mm)
    check_label_maps(prediction, truth, labels)
    scheme = LabelScheme.of(labels)
    truth, prediction = scheme.cut(truth, prediction)
    box = bounding_box(prediction, truth)
    maps = prediction[box], truth[box]
    score = partial(_class_metrics, spacing_mm=spacing, diagonal=diagonal_mm(truth.shape, spacing), scoring=scoring)
    rows = [score("class", name, value, class_masks(maps, *scheme.members(value))) for value, name in labels.items()]
    rows.append(ClassMetrics("mean", MEAN_NAME, None, mean_scores([row.scores for row in rows])))
    if len(labels) > 1:
        rows.append(score("union", UNION_NAME, None, class_masks(maps, *scheme.file_values)))
    return rows


def _class_metrics(
    kind: Kind,
    name: str,
    label: int | None,
    masks: tuple[Mask, Mask],
    spacing_mm: Spacing,
    diagonal: float,
    scoring: Scoring,
) -> ClassMetrics:
    box = bounding_box(*masks)
    prediction, truth = (mask[box] for mask in masks)
    overlap, lesions = Overlap.of(prediction, truth), count_lesions(prediction, truth)
    surfaces = surface_distances(prediction, truth, spacing_mm, scoring.surface)
    of_voxel = voxel_mm3(spacing_mm)
    scores = overlap.scores(of_voxel) | {
        "hd95_mm": surfaces.hausdorff_mm(95),
        "hd100_mm": surfaces.hausdorff_mm(100),
        "assd_mm": surfaces.average_mm(),
        **{nsd_column(mm): surfaces.share_within(mm) for mm in scoring.tolerances_mm},
        "lesion_f1": lesions.f1(),
    }
    scores = scoring.penalised(scores, scoring.columns(), overlap.presence, diagonal)
    volumes_mm3 = overlap.prediction * of_voxel, overlap.truth * of_voxel
    return ClassMetrics(kind, name, label, scores, overlap.presence, lesions, *volumes_mm3)


def count_lesions(prediction: Mask, truth: Mask) -> LesionCounts:
    """Count the lesions of two (X, Y, Z) bool masks of one shape."""
    check_masks(prediction, truth)
    num_truth, num_found = _touched_components(truth, prediction)
    num_predicted, num_right = _touched_components(prediction, truth)
    return LesionCounts(truth=num_truth, found=num_found, false_positive=num_predicted - num_right)


def _touched_components(mask: Mask, other: Mask) -> tuple[int, int]:
    """The number of components of `mask`, and of the ones with a voxel in `other`."""
    from scipy.ndimage import label  # here: it takes half a second to import

    box = bounding_box(mask)
    components, count = label(mask[box], structure=_LESION_CONNECTIVITY)
    touched = np.zeros(count + 1, dtype=bool)
    touched[components[other[box]]] = True
    return int(count), int(np.count_nonzero(touched[1:]))


def mean_scores(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each column over the rows where it is defined, as numpy.nanmean; NaN where no row defines it."""
    means = {}
    for column in scores[0]:
        defined = [row[column] for row in scores if not math.isnan(row[column])]
        means[column] = _ratio(math.fsum(defined), len(defined))
    return means


def without_nan(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Undefined scores as None, which is an empty cell in CSV and null in JSON."""
    return {column: None if math.isnan(score) else score for column, score in scores.items()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
