"""What each metric is: its words in every result file, its unit, its better end, and what an empty mask costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.evaluation.surface import SURFACES, SurfaceDefinition

EmptyPolicy = Literal["penalise", "nan"]
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


@dataclass(frozen=True)
class Metric:
    """One metric, whose name is its column in the tables and its field of `ClassMetrics`.

    better: "zero" is for signed errors. on_surface: whether the definition of a surface changes it.
    if_absent, if_one_sided: what the policy "penalise" makes of an undefined value if neither mask has the class, and
        if only one of them has; None: the volume's diagonal.
    """

    definition: str
    unit: str | None
    better: Literal["higher", "lower", "zero"]
    on_surface: bool = False
    if_absent: float = 1.0
    if_one_sided: float | None = 0.0


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


def describe_columns(tolerances_mm: Iterable[float], surface: SurfaceDefinition) -> dict[str, dict[str, Any]]:
    """Column -> definition, unit, better end, and where they matter the surface and the tolerance."""
    columns: dict[str, dict[str, Any]] = {}
    for name, metric in METRICS.items():
        described = {"definition": metric.definition, "unit": metric.unit, "better": metric.better}
        if metric.on_surface:
            described["surface"] = surface
        if name != "nsd":
            columns[name] = described
            continue
        for tolerance_mm in tolerances_mm:
            columns[nsd_column(tolerance_mm)] = described | {"tolerance_mm": tolerance_mm}
    return columns


def check_policy(empty: str) -> None:
    """Raise VolumeError, naming those there are, unless there is such a policy for empty masks."""
    if empty not in get_args(EmptyPolicy):
        raise VolumeError(f"there is no policy {empty!r} for empty masks; there are {' and '.join(EMPTY_POLICIES)}")


def describe_surface(surface: SurfaceDefinition) -> dict[str, str]:
    """The definition of a surface by name and in words."""
    return {"definition": surface, "meaning": SURFACES[surface]}
