"""What the cases come to: per class and metric mean, spread, interval and worst cases, and how each is defined."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.definitions import EMPTY_POLICIES, describe_columns, describe_surface
from sam2_3dmed.evaluation.metrics import MEAN_NAME, UNION_NAME, ClassMetrics, Scoring

_RESAMPLES = 10_000
_SEED = 0
_NUM_WORST = 5
_CHUNK = 1_000_000  # cases drawn at a time

Case = tuple[str, Sequence[ClassMetrics]]
"""Its name and the rows of `case_metrics`."""


def summarise(cases: Sequence[Case], labels: Mapping[int, str], scoring: Scoring) -> dict[str, Any]:
    """Only what JSON can hold; what is undefined is None.

    `results` has an entry per class, for their mean and, if there are several, their union. For each metric: mean,
    median, sample standard deviation and the 95% bootstrap interval of the mean over the cases in which it is
    defined, how many those are, and the worst of them; spread and interval are None for fewer than two.
    """
    columns = describe_columns(scoring.tolerances_mm, scoring.surface)
    names = [name for name, _ in cases]
    by_class = list(zip(*(rows for _, rows in cases), strict=True))
    scores = [[row.columns() for row in rows] for rows in by_class]
    table = np.array([[[score[column] for column in columns] for score in of_class] for of_class in scores])
    intervals = _intervals(table)
    results = [_presence(names, rows) for rows in by_class]
    for index, result in enumerate(results):
        for number, (column, described) in enumerate(columns.items()):
            values = table[index, :, number]
            result[column] = _statistics(values) | {
                "interval_95": intervals[index][number],
                "worst": _worst(names, values, described["better"]),
            }
    classes = [result for result in results if result["kind"] == "class"]
    return {
        "cases": len(cases),
        "labels": {str(value): name for value, name in labels.items()},
        "missed": sum(result["missed"] for result in classes),
        "invented": sum(result["invented"] for result in classes),
        "results": results,
        "metrics": columns,
        "surface": describe_surface(scoring.surface),
        "empty_policy": scoring.empty,
        "empty_masks": EMPTY_POLICIES[scoring.empty],
        "rows": {
            MEAN_NAME: "per case, the mean over the classes in which the metric is defined (numpy.nanmean)",
            UNION_NAME: "per case, all classes taken as one",
            "missed": "cases in which only the truth has the class",
            "invented": "cases in which only the prediction has the class",
            "lesions": "over all cases: lesions of the truth, those that were found, and those that were invented",
            "defined": "cases in which the metric is defined; mean, median, std and interval are over these",
            "std": "sample standard deviation over cases (n - 1)",
            "interval_95": f"bootstrap of the mean over cases; {_RESAMPLES} draws, seed {_SEED}",
            "worst": "the worst cases first; of a metric that is best at 0, those furthest from it",
        },
    }


def _presence(names: Sequence[str], rows: Sequence[ClassMetrics]) -> dict[str, Any]:
    """What one class is, and in which cases it was missed or invented."""
    first = rows[0]
    result: dict[str, Any] = {"kind": first.kind, "class": first.name, "label": first.label}
    if first.kind == "mean":
        return result
    found = {
        presence: [name for name, row in zip(names, rows, strict=True) if row.presence == presence]
        for presence in ("missed", "invented", "absent")
    }
    lesions = [row.lesions for row in rows if row.lesions]
    return result | {
        **{presence: len(cases) for presence, cases in found.items()},
        "missed_cases": found["missed"],
        "invented_cases": found["invented"],
        "lesions": {kind: sum(getattr(counts, kind) for counts in lesions) for kind in ("truth", "found", "invented")},
    }


def _statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    defined = values[~np.isnan(values)]
    return {
        "mean": float(defined.mean()) if defined.size else None,
        "median": float(np.median(defined)) if defined.size else None,
        "std": float(defined.std(ddof=1)) if defined.size > 1 else None,
        "defined": int(defined.size),
    }


def _intervals(table: NDArray[np.float64]) -> list[list[list[float] | None]]:
    """For each class and column of (classes, cases, columns) the 95% bootstrap interval of the mean over cases.

    All have the same draws. A resample's mean is over its defined cases; a resample without any is left out.
    """
    is_defined = ~np.isnan(table)
    num_cases = table.shape[1]
    rng = np.random.default_rng(_SEED)
    sums, counts = [], []
    step = max(1, _CHUNK // num_cases)
    for start in range(0, _RESAMPLES, step):
        draws = rng.integers(num_cases, size=(min(step, _RESAMPLES - start), num_cases))
        # How often each resample holds each case: with that, the sums of all columns are one product.
        offsets = num_cases * np.arange(len(draws))[:, None]
        times = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)
        sums.append(times @ np.where(is_defined, table, 0.0))
        counts.append(times @ is_defined.astype(np.float64))
    total, number = np.concatenate(sums, axis=1), np.concatenate(counts, axis=1)
    several = is_defined.sum(axis=1) > 1
    return [
        [
            _interval(total[row, :, column], number[row, :, column]) if several[row, column] else None
            for column in range(table.shape[2])
        ]
        for row in range(table.shape[0])
    ]


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> list[float]:
    drawn = counts > 0
    low, high = np.percentile(sums[drawn] / counts[drawn], (2.5, 97.5))
    return [float(low), float(high)]


def _worst(names: Sequence[str], values: NDArray[np.float64], better: str) -> list[dict[str, Any]]:
    badness = {"higher": -values, "lower": values, "zero": np.abs(values)}[better]
    order = np.argsort(-badness, kind="stable")  # NaN comes last
    chosen = [index for index in order[:_NUM_WORST].tolist() if not math.isnan(values[index])]
    return [{"case": names[index], "value": float(values[index])} for index in chosen]


def summary_table(summary: Mapping[str, Any]) -> str:
    """A summary as plain text: each metric's mean over the cases, a column per class; and the worst cases."""
    results = summary["results"]
    lines = [["", *(result["class"] for result in results)]]
    for column, described in summary["metrics"].items():
        unit = described["unit"]
        name = column if unit is None or column.endswith(f"_{unit}") or unit == "%" else f"{column} [{unit}]"
        lines.append([name, *(_number(result[column]["mean"]) for result in results)])
    lines += [[kind, *(str(result.get(kind, "")) for result in results)] for kind in ("missed", "invented")]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    mean = next(result for result in results if result["kind"] == "mean")
    worst = ", ".join(f"{case['case']} ({case['value']:.3f})" for case in mean["dice"]["worst"])
    surface, empty = summary["surface"]["definition"], summary["empty_policy"]
    rows.append(f"{summary['cases']} cases; means over cases; surface: {surface}; empty masks: {empty}")
    return "\n".join([*rows, f"worst by mean Dice: {worst or 'none is defined'}"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
