"""Runs on the same cases, compared: each with a baseline, case by case, and all of them ranked.

docs/comparing_runs.md says what every number is and where it comes from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.scores import Row, Scores, aligned, check_comparable, choose_metrics, read_runs
from sam2_3dmed.evaluation.statistics import (
    PairedDifference,
    RankStability,
    goodness,
    holm,
    paired_difference,
    rank,
    rank_stability,
    ranking_draws,
    significance_ranks,
)


@dataclass(frozen=True)
class RunInRow:
    """A run in one class row of one metric.

    mean: over the cases in which every run is defined, None if there is none; of magnitudes for a metric that is
        best at zero.
    difference: from the baseline; None for the baseline itself.
    p_adjusted: of that difference, after Holm over all comparisons of the metric; None where p is.
    """

    mean: float | None
    best: bool
    difference: PairedDifference | None
    p_adjusted: float | None


@dataclass(frozen=True)
class ComparedRow:
    """A class, the mean of the classes or their union, by one metric. runs: in the order of the comparison."""

    row: Row
    defined: int
    runs: tuple[RunInRow, ...]


@dataclass(frozen=True)
class ComparedMetric:
    """A metric with its rows. definition: its entry of summary.json."""

    name: str
    definition: Mapping[str, Any]
    rows: tuple[ComparedRow, ...]


@dataclass(frozen=True)
class Ranking:
    """Significance ranks of the runs by one metric in one class, or by all of them.

    metric, name: of the metric and the class; None for the ranking by mean ranks over metrics and classes.
    ranks: of each run, from 1. scores: what was ranked if metric is None: mean ranks; else the ranks themselves.
    """

    metric: str | None
    name: str | None
    scores: tuple[float, ...]
    ranks: tuple[float, ...]
    stability: RankStability


@dataclass(frozen=True)
class Comparison:
    """Everything that the tables show. baseline: place in `runs`. rankings: overall last."""

    runs: tuple[str, ...]
    baseline: int
    cases: int
    metrics: tuple[ComparedMetric, ...]
    rankings: tuple[Ranking, ...]

    @property
    def overall(self) -> Ranking:
        """The ranking over all metrics and classes."""
        return self.rankings[-1]


def compare_runs(
    paths: Iterable[str | Path], metrics: Sequence[str] | None = None, baseline: str | None = None
) -> Comparison:
    """Compare run folders, or folders that `evaluate` wrote.

    metrics: columns to compare; None takes all.
    baseline: the run that all others are compared with, as it was given or by name; None takes the first.
    Raises: DataError if there are fewer than two, one is unusable, or they do not have the same cases, classes,
        labels and definitions.
    """
    given = [str(path) for path in paths]
    runs = read_runs(given)
    chosen = choose_metrics(runs, metrics)
    check_comparable(runs, chosen)
    names = [run.name for run in runs]
    wanted = names[0] if baseline is None else baseline
    if wanted not in names + given:
        raise DataError(f"baseline {wanted}: no such run; there are {', '.join(names)}")
    place = names.index(wanted) if wanted in names else given.index(wanted)
    return compare_scores([aligned(run, runs[0].cases) for run in runs], chosen, place)


def compare_scores(runs: Sequence[Scores], metrics: Sequence[str], baseline: int = 0) -> Comparison:
    """Compare scores that are alike in cases, their order, rows and definitions."""
    rows = _distinct_rows(runs[0].rows)
    return Comparison(
        runs=tuple(run.name for run in runs),
        baseline=baseline,
        cases=len(runs[0].cases),
        metrics=tuple(_compare_metric(runs, metric, rows, baseline) for metric in metrics),
        rankings=_rankings(runs, metrics, [row for row in rows if row[0] == "class"]),
    )


def _distinct_rows(rows: Sequence[Row]) -> list[Row]:
    """Without the mean over the classes where there is one class: it would count as a comparison of its own."""
    one_class = sum(kind == "class" for kind, _ in rows) == 1
    return [row for row in rows if not (one_class and row[0] == "mean")]


def _compare_metric(runs: Sequence[Scores], metric: str, rows: Sequence[Row], baseline: int) -> ComparedMetric:
    definition = runs[0].metrics[metric]
    better = definition["better"]
    values = {row: np.stack([run.values[row, metric] for run in runs]) for row in rows}
    differences = {
        (row, place): paired_difference(values[row][place], values[row][baseline], better)
        for row in rows
        for place in range(len(runs))
        if place != baseline
    }
    adjusted = dict(zip(differences, holm(found.p_value for found in differences.values()), strict=True))
    compared = []
    for row in rows:
        array = np.abs(values[row]) if better == "zero" else values[row]
        defined = array[:, ~np.isnan(array).any(axis=0)]
        means = defined.mean(axis=1) if defined.size else np.full(len(runs), np.nan)
        entries = [
            RunInRow(
                mean=float(mean) if defined.size else None,
                best=bool(defined.size and score == 1),
                difference=differences.get((row, place)),
                p_adjusted=adjusted.get((row, place)),
            )
            for place, (mean, score) in enumerate(zip(means, rank(goodness(means, better)), strict=True))
        ]
        compared.append(ComparedRow(row, defined.shape[1], tuple(entries)))
    return ComparedMetric(metric, definition, tuple(compared))


def _rankings(runs: Sequence[Scores], metrics: Sequence[str], rows: Sequence[Row]) -> tuple[Ranking, ...]:
    """By every metric in every class, then by the mean of those ranks; the same redrawn cases for all."""
    draws = ranking_draws(len(runs[0].cases))
    rankings, all_ranks, all_redrawn = [], [], []
    for metric in metrics:
        for row in rows:
            better = runs[0].metrics[metric]["better"]
            values = goodness([run.values[row, metric] for run in runs], better)
            ranks, redrawn = significance_ranks(values), significance_ranks(values, draws)
            rankings.append(_ranking(metric, row[1], ranks, ranks, redrawn))
            all_ranks.append(ranks)
            all_redrawn.append(redrawn)
    scores: NDArray[np.float64] = np.mean(all_ranks, axis=0)
    overall = _ranking(None, None, scores, rank(-scores), rank(-np.mean(all_redrawn, axis=0)))
    return (*rankings, overall)


def _ranking(
    metric: str | None,
    name: str | None,
    scores: NDArray[np.float64],
    ranks: NDArray[np.float64],
    redrawn: NDArray[np.float64],
) -> Ranking:
    stability = rank_stability(ranks, redrawn)
    return Ranking(metric, name, tuple(scores.tolist()), tuple(ranks.tolist()), stability)
