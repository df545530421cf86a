"""From files to tables: all metrics of all cases, in parallel, and their summary."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.metrics import DEFAULT_TOLERANCES_MM, ClassMetrics, EmptyPolicy, Scoring, case_metrics
from sam2_3dmed.evaluation.pairing import Pair, check_unique, match_files, read_class_names, read_pairs
from sam2_3dmed.evaluation.paper_style import PaperRow, paper_style, summarise_paper_style
from sam2_3dmed.evaluation.summary import summarise
from sam2_3dmed.evaluation.surface import SurfaceDefinition
from sam2_3dmed.evaluation.text_tables import csv_text
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.files import require_same_grid
from sam2_3dmed.volume.label import label_values, read_label

# Processes start in about half a second. Masks are small on disk: this is about a hundred small pairs, or five of a
# whole CT, to score, which takes a second or two; and this much more to read only.
_WORTH_A_POOL_BYTES = 2**18
_READING_WORTH_A_POOL_BYTES = 8 * _WORTH_A_POOL_BYTES


@dataclass(frozen=True)
class CaseResult:
    """One case: its files, the voxel size, the rows of `case_metrics` and of `paper_style`."""

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
        """The summary of the cases with the definition of each number, as values that JSON can hold."""
        summary = summarise([(case.name, case.rows) for case in self.cases], self.labels, self.scoring)
        paper_rows = [case.paper_rows for case in self.cases if case.paper_rows]
        return summary | ({"paper_style": summarise_paper_style(paper_rows)} if paper_rows else {})

    def write(self, folder: str | Path) -> None:
        """Write cases.csv, cases.json (a row per case and class) and summary.json, each completely or not at all.

        Rows of `paper_style` go to paper_style.csv. Without them, a paper_style.csv of an earlier evaluation is
        removed. The folder is made. A file that cannot be written raises DataError.
        """
        folder = Path(folder)
        policy = {"empty_policy": self.scoring.empty}
        scored: dict[str, Any] = {"surface": self.scoring.surface, **policy}
        details = [
            {
                "case": case.name,
                "prediction": str(case.prediction),
                "truth": str(case.truth),
                "spacing_mm": list(case.spacing_mm),
                "scored": scored | {"tolerances_mm": list(self.scoring.tolerances_mm)},
                "rows": [row.record() for row in case.rows],
            }
            for case in self.cases
        ]
        lines = [{"case": case.name, **row.record(), **scored} for case in self.cases for row in case.rows]
        paper = [{"case": case.name, **row.record(), **policy} for case in self.cases for row in case.paper_rows]
        _write_csv(folder / "cases.csv", lines)
        _write_json(folder / "cases.json", details)
        _write_json(folder / "summary.json", self.summary())
        if paper:
            _write_csv(folder / "paper_style.csv", paper)
        else:
            (folder / "paper_style.csv").unlink(missing_ok=True)


def evaluate_cases(
    pairs: Iterable[tuple[str, str | Path, str | Path]],
    labels: Mapping[int, str] | None = None,
    scoring: Scoring | None = None,
    *,
    with_paper_style: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predicted label maps against the truth.

    Args:
        pairs: (case name, prediction file, label file).
        labels: Value -> name of the foreground classes; None takes the values in the label files, named "1", "2", ...
        scoring: None for the defaults.
        with_paper_style: Also score every case in the ways of `paper_style`, with axial slices.
        workers: Processes; 0 works in this process, None chooses by the size of the files.

    Returns:
        The cases in the order of `pairs`.

    Raises:
        DataError: There is no pair, a name occurs twice, or no label file holds a class. Or for any case, a file is
            unusable, holds a value that is no class, or prediction and label lie on different grids; the message has
            a line for each such case.
    """
    cases = [Pair(name, Path(prediction), Path(truth)) for name, prediction, truth in pairs]
    if not cases:
        raise DataError("there are no cases to evaluate")
    check_unique((pair.name for pair in cases), "the cases to evaluate")
    if labels is None:
        found = map_cases(_labels_of, cases, workers=workers, worth_a_pool_bytes=_READING_WORTH_A_POOL_BYTES)
        labels = {value: str(value) for value in sorted(set().union(*found) - {0})}
        if not labels:
            raise DataError("no label file holds a class: every voxel is 0; name the classes to evaluate")
    scoring = scoring or Scoring()
    evaluate = partial(_evaluate_case, labels=dict(labels), scoring=scoring, with_paper_style=with_paper_style)
    results = map_cases(evaluate, cases, workers=workers, progress=progress, worth_a_pool_bytes=_WORTH_A_POOL_BYTES)
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

    Args:
        predictions, labels: Folders of .nii and .nii.gz files, matched by name (without a trailing "_0000"), or two
            files. Without `labels`, a CSV file with the columns prediction, label and optionally case.
        class_names: Value -> name of the foreground classes, or a dataset.json with them (MSD or nnU-Net). None takes
            the values in the label files.
        tolerances_mm, surface, empty: See `Scoring`.
        with_paper_style, workers, progress: See `evaluate_cases`.

    Returns:
        The cases in the order of their names, or of the CSV file.

    Raises:
        DataError: A folder is missing or empty, a file has no counterpart, or dataset.json is unusable; and as for
            `evaluate_cases`.
        VolumeError: A tolerance is unusable, or there is no such surface or policy.
    """
    scoring = Scoring(tuple(tolerances_mm), surface, empty)
    if isinstance(class_names, str | Path):
        class_names = read_class_names(class_names)
    pairs = read_pairs(Path(predictions)) if labels is None else match_files(Path(predictions), Path(labels))
    return evaluate_cases(
        pairs, class_names, scoring, with_paper_style=with_paper_style, workers=workers, progress=progress
    )


def _evaluate_case(pair: Pair, labels: Mapping[int, str], scoring: Scoring, with_paper_style: bool) -> CaseResult:
    predicted, true = read_label(pair.prediction, labels), read_label(pair.truth, labels)
    require_same_grid(true, pair.truth, predicted, pair.prediction)
    maps = predicted.array, true.array
    rows = case_metrics(*maps, labels, true.spacing_mm, scoring)
    paper_rows: list[PaperRow] = []
    if with_paper_style:
        axial = canonical_axes(true.affine)[2][0]
        paper_rows = paper_style(*maps, labels, true.spacing_mm, axial, scoring)
    return CaseResult(*pair, true.spacing_mm, tuple(rows), tuple(paper_rows))


def _labels_of(pair: Pair) -> set[int]:
    return set(label_values(read_label(pair.truth).array).tolist())


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, csv_text([list(lines[0]), *(line.values() for line in lines)]))


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
