"""The results of `evaluate` and `train --test`, read back and checked for comparability."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.evaluation.metrics import Better
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.files.tables import read_csv
from sam2_3dmed.processes.atomic import require_path

_FOLDER = "evaluation"  # of a run
_TRUTH = "truth_mm3"

Row = tuple[str, str]
"""The kind (class, mean or union) and name of a row of the tables."""


@dataclass(frozen=True)
class Scores:
    """One evaluated run.

    Attributes:
        name: The run's name in tables.
        folder: Holds cases.csv and summary.json.
        metrics: Column -> its entry of summary.json.
        empty_masks: The entries of summary.json on masks without a voxel, on regions and on ignored voxels.
        values: (row, column) -> (cases,) values, NaN where undefined; also of `truth_mm3` if the table has it.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Mapping[str, Any]]
    empty_masks: Mapping[str, Any]
    cases: tuple[str, ...]
    rows: tuple[Row, ...]
    values: Mapping[tuple[Row, str], Floats]


def read_runs(paths: Iterable[str | Path]) -> list[Scores]:
    """Read two or more run folders, or folders of an evaluation, and give each a unique name."""
    given = list(paths)
    folders = [_evaluation_folder(Path(path)) for path in given]
    if len(folders) < 2:
        raise DataError(f"{len(folders)} run to compare: at least two are needed")
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise DataError(f"{given[number]}: is the same evaluation as {given[folders.index(folder)]}")
    return [replace(read_scores(path), name=name) for path, name in zip(folders, _names(folders), strict=True)]


def read_scores(path: str | Path) -> Scores:
    """Read the evaluation of a run folder, or of a folder with cases.csv and summary.json, and check both files."""
    folder = _evaluation_folder(Path(path))
    file = folder / "cases.csv"
    summary = _read_summary(folder / "summary.json")
    lines = _read_lines(file, ["case", "kind", "class", *summary["metrics"]])
    columns = [*summary["metrics"], *([_TRUTH] if _TRUTH in lines[0] else [])]
    cases = tuple(dict.fromkeys(line["case"] for line in lines))
    rows = tuple(dict.fromkeys((line["kind"], line["class"]) for line in lines))
    if not any(kind == "class" for kind, _ in rows):
        raise DataError(f"{file}: has no line of kind class")
    by_row: dict[tuple[str, Row], dict[str, str]] = {}
    for line in lines:
        if by_row.setdefault((line["case"], (line["kind"], line["class"])), line) is not line:
            raise DataError(f"{file}: case {line['case']} has {line['class']} twice")
    for case, row in product(cases, rows):
        if (case, row) not in by_row:
            raise DataError(f"{file}: case {case} has no line for {row[1]}")
    values = {
        (row, column): np.array([_number(by_row[case, row][column], f"{file}: case {case}") for case in cases])
        for row, column in product(rows, columns)
    }
    empty_masks = {key: value for key, value in summary.items() if key.startswith(("empty", "regions", "ignore"))}
    return Scores(_names([folder])[0], folder, summary["metrics"], empty_masks, cases, rows, values)


def check_comparable(runs: Sequence[Scores], metrics: Sequence[str]) -> None:
    """Raise DataError if a run differs from the first in cases, classes, labels, or the definition of a metric."""
    first = runs[0]
    for run in runs[1:]:
        for metric in metrics:
            _check_alike(run.metrics[metric], first.metrics[metric], f"{metric} of {run.name}", first.name)
        _check_alike(run.empty_masks, first.empty_masks, run.name, first.name)
        _check_same_members(run, first, "cases", run.cases, first.cases)
        _check_same_members(run, first, "classes", map(" ".join, run.rows), map(" ".join, first.rows))
        _check_same_truth(run, first)


def aligned(run: Scores, cases: Sequence[str]) -> Scores:
    """The same scores with the cases in another order."""
    order = [run.cases.index(case) for case in cases]
    return replace(run, cases=tuple(cases), values={key: array[order] for key, array in run.values.items()})


def choose_metrics(runs: Sequence[Scores], wanted: Sequence[str] | None) -> list[str]:
    """The columns to compare: the wanted ones, or all; raise DataError if a run lacks one."""
    chosen = list(dict.fromkeys(wanted or (metric for run in runs for metric in run.metrics)))
    for run in runs:
        lacking = [metric for metric in chosen if metric not in run.metrics]
        if lacking and wanted:
            raise DataError(f"{run.folder}: has no metric {lacking[0]}; it has {', '.join(run.metrics)}")
        if lacking:
            others = ", ".join(lacking)
            raise DataError(f"{run.folder}: lacks {others}; evaluate all runs alike, or choose metrics that all have")
    return chosen


def _evaluation_folder(path: Path) -> Path:
    require_path(path)
    for folder in (path, path / _FOLDER):
        if (folder / "cases.csv").is_file() and (folder / "summary.json").is_file():
            return folder.resolve()
    if not path.exists():
        raise DataError(f"{path}: no such folder")
    raise DataError(f"{path}: no cases.csv and summary.json in it or its {_FOLDER}/; evaluate or train --test first")


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, each with as many parents as make it unique."""
    runs = [folder.parent if folder.name == _FOLDER else folder for folder in folders]
    if len(set(runs)) < len(runs):  # a run's own folder and its evaluation/ hold one evaluation each
        runs = list(folders)
    names, length = [run.name for run in runs], 1
    while len(set(names)) < len(names):
        length += 1
        longer = ["/".join(run.parts[-length:]) for run in runs]
        names = [parts if names.count(name) > 1 else name for parts, name in zip(longer, names, strict=True)]
    return names


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_object(path)
    metrics = summary.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise DataError(f"{path}: names no metrics; evaluate again")
    for metric, entry in metrics.items():
        better = entry.get("better") if isinstance(entry, dict) else None
        if better not in list(get_args(Better)):
            expected = ", ".join(get_args(Better))
            raise DataError(f"{path}: metric {metric[:80]}: better is {shown(better)}, expected {expected}")
    return summary


def _read_lines(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    found = read_csv(path)
    lacking = [column for column in columns if column not in found.columns]
    if lacking:
        raise DataError(f"{path}: has no column {lacking[0][:80]}")
    lines = [cells for _, cells in found.lines]
    if not lines:
        raise DataError(f"{path}: has no cases")
    return lines


def _number(text: str, where: str) -> float:
    """The value of a cell; NaN for an empty one."""
    try:
        value = float(text) if text.strip() else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise DataError(f"{where}: {shown(text)} is no finite number")
    return value


def _check_alike(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, other: str) -> None:
    for key in dict.fromkeys([*expected, *found]):
        if found.get(key) != expected.get(key):
            values = f"{_json(found.get(key))}, but {_json(expected.get(key))} in {other}"
            raise DataError(f"{what}: other definition: {key[:80]} is {values}; evaluate all runs alike")


def _json(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str | int | float | None) and len(str(value)) < 80 else shown(value)


def _check_same_members(run: Scores, first: Scores, what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    found, expected = set(found), set(expected)
    for having, lacking, missing in ((first, run, expected - found), (run, first, found - expected)):
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            names = ", ".join(name[:80] for name in sorted(missing)[:5])
            raise DataError(f"{lacking.folder}: not the {what} of {having.name}: {names}{more} missing")


def _check_same_truth(run: Scores, first: Scores) -> None:
    """Equal volumes of the truth mean that both runs were scored against the same labels."""
    run = aligned(run, first.cases)
    for row in first.rows:
        if (row, _TRUTH) in first.values and (row, _TRUTH) in run.values:
            volumes = zip(first.cases, run.values[row, _TRUTH], first.values[row, _TRUTH], strict=True)
            for case, found, expected in volumes:
                if not np.isclose(found, expected, equal_nan=True):
                    values = f"{row[1]} has {found:g} mm3 in {run.name}, {expected:g} in {first.name}"
                    raise DataError(f"{run.folder}: case {case}: other labels: {values}")
