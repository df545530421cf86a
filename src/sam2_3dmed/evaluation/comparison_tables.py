"""A comparison as text: Markdown that reads well in a terminal, CSV, and LaTeX for booktabs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sam2_3dmed.evaluation.compare import ComparedMetric, ComparedRow, Comparison, Ranking, RunInRow
from sam2_3dmed.evaluation.statistics import ALPHA, FEWEST_UNTIED, LEVEL, RANKING_RESAMPLES, RESAMPLES, SEED
from sam2_3dmed.evaluation.text_tables import csv_text, escape_latex, escape_markdown, latex_table, markdown_table
from sam2_3dmed.processes.atomic import write_text

_WORDS = {"higher": "higher is better", "lower": "lower is better", "zero": "magnitude; lower is better"}


def write_comparison(comparison: Comparison, folder: str | Path) -> None:
    """Write comparison.md, comparison.csv, ranking.csv and comparison.tex, each whole or not at all.

    Raises: DataError if a file cannot be written.
    """
    write_text(Path(folder) / "comparison.md", markdown(comparison))
    write_text(Path(folder) / "comparison.csv", comparison_csv(comparison))
    write_text(Path(folder) / "ranking.csv", ranking_csv(comparison))
    write_text(Path(folder) / "comparison.tex", latex(comparison))


def markdown(comparison: Comparison) -> str:
    """All tables, their columns padded, with what is needed to read them."""
    baseline = escape_markdown(comparison.runs[comparison.baseline])
    parts = [
        f"# Comparison of {len(comparison.runs)} runs on {comparison.cases} cases",
        f"Baseline: {baseline}. Difference: mean over cases of run minus baseline, with its {LEVEL:.0%} bootstrap "
        f"interval ({RESAMPLES} draws of cases, seed {SEED}). p: Wilcoxon signed-rank, two-sided; p (Holm): adjusted "
        "for all comparisons of the metric. Best mean in bold.",
    ]
    for metric in comparison.metrics:
        parts += [f"## {_title(metric)}", _metric_table(comparison, metric)]
        parts += _notes(comparison, metric)
    parts += ["## Ranking", _ranking_text(), _overall_table(comparison), _ranks_table(comparison)]
    return "\n\n".join(parts) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """A line per metric, class and run; cells that do not apply are empty."""
    header = "metric,kind,class,run,baseline,cases,defined,mean,pairs,left_out,difference,interval_low,interval_high"
    lines: list[Sequence[object]] = [[*header.split(","), "wins", "ties", "losses", "p", "p_holm"]]
    baseline = comparison.runs[comparison.baseline]
    for metric, row, run, entry in _entries(comparison):
        start = [metric.name, *row.row, run, baseline, comparison.cases, row.defined, entry.mean]
        found = entry.difference
        if found is None:
            lines.append([*start, *[None] * 10])
            continue
        low, high = found.interval or (None, None)
        counts = [found.wins, found.ties, found.losses]
        lines.append(
            [*start, found.pairs, found.left_out, found.mean, low, high, *counts, found.p_value, entry.p_adjusted]
        )
    return csv_text(lines)


def ranking_csv(comparison: Comparison) -> str:
    """A line per ranking and run; metric and class are empty for the ranking over all of them."""
    header = "metric,class,run,mean_rank,rank,rank_low,rank_high,first,kendall_tau,tau_low,tau_high,tau_undefined"
    lines: list[Sequence[object]] = [header.split(",")]
    for ranking in comparison.rankings:
        stability = ranking.stability
        tau = [stability.kendall_tau, *(stability.tau_interval or (None, None)), stability.undefined]
        for place, run in enumerate(comparison.runs):
            ranks = [ranking.scores[place], ranking.ranks[place], *stability.intervals[place], stability.first[place]]
            lines.append([ranking.metric, ranking.name, run, *ranks, *tau])
    return csv_text(lines)


def latex(comparison: Comparison) -> str:
    """Two tables for \\usepackage{booktabs}: means, best in bold, significant differences starred; and ranks."""
    metrics = comparison.metrics
    caption = (
        f"Means over {comparison.cases} cases, best in bold.\n"
        rf"$^{{*}}$: differs from {escape_latex(comparison.runs[comparison.baseline])}"
        "\n"
        rf"(Wilcoxon signed-rank test, Holm-adjusted $p < {ALPHA:g}$)."
    )
    groups = []
    for number in range(len(metrics[0].rows)):
        name = escape_latex(metrics[0].rows[number].row[1])
        rows = []
        for place, run in enumerate(comparison.runs):
            cells = [_latex_cell(metric, metric.rows[number].runs[place]) for metric in metrics]
            rows.append([name if place == 0 else "", escape_latex(run), *cells])
        groups.append(rows)
    means = latex_table(caption, "ll" + "r" * len(metrics), ["Class", "Run", *map(_latex_title, metrics)], groups)
    return "\n".join([r"% Needs \usepackage{booktabs}.", means, "", _latex_ranking(comparison)]) + "\n"


def _metric_table(comparison: Comparison, metric: ComparedMetric) -> str:
    heading = ["class", "run", "mean", "difference", f"{LEVEL:.0%} interval", "win/tie/loss", "p", "p (Holm)"]
    lines = [heading]
    for row in metric.rows:
        for place, (run, entry) in enumerate(zip(comparison.runs, row.runs, strict=True)):
            mean = _value(metric, entry.mean)
            start = [escape_markdown(row.row[1]) if place == 0 else "", escape_markdown(run)]
            start.append(f"**{mean}**" if entry.best else mean)
            lines.append([*start, *_difference_cells(metric, entry)])
    return markdown_table(lines, left=2)


def _difference_cells(metric: ComparedMetric, entry: RunInRow) -> list[str]:
    found = entry.difference
    if found is None:
        return ["baseline", "", "", "", ""]
    interval = "" if found.interval is None else ", ".join(_value(metric, end, sign=True) for end in found.interval)
    counts = f"{found.wins}/{found.ties}/{found.losses}"
    difference = _value(metric, found.mean, sign=True)
    return [difference, f"[{interval}]" if interval else "", counts, _p(found.p_value), _p(entry.p_adjusted)]


def _notes(comparison: Comparison, metric: ComparedMetric) -> list[str]:
    """What the reader of a metric's table has to know besides: undefined values, too few pairs for any p."""
    undefined, few = [], []
    for owner, row, run, entry in _entries(comparison):
        found = entry.difference
        if owner is not metric or found is None:
            continue
        where = f"{escape_markdown(row.row[1])}, {escape_markdown(run)}"
        if found.left_out:
            undefined.append(f"{where}: {found.left_out}")
        if found.wins + found.losses < FEWEST_UNTIED:
            few.append(f"{where}: {found.wins + found.losses}")
    notes = []
    if undefined:
        notes.append(
            f"Pairs left out of {comparison.cases}, undefined in the run or the baseline: {_joined(undefined)}."
        )
    if few:
        notes.append(
            f"Fewer than {FEWEST_UNTIED} untied pairs, so that p < {ALPHA:g} cannot be reached, whatever the data: "
            f"{_joined(few)}."
        )
    return notes


def _ranking_text() -> str:
    return (
        "Within a metric and a class, runs are ranked by how many others each beats significantly (Wilcoxon "
        f"signed-rank, one-sided, {ALPHA:g}, not adjusted), as in the Medical Segmentation Decathlon; over all, by the "
        f"mean of those ranks. Stability: {RANKING_RESAMPLES} draws of cases, seed {SEED}; Kendall's tau is that of a "
        "redrawn ranking with the one shown."
    )


def _overall_table(comparison: Comparison) -> str:
    overall = comparison.overall
    lines = [["run", "rank", "mean rank", f"{LEVEL:.0%} interval of rank", "first in"]]
    for place in _by_rank(overall):
        low, high = overall.stability.intervals[place]
        numbers = [f"{overall.ranks[place]:g}", f"{overall.scores[place]:.2f}", f"{low:g} to {high:g}"]
        lines.append([escape_markdown(comparison.runs[place]), *numbers, f"{overall.stability.first[place]:.0%}"])
    return markdown_table(lines, left=1)


def _ranks_table(comparison: Comparison) -> str:
    lines = [["metric", "class", *map(escape_markdown, comparison.runs), "Kendall's tau"]]
    for ranking in comparison.rankings:
        names = [escape_markdown(text or "all") for text in (ranking.metric, ranking.name)]
        lines.append([*names, *(f"{number:g}" for number in ranking.ranks), _tau(ranking)])
    return markdown_table(lines, left=2)


def _tau(ranking: Ranking) -> str:
    stability = ranking.stability
    if stability.kendall_tau is None:
        return "undefined"
    share = f"{stability.undefined:.0%}" if stability.undefined >= 0.01 else "<1%"
    return f"{stability.kendall_tau:.2f}" + (f" (undefined in {share})" if stability.undefined else "")


def _latex_ranking(comparison: Comparison) -> str:
    overall = comparison.overall
    caption = (
        "Significance ranking over all metrics and classes;\n"
        f"intervals and shares of first places from {RANKING_RESAMPLES} bootstrap draws of the cases."
    )
    rows = []
    for place in _by_rank(overall):
        low, high = overall.stability.intervals[place]
        numbers = [f"{overall.ranks[place]:g}", f"{overall.scores[place]:.2f}", f"{low:g} to {high:g}"]
        share = rf"{100 * overall.stability.first[place]:.0f}\%"
        rows.append([escape_latex(comparison.runs[place]), *numbers, share])
    heading = ["Run", "Rank", "Mean rank", rf"{100 * LEVEL:g}\% interval", "First"]
    return latex_table(caption, "lrrrr", heading, [rows])


def _latex_title(metric: ComparedMetric) -> str:
    name = escape_latex(metric.name)
    if metric.definition["better"] == "higher":
        return rf"{name} $\uparrow$"
    return rf"$|${name}$|$ $\downarrow$" if metric.definition["better"] == "zero" else rf"{name} $\downarrow$"


def _latex_cell(metric: ComparedMetric, entry: RunInRow) -> str:
    mean = _value(metric, entry.mean) or "--"
    star = "$^{*}$" if entry.p_adjusted is not None and entry.p_adjusted < ALPHA else ""
    return rf"\textbf{{{mean}}}{star}" if entry.best else f"{mean}{star}"


def _title(metric: ComparedMetric) -> str:
    return f"{escape_markdown(metric.name)} ({_WORDS[metric.definition['better']]})"


def _entries(comparison: Comparison) -> Iterable[tuple[ComparedMetric, ComparedRow, str, RunInRow]]:
    for metric in comparison.metrics:
        for row in metric.rows:
            for run, entry in zip(comparison.runs, row.runs, strict=True):
                yield metric, row, run, entry


def _by_rank(ranking: Ranking) -> list[int]:
    return sorted(range(len(ranking.ranks)), key=lambda place: ranking.ranks[place])


def _value(metric: ComparedMetric, value: float | None, sign: bool = False) -> str:
    """Three decimals for shares, two for what has a unit; empty if undefined."""
    if value is None:
        return ""
    decimals = 3 if metric.definition.get("unit") is None else 2
    return f"{value:{'+' if sign else ''}.{decimals}f}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(texts)
