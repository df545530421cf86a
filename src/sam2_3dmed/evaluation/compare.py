"""The comparison of runs on the same cases: each with a baseline, case by case, a ranking of all, and their tables.

docs/reference/statistics.md defines each number and gives its source.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.evaluation.scores import Row, Scores, aligned, check_comparable, choose_metrics, read_runs
from sam2_3dmed.evaluation.statistics import (
    ALPHA,
    FEWEST_UNTIED,
    LEVEL,
    RANKING_RESAMPLES,
    RESAMPLES,
    SEED,
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
from sam2_3dmed.evaluation.text_tables import escape_latex, escape_markdown, latex_table, markdown_table
from sam2_3dmed.files.tables import csv_text
from sam2_3dmed.processes.atomic import write_text

_DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "zero": "magnitude; lower is better"}
_CSV_COLUMNS = (
    "metric,kind,class,run,baseline,cases,defined,mean,pairs,left_out,difference,interval_low,interval_high,"
    "wins,ties,losses,p,p_holm"
)
_RANKING_COLUMNS = "metric,class,run,mean_rank,rank,rank_low,rank_high,first,kendall_tau,tau_low,tau_high,tau_undefined"
_RANKING_TEXT = (
    "Within a metric and a class, runs are ranked by how many others each beats significantly (Wilcoxon "
    f"signed-rank, one-sided, {ALPHA:g}, not adjusted), as in the Medical Segmentation Decathlon; over all, by the "
    f"mean of those ranks. Stability: {RANKING_RESAMPLES} draws of cases, seed {SEED}; Kendall's tau is that of a "
    "redrawn ranking with the one shown."
)


@dataclass(frozen=True)
class Entry:
    """A run by one metric in one row: a class, the mean of the classes or their union.

    Attributes:
        defined: The number of cases in which every run is defined.
        mean: Over these cases, None if there is none; of magnitudes for a metric that is best at zero.
        difference: From the baseline; None for the baseline itself.
        p_adjusted: The p value of the difference after Holm over all comparisons of the metric; None without p.
    """

    metric: str
    row: Row
    run: str
    defined: int
    mean: float | None
    best: bool
    difference: PairedDifference | None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Ranking:
    """The ranks of the runs from 1, by significance for a metric in a class, or over all (None) by their mean ranks.

    scores: the ranked values, which are the mean ranks, or for a metric and class the ranks themselves.
    """

    metric: str | None
    name: str | None
    scores: tuple[float, ...]
    ranks: tuple[float, ...]
    stability: RankStability


@dataclass(frozen=True)
class Comparison:
    """All content of the tables.

    Attributes:
        metrics: Column -> its entry of summary.json.
        entries: By metric, then by row, then by run.
        rankings: The one over all metrics and classes is last.
    """

    runs: tuple[str, ...]
    baseline: str
    cases: int
    metrics: Mapping[str, Mapping[str, Any]]
    entries: tuple[Entry, ...]
    rankings: tuple[Ranking, ...]


def compare_runs(
    paths: Iterable[str | Path], metrics: Sequence[str] | None = None, baseline: str | None = None
) -> Comparison:
    """Compare run folders, or folders that `evaluate` wrote.

    Args:
        metrics: Columns to compare; None takes all.
        baseline: The path or name of the run that all others are compared with; None takes the first.

    Raises:
        DataError: A run is unusable or alone, or they differ in cases, classes, labels or definitions.
    """
    given = [str(path) for path in paths]
    runs = read_runs(given)
    chosen = choose_metrics(runs, metrics)
    check_comparable(runs, chosen)
    runs = [aligned(run, runs[0].cases) for run in runs]
    names = [run.name for run in runs]
    wanted = names[0] if baseline is None else baseline
    if wanted not in names + given:
        raise DataError(f"baseline {wanted}: no such run; there are {', '.join(names)}")
    reference = (names if wanted in names else given).index(wanted)
    classes = [row for row in runs[0].rows if row[0] == "class"]
    # The mean over one class is no comparison of its own.
    rows = [row for row in runs[0].rows if row[0] != "mean" or len(classes) > 1]
    return Comparison(
        runs=tuple(names),
        baseline=names[reference],
        cases=len(runs[0].cases),
        metrics={metric: runs[0].metrics[metric] for metric in chosen},
        entries=tuple(entry for metric in chosen for entry in _compare_metric(runs, metric, rows, reference)),
        rankings=_rankings(runs, chosen, classes),
    )


def _compare_metric(runs: Sequence[Scores], metric: str, rows: Sequence[Row], baseline: int) -> list[Entry]:
    better = runs[0].metrics[metric]["better"]
    entries = []
    for row in rows:
        values = np.stack([run.values[row, metric] for run in runs])
        in_all = values[:, ~np.isnan(values).any(axis=0)]
        sizes = np.abs(in_all) if better == "zero" else in_all
        means = sizes.mean(axis=1) if in_all.size else np.full(len(runs), np.nan)
        scores = goodness(means, better)
        for number, run in enumerate(runs):
            mean, best = float(means[number]) if in_all.size else None, bool(scores[number] == scores.max())
            difference = None if number == baseline else paired_difference(values[number], values[baseline], better)
            entries.append(Entry(metric, row, run.name, in_all.shape[1], mean, best, difference))
    adjusted = holm(entry.difference.p_value if entry.difference else None for entry in entries)
    return [replace(entry, p_adjusted=p) for entry, p in zip(entries, adjusted, strict=True)]


def _rankings(runs: Sequence[Scores], metrics: Sequence[str], classes: Sequence[Row]) -> tuple[Ranking, ...]:
    """Rank by each metric in each class, then by the mean of these ranks, with the same redrawn cases for all."""
    draws = ranking_draws(len(runs[0].cases))
    rankings, all_ranks, all_redrawn = [], [], []
    for metric in metrics:
        for row in classes:
            values = goodness([run.values[row, metric] for run in runs], runs[0].metrics[metric]["better"])
            ranks, redrawn = significance_ranks(values), significance_ranks(values, draws)
            rankings.append(_ranking(metric, row[1], ranks, ranks, redrawn))
            all_ranks.append(ranks)
            all_redrawn.append(redrawn)
    scores: Floats = np.mean(all_ranks, axis=0)
    overall = _ranking(None, None, scores, rank(-scores), rank(-np.mean(all_redrawn, axis=0)))
    return (*rankings, overall)


def _ranking(metric: str | None, name: str | None, scores: Floats, ranks: Floats, redrawn: Floats) -> Ranking:
    return Ranking(metric, name, tuple(scores.tolist()), tuple(ranks.tolist()), rank_stability(ranks, redrawn))


def write_comparison(comparison: Comparison, folder: str | Path) -> None:
    """Write comparison.md, comparison.csv, ranking.csv and comparison.tex, each completely or not at all."""
    write_text(Path(folder) / "comparison.md", markdown(comparison))
    write_text(Path(folder) / "comparison.csv", comparison_csv(comparison))
    write_text(Path(folder) / "ranking.csv", ranking_csv(comparison))
    write_text(Path(folder) / "comparison.tex", latex(comparison))


def comparison_csv(comparison: Comparison) -> str:
    """A line per metric, class and run; cells that do not apply are empty."""
    lines: list[Sequence[object]] = [_CSV_COLUMNS.split(",")]
    for entry in comparison.entries:
        line = [entry.metric, *entry.row, entry.run, comparison.baseline, comparison.cases, entry.defined, entry.mean]
        if found := entry.difference:
            line += [found.pairs, found.left_out, found.mean, *(found.interval or (None, None))]
            line += [found.wins, found.ties, found.losses, found.p_value, entry.p_adjusted]
        lines.append(line + [None] * (len(lines[0]) - len(line)))
    return csv_text(lines)


def ranking_csv(comparison: Comparison) -> str:
    """A line per ranking and run; metric and class are empty for the ranking over all of them."""
    lines: list[Sequence[object]] = [_RANKING_COLUMNS.split(",")]
    for ranking in comparison.rankings:
        stability = ranking.stability
        tau = [stability.kendall_tau, *(stability.tau_interval or (None, None)), stability.undefined]
        for index, run in enumerate(comparison.runs):
            ranks = [ranking.scores[index], ranking.ranks[index], *stability.intervals[index], stability.first[index]]
            lines.append([ranking.metric, ranking.name, run, *ranks, *tau])
    return csv_text(lines)


def markdown(comparison: Comparison) -> str:
    """All tables with the explanation of their columns."""
    parts = [
        f"# Comparison of {len(comparison.runs)} runs on {comparison.cases} cases",
        f"Baseline: {escape_markdown(comparison.baseline)}. Difference: mean over cases of run minus baseline, with "
        f"its {LEVEL:.0%} bootstrap interval ({RESAMPLES} draws of cases, seed {SEED}). p: Wilcoxon signed-rank, "
        "two-sided; p (Holm): adjusted for all comparisons of the metric. Best mean in bold.",
    ]
    for metric, definition in comparison.metrics.items():
        parts.append(f"## {escape_markdown(metric)} ({_DIRECTIONS[definition['better']]})")
        parts += _metric_parts(comparison, [entry for entry in comparison.entries if entry.metric == metric])
    overall = [[escape_markdown(cell) for cell in row] for row in _overall_rows(comparison)]
    overall.insert(0, ["run", "rank", "mean rank", f"{LEVEL:.0%} interval of rank", "first in"])
    ranks = [["metric", "class", *map(escape_markdown, comparison.runs), "Kendall's tau"]]
    for ranking in comparison.rankings:
        names = [escape_markdown(text or "all") for text in (ranking.metric, ranking.name)]
        ranks.append([*names, *(f"{number:g}" for number in ranking.ranks), _tau(ranking.stability)])
    parts += ["## Ranking", _RANKING_TEXT, markdown_table(overall, left=1), markdown_table(ranks, left=2)]
    return "\n\n".join(parts) + "\n"


def _metric_parts(comparison: Comparison, entries: Sequence[Entry]) -> list[str]:
    """A metric's table, and notes on undefined values and on too few pairs for any significance."""
    rows = [["class", "run", "mean", "difference", f"{LEVEL:.0%} interval", "win/tie/loss", "p", "p (Holm)"]]
    undefined, few = [], []
    for entry in entries:
        mean = _value(comparison, entry, entry.mean)
        name, run = escape_markdown(entry.row[1]), escape_markdown(entry.run)
        cells = [name if entry.run == comparison.runs[0] else "", run, f"**{mean}**" if entry.best else mean]
        if found := entry.difference:
            low, high = (_value(comparison, entry, end, "+") for end in found.interval or (None, None))
            cells += [_value(comparison, entry, found.mean, "+"), f"[{low}, {high}]" if found.interval else ""]
            cells += [f"{found.wins}/{found.ties}/{found.losses}", _p(found.p_value), _p(entry.p_adjusted)]
            if found.left_out:
                undefined.append(f"{name}, {run}: {found.left_out}")
            if found.wins + found.losses < FEWEST_UNTIED:
                few.append(f"{name}, {run}: {found.wins + found.losses}")
        else:
            cells += ["baseline", "", "", "", ""]
        rows.append(cells)
    pairs = f"Pairs left out of {comparison.cases}, undefined in the run or the baseline: "
    untied = f"Fewer than {FEWEST_UNTIED} untied pairs, so that p < {ALPHA:g} cannot be reached, whatever the data: "
    notes = [f"{text}{'; '.join(places)}." for text, places in ((pairs, undefined), (untied, few)) if places]
    return [markdown_table(rows, left=2), *notes]


def _tau(stability: RankStability) -> str:
    if stability.kendall_tau is None:
        return "undefined"
    share = f"{stability.undefined:.0%}" if stability.undefined >= 0.01 else "<1%"
    return f"{stability.kendall_tau:.2f}" + (f" (undefined in {share})" if stability.undefined else "")


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _value(comparison: Comparison, entry: Entry, value: float | None, sign: str = "") -> str:
    """Three decimals for shares, two for values with a unit; empty if undefined."""
    decimals = 3 if comparison.metrics[entry.metric].get("unit") is None else 2
    return "" if value is None else f"{value:{sign}.{decimals}f}"


def _overall_rows(comparison: Comparison) -> list[list[str]]:
    """For each run, best first: name, rank, mean rank, interval of the rank, share of first places."""
    overall = comparison.rankings[-1]
    stability = overall.stability
    runs = zip(overall.ranks, comparison.runs, overall.scores, stability.intervals, stability.first, strict=True)
    return [
        [run, f"{place:g}", f"{score:.2f}", f"{low:g} to {high:g}", f"{first:.0%}"]
        for place, run, score, (low, high), first in sorted(runs, key=itemgetter(0))
    ]


def latex(comparison: Comparison) -> str:
    """Two tables for \\usepackage{booktabs}: means, best in bold, significant differences starred; and ranks."""
    rows: dict[tuple[Row, str], list[str]] = {}
    for entry in comparison.entries:
        name = escape_latex(entry.row[1]) if entry.run == comparison.runs[0] else ""
        mean = _value(comparison, entry, entry.mean) or "--"
        star = "$^{*}$" if entry.p_adjusted is not None and entry.p_adjusted < ALPHA else ""
        cells = rows.setdefault((entry.row, entry.run), [name, escape_latex(entry.run)])
        cells.append((rf"\textbf{{{mean}}}" if entry.best else mean) + star)
    lines, count = list(rows.values()), len(comparison.runs)
    caption = (
        f"Means over {comparison.cases} cases, best in bold.\n"
        f"$^{{*}}$: differs from {escape_latex(comparison.baseline)}\n"
        f"(Wilcoxon signed-rank test, Holm-adjusted $p < {ALPHA:g}$)."
    )
    header = ["Class", "Run", *(_latex_title(metric, entry["better"]) for metric, entry in comparison.metrics.items())]
    groups = [lines[start : start + count] for start in range(0, len(lines), count)]
    means = latex_table(caption, "ll" + "r" * len(comparison.metrics), header, groups)
    caption = (
        "Significance ranking over all metrics and classes;\n"
        f"intervals and shares of first places from {RANKING_RESAMPLES} bootstrap draws of the cases."
    )
    header = ["Run", "Rank", "Mean rank", rf"{100 * LEVEL:g}\% interval", "First"]
    ranks = [[escape_latex(cell) for cell in row] for row in _overall_rows(comparison)]
    ranking = latex_table(caption, "lrrrr", header, [ranks])
    return "\n".join([r"% Needs \usepackage{booktabs}.", means, "", ranking]) + "\n"


def _latex_title(metric: str, better: str) -> str:
    name = rf"$|${escape_latex(metric)}$|$" if better == "zero" else escape_latex(metric)
    return name + (r" $\uparrow$" if better == "higher" else r" $\downarrow$")
