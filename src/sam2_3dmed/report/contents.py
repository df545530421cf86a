"""The contents of a run folder for the report, and the images of the cases where they are found."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from sam2_3dmed.data.dataset import Case, read_dataset
from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.evaluation.metrics import MEAN_NAME, Better
from sam2_3dmed.evaluation.statistics import goodness
from sam2_3dmed.files.structured import read_json
from sam2_3dmed.processes.atomic import naming
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.run_folder import read_record, remembered_data
from sam2_3dmed.training.monitoring import read_curves

_LARGEST = 1e30
"""Of a number that can be drawn."""


@dataclass(frozen=True)
class CaseEntry:
    """A test case: its files, None for a missing one, and its rows of the evaluation (column -> value)."""

    name: str
    prediction: Path | None
    truth: Path | None
    images: tuple[Path, ...]
    rows: tuple[Mapping[str, Any], ...]

    def score(self, metric: str) -> float | None:
        """The metric's mean over the classes; None where it is not defined."""
        return next((row.get(metric) for row in self.rows if row["kind"] == MEAN_NAME), None)


@dataclass(frozen=True)
class RunContents:
    """The contents of the report.

    Attributes:
        curves: Column of curves.csv -> a value for each epoch, None where it is missing.
        summary: Of the evaluation; empty if there is none.
        notes: Lines on what is missing and how to add it.
    """

    folder: Path
    record: RunRecord
    curves: Mapping[str, Sequence[float | None]]
    summary: Mapping[str, Any]
    cases: tuple[CaseEntry, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        """Column -> its entry of summary.json."""
        metrics: Mapping[str, Mapping[str, Any]] = self.summary.get("metrics", {})
        return metrics


def read_run(folder: Path, data: Path | None = None) -> RunContents:
    """Read a run folder. data: the folder of the data set; None takes the folder of the training.

    Raises UserError if the folder is no run, a file in it is broken, or `data` is no data set.
    """
    record = read_record(folder)
    notes: list[str] = []
    curves = _read_curves(folder / "curves.csv", notes)
    evaluation = folder / "evaluation"
    summary = _read_json(evaluation / "summary.json", dict)
    if summary:
        _check_summary(summary, evaluation / "summary.json")
    details = _read_json(evaluation / "cases.json", list)
    if not summary or not details:
        notes.append(f"{evaluation}: no evaluation here; train --test writes one of the test cases")
        return RunContents(folder, record, curves, {}, (), notes)
    dataset = _dataset_cases(folder, data, notes)
    file = evaluation / "cases.json"
    with naming(file, "cannot be read"):  # a path in it may be longer than a file system allows
        cases = tuple(_entry(folder, detail, dataset, file, list(summary["metrics"])) for detail in details)
    return RunContents(folder, record, curves, summary, cases, notes)


def chosen_cases(cases: Sequence[CaseEntry], metric: str, better: Better) -> dict[str, CaseEntry]:
    """The best, median and worst case by a metric's mean over the classes; fewer if there are fewer.

    Cases without a value or without their masks are left out.
    """
    usable = [(case.score(metric), case) for case in cases if case.prediction and case.truth]
    ranked = [(-goodness(score, better), case.name, case) for score, case in usable if score is not None]
    found = [case for _, _, case in sorted(ranked, key=itemgetter(0, 1))]
    if len(found) < 2:
        return {"only": found[0]} if found else {}
    middle = {"median": found[len(found) // 2]} if len(found) > 2 else {}
    return {"best": found[0], **middle, "worst": found[-1]}


def _dataset_cases(folder: Path, data: Path | None, notes: list[str]) -> Mapping[str, Case]:
    root = data or remembered_data(folder)
    if root is None:
        notes.append(f"{folder}: the run does not say where its data set is; report --data DATA shows the images")
        return {}
    try:
        return {case.name: case for case in read_dataset(root).cases}
    except DataError as error:
        if data is not None:
            raise
        notes.append(f"{error}; report --data DATA shows the images")
        return {}


def _check_summary(summary: Mapping[str, Any], file: Path) -> None:
    """Raise DataError unless the page can show a summary: its names must be texts, and its numbers numbers."""
    metrics: Any = summary.get("metrics")
    results: Any = summary.get("results")
    _require(isinstance(metrics, dict) and isinstance(results, list), file, "metrics or results are missing")
    for metric, entry in metrics.items():
        fits = isinstance(entry, dict) and isinstance(entry.get("definition"), str)
        fits = fits and isinstance(entry.get("unit", 0), str | None) and entry.get("better") in list(get_args(Better))
        _require(fits, file, f"metric {shown(metric)}")
    for result in results:
        _require(isinstance(result, dict) and isinstance(result.get("class"), str), file, "a class without a name")
        for metric in metrics:
            found = result.get(metric) or {}
            interval = found.get("interval_95") or [] if isinstance(found, dict) else None
            fits = isinstance(interval, list) and len(interval) in (0, 2) and all(map(_is_number, interval))
            _require(fits and _is_number(found.get("mean"), or_none=True), file, f"{shown(metric)} of a class")


def _require(fits: bool, file: Path, what: str) -> None:
    if not fits:
        raise DataError(f"{file}: not what an evaluation writes: {what}")


def _is_number(value: object, *, or_none: bool = False) -> bool:
    if value is None:
        return or_none
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _entry(folder: Path, detail: Any, dataset: Mapping[str, Case], file: Path, metrics: Sequence[str]) -> CaseEntry:
    """A case of cases.json with its files: in the run folder and the data set, or where the evaluation found them."""
    _require(isinstance(detail, dict), file, "a case is no object")
    texts = [detail.get(key) for key in ("case", "prediction", "truth")]
    _require(all(isinstance(text, str) and "\0" not in text for text in texts), file, "a case without name or files")
    is_name = Path(detail["case"]).name == detail["case"] and detail["case"] not in ("", ".", "..")
    _require(is_name, file, f"{shown(detail['case'])} is no name of a case")
    _require(isinstance(detail.get("rows"), list), file, f"{shown(detail['case'])} has no rows")
    for row in detail["rows"]:
        fits = isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("class"), str)
        fits = fits and all(_is_number(row.get(metric), or_none=True) for metric in metrics)
        _require(fits, file, f"a row of {shown(detail['case'])}")
    known = dataset.get(detail["case"])
    written = Path(detail["prediction"])
    prediction = _first_file(folder / "predictions" / written.name, written)
    truth = _first_file(*([known.label] if known and known.label else []), Path(detail["truth"]))
    return CaseEntry(detail["case"], prediction, truth, known.images if known else (), tuple(detail["rows"]))


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_json(path: Path, kind: type) -> Any:
    """The content of a file, which must be of that type; an empty one if there is no file."""
    if not path.is_file():
        return kind()
    content = read_json(path)
    _require(isinstance(content, kind), path, f"a {type(content).__name__}")
    return content


def _read_curves(path: Path, notes: list[str]) -> dict[str, list[float | None]]:
    if not path.is_file():
        notes.append(f"{path}: no such file, so there are no training curves")
        return {}
    rows = read_curves(path)
    return {name: [_number(row[name], path) for row in rows] for name in (rows[0] if rows else {})}


def _number(text: Any, path: Path) -> float | None:
    try:
        value = float(text or math.nan)
    except ValueError:
        raise DataError(f"{path}: {shown(text)} is no number") from None
    return value if abs(value) < _LARGEST else None
