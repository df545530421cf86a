"""The contents of a run folder for the report, and the images of the cases where they are found."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from sam2_3dmed.data.dataset import Case, read_dataset
from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.metrics import MEAN_NAME, Better
from sam2_3dmed.evaluation.statistics import goodness
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.run_folder import read_record, remembered_data


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
    details = _read_json(evaluation / "cases.json", list)
    if not summary or not details:
        notes.append(f"{evaluation}: no evaluation here; train --test writes one of the test cases")
        return RunContents(folder, record, curves, {}, (), notes)
    dataset = _dataset_cases(folder, data, notes)
    try:
        cases = tuple(_entry(folder, detail, dataset.get(detail["case"])) for detail in details)
    except (KeyError, TypeError) as error:
        raise DataError(f"{evaluation / 'cases.json'}: not what an evaluation writes: {error!r}") from None
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


def _entry(folder: Path, detail: Mapping[str, Any], known: Case | None) -> CaseEntry:
    """A case of cases.json with its files: in the run folder and the data set, or where the evaluation found them."""
    written = Path(detail["prediction"])
    prediction = _first_file(folder / "predictions" / written.name, written)
    truth = _first_file(*([known.label] if known and known.label else []), Path(detail["truth"]))
    rows = tuple(detail["rows"])
    if not all("kind" in row and "class" in row for row in rows):
        raise KeyError("kind")
    return CaseEntry(detail["case"], prediction, truth, known.images if known else (), rows)


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_json(path: Path, kind: type) -> Any:
    """The content of a file, which must be of that type; an empty one if there is no file."""
    if not path.is_file():
        return kind()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, kind):
        raise DataError(f"{path}: not what an evaluation writes")
    return content


def _read_curves(path: Path, notes: list[str]) -> dict[str, list[float | None]]:
    if not path.is_file():
        notes.append(f"{path}: no such file, so there are no training curves")
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {})}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
