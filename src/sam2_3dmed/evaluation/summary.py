"""The summary of all cases: per class and metric mean, spread, interval and worst cases, with all definitions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.evaluation.metrics import EMPTY_POLICIES, MEAN_NAME, UNION_NAME, Better, ClassMetrics, Scoring
from sam2_3dmed.evaluation.statistics import RESAMPLES, SEED, bootstrap_intervals, goodness
from sam2_3dmed.evaluation.surface import SURFACES

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


def summarise(
    cases: Sequence[tuple[str, Sequence[ClassMetrics]]], labels: Mapping[int, str], scoring: Scoring
) -> dict[str, Any]:
    """Summarise cases, each a name and its rows of `case_metrics`, as values for JSON; undefined ones are None.

    `results` has an entry for each class, for their mean and, if there are several, for their union. Each has for each
    metric: mean, median, sample standard deviation and the 95% bootstrap interval of the mean over the cases in which
    the metric is defined, the number of these cases, and the worst of them. Spread and interval need two cases.
    """
    columns = scoring.columns()
    names = [name for name, _ in cases]
    results = []
    for rows in zip(*(rows for _, rows in cases), strict=True):
        table = np.array([[row.scores[column] for column in columns] for row in rows])
        result = _presence(names, rows)
        intervals = bootstrap_intervals(table)
        for (column, metric), values, interval in zip(columns.items(), table.T, intervals, strict=True):
            defined = values[~np.isnan(values)]
            result[column] = {
                "mean": float(defined.mean()) if defined.size else None,
                "median": float(np.median(defined)) if defined.size else None,
                "std": float(defined.std(ddof=1)) if defined.size > 1 else None,
                "defined": int(defined.size),
                "interval_95": interval and list(interval),
                "worst": _worst(names, values, metric.better),
            }
        results.append(result)
    classes = [result for result in results if result["kind"] == "class"]
    return {
        "cases": len(cases),
        "labels": {str(value): name for value, name in labels.items()},
        "missed": sum(result["missed"] for result in classes),
        "false_positive": sum(result["false_positive"] for result in classes),
        "results": results,
        "metrics": {column: metric.describe(scoring.surface) for column, metric in columns.items()},
        "surface": {"definition": scoring.surface, "meaning": SURFACES[scoring.surface]},
        "empty_policy": scoring.empty,
        "empty_masks": EMPTY_POLICIES[scoring.empty],
        "rows": _ROWS,
    }


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
