"""From files to tables: every metric of every case, in as many processes as pay, and what the cases come to."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed.errors import DataError, VolumeError
from sam2_3dmed.evaluation.definitions import EmptyPolicy
from sam2_3dmed.evaluation.metrics import DEFAULT_TOLERANCES_MM, ClassMetrics, Scoring, case_metrics
from sam2_3dmed.evaluation.pairing import check_unique, match_files, read_class_names, read_pairs
from sam2_3dmed.evaluation.paper_style import PaperRow, paper_style, summarise_paper_style
from sam2_3dmed.evaluation.summary import summarise
from sam2_3dmed.evaluation.surface import SurfaceDefinition
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import describe_difference

# Processes start in about half a second. Masks are small on disk: this is about a hundred small pairs, or five of a
# whole CT, to score, which takes a second or two; and this much more to read only.
_WORTH_A_POOL_BYTES = 2**18
_READING_WORTH_A_POOL_BYTES = 8 * _WORTH_A_POOL_BYTES


@dataclass(frozen=True)
class Pair:
    """The two files of a case."""

    name: str
    prediction: Path
    truth: Path

    @property
    def num_bytes(self) -> int:
        """The size of both; 0 for one that is not there."""
        return sum(path.stat().st_size for path in (self.prediction, self.truth) if path.is_file())


@dataclass(frozen=True)
class CaseResult:
    """One case: the files that were compared, the voxel size, the rows of `case_metrics` and those of `paper_style`."""

    name: str
    prediction: Path
    truth: Path
    spacing_mm: tuple[float, float, float]
    rows: tuple[ClassMetrics, ...]
    paper_rows: tuple[PaperRow, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """All cases, with the classes (value -> name) and how they were scored."""

    labels: Mapping[int, str]
    cases: tuple[CaseResult, ...]
    scoring: Scoring = field(default_factory=Scoring)

    def summary(self) -> dict[str, Any]:
        """What the cases come to, and how each number is defined; only what JSON can hold. See `summarise`."""
        summary = summarise([(case.name, case.rows) for case in self.cases], self.labels, self.scoring)
        paper_rows = [case.paper_rows for case in self.cases if case.paper_rows]
        return summary | ({"paper_style": summarise_paper_style(paper_rows)} if paper_rows else {})

    def write(self, folder: str | Path) -> None:
        """Write cases.csv, cases.json (a row per case and class) and summary.json, each whole or not at all.

        Cases that have rows of `paper_style` also give paper_style.csv; without them one of an earlier evaluation goes,
        since it would stand beside numbers of other masks. Every file says how its numbers were made.
        folder: made if it is not there.
        Raises: DataError if a file cannot be written.
        """
        policy: dict[str, Any] = {"empty_policy": self.scoring.empty}
        scored: dict[str, Any] = {"surface": self.scoring.surface, **policy}
        records = [{"case": case.name, **_record(row), **scored} for case in self.cases for row in case.rows]
        details = [
            {
                "case": case.name,
                "prediction": str(case.prediction),
                "truth": str(case.truth),
                "spacing_mm": list(case.spacing_mm),
                "scored": scored | {"tolerances_mm": list(self.scoring.tolerances_mm)},
                "rows": [_record(row) for row in case.rows],
            }
            for case in self.cases
        ]
        write_text(Path(folder) / "cases.csv", _csv(records))
        write_text(Path(folder) / "cases.json", _json(details))
        write_text(Path(folder) / "summary.json", _json(self.summary()))
        paper_records = [
            {"case": case.name, **{key: _or_none(value) for key, value in row.record().items()}, **policy}
            for case in self.cases
            for row in case.paper_rows
        ]
        if paper_records:
            write_text(Path(folder) / "paper_style.csv", _csv(paper_records))
        else:
            (Path(folder) / "paper_style.csv").unlink(missing_ok=True)


def evaluate_cases(
    pairs: Iterable[tuple[str, str | Path, str | Path]],
    labels: Mapping[int, str] | None = None,
    tolerances_mm: Iterable[float] = DEFAULT_TOLERANCES_MM,
    *,
    surface: SurfaceDefinition = "surfel",
    empty: EmptyPolicy = "penalise",
    with_paper_style: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predicted label maps against the truth.

    pairs: (case name, prediction file, label file).
    labels: value -> name of the foreground classes; None takes the values found in the label files, named
        "1", "2", ...
    tolerances_mm: of the NSD. surface: "surfel" or "voxel". empty: "penalise" or "nan"; see `definitions`.
    with_paper_style: also score every case in the ways of `paper_style`, slices being axial.
    workers: processes; 0: none but this one; None: as many as pay.
    Returns: the cases in the order of `pairs`.
    Raises: DataError if there is no pair, a name occurs twice, no label file holds a class, or for any case a file
        is unusable, holds a value that is no class, or prediction and label lie on different grids: all such
        cases, one a line. VolumeError if a tolerance is unusable, or there is no such surface or policy.
    """
    checked = [Pair(name, Path(prediction), Path(truth)) for name, prediction, truth in pairs]
    scoring = Scoring(tuple(tolerances_mm), surface, empty)
    if not checked:
        raise DataError("there are no cases to evaluate")
    check_unique((pair.name for pair in checked), "the cases to evaluate")
    if labels is None:
        found = map_cases(_labels_of, checked, workers=workers, worth_a_pool_bytes=_READING_WORTH_A_POOL_BYTES)
        labels = _named(found)
    evaluate = partial(_evaluate_case, labels=dict(labels), scoring=scoring, with_paper_style=with_paper_style)
    results = map_cases(evaluate, checked, workers=workers, progress=progress, worth_a_pool_bytes=_WORTH_A_POOL_BYTES)
    return Evaluation(labels=dict(labels), cases=tuple(results), scoring=scoring)


def evaluate_folders(
    predictions: str | Path,
    labels: str | Path | None = None,
    class_names: Mapping[int, str] | str | Path | None = None,
    tolerances_mm: Iterable[float] = DEFAULT_TOLERANCES_MM,
    *,
    surface: SurfaceDefinition = "surfel",
    empty: EmptyPolicy = "penalise",
    with_paper_style: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a folder of predicted label maps against a folder of labels, one file against one file, or listed pairs.

    predictions, labels: folders of .nii and .nii.gz files, matched by name (without a trailing "_0000"), or two
        files. Without `labels`, `predictions` is a CSV file with the columns prediction, label and, if wanted, case.
    class_names: value -> name of the foreground classes, or a dataset.json that has them (MSD or nnU-Net);
        None takes the values found.
    tolerances_mm and the rest: as for `evaluate_cases`.
    Returns: the cases in the order of their names, or of the CSV file.
    Raises: DataError if a folder is missing or empty, a file has no counterpart, or dataset.json is unusable;
        also whatever `evaluate_cases` raises.
    """
    if isinstance(class_names, str | Path):
        class_names = read_class_names(class_names)
    pairs = read_pairs(Path(predictions)) if labels is None else match_files(Path(predictions), Path(labels))
    return evaluate_cases(
        pairs,
        class_names,
        tolerances_mm,
        surface=surface,
        empty=empty,
        with_paper_style=with_paper_style,
        workers=workers,
        progress=progress,
    )


def _evaluate_case(pair: Pair, labels: Mapping[int, str], scoring: Scoring, with_paper_style: bool) -> CaseResult:
    allowed = {0, *labels}
    predicted, true = read_label(pair.prediction, allowed), read_label(pair.truth, allowed)
    difference = describe_difference(predicted, true)
    if difference is not None:
        raise VolumeError(f"{pair.prediction}: not on the grid of {pair.truth}: {difference}")
    maps = predicted.array, true.array
    rows = case_metrics(*maps, labels, true.spacing_mm, scoring)
    paper_rows: list[PaperRow] = []
    if with_paper_style:
        axial = canonical_axes(true.affine)[2][0]
        paper_rows = paper_style(*maps, labels, true.spacing_mm, axial, scoring.tolerances_mm, scoring.empty)
    return CaseResult(pair.name, pair.prediction, pair.truth, true.spacing_mm, tuple(rows), tuple(paper_rows))


def _labels_of(pair: Pair) -> set[int]:
    """The foreground values of a case's label file."""
    array = read_label(pair.truth).array
    seen = np.zeros(int(array.max()) + 1, dtype=bool)
    for plane in array.T:  # one at a time: indexing makes 8 bytes of every voxel
        seen[plane] = True
    return set(np.flatnonzero(seen).tolist()) - {0}


def _named(found: Sequence[set[int]]) -> dict[int, str]:
    values = sorted(set().union(*found))
    if not values:
        raise DataError("no label file holds a class: every voxel is 0; name the classes to evaluate")
    return {value: str(value) for value in values}


def _record(row: ClassMetrics) -> dict[str, Any]:
    """A line of the tables; what does not apply or is undefined is None, which CSV leaves empty."""
    counts = row.lesions
    return {
        "kind": row.kind,
        "class": row.name,
        "label": row.label,
        **{column: _or_none(value) for column, value in row.columns().items()},
        "presence": row.presence,
        "lesions_truth": counts.truth if counts else None,
        "lesions_found": counts.found if counts else None,
        "lesions_invented": counts.invented if counts else None,
        "prediction_mm3": row.prediction_mm3,
        "truth_mm3": row.truth_mm3,
    }


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Records of the same keys as CSV, with a header."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return table.getvalue()


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
