"""From files to tables: pairs of predictions and labels, their metrics in parallel, and the summary of all cases."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.masks import Floats, grid_spacing
from sam2_3dmed.evaluation.metrics import (
    DEFAULT_TOLERANCES_MM,
    EMPTY_POLICIES,
    MEAN_NAME,
    UNION_NAME,
    Better,
    ClassMetrics,
    EmptyPolicy,
    Metric,
    Scoring,
    case_metrics,
)
from sam2_3dmed.evaluation.paper_style import PaperRow, paper_style, summarise_paper_style
from sam2_3dmed.evaluation.statistics import RESAMPLES, SEED, bootstrap_intervals, goodness
from sam2_3dmed.evaluation.surface import SURFACES, SurfaceDefinition
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.files.tables import csv_text, read_csv
from sam2_3dmed.processes.atomic import require_path, write_text
from sam2_3dmed.processes.lock import locked
from sam2_3dmed.processes.map_cases import Progress, map_cases
from sam2_3dmed.volume.affine import canonical_axes
from sam2_3dmed.volume.files import (
    LISTED,
    case_name,
    list_volumes,
    named_by_folder,
    require_same_grid,
    uncropped,
    volumes_of_case_folders,
)
from sam2_3dmed.volume.label import label_values, read_label
from sam2_3dmed.volume.label_scheme import LabelScheme, parse_labels

# Processes start in about half a second. Masks are small on disk: this is about a hundred small pairs, or five of a
# whole CT, to score, which takes a second or two; and this much more to read only.
_WORTH_A_POOL_BYTES = 2**18
_READING_WORTH_A_POOL_BYTES = 8 * _WORTH_A_POOL_BYTES
_NUM_WORST = 5
_ROWS = {
    MEAN_NAME: "per case, the mean over the classes in which the metric is defined (numpy.nanmean)",
    UNION_NAME: "per case, all classes taken as one",
    "missed": "cases in which only the truth has the class",
    "false_positive": "cases in which only the prediction has the class",
    "lesions": "over all cases: lesions of the truth, lesions of the truth that were found, false positives",
    "defined": "cases in which the metric is defined; mean, median, std and interval are over these",
    "std": "sample standard deviation over cases (n - 1)",
    "interval_95": f"bootstrap of the mean over cases; {RESAMPLES} draws, seed {SEED}",
    "worst": "the worst cases first; of a metric that is best at 0, the cases furthest from it",
}
_MAX_NAMES = 10
_WAIT_SECONDS = 60.0
"""For another evaluation that writes into the same folder, so that the files are of one of them."""
_MAX_LENGTH = 80


class Pair(NamedTuple):
    """A case: its name, its predicted label map and its label file."""

    name: str
    prediction: Path
    truth: Path

    @property
    def num_bytes(self) -> int:
        """The size of both files; a missing file counts as 0."""
        return sum(path.stat().st_size for path in (self.prediction, self.truth) if path.is_file())


def match_files(predictions: Path, labels: Path) -> list[Pair]:
    """Pair the files of two folders by name, sorted, or two files; raise DataError if one has no counterpart."""
    require_path(predictions)
    require_path(labels)
    if predictions.is_file() and labels.is_file():
        return [Pair(_case_name(predictions), predictions, labels)]
    predicted, true = _volumes(predictions), _volumes(labels)
    problems = [
        f"without a {kind} in {folder}: {_listed(sorted(names))}"
        for kind, folder, names in (
            ("label", labels, predicted.keys() - true.keys()),
            ("prediction", predictions, true.keys() - predicted.keys()),
        )
        if names
    ]
    if problems:
        raise DataError(f"predictions and labels do not match by name: {'; '.join(problems)}")
    return [Pair(name, predicted[name], true[name]) for name in sorted(predicted)]


def read_pairs(table: Path) -> list[Pair]:
    """Read pairs from a CSV file with the columns `prediction`, `label`, and optionally `case`.

    Paths are relative to the folder of the table. Without `case`, a case has the name of its prediction.
    """
    pairs = []
    for number, line in read_csv(table, ["prediction", "label"]).lines:
        if not (line["prediction"] and line["label"]):
            raise DataError(f"{table}: line {number} does not have both a prediction and a label")
        prediction, label = (table.parent / line[column] for column in ("prediction", "label"))
        pairs.append(Pair(line.get("case") or _case_name(prediction), prediction, label))
    if not pairs:
        raise DataError(f"{table}: lists no pairs")
    check_unique((pair.name for pair in pairs), str(table))
    return pairs


def read_class_names(path: str | Path) -> LabelScheme:
    """Read the foreground classes from an MSD or nnU-Net dataset.json, with regions and the ignore label."""
    try:
        return parse_labels(read_object(Path(path)))
    except DataError as error:
        raise DataError(f"{path}: no class names: {str(error).removeprefix(f'{path}: ')}") from None


def check_unique(names: Iterable[str], where: str) -> None:
    """Raise DataError, naming `where`, if a case name occurs more than once."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{where}: more than one file for {_listed(repeated)}")


def _volumes(folder: Path) -> dict[str, Path]:
    """Case name -> file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (both must be folders, or both files)")
    paths = list_volumes(folder) or volumes_of_case_folders(folder, masks=True)
    if not paths:
        raise DataError(f"{folder}: no {LISTED} files")
    names = named_by_folder(paths, [_case_name(path) for path in paths])
    check_unique(names, str(folder))
    return dict(zip(names, paths, strict=True))


def _case_name(path: Path) -> str:
    """The name without nnU-Net's suffix of the first channel, which a prediction may have from its image."""
    return case_name(path).removesuffix("_0000")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(name[:_MAX_LENGTH] for name in names[:_MAX_NAMES]) + more


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
        """The summary with the definition of each number, as values that JSON can hold; undefined ones are None.

        `results` has an entry for each class, for their mean and, if there are several, for their union. `_ROWS`
        describes the parts of an entry. Spread and interval need two cases.
        """
        columns, surface, empty = self.scoring.columns(), self.scoring.surface, self.scoring.empty
        names = [case.name for case in self.cases]
        results = [_result(names, rows, columns) for rows in zip(*(case.rows for case in self.cases), strict=True)]
        classes = [result for result in results if result["kind"] == "class"]
        paper_rows = [case.paper_rows for case in self.cases if case.paper_rows]
        return {
            "cases": len(names),
            "labels": {str(value): name for value, name in self.labels.items()},
            **_described(LabelScheme.of(self.labels)),
            "missed": sum(result["missed"] for result in classes),
            "false_positive": sum(result["false_positive"] for result in classes),
            "results": results,
            "metrics": {column: metric.describe(surface) for column, metric in columns.items()},
            "surface": {"definition": surface, "meaning": SURFACES[surface]},
            "empty_policy": empty,
            "empty_masks": EMPTY_POLICIES[empty],
            "rows": _ROWS,
            **({"paper_style": summarise_paper_style(paper_rows)} if paper_rows else {}),
        }

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
        summary = self.summary()
        with locked(folder, _WAIT_SECONDS):
            _write_csv(folder / "cases.csv", lines)
            _write_json(folder / "cases.json", details)
            _write_json(folder / "summary.json", summary)
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
            A `LabelScheme` may also have regions and a value that is ignored.
        with_paper_style: Also score every case in the ways of `paper_style`, with axial slices.
        workers: Processes; 0 works in this process, None chooses by the size of the files.

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
    labels = LabelScheme.of(labels)
    evaluate = partial(_evaluate_case, labels=labels, scoring=scoring, with_paper_style=with_paper_style)
    results = map_cases(evaluate, cases, workers=workers, progress=progress, worth_a_pool_bytes=_WORTH_A_POOL_BYTES)
    return Evaluation(labels=labels, cases=tuple(results), scoring=scoring)


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
        predictions, labels: Folders of images that `Volume.read` reads, matched by name (without "_0000"), or two
            files. Without `labels`, a CSV file with the columns prediction, label and optionally case.
        class_names: Value -> name of the foreground classes, or a dataset.json with them (MSD or nnU-Net), whose
            regions and ignore label count as in nnU-Net. None takes the values in the label files.
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


def _evaluate_case(pair: Pair, labels: LabelScheme, scoring: Scoring, with_paper_style: bool) -> CaseResult:
    predicted, true = (read_label(path, labels.allowed) for path in (pair.prediction, pair.truth))
    predicted = uncropped(predicted, pair.prediction, true)
    true = uncropped(true, pair.truth, predicted)
    require_same_grid(true, pair.truth, predicted, pair.prediction)
    maps, spacing = (predicted.array, true.array), grid_spacing(true)
    rows = case_metrics(*maps, labels, spacing, scoring)
    paper_rows: list[PaperRow] = []
    if with_paper_style:
        axial = canonical_axes(true.affine)[2][0]
        paper_rows = paper_style(*maps, labels, spacing, axial, scoring)
    return CaseResult(*pair, true.spacing_mm, tuple(rows), tuple(paper_rows))


def _labels_of(pair: Pair) -> set[int]:
    return set(label_values(read_label(pair.truth).array).tolist())


def _described(labels: LabelScheme) -> dict[str, Any]:
    """The values of regions, and the ignored one, if there are any."""
    regions = {str(value): list(members) for value, members in labels.regions.items()}
    return {
        **({"regions": regions} if regions else {}),
        **({} if labels.ignore is None else {"ignore_label": labels.ignore}),
    }


def _write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    write_text(path, csv_text([list(lines[0]), *(line.values() for line in lines)]))


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def _result(names: Sequence[str], rows: Sequence[ClassMetrics], columns: Mapping[str, Metric]) -> dict[str, Any]:
    """One class, the mean or the union over all cases."""
    result = _presence(names, rows)
    table = np.array([[row.scores[column] for column in columns] for row in rows])
    for (column, metric), values, interval in zip(columns.items(), table.T, bootstrap_intervals(table), strict=True):
        defined = values[~np.isnan(values)]
        result[column] = {
            "mean": float(defined.mean()) if defined.size else None,
            "median": float(np.median(defined)) if defined.size else None,
            "std": float(defined.std(ddof=1)) if defined.size > 1 else None,
            "defined": int(defined.size),
            "interval_95": interval and list(interval),
            "worst": _worst(names, values, metric.better),
        }
    return result


def _presence(names: Sequence[str], rows: Sequence[ClassMetrics]) -> dict[str, Any]:
    """The identity of one class, and the cases in which it was missed or a false positive."""
    first = rows[0]
    result: dict[str, Any] = {"kind": first.kind, "class": first.name, "label": first.label}
    if first.kind == "mean":
        return result
    found = {
        presence: [name for name, row in zip(names, rows, strict=True) if row.presence == presence]
        for presence in ("missed", "false_positive", "absent")
    }
    lesions = [row.lesions for row in rows if row.lesions]
    totals = {kind: sum(getattr(counts, kind) for counts in lesions) for kind in ("truth", "found", "false_positive")}
    return result | {
        **{presence: len(cases) for presence, cases in found.items()},
        "missed_cases": found["missed"],
        "false_positive_cases": found["false_positive"],
        "lesions": totals,
    }


def _worst(names: Sequence[str], values: Floats, better: Better) -> list[dict[str, Any]]:
    order = np.argsort(goodness(values, better), kind="stable")[: np.count_nonzero(~np.isnan(values))]  # NaN is last
    return [{"case": names[index], "value": float(values[index])} for index in order[:_NUM_WORST].tolist()]


def summary_table(summary: Mapping[str, Any]) -> str:
    """A summary as plain text: each metric's mean over the cases, a column per class; and the worst cases."""
    results = summary["results"]
    lines = [["", *(result["class"] for result in results)]]
    for column, described in summary["metrics"].items():
        unit = described["unit"]
        name = column if unit is None or column.endswith(f"_{unit}") or unit == "%" else f"{column} [{unit}]"
        means = [result[column]["mean"] for result in results]
        lines.append([name, *("-" if mean is None else f"{mean:.3f}" for mean in means)])
    lines += [[kind, *(str(result.get(kind, "")) for result in results)] for kind in ("missed", "false_positive")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    mean = next(result for result in results if result["kind"] == "mean")
    worst = ", ".join(f"{case['case']} ({case['value']:.3f})" for case in mean["dice"]["worst"])
    surface, empty = summary["surface"]["definition"], summary["empty_policy"]
    rows.append(f"{summary['cases']} cases; means over cases; surface: {surface}; empty masks: {empty}")
    return "\n".join([*rows, f"worst by mean Dice: {worst or 'none is defined'}"])
