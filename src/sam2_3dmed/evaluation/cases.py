"""From files to tables: every metric of every case, and what they come to over the cases."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.atomic import write_text
from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.evaluation.matching import check_unique, match_files, read_class_names
from sam2_3dmed.evaluation.metrics import (
    DEFINITIONS,
    EMPTY_MASKS,
    MEAN_NAME,
    UNION_NAME,
    ClassMetrics,
    case_metrics,
    check_tolerances,
)
from sam2_3dmed.evaluation.surface import SURFACE_DEFINITION
from sam2_3dmed.volume.nifti import read_label
from sam2_3dmed.volume.volume import describe_difference

DEFAULT_TOLERANCES_MM = (2.0, 1.0)
_RESAMPLES = 10_000
_SEED = 0


@dataclass(frozen=True)
class CaseResult:
    """One case: the two files that were compared, the voxel size, and the rows of `case_metrics`."""

    name: str
    prediction: Path
    truth: Path
    spacing_mm: tuple[float, float, float]
    rows: tuple[ClassMetrics, ...]


@dataclass(frozen=True)
class Evaluation:
    """All cases, with the classes (value -> name) and the NSD tolerances they were scored with."""

    labels: Mapping[int, str]
    tolerances_mm: tuple[float, ...]
    cases: tuple[CaseResult, ...]

    def summary(self) -> dict[str, Any]:
        """What the cases come to, and how each number is defined; only what JSON can hold.

        `results` has an entry per class, for their mean and, if there are several, their union. For each
        metric: mean, median, sample standard deviation and the 95% bootstrap interval of the mean over cases;
        the last two are None for one case.
        """
        draws = np.random.default_rng(_SEED).integers(len(self.cases), size=(_RESAMPLES, len(self.cases)))
        columns = list(zip(*(case.rows for case in self.cases), strict=True))
        results = [_result(rows, draws) for rows in columns]
        return {
            "cases": len(self.cases),
            "labels": {str(value): name for value, name in self.labels.items()},
            "missed": sum(result.get("missed", 0) for result in results if result["kind"] == "class"),
            "invented": sum(result.get("invented", 0) for result in results if result["kind"] == "class"),
            "results": results,
            "metrics": _metric_definitions(self.tolerances_mm),
            "surface": {"definition": SURFACE_DEFINITION, "meaning": DEFINITIONS[SURFACE_DEFINITION]},
            "empty_masks": EMPTY_MASKS,
            "rows": {
                MEAN_NAME: "per case, the mean over the classes",
                UNION_NAME: "per case, all classes taken as one",
                "missed": "cases in which only the truth has the class",
                "invented": "cases in which only the prediction has the class",
                "std": "sample standard deviation over cases (n - 1)",
                "interval_95": f"bootstrap of the mean over cases; {_RESAMPLES} draws, seed {_SEED}",
            },
        }

    def write(self, folder: str | Path) -> None:
        """Write cases.csv, cases.json (a row per case and class) and summary.json, each whole or not at all.

        folder: made if it is not there.
        Raises: DataError if a file cannot be written.
        """
        records = [{"case": case.name, **_record(row)} for case in self.cases for row in case.rows]
        table = io.StringIO()
        writer = csv.DictWriter(table, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        details = [
            {
                "case": case.name,
                "prediction": str(case.prediction),
                "truth": str(case.truth),
                "spacing_mm": list(case.spacing_mm),
                "rows": [_record(row) for row in case.rows],
            }
            for case in self.cases
        ]
        write_text(Path(folder) / "cases.csv", table.getvalue())
        write_text(Path(folder) / "cases.json", _json(details))
        write_text(Path(folder) / "summary.json", _json(self.summary()))


def evaluate_cases(
    pairs: Iterable[tuple[str, str | Path, str | Path]],
    labels: Mapping[int, str] | None = None,
    tolerances_mm: Iterable[float] = DEFAULT_TOLERANCES_MM,
) -> Evaluation:
    """Score predicted label maps against the truth.

    pairs: (case name, prediction file, label file).
    labels: value -> name of the foreground classes; None takes the values found in the label files, named
        "1", "2", ...
    tolerances_mm: of the NSD.
    Returns: the cases in the order of `pairs`.
    Raises: DataError if there is no pair, a name occurs twice, or no label file holds a class. VolumeError if
        a file is unusable, holds a value that is no class, or prediction and label lie on different grids; a
        tolerance is unusable.
    """
    checked = [(name, Path(prediction), Path(truth)) for name, prediction, truth in pairs]
    tolerances = check_tolerances(tolerances_mm)
    if not checked:
        raise DataError("there are no cases to evaluate")
    check_unique((name for name, _, _ in checked), "the cases to evaluate")
    classes = _found_labels([truth for _, _, truth in checked]) if labels is None else dict(labels)
    results = (_evaluate_case(name, prediction, truth, classes, tolerances) for name, prediction, truth in checked)
    return Evaluation(labels=classes, tolerances_mm=tolerances, cases=tuple(results))


def evaluate_folders(
    predictions: str | Path,
    labels: str | Path,
    class_names: Mapping[int, str] | str | Path | None = None,
    tolerances_mm: Iterable[float] = DEFAULT_TOLERANCES_MM,
) -> Evaluation:
    """Score a folder of predicted label maps against a folder of labels, or one file against one file.

    predictions, labels: folders of .nii and .nii.gz files, matched by name (without a trailing "_0000").
    class_names: value -> name of the foreground classes, or a dataset.json that has them (MSD or nnU-Net);
        None takes the values found.
    Returns: the cases in the order of their names.
    Raises: DataError if a folder is missing or empty, a file has no counterpart, or dataset.json is unusable;
        also whatever `evaluate_cases` raises.
    """
    if isinstance(class_names, str | Path):
        class_names = read_class_names(class_names)
    return evaluate_cases(match_files(Path(predictions), Path(labels)), class_names, tolerances_mm)


def _evaluate_case(
    name: str, prediction: Path, truth: Path, labels: Mapping[int, str], tolerances_mm: tuple[float, ...]
) -> CaseResult:
    allowed = {0, *labels}
    predicted, true = read_label(prediction, allowed), read_label(truth, allowed)
    difference = describe_difference(predicted, true)
    if difference is not None:
        raise VolumeError(f"{prediction}: not on the grid of {truth}: {difference}")
    rows = case_metrics(predicted.array, true.array, labels, true.spacing_mm, tolerances_mm)
    return CaseResult(name, prediction, truth, true.spacing_mm, tuple(rows))


def _found_labels(truths: Iterable[Path]) -> dict[int, str]:
    found: set[int] = set()
    for truth in truths:
        array = read_label(truth).array
        seen = np.zeros(int(array.max()) + 1, dtype=bool)
        for plane in array.T:  # one at a time: indexing makes 8 bytes of every voxel
            seen[plane] = True
        found.update(np.flatnonzero(seen).tolist())
    values = sorted(found - {0})
    if not values:
        raise DataError("no label file holds a class: every voxel is 0; name the classes to evaluate")
    return {value: str(value) for value in values}


def _scores(row: ClassMetrics) -> dict[str, float]:
    """Column name -> value."""
    scores = {"dice": row.dice, "iou": row.iou, "hd95_mm": row.hd95_mm}
    return scores | {f"nsd_{tolerance:g}mm": value for tolerance, value in row.nsd.items()}


def _record(row: ClassMetrics) -> dict[str, Any]:
    """A line of the tables; what does not apply is None, which CSV leaves empty."""
    volumes = {"prediction_mm3": row.prediction_mm3, "truth_mm3": row.truth_mm3}
    return {
        "kind": row.kind,
        "class": row.name,
        "label": row.label,
        **_scores(row),
        "presence": row.presence,
        **volumes,
    }


def _result(rows: Sequence[ClassMetrics], draws: NDArray[np.int64]) -> dict[str, Any]:
    """One class over the cases. draws: (resamples, cases) indices of cases."""
    first = rows[0]
    result: dict[str, Any] = {"kind": first.kind, "class": first.name, "label": first.label}
    if first.kind != "mean":
        result |= {kind: sum(row.presence == kind for row in rows) for kind in ("missed", "invented", "absent")}
    columns = [_scores(row) for row in rows]
    for metric in columns[0]:
        values = np.array([scores[metric] for scores in columns])
        several = values.size > 1
        result[metric] = {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "std": float(values.std(ddof=1)) if several else None,
            "interval_95": np.percentile(values[draws].mean(axis=1), (2.5, 97.5)).tolist() if several else None,
        }
    return result


def _metric_definitions(tolerances_mm: Iterable[float]) -> dict[str, dict[str, Any]]:
    definitions: dict[str, dict[str, Any]] = {
        "dice": {"definition": DEFINITIONS["dice"], "unit": None, "better": "higher"},
        "iou": {"definition": DEFINITIONS["iou"], "unit": None, "better": "higher"},
        "hd95_mm": {
            "definition": DEFINITIONS["hd95"],
            "unit": "mm",
            "better": "lower",
            "surface": SURFACE_DEFINITION,
        },
    }
    for tolerance in tolerances_mm:
        definitions[f"nsd_{tolerance:g}mm"] = {
            "definition": DEFINITIONS["nsd"],
            "unit": None,
            "better": "higher",
            "surface": SURFACE_DEFINITION,
            "tolerance_mm": tolerance,
        }
    return definitions


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def summary_table(summary: Mapping[str, Any]) -> str:
    """A summary as plain text: a line per class, each metric's mean over the cases."""
    metrics = list(summary["metrics"])
    header = ["class", *metrics, "missed", "invented"]
    lines = [
        [
            result["class"],
            *(f"{result[metric]['mean']:.3f}" for metric in metrics),
            *(str(result.get(kind, "")) for kind in ("missed", "invented")),
        ]
        for result in summary["results"]
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [header, *lines]]
    return "\n".join(row.rstrip() for row in [*rows, f"{summary['cases']} cases; means over cases"])
